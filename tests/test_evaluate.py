import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import skimage.data

import evaluate as ev

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
    arguments += ["--peers", "unsharp mask", "--crisp", "1.5"]
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "| method | cats |" in result.stdout and "folding grid: input" in result.stdout
    path = tmp_path / "results" / "mine" / "report.json"
    report = json.loads(path.read_text("utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    methods = ["input", "student", "student, crisp", "unsharp mask"]
    assert [method["name"] for method in report["methods"]] == methods
    units = {ev.record_key(record) for record in report["records"]}
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


def test_the_script_refuses_bad_input_in_one_line(run, checkpoint, tmp_path):
    for arguments, message in (
        (["--checkpoint", "no.pth"], "no checkpoint"),
        (["--checkpoint", checkpoint, "--device", "cpu", "--data", "nowhere"], "no folder nowhere"),
        (["compare", "a.json", "b.json"], "cannot read the report a.json"),
        (["subjective", "nothing", "--summarise"], "no study"),
    ):
        result = run(*arguments)
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith(f"evaluate.py: {message}") and result.stderr.count("\n") == 1
        assert not (tmp_path / "results").exists()


def test_stimuli_of_a_study_make_a_study(data, student, tmp_path, monkeypatch):
    import models
    from inference import RealTimeSharpener
    from subjective import make_study

    monkeypatch.chdir(tmp_path)
    models.save_student(tmp_path / "student.pth", student, {})
    stimuli = ev.make_stimuli(RealTimeSharpener(tmp_path / "student.pth", "cpu"), data, tmp_path / "stimuli")
    assert [scene["kind"] for scene in stimuli] == ["image", "video", "video"]
    study = make_study(tmp_path / "study", stimuli, seed=0, limit=6)
    assert len([trial for trial in study["trials"] if trial["trap"] is None]) == 6


def test_a_study_that_is_there_is_not_taken_for_another(run, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    result = run("subjective", "study", "--data", "elsewhere", "--seed", "5")
    assert "holds a study already, which is served; for one with --data, --seed name another folder" in result.stdout
    assert "--data" not in run("subjective", "study").stdout
    for option, value, message in (("--seed", "-1", "not a whole number"), ("--port", "70000", "not a port")):
        result = run("subjective", "study", option, value)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
