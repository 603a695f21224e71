"""The benchmark of few lines shown at full size."""

import evaluate
from benchmark import sizes
from images import Picture, write_image
from tests.test_inference import noise


def test_every_method_brings_every_clip_to_its_size(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sizes, "time_method", lambda method: (1.0, 2.0))
    write_image(tmp_path / "data" / "noise" / "a.png", Picture(noise(170, 150)))
    options = ["--frames", "1", "--lines", "360p"]
    assert evaluate.main(["size", "--data", "data", "--checkpoint", str(exported), *options]) == 0
    page = (tmp_path / "results" / "size" / "README.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if "p | " in line]
    assert [row[1] for row in rows] == list(sizes.make_methods(None))
    assert all(5 < float(row[2]) < 40 and 0 <= float(row[3]) <= 1 for row in rows)
    assert page.strip() in capsys.readouterr().out
