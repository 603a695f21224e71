"""The commands of evaluate.py, by the main function that the script calls."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pandas as pd
import pytest
import skimage.data

import evaluate
from benchmark import conditions, metrics, speed
from tests.conftest import write_video

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs a command in an empty working directory and returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = evaluate.main(list(map(str, arguments)))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def data(tmp_path):
    """A folder with a category of one picture and one of a short video."""
    (tmp_path / "data" / "cats").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "data" / "cats" / "c.png"), skimage.data.chelsea()[:120, :160, ::-1])
    write_video(tmp_path / "data" / "heads" / "b.mp4", 30, (256, 192))
    return tmp_path / "data"


def test_a_measurement_becomes_a_report(run, data, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "time_methods", lambda methods, size: {})  # takes long, as JOD does
    monkeypatch.setattr(metrics, "jod", lambda *arguments: 9.0)
    arguments = ["--checkpoint", exported, "--data", data, "--device", "cpu", "--peers", "unsharp mask"]
    arguments += ["--protocol", "real", "camera", "x4", "image", "--share", "0.2"]
    code, output, errors = run(*arguments, "--crisp", "1.5", "--name", "mine")
    assert code == 0, errors
    for title in ("Real clips as they are (1 clip", "Cameras, soft (", "Calls from a quarter of the lines (1 clip"):
        assert title in output
    path = tmp_path / "results" / "mine" / "report.json"
    report = json.loads(path.read_text("utf-8"))
    methods = ["input", "student", "student, crisp", "unsharp mask"]
    assert [method["name"] for method in report["methods"]] == methods
    units = [record for record in report["records"] if record["method"] == "student"]
    assert len(report["records"]) == 4 * len(units) and [unit["protocol"] for unit in units].count("real") == 1
    assert {unit["protocol"] for unit in units} == {"real", "camera", "x4", "image"}
    assert 0.2 < len(units) / (1 + 2 * len(conditions.CAMERAS) + 6 + 5) < 0.6
    assert report["command"][:3] == ["python", "evaluate.py", "--checkpoint"]
    for crop in report["crops"]:
        assert set(crop["files"]) == ({*methods} if crop["protocol"] == "real" else {"truth", *methods})
        for file in crop["files"].values():
            assert cv2.imread(str(path.parent / file)).shape == (crop["box"][3], crop["box"][2], 3)
            assert f'src="{file}"' in (path.parent / "report.html").read_text("utf-8")

    code, _, errors = run(*arguments, "--crisp", "1.2", "--name", "other")  # only the crisp student is measured anew
    assert code == 0, errors
    code, output, _ = run("compare", path, tmp_path / "results" / "other" / "report.json")
    assert code == 0 and "student, crisp" in output and "unsharp mask" not in output


def test_calls_of_few_lines_are_brought_to_full_size(run, data, exported, monkeypatch):
    monkeypatch.setattr(speed, "time_methods", lambda methods, size: dict.fromkeys([m.name for m in methods], 1.5))
    monkeypatch.setattr(metrics, "jod", lambda *arguments: 9.0)
    code, output, errors = run("size", "--checkpoint", exported, "--data", data, "--protocol", "360p", "--share", "0.5")
    assert code == 0, errors
    rows = [line.split(" | ") for line in output.splitlines() if line.endswith(" 1.50 |")]
    assert [row[0] for row in rows] == ["| input", "| student", *(f"| {name}" for name in evaluate.SCALERS)]
    assert "Calls of 360 lines at full size (1 clip" in output and "results/size/report.html" in output


def test_viewers_score_sheets_of_real_clips(run, data, exported, tmp_path):
    arguments = ["--data", data, "--checkpoint", exported, "--peers", "unsharp mask"]
    code, output, errors = run("sheets", "blind", *arguments)
    assert code == 0 and "2 sheets: blind/index.html" in output, errors
    key = json.loads((tmp_path / "blind" / "key.json").read_text("utf-8"))
    assert {sheet["scene"] for sheet in key.values()} == {"b.mp4, 1", "b.mp4, 2"}
    scores = {"student": 5, "input": 3, "unsharp mask": 2}
    given = {name: {letter: scores[m] for letter, m in sheet["methods"].items()} for name, sheet in key.items()}
    pd.DataFrame.from_dict(given, orient="index").rename_axis("sheet").to_csv("anna.csv")
    code, output, errors = run("sheets", "blind", "--tally", "anna.csv")
    assert code == 0 and "| unsharp mask | 2.00 | 2 of 2 | 100 % |" in output, errors


def test_bad_input_is_refused_in_one_line(run, exported, data, tmp_path):
    student = ["--checkpoint", exported, "--device", "cpu"]
    for arguments, message in (
        ([*student, "--data", data / "..", "--match", "*.png", "--protocol", "real", "x4"], "nothing fits"),
        ([*student, "--data", data, "--match", "*.gif"], f"{data}: no sub-folder with images or videos fits *.gif"),
        (["sheets", "--checkpoint", exported, "--data", data, "--match", "*.png"], "sheets show real clips"),
        (["--checkpoint", "no.pth"], "no checkpoint"),
        (["compare", "a.json", "b.json"], "[Errno 2] No such file or directory: 'a.json'"),
    ):
        code, _, errors = run(*arguments)
        assert code == 2 and errors.startswith(f"evaluate.py: {message}") and errors.count("\n") == 1, errors
    assert not (tmp_path / "results").exists()


def test_the_script_itself_starts(tmp_path):
    command = [sys.executable, str(ROOT / "evaluate.py"), "--help"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert "compare, sheets" in finished.stdout
