import json
import re
import time

import numpy as np
import pytest

import evaluate as ev
from benchmark import speed
from benchmark.peers import FILTERS, Peer
from benchmark.runner import file_digest
from models import RELEASED_STUDENT

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_command_writes_a_consistent_report(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "SIZES", {"360p": (96, 64), "1080p": (192, 128)})
    arguments = ["speed", "--seconds", "0", "--name", "mine"]
    assert ev.main(arguments) == 0
    folder = tmp_path / "results" / "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "speed.json"]
    report = json.loads((folder / "speed.json").read_text("utf-8"))
    assert report["command"] == ["python", "evaluate.py", *arguments]
    assert report["machine"]["cores"] >= 1 and report["versions"]["torch"]
    assert report["checkpoint"] == {"name": RELEASED_STUDENT.name, "sha256": file_digest(RELEASED_STUDENT)}
    engines = [row["engine"].rpartition(" ")[0] for row in report["engines"] if row["size"] == "360p"]
    assert engines == ["openvino CPU", "torch cpu"]
    assert [peer["name"] for peer in report["peers"]] == [*FILTERS]
    assert all(peer["ms_1080p"] > 0 for peer in report["peers"])
    (file,) = report["files"]
    for row in (*report["engines"], *(file[part] for part in ("whole", "decode", "encode"))):
        assert row["runs"] >= 3 and row["p95_ms"] >= row["median_ms"] > 0
        assert row["fps"] == pytest.approx(1000 / row["median_ms"])
    assert file["frames"] == 150 and file["size"] == "1080p"
    page = (folder / "README.md").read_text("utf-8")
    assert page in capsys.readouterr().out
    assert len(re.findall(r"^\| (openvino|torch) .*\| (360p|1080p) \|", page, re.MULTILINE)) == len(report["engines"])


def test_the_short_form_measures_the_student_alone_and_files(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "SIZES", {"720p": (64, 48), "1080p": (96, 64), "2160p": (128, 96)})
    arguments = ["--checkpoint", str(checkpoint), "--device", "cpu", "--short", "--seconds", "0", "--name", "short"]
    assert ev.main(["speed", *arguments]) == 0
    report = json.loads((tmp_path / "results" / "short" / "speed.json").read_text("utf-8"))
    assert [row["size"] for row in report["engines"]] == ["720p", "1080p", "2160p"]
    assert [(file["size"], file["frames"]) for file in report["files"]] == [(n, 20) for n in ("720p", "1080p", "2160p")]
    assert report["peers"] == [] and "Others" not in capsys.readouterr().out


def test_turns_alternate_until_each_had_its_time():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = speed.time_in_turns(steps, 0, warmup=1, least=4)
    assert "".join(calls) == "ab" + "abababab" and [len(found) for found in times.values()] == [4, 4]
    del calls[:]
    times = speed.time_in_turns(steps, 0, warmup=0, least=2, warm=True)
    assert "".join(calls) == "aabbaabb" and [len(found) for found in times.values()] == [2, 2]
    busy = speed.time_in_turns({"a": lambda: None}, 0.001)["a"]
    assert len(busy) > 3 and sum(busy) >= 0.001


def test_no_frame_of_a_pan_comes_twice():
    frames = list(speed.pan((1300, 600), 3))
    assert len({y.tobytes() for y, _ in frames}) == len({uv.tobytes() for _, uv in frames}) == 3
    for y, uv in frames:
        assert y.shape == (600, 1300) and uv.shape == (2, 300, 650) and y.min() >= 16 and y.max() <= 235
    assert np.array_equal(frames[0][0][2:, 4:], frames[1][0][:-2, :-4])


def test_the_time_of_a_peer_is_that_of_a_full_frame():
    seen, scales = [], []

    def method(y, uv, full_range):
        seen.append((y.shape, uv.shape[1:], full_range))
        time.sleep(0.002)
        return y, uv

    peer = Peer("spy", "", lambda scale: scales.append(scale) or method, is_slow=True)
    assert 2 * 8**2 <= speed.time_peer(peer, seconds=0) < 200 * 8**2
    assert seen == [((135, 240), (68, 120), False)] * 6 and scales == [2]
