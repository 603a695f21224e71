import copy
import json
import math
import re

import pandas as pd
import pytest

import benchmark.report as rp
from benchmark.page import render_page, write_report
from degradation import DataError

# ----------------------------------------------------------------------------------------------------------------------
# Records with figures that are made up

SEEN = {"edges": (1.0, 1.2), "noise": (1.0, 1.1), "halo": (0.0, 0.4), "flicker": (1.2, 1.3)}
METHODS = {"input": 0.0, "student": 58.2, "student, crisp": 59.0, "unsharp mask": 0.41}


def record(method="student", name="a.mkv", condition="x2 x264 qp 22", protocol="call", **metrics):
    identity = {"protocol": protocol, "category": "heads", "name": name, "condition": condition}
    return {**identity, "method": method, "metrics": metrics}


def pair(before, after, metric="psnr_y", **identity):
    """Records of a unit as it came and as the student made it."""
    return [record("input", **{metric: before}, **identity), record(**{metric: after}, **identity)]


def real_pair(name="a.mkv", **changes):
    records = pair([0.0] * 3, [0.0] * 3, protocol="real", name=name, condition="as it is")
    for index, entry in enumerate(records):
        entry["metrics"] = {metric: [levels[index]] * 3 for metric, levels in (SEEN | changes).items()}
        entry["metrics"]["flicker"] = entry["metrics"]["flicker"][:1]
    return records


def camera_pair(camera, before, after, name="a.mkv"):
    records = pair(before, after, protocol="camera", name=name, condition=f"{camera} lens, x1 x264 qp 22")
    return [{**entry, "camera": camera} for entry in records]


def a_report(records, name="first"):
    methods = [{"name": n, "description": f"{n}, <described>", "ms_1080p": ms} for n, ms in METHODS.items()]
    run = {"command": ["python", "evaluate.py", "--data", "my clips"], "commit": "abc1234", "date": "2026-11-22"}
    run |= {"seconds": 1234.5, "machine": {"cpu": "EPYC", "gpu": None}, "versions": {"python": "3.11.7"}}
    run["checkpoint"] = {"checkpoint": "student.pth"}
    return {"name": name, **run, "methods": methods, "records": records, "crops": []}


def summary(records):
    levels, changes = rp.summarise(rp.to_table(records))
    return levels["psnr_y"].to_dict(), changes["psnr_y"].to_dict()


# ----------------------------------------------------------------------------------------------------------------------
# Averages, by hand


def test_each_unit_counts_once():
    """A long clip weighs no more than a short one."""
    levels, changes = summary(pair([30.0] * 4, [31.0] * 4) + pair([40.0, 42.0], [44.0, 44.0], name="b.mkv"))
    assert levels["input"] == (30 + 41) / 2 and changes["student"] == (1 + 3) / 2


def test_infinite_psnr_is_shown_and_left_out_of_means():
    records = pair([math.inf, 30.0], [50.0, 31.0]) + pair([math.inf], [math.inf], name="b.mkv")
    levels, changes = summary(records)
    assert levels["input"] == 30 and changes["student"] == 1
    levels, changes = summary(records[2:])
    assert (
        rp.format_level("psnr_y", levels["student"]) == "inf" and rp.format_change("psnr_y", changes["student"]) == "–"
    )


@pytest.mark.parametrize(
    ("values", "metric", "texts"),
    [
        ([0.104, 0.0961, 0.05, math.nan], "psnr_y", ["**+0.10**", "**+0.10**", "+0.05", "–"]),
        ([-0.2, 0.001], "psnr_y", ["-0.20", "+0.00"]),
        ([-0.00226, 0.1], "ssim_y", ["-0.0023", "**+0.1000**"]),
        ([-0.2, 0.1], "flicker_static", ["**-0.200**", "+0.100"]),
    ],
)
def test_best_is_what_is_printed_best_and_better_than_the_input(values, metric, texts):
    changes = pd.Series({"input": 0.0} | dict(enumerate(values)))
    assert rp.format_column(metric, changes + 30, changes).tolist()[1:] == texts


# ----------------------------------------------------------------------------------------------------------------------
# Tables


def test_pictures_under_the_promised_condition_have_levels_by_category():
    records = []
    for condition, level in (("bicubic+noise", 0.8), ("clean", 0.9)):
        identity = {"protocol": "image", "name": "cat", "condition": condition}
        for entry in pair([level], [level + 0.01], metric="ssim_y", **identity):
            records.append({**entry, "metrics": entry["metrics"] | {"psnr_y": [30.0]}})
    text = rp.markdown_summary(a_report(records))
    assert "Pictures (1 picture, 2 degraded pictures):" in text and "| input | 30.00 | 0.8500 | – |" in text
    promised = text.split("Pictures under bicubic+noise: PSNR-Y (dB) / SSIM-Y:\n\n")[1]
    assert promised == "| method | heads |\n| --- | --- |\n| input | 30.00 / 0.8000 |\n| student | 30.00 / 0.8100 |\n"


def test_soft_and_crisp_cameras_have_tables_of_their_own():
    records = camera_pair("soft", [30.0], [31.0]) + camera_pair("crisp", [40.0, 42.0], [39.5, 41.5], "b.mkv")
    soft, crisp = rp.markdown_summary(a_report(records)).split("Cameras, crisp (1 clip, ")
    assert soft.startswith("Cameras, soft (1 clip, ")
    assert "| input | 30.00 | – |\n| student | **+1.00** | 58.2 |" in soft
    assert "| input | 41.00 | – |\n| student | -0.50 | 58.2 |" in crisp


# ----------------------------------------------------------------------------------------------------------------------
# Two reports


def moved(report, change, metric="psnr_y", method="student"):
    """A copy of a report in which `change(name)` is added to a metric of a method."""
    other = copy.deepcopy(report)
    for entry in other["records"]:
        if entry["method"] == method:
            entry["metrics"][metric] = [value + change(entry["name"]) for value in entry["metrics"][metric]]
    return other


def row_of(a, b, method="student"):
    return next(row for row in rp.compare(a, b).itertuples() if row.method == method)


@pytest.fixture
def six_clips():
    records = []
    for number in range(6):
        for condition in ("x2 x264 qp 22", "x2 x264 qp 32"):
            records += pair([30.0, 31.0], [30.5, 31.5], name=f"{number}.mkv", condition=condition)
    return a_report(records)


def test_a_shift_of_all_clips_is_found(six_clips):
    other = moved(six_clips, lambda name: 0.1 + 0.02 * int(name[0]))
    row = row_of(six_clips, other)
    assert row.difference == pytest.approx(0.15) and 0.1 < row.low < 0.15 < row.high < 0.2
    assert (row.units, row.names, row.verdict) == (12, 6, "better")
    assert row_of(six_clips, other, "input").verdict == "same" and row_of(other, six_clips).verdict == "worse"
    text = rp.format_comparison(rp.compare(six_clips, other), six_clips, other)
    assert re.search(r"student psnr_y +31.00 +31.15 +\+0.15 .* 12 +6 +better", text)
    assert "1 figure the same in every unit" in text and "input itself differs" not in text


def test_less_flicker_is_better_and_one_clip_or_noise_proves_nothing(six_clips):
    assert row_of(six_clips, moved(six_clips, lambda name: (-1) ** int(name[0]))).verdict == ""
    for entry in six_clips["records"]:
        entry["metrics"]["flicker_static"] = [1.0] * 2
    calmer = moved(six_clips, lambda name: -0.2, "flicker_static")
    assert list(rp.compare(six_clips, calmer)["verdict"]) == ["same", "same", "same", "better"]
    single = a_report([entry for entry in six_clips["records"] if entry["name"] == "0.mkv"])
    row = row_of(single, moved(single, lambda name: 1.0))
    assert row.verdict == "" and math.isnan(row.low)


def test_only_what_both_measured_is_compared_and_other_inputs_are_noticed(six_clips):
    other = moved(six_clips, lambda name: float(name == "5.mkv"), method="input")
    other["records"] = [entry for entry in other["records"] if entry["name"] != "3.mkv"]
    rows = rp.compare(six_clips, other)
    assert set(rows["names"]) == {5}
    assert "The input itself differs" in rp.format_comparison(rows, six_clips, other)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b'{"rows": []}'])
def test_files_that_are_no_report_are_refused(tmp_path, content):
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(DataError, match=r"other\.json is no report"):
        rp.load_report(tmp_path / "other.json")


# ----------------------------------------------------------------------------------------------------------------------
# The page


@pytest.fixture
def report():
    records = real_pair() + pair([0.8], [0.81], "ssim_y", protocol="image", name="cup & saucer", condition="clean")
    report = a_report([*records, record("unsharp mask", psnr_y=[29.0]), record("input", psnr_y=[30.0] * 2)])
    crop = {"protocol": "image", "category": "heads", "name": "cup & saucer", "condition": "clean"}
    crop |= {"box": [16, 16, 96, 64], "files": {n: f"crops/{n}.png" for n in ("truth", "input", "student")}}
    return report | {"crops": [crop]}


def test_the_page_holds_the_figures_and_asks_nothing_of_a_network(report, tmp_path):
    write_report(report, tmp_path)
    assert rp.load_report(tmp_path / "report.json") == json.loads(json.dumps(report))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "http" not in page and "python evaluate.py --data &#39;my clips&#39;" in page and "EPYC" in page
    pictures = ["crops/truth.png", "crops/input.png", "crops/student.png"]
    assert re.findall(r'<img .*src="(.*?)"', page) == pictures
    assert re.findall(r"<t[hd]>(.*?)</t[hd]>", page)[:18] == [
        *("method", "edges", "noise", "halo (codes)", "flicker (codes)", "ms at 1080p"),
        *("input", "1.000", "1.000", "0.00", "1.200", "–"),
        *("student", "<b>+0.200</b>", "+0.100", "+0.40", "+0.100", "58.2"),
    ]
    assert "<summary>Pictures, clean (1 picture, 1 degraded picture)" in page


def test_names_cannot_break_the_page(report):
    evil = '"><script>alert(1)</script>&{{ title }}'
    text = json.dumps(report)
    for name in ("cup & saucer", "student", "heads", "cpu", "EPYC"):
        text = text.replace(json.dumps(name), json.dumps(evil))
    assert render_page(json.loads(text)).count("<script>") == 1


VISIT = """(async () => {
  await new Promise((done) => document.readyState === "complete" ? done() : addEventListener("load", done));
  const left = document.getElementById("left"), range = document.querySelector("input");
  left.value = "truth";
  left.dispatchEvent(new Event("change"));
  range.value = 75;
  range.dispatchEvent(new Event("input"));
  const shown = [...document.querySelectorAll("figure:first-child img:not([hidden])")];
  return [shown.map((image) => image.alt), getComputedStyle(shown[0]).clipPath, getComputedStyle(shown[1]).clipPath];
})()"""


def test_a_visitor_moves_the_divider_between_two_pictures(report, browser, tmp_path):
    write_report(report, tmp_path)
    browser("Page.navigate", url=(tmp_path / "report.html").as_uri())
    seen = browser("Runtime.evaluate", expression=VISIT, awaitPromise=True, returnByValue=True)["result"]["value"]
    assert seen == [["truth", "student"], "inset(0px 25% 0px 0px)", "none"]
