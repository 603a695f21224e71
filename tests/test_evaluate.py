import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import skimage.data

from benchmark import conditions
from benchmark.runner import record_key
from tests.conftest import write_video

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path):
    """Run the script in an empty working directory; its results and caches lie there."""

    def run(*arguments):
        command = [sys.executable, str(ROOT / "evaluate.py"), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data" / "cats").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "data" / "cats" / "a.png"), skimage.data.chelsea()[:120, :160, ::-1])
    return tmp_path / "data"


def test_the_script_writes_a_report(run, data, checkpoint, tmp_path):
    arguments = ["--checkpoint", checkpoint, "--data", data, "--device", "cpu", "--name", "mine", "--codecs", "x264"]
    arguments += ["--protocol", "call", "image", "--peers", "unsharp mask", "--crisp", "1.5"]
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "| method | cats |" in result.stdout
    path = tmp_path / "results" / "mine" / "report.json"
    report = json.loads(path.read_text("utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    methods = ["input", "student", "student, crisp", "unsharp mask"]
    assert [method["name"] for method in report["methods"]] == methods
    units = {record_key(record) for record in report["records"]}
    assert len(units) == 5 + 7 and len(report["records"]) == 4 * len(units)
    (clean,) = (r for r in report["records"] if r["condition"] == "clean" and r["method"] == "input")
    assert clean["metrics"]["psnr_y"] == [None] and clean["metrics"]["ssim_y"] == [1]
    assert report["checkpoint"]["parameters"] > 0 and report["command"][:3] == ["python", "evaluate.py", "--checkpoint"]
    for crop in report["crops"] + report["worst"]:
        assert set(crop["files"]) == {"truth", *methods}
        for file in crop["files"].values():
            assert cv2.imread(str(path.parent / file)).shape == (crop["box"][3], crop["box"][2], 3)
    page = (path.parent / "report.html").read_text("utf-8")
    assert "data:image/" in page and "x264 qp 27" in page

    again = run(*arguments[:-1], "1.2", "--name", "other")  # only the crisp student is measured anew
    assert again.returncode == 0, again.stderr
    compared = run("compare", path, tmp_path / "results" / "other" / "report.json")
    assert compared.returncode == 0 and "student, crisp" in compared.stdout


@pytest.fixture
def videos(tmp_path):
    """A folder with one category of one short video."""
    write_video(tmp_path / "videos" / "heads" / "a.mp4", 30, (256, 192))
    return tmp_path / "videos"


def test_real_clips_and_cameras_are_reported(run, videos, checkpoint, tmp_path):
    arguments = ["--checkpoint", checkpoint, "--data", videos, "--device", "cpu", "--name", "mine", "--codecs", "x264"]
    result = run(*arguments, "--protocol", "real", "camera", "--peers", "unsharp mask")
    assert result.returncode == 0, result.stderr
    for title in ("Real clips as they are (1 clip", "Cameras, soft (1 clip", "Cameras, crisp (1 clip"):
        assert title in result.stdout
    path = tmp_path / "results" / "mine" / "report.json"
    report = json.loads(path.read_text("utf-8"))
    protocols = [record["protocol"] for record in report["records"] if record["method"] == "student"]
    assert protocols == ["real"] + ["camera"] * len(conditions.CAMERAS)
    methods = {"input", "student", "unsharp mask"}
    for crop in report["crops"]:
        assert set(crop["files"]) == (methods if crop["protocol"] == "real" else {"truth", *methods})
    assert {crop["protocol"] for crop in report["crops"]} == {"real", "camera"}
    page = (path.parent / "report.html").read_text("utf-8")
    assert "mean change: real clips as they are" in page and "out of focus" in page


def test_viewers_score_sheets_that_do_not_tell_the_methods(run, videos, checkpoint, tmp_path):
    arguments = ["--data", videos, "--checkpoint", checkpoint, "--peers", "unsharp mask", "--crops", "2"]
    result = run("sheets", "blind", *arguments)
    assert result.returncode == 0 and "2 sheets and scores.csv are in blind" in result.stdout, result.stderr
    folder = tmp_path / "blind"
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["sheet-01.png", "sheet-02.png"]
    key = json.loads((folder / "key.json").read_text("utf-8"))
    assert {sheet["scene"] for sheet in key.values()} == {"a.mp4, 1", "a.mp4, 2"}
    lines = ["sheet,A,B,C"]
    for name, sheet in key.items():
        scores = {"student": 5, "input": 3, "unsharp mask": 2}
        lines.append(",".join([name, *(str(scores[sheet["methods"][letter]]) for letter in "ABC")]))
    (tmp_path / "anna.csv").write_text("\n".join(lines))
    tally = run("sheets", "blind", "--tally", "anna.csv")
    assert tally.returncode == 0 and "| unsharp mask | 2.00 | 2 of 2 | 100 % |" in tally.stdout, tally.stderr


def test_the_script_refuses_bad_input_in_one_line(run, checkpoint, data, tmp_path):
    for arguments, message in (
        (["--checkpoint", checkpoint, "--device", "cpu", "--data", data, "--protocol", "real", "x4"], "nothing fits"),
        (["sheets", "--checkpoint", checkpoint, "--data", data], "sheets show real clips"),
        (["--checkpoint", "no.pth"], "no checkpoint"),
        (["compare", "a.json", "b.json"], "cannot read the report a.json"),
        (["subjective", "nothing", "--summarise", "a.json"], "nothing holds no key.json"),
        (["subjective", "--checkpoint", checkpoint, "--data", "nowhere"], "no folder nowhere"),
    ):
        result = run(*arguments)
        assert result.returncode == 2, result.stderr
        lines = [line for line in result.stderr.splitlines() if not line.startswith("PyTorch is used")]
        assert len(lines) == 1 and lines[0].startswith(f"evaluate.py: {message}"), result.stderr
        assert not (tmp_path / "results").exists()


def test_a_study_of_clips_and_of_pans_over_pictures_is_one_page(run, data, videos, checkpoint, tmp_path):
    arguments = ["--checkpoint", checkpoint, "--limit", "6"]
    for source, scenes in (
        (data, {"a.png, x2 x264 qp 32"}),
        (videos, {"a.mp4, 1", "a.mp4, 2", "a.mp4, x2 x264 qp 32"}),
    ):
        result = run("subjective", source.name, *arguments, "--data", source)
        assert result.returncode == 0 and "study.html is the study" in result.stdout, result.stderr
        key = json.loads((tmp_path / source.name / "key.json").read_text("utf-8"))
        assert scenes <= {trial["scene"] for trial in key["trials"].values()}
        assert set(key["methods"]) == {"input", "student", "unsharp mask", "truth"}
        assert len([trial for trial in key["trials"].values() if not trial["trap"]]) == 6
    again = run("subjective", source.name, *arguments)
    assert again.returncode == 2 and "holds a study already" in again.stderr
    result = run("subjective", "--seed", "-1")
    assert result.returncode == 2 and "not a whole number" in result.stderr and "Traceback" not in result.stderr
