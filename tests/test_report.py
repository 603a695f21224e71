import base64
import copy
import html.parser
import io
import json
import math
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

import benchmark.report as rp
import dataset
import degradation
from benchmark.page import write_report
from benchmark.report import ReportError
from utils import bgr_to_planes, luma_metrics, planes_to_bgr

# ----------------------------------------------------------------------------------------------------------------------
# A report as the benchmark writes it: real pictures and codecs, PSNR and SSIM measured, the rest made up from them


def unsharp_mask(y, truth):
    return cv2.addWeighted(y, 1.5, cv2.GaussianBlur(y, (0, 0), 1.0), -0.5, 0)


def towards_truth(share):
    """A student that closes a share of the distance to the truth, and does harm where there is next to none."""

    def method(y, truth):
        error = truth.astype(np.float64) - y
        step = share * error if np.square(error).mean() > 15 else -share * error
        return np.clip(np.rint(y + step), 0, 255).astype(np.uint8)

    return method


METHODS = {
    "input": (lambda y, truth: y, "as it arrives, enlarged with Lanczos", None),
    "student": (towards_truth(0.06), "the released student", 58.2),
    "student crisp": (towards_truth(0.03), "the student at strength 0.5, then <sharpened>", 59.0),
    "unsharp mask": (unsharp_mask, "luma plus half its difference to a blur of one pixel", 0.41),
}


def measure(y, truth, protocol, text=False):
    """Figures of one frame, with PSNR None where nothing differs."""
    psnr, ssim = luma_metrics(y, truth)
    sharpness = cv2.Laplacian(y, cv2.CV_64F).std()
    finite = min(psnr, 60)
    metrics = {"psnr_y": None if math.isinf(psnr) else psnr, "ssim_y": ssim, "ms_ssim": 1 - (1 - ssim) / 3}
    if protocol == "call":
        metrics |= {"vmaf": 2.2 * finite + sharpness - 15, "vmaf_neg": 2.2 * finite + sharpness / 4 - 10}
    elif text:
        metrics["ocr"] = min(1.0, finite / 40)
    return metrics


def add_unit(report, folder, frames, degraded, truths, with_crop, **identity):
    """Measure all methods on one unit; `degraded` and `truths` are planes of the frames whose indices are `frames`."""
    protocol = identity["protocol"]
    files = {}
    for name, (method, _, _) in METHODS.items():
        luma = [method(y, truth) for (y, _), (truth, _) in zip(degraded, truths, strict=True)]
        figures = [
            measure(y, truth, protocol, identity["category"] == "text")
            for y, (truth, _) in zip(luma, truths, strict=True)
        ]
        metrics = {key: [frame[key] for frame in figures] for key in figures[0]}
        if protocol == "call":
            error = float(np.mean([np.abs(y.astype(float) - t).mean() for y, (t, _) in zip(luma, truths, strict=True)]))
            metrics |= {"flicker_static": [error / 8], "flicker_moving": [error / 3]}
        report["records"].append({**identity, "method": name, "frames": frames, "metrics": metrics})
        files[name] = planes_to_bgr(luma[-1], degraded[-1][1])
    if with_crop:
        files["truth"] = planes_to_bgr(*truths[-1])
        number = len(report["crops"])
        names = {name: f"crops/{number:04d}-{name.replace(' ', '-')}.png" for name in files}
        for name, frame in files.items():
            cv2.imwrite(str(folder / names[name]), frame[16:112, 16:112])
        place = {key: identity[key] for key in ("protocol", "category", "name", "condition")}
        report["crops"].append({**place, "frame": frames[-1], "box": [16, 16, 96, 96], "files": names})


def photo_of(name, side):
    photo = getattr(skimage.data, name)()
    photo = np.stack([photo] * 3, axis=2) if photo.ndim == 2 else photo[..., ::-1]
    scale = 1.4 * side / min(photo.shape[:2])
    return cv2.resize(np.ascontiguousarray(photo), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def halve(clip, damage):
    """Planes at half size, damaged, and enlarged again."""
    size = clip[0][0].shape[::-1]
    small = [degradation.resize_planes(*planes, degradation.low_resolution(size, 2), "bicubic") for planes in clip]
    return [degradation.resize_planes(*planes, size) for planes in damage(small)]


def make_report(folder, clips, codecs, pictures, rates=(22, 32, 42), side=128):
    """Write crops and report.json of a synthetic benchmark to `folder`.

    Args:
        clips, pictures: lists of (category, name, name of a photo in `skimage.data`).
        codecs: keys of `degradation.CODECS`.
    """
    (folder / "crops").mkdir(parents=True)
    report = {
        "format": 1,
        "name": "released",
        "command": ["python", "evaluate.py", "--data", "my clips"],
        "commit": "abc1234",
        "date": "2026-11-22",
        "seconds": 1234.5,
        "machine": {"cpu": "EPYC", "cores": 2, "memory_gb": 24.0, "system": "Linux", "gpu": None},
        "versions": {"python": "3.11.7", "torch": "2.15"},
        "checkpoint": {"path": "student.pth", "sha256": "5d50", "parameters": 87864, "engine": "torch cpu", "meta": {}},
        "methods": [{"name": n, "description": text, "ms_1080p": ms} for n, (_, text, ms) in METHODS.items()],
        "records": [],
        "crops": [],
        "worst": [],
    }
    for category, name, photo in clips:
        rng = np.random.default_rng(0)
        clip = [bgr_to_planes(f) for f in dataset.animate(photo_of(photo, side), 6, (side, side), (1.5, 0.5), rng)]
        for codec in codecs:
            for rate in rates:
                decoded = halve(clip, lambda small, c=codec, r=rate: degradation.codec_roundtrip(small, c, r))
                identity = {"protocol": "call", "category": category, "name": name, "scale": 2, "codec": codec}
                identity |= {"condition": f"x2 {codec} qp {rate}", "rate": f"qp {rate}", "kbps": 4000 * 0.88**rate}
                chosen = [decoded[2], decoded[5]], [clip[2], clip[5]]
                add_unit(report, folder, [2, 5], *chosen, rate == rates[1], **identity)
    for category, name, photo in pictures:
        truth = bgr_to_planes(np.ascontiguousarray(photo_of(photo, side)[:side, :side]))
        noisy = [degradation.halve_with_noise(truth, np.random.default_rng(0))]
        for condition, degraded in (("bicubic+noise", noisy), ("clean", [truth])):
            identity = {"protocol": "image", "category": category, "name": name, "condition": condition}
            add_unit(report, folder, [0], degraded, [truth], condition != "clean", **identity)
    units = rp.by_unit(report["records"])
    for crop in report["crops"][:3]:
        unit = units[tuple(crop[key] for key in rp.UNIT)]
        before, after = (unit[name]["metrics"]["ssim_y"][-1] for name in ("input", "unsharp mask"))
        values = {"change": after - before, "input_value": before, "value": after}
        report["worst"].append({**crop, "metric": "ssim_y", "method": "unsharp mask", **values})
    path = folder / "report.json"
    path.write_text(json.dumps(report, allow_nan=False), encoding="utf-8")
    return path


CLIPS = [("talking heads", "face.mkv", "astronaut"), ("objects", "cup & saucer.mkv", "coffee")]
PICTURES = [("people", "astronaut", "astronaut"), ("nature", "chelsea", "chelsea"), ("text", "page", "page")]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_report(tmp_path_factory.mktemp("results") / "released", CLIPS, ("x264", "vp9"), PICTURES)


@pytest.fixture
def report(path):
    return rp.load_report(path)


@pytest.fixture(scope="module")
def page(path):
    return write_report(path)


# ----------------------------------------------------------------------------------------------------------------------
# Averages, by hand


def record(method="student", name="a.mkv", condition="x2 x264 qp 22", frames=(4, 9), protocol="call", **metrics):
    codec, _, rate = condition.removeprefix("x2 ").partition(" ")
    identity = {"protocol": protocol, "category": "heads", "name": name, "condition": condition}
    call = {"scale": 2, "codec": codec, "rate": rate, "kbps": 300.0}
    return {**identity, **call, "method": method, "frames": list(frames), "metrics": metrics}


def a_report(records, name="first"):
    methods = [{"name": method} for method in ("input", "student", "unsharp mask")]
    return {"name": name, "date": "2026-11-22", "commit": None, "methods": methods, "records": records}


def pair(before, after, metric="psnr_y", **identity):
    frames = range(len(before))
    return [
        record("input", frames=frames, **{metric: before}, **identity),
        record(frames=frames, **{metric: after}, **identity),
    ]


def test_each_unit_counts_once():
    """A long clip weighs no more than a short one."""
    records = pair([30, 30, 30, 30], [31, 31, 31, 31]) + pair([40, 42], [44, 44], name="b.mkv")
    by_method = {row["method"]: row for row in rp.summarise(records, ["category"], ["psnr_y", "vmaf"])}
    assert by_method["input"]["level"] == {"psnr_y": (30 + 41) / 2, "vmaf": None}
    assert by_method["student"]["change"] == {"psnr_y": (1 + 3) / 2, "vmaf": None}
    assert by_method["student"]["units"] == 2 and by_method["student"]["category"] == "heads"
    assert [row["condition"] for row in rp.summarise(records, ["condition"], [])] == ["x2 x264 qp 22"] * 2


def test_infinite_psnr_is_shown_and_left_out_of_means():
    records = pair([None, 30.0], [50.0, 31.0]) + pair([None], [None], name="b.mkv")
    (before, after) = rp.summarise(records, [], ["psnr_y"])
    assert before["level"]["psnr_y"] == 30 and after["change"]["psnr_y"] == 1
    (alone,) = rp.summarise(records[2:3], [], ["psnr_y"])
    assert math.isinf(alone["level"]["psnr_y"]) and alone["change"]["psnr_y"] is None
    assert rp.format_level("psnr_y", alone["level"]["psnr_y"]) == "∞"
    # Memory holds infinity where the file holds null.
    assert rp.frame_values(record(psnr_y=[math.inf, 30.0]), "psnr_y") == rp.frame_values(
        record(psnr_y=[None, 30.0]), "psnr_y"
    )


def test_other_figures_that_are_missing_are_left_out():
    assert rp.frame_values(record(vmaf=[None, 80.0]), "vmaf") == {9: 80.0}
    assert rp.frame_values(record(flicker_static=[math.nan]), "flicker_static") == {}
    assert rp.frame_values(record(flicker_static=[0.5]), "flicker_static") == {None: 0.5}


def test_changes_are_taken_on_the_same_frame():
    before, after = (
        record("input", frames=[4, 9, 14], ssim_y=[0.5, 0.6, 0.7]),
        record(frames=[14, 4], ssim_y=[0.9, 0.6]),
    )
    assert rp.frame_changes(after, before, "ssim_y") == pytest.approx([0.2, 0.1])


@pytest.fixture
def with_slow_method():
    """Two clips; a slow method saw one frame of the first, and would look best if that were not told."""
    records = pair([30.0, 32.0], [31.0, 31.5]) + pair([40.0], [40.0], name="b.mkv")
    return [*records, record("unsharp mask", frames=[1], psnr_y=[34.0])]


def test_slow_methods_are_compared_where_all_were_measured(with_slow_method):
    everywhere, shared = rp.comparable(with_slow_method)
    assert {row["method"]: row["change"]["psnr_y"] for row in rp.summarise(everywhere, [], ["psnr_y"])} == {
        "input": 0,
        "student": 0.125,
    }
    rows = {row["method"]: row for row in rp.summarise(shared, [], ["psnr_y"])}
    assert rows["input"]["level"]["psnr_y"] == 32 and rows["input"]["units"] == 1
    assert rows["student"]["change"]["psnr_y"] == -0.5 and rows["unsharp mask"]["change"]["psnr_y"] == 2
    text = rp.markdown_summary(a_report(with_slow_method))
    first, second = text.split("Calls where all methods were measured (1 clip, 1 encoding)")
    assert "unsharp" not in first and "| unsharp mask | **+2.00** | – |" in second
    assert len(rp.comparable(everywhere)) == 1 and rp.comparable([]) == []


def test_groups_show_only_methods_measured_throughout(with_slow_method):
    groups = rp.by_group(with_slow_method, ["category"], ["psnr_y"])
    assert list(groups[("heads",)]) == ["input", "student"]
    groups = rp.by_group(with_slow_method, ["category", "name"], ["psnr_y"])
    assert list(groups["heads", "a.mkv"]) == ["input", "student", "unsharp mask"]
    assert set(rp.rate_points(with_slow_method, "psnr_y")["x264", 2]["qp"]) == {"input", "student"}


def test_harm_counts_frames_beyond_the_tolerance():
    records = pair([30.0, 30.0, 30.0, None], [29.94, 29.96, 31.0, 50.0]) + pair([30.0], [29.5], name="b.mkv")
    found = rp.harm(records, "student", "psnr_y")
    assert found["frames"] == 5 and found["share"] == 3 / 5  # 0.06 dB, the one that was identical, 0.5 dB
    assert found["worst"] == (("call", "heads", "b.mkv", "x2 x264 qp 22"), -0.5)
    assert rp.harm(records, "student", "vmaf") is None
    harmless = rp.harm(pair([0.9, None], [0.91, 1.0], metric="ssim_y"), "student", "ssim_y")
    assert harmless == {"frames": 1, "share": 0, "worst": None}


def test_best_is_what_is_printed_best_and_better_than_the_input():
    assert rp.best_methods({"a": 0.104, "b": 0.0961, "c": 0.05, "d": None}, "psnr_y") == {"a", "b"}
    assert rp.best_methods({"a": -0.2, "b": 0.001}, "psnr_y") == set()
    assert rp.best_methods({"a": -0.2, "b": 0.1}, "flicker_static") == {"a"}


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("psnr_y", 0.184, "+0.18"),
        ("psnr_y", -0.004, "0.00"),
        ("ssim_y", -0.00226, "−0.0023"),
        ("psnr_y", None, "–"),
        ("psnr_y", math.nan, "–"),
    ],
)
def test_changes_are_printed_with_their_sign(metric, value, text):
    assert rp.format_change(metric, value) == text


def test_rate_points_are_sorted_means_over_clips():
    records = []
    for qp, before in ((37, 30.0), (22, 40.0)):
        records += pair([before], [before + 1], condition=f"x2 x264 qp {qp}")
        records += pair([before + 2], [before + 5], condition=f"x2 x264 qp {qp}", name="b.mkv")
    records += pair([35.0], [35.5], condition="x2 x264 300k")
    for entry in records:
        entry["kbps"] = {"a.mkv": 100.0, "b.mkv": 400.0}[entry["name"]]
    ((key, panel),) = rp.rate_points(records, "psnr_y").items()
    assert key == ("x264", 2) and set(panel) == {"qp", "kbps", "bitrate"}
    assert panel["qp"]["student"] == [(22, 43.0, 2.0), (37, 33.0, 2.0)]
    assert [point[0] for point in panel["kbps"]["input"]] == pytest.approx([200, 200])
    assert [point[1:] for point in panel["bitrate"]["student"]] == [(35.5, 0.5)]


def test_markdown_of_a_report():
    records = [*pair([30.0], [30.5]), record("unsharp mask", frames=[0], psnr_y=[29.0])]
    for condition, level in (("bicubic+noise", 0.8), ("clean", 0.9)):
        levels = [level], [level + 0.01]
        records += pair(*levels, metric="ssim_y", protocol="image", name="cat", condition=condition)
    text = rp.markdown_summary(a_report(records))
    assert "| input | 30.00 | – |\n| student | **+0.50** | – |\n| unsharp mask | −1.00 | – |" in text
    assert "Calls (1 clip, 1 encoding):" in text and "by condition (1 picture; changes of SSIM-Y):" in text
    assert "| method | heads |\n| --- | --- |\n| input | 0.8000 |\n| student | **0.8100** |" in text
    assert "| input | 0.8000 | 0.9000 |\n| student | **+0.0100** | **+0.0100** |" in text


# ----------------------------------------------------------------------------------------------------------------------
# Real clips and cameras

SEEN = {"edges": (1.0, 1.2), "noise": (1.0, 1.1), "halo": (0.0, 0.4), "flicker": (1.2, 1.3)}


def real_pair(name="a.mkv", **changes):
    """Records of a real clip of three frames, as it came and as the student made it."""
    records = []
    for index, method in enumerate(("input", "student")):
        figures = {metric: [levels[index]] * 3 for metric, levels in (SEEN | changes).items()}
        figures["flicker"] = figures["flicker"][:1]
        identity = {"protocol": "real", "category": "heads", "name": name, "condition": "as it is"}
        records.append({**identity, "method": method, "frames": [10, 11, 12], "metrics": figures})
    return records


def camera_pair(camera, before, after, name="a.mkv"):
    records = pair(before, after, protocol="camera", name=name, condition=f"{camera} lens, x1 x264 qp 22")
    for entry in records:
        entry |= {"camera": camera, "scale": 1, "codec": "x264", "rate": "qp 22"}
    return records


def test_tables_of_real_clips_show_what_a_viewer_sees():
    records = real_pair() + real_pair("b.mkv", noise=(1.0, 0.9), edges=(1.0, 1.4))
    text = rp.markdown_summary(a_report(records))
    assert text.startswith("Real clips as they are (2 clips, ")
    assert "| method | edges | noise | halo (codes) | flicker (codes) | ms at 1080p |" in text
    assert "| input | 1.000 | 1.000 | 0.00 | 1.200 | – |" in text
    assert "| student | **+0.300** | 0.000 | +0.40 | +0.100 | – |" in text  # of the others less is better
    calmer = rp.markdown_summary(a_report(real_pair(noise=(1.0, 0.9), flicker=(1.2, 1.1))))
    assert "| student | **+0.200** | **−0.100** | +0.40 | **−0.100** | – |" in calmer


def test_soft_and_crisp_cameras_have_tables_of_their_own():
    records = camera_pair("soft", [30.0], [31.0]) + camera_pair("crisp", [40.0, 42.0], [39.5, 41.5], "b.mkv")
    text = rp.markdown_summary(a_report(records))
    soft, crisp = text.split("\n\nCameras, crisp (1 clip, ")
    assert soft.startswith("Cameras, soft (1 clip, ")
    assert "| input | 30.00 | – |\n| student | **+1.00** | – |" in soft
    assert "| input | 41.00 | – |\n| student | −0.50 | – |" in crisp
    assert list(rp.by_camera(records)) == [", soft", ", crisp"] and list(rp.by_camera(records[:2])) == [", soft"]


def test_no_harm_is_counted_where_no_truth_is_known():
    records = real_pair()
    assert not rp.measured(records, rp.HARM_METRICS)
    assert rp.unit_changes(records, "student", "flicker") == {
        ("real", "heads", "a.mkv", "as it is"): pytest.approx(0.1),
    }
    assert rp.rate_points(records + camera_pair("soft", [30.0], [31.0]), "psnr_y") == {}  # curves are of calls


# ----------------------------------------------------------------------------------------------------------------------
# Two reports


def moved(report, metric, change, method="student"):
    """A copy of a report in which `change(name)` is added to a metric of a method."""
    other = copy.deepcopy(report)
    for entry in other["records"]:
        if entry["method"] == method and metric in entry["metrics"]:
            entry["metrics"][metric] = [value + change(entry["name"]) for value in entry["metrics"][metric]]
    return other


@pytest.fixture
def six_clips():
    records = []
    for number in range(6):
        for condition in ("x2 x264 qp 22", "x2 x264 qp 32"):
            records += pair([30.0, 31.0], [30.5, 31.5], name=f"{number}.mkv", condition=condition)
    return a_report(records)


def test_equal_reports_do_not_differ(six_clips):
    comparison = rp.compare(six_clips, copy.deepcopy(six_clips))
    assert {row["verdict"] for row in comparison["rows"]} == {"same"}
    assert not any(comparison[key] for key in comparison if key != "rows")
    assert "the same in every unit: input, student" in rp.format_comparison(comparison, six_clips, six_clips)


def test_a_shift_of_all_clips_is_found(six_clips):
    other = moved(six_clips, "psnr_y", lambda name: 0.1 + 0.02 * int(name[0]))
    rows = {row["method"]: row for row in rp.compare(six_clips, other)["rows"]}
    row = rows["student"]
    assert row["difference"] == pytest.approx(0.15) and 0.1 < row["low"] < 0.15 < row["high"] < 0.2
    assert (row["units"], row["names"], row["verdict"]) == (12, 6, "better") and rows["input"]["verdict"] == "same"
    assert rp.compare(other, six_clips)["rows"][1]["verdict"] == "worse"
    text = rp.format_comparison(rp.compare(six_clips, other), six_clips, other)
    assert re.search(r"student +psnr_y +31.00 +31.15 +\+0.15 .* 12 +6 +better \*", text)
    text.encode("cp1252")  # a Windows terminal can print it


def test_less_flicker_is_better(six_clips):
    for entry in six_clips["records"]:
        entry["metrics"] = {"flicker_static": [1.0]}
    (_, row) = rp.compare(six_clips, moved(six_clips, "flicker_static", lambda name: -0.2))["rows"]
    assert row["verdict"] == "better" and row["difference"] == pytest.approx(-0.2)


def test_one_clip_or_noise_proves_nothing(six_clips):
    noisy = moved(six_clips, "psnr_y", lambda name: (-1) ** int(name[0]))
    assert [row["verdict"] for row in rp.compare(six_clips, noisy)["rows"]] == ["same", ""]
    single = a_report([entry for entry in six_clips["records"] if entry["name"] == "0.mkv"])
    (_, row) = rp.compare(single, moved(single, "psnr_y", lambda name: 1.0))["rows"]
    assert row["verdict"] == "" and math.isnan(row["low"])


def test_the_buckets_that_moved_most_are_named(six_clips):
    other = moved(six_clips, "psnr_y", lambda name: {"2.mkv": 0.5, "3.mkv": 0.2, "4.mkv": -0.25}.get(name, 0))
    comparison = rp.compare(six_clips, other)
    assert [bucket["unit"][2] for bucket in comparison["improved"]] == ["2.mkv", "2.mkv", "3.mkv", "3.mkv"]
    assert [bucket["unit"][2] for bucket in comparison["worsened"]] == ["4.mkv"] * 2
    assert comparison["improved"][0]["score"] == pytest.approx(10)
    assert " -5.0  student: call / heads / 4.mkv / x2 x264 qp 22: psnr_y -0.25" in rp.format_comparison(
        comparison, six_clips, other
    )


def test_what_has_no_match_is_counted_and_named(six_clips):
    other = copy.deepcopy(six_clips)
    other["records"] = [entry for entry in other["records"] if entry["name"] != "3.mkv"]
    other["records"] += [
        {**entry, "method": "unsharp mask"} for entry in other["records"] if entry["method"] == "student"
    ]
    comparison = rp.compare(six_clips, other)
    assert len(comparison["only_a"]) == 4 and not comparison["only_b"] and comparison["missing_a"] == ["unsharp mask"]
    text = rp.format_comparison(comparison, six_clips, other)
    assert "4 records only in the report before\n  call / heads / 3.mkv / x2 x264 qp 22: input, student" in text
    assert "only the report after has: unsharp mask" in text
    assert "no record of one report has a match" in rp.format_comparison(
        rp.compare(six_clips, a_report([])), six_clips, a_report([])
    )


def test_other_inputs_are_noticed(six_clips):
    other = moved(six_clips, "psnr_y", lambda name: float(name == "5.mkv"), method="input")
    assert "input itself differs in 2 units" in rp.format_comparison(rp.compare(six_clips, other), six_clips, other)


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def camera_without(key):
    records = camera_pair("soft", [30.0], [31.0])
    del records[1][key]
    return records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.update(format=2), "has format 2"),
        (lambda report: report.pop("worst"), "worst missing"),
        (lambda report: report.update(records=[]), "no records"),
        (lambda report: report["records"][3].pop("method"), r"records\[3\] lacks method"),
        (lambda report: report["records"][3].pop("codec"), r"records\[3\] lacks codec"),
        (lambda report: report["crops"][1].pop("box"), r"crops\[1\] lacks box"),
        (lambda report: report["records"].extend(camera_without("rate")), r"records\[\d+\] lacks rate"),
        (lambda report: report["records"].extend(camera_without("camera")), r"records\[\d+\] lacks camera"),
        (lambda report: report["records"][0]["metrics"]["psnr_y"].append(1.0), "3 values of psnr_y for 2 frames"),
        (lambda report: report["records"].append(report["records"][0]), "face.mkv / x2 x264 qp 22 holds input twice"),
        (lambda report: report["records"].pop(0), "face.mkv / x2 x264 qp 22 was not measured for the method input"),
        (lambda report: report["methods"].pop(1), "the method student is not listed"),
    ],
)
def test_broken_reports_are_refused(report, tmp_path, change, message):
    change(report)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(ReportError, match=message):
        rp.load_report(path)


def test_files_that_are_no_report_are_refused(tmp_path):
    with pytest.raises(ReportError, match=r"cannot read the report .*No such file"):
        rp.load_report(tmp_path / "report.json")
    for content, message in ((b"{", "is no JSON"), (b"\xff\xfe\x00", "is no JSON"), (b'{"psnr": 1}', "not a report")):
        (tmp_path / "other.json").write_bytes(content)
        with pytest.raises(ReportError, match=message):
            rp.load_report(tmp_path / "other.json")


# ----------------------------------------------------------------------------------------------------------------------
# The page

VOID = {"meta", "img", "input", "br", "use", "path", "rect"}


class Outline(html.parser.HTMLParser):
    """Checks that elements are closed in order, and collects their attributes and the cells of tables."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.rows = [], [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and "tr" in self.open:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def outline_of(text):
    outline = Outline()
    outline.feed(text)
    assert not outline.open
    return outline


def test_the_page_is_well_formed_and_asks_nothing_of_a_network(page, report):
    text = page.read_text(encoding="utf-8")
    elements = outline_of(text).elements
    for tag, attributes in elements:
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith("#") and attributes.get("xlink:href", "#").startswith("#"), tag
        assert tag not in ("link", "iframe", "object", "embed")
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"|http-equiv', "", text) and "@import" not in text
    names = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(names) == len(set(names))
    referred = {attributes["xlink:href"][1:] for _, attributes in elements if "xlink:href" in attributes}
    referred |= set(re.findall(r"url\(#([^)]*)\)", text))
    referred |= {attributes["href"][1:] for tag, attributes in elements if tag == "a"}
    assert referred and referred <= set(names)
    assert not re.search(r"#(1a000|5e..01)", text)  # every stand-in for a colour was replaced
    assert len([tag for tag, _ in elements if tag == "img"]) == sum(len(c["files"]) for c in report["crops"]) + 3 * 3


def test_the_pictures_inside_are_those_of_the_report(page, path, report):
    images = [attributes for tag, attributes in outline_of(page.read_text(encoding="utf-8")).elements if tag == "img"]
    crop = report["crops"][0]
    for attributes in images[: len(crop["files"])]:
        data = base64.b64decode(attributes["src"].partition("base64,")[2])
        inside = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., ::-1]
        original = cv2.imread(str(path.parent / crop["files"][attributes["data-picture"]]))
        assert inside.shape == original.shape == (96, 96, 3)
        assert luma_metrics(bgr_to_planes(inside)[0], bgr_to_planes(original)[0])[0] > 38


def test_the_tables_hold_the_figures(page, report):
    rows = outline_of(page.read_text(encoding="utf-8")).rows
    calls = [entry for entry in report["records"] if entry["protocol"] == "call"]
    expected = {row["method"]: row for row in rp.summarise(calls, [], ["psnr_y", "ssim_y", "vmaf_neg"])}
    summary = {row[0]: row for row in rows[1:5]}
    assert rows[0][:3] == ["method", "PSNR-Y (dB)", "SSIM-Y"] and rows[0][-1] == "ms at 1080p"
    assert summary["input"][1] == f"{expected['input']['level']['psnr_y']:.2f}"
    for name in ("student", "unsharp mask"):
        assert summary[name][1] == rp.format_change("psnr_y", expected[name]["change"]["psnr_y"])
        assert summary[name][2] == rp.format_change("ssim_y", expected[name]["change"]["ssim_y"])
    assert summary["student"][-1] == "58.2" and summary["input"][-1] == "–"
    text = page.read_text(encoding="utf-8")
    assert f'<td class="best">{summary["student"][2]}</td>' in text
    assert summary["student"][6][0] == "−" and f'<td class="best">{summary["student"][6]}</td>' in text  # less flicker
    pages = [entry for entry in report["records"] if entry["category"] == "text"]
    lost = next(
        row["change"]["ssim_y"] for row in rp.summarise(pages, [], ["ssim_y"]) if row["method"] == "unsharp mask"
    )
    assert lost < 0 and f'<td class="worse">{rp.format_change("ssim_y", lost)}</td>' in text
    assert "python evaluate.py --data &#x27;my clips&#x27;" in text and "then &lt;sharpened&gt;" in text


def test_input_and_student_are_compared_at_first(page):
    text = page.read_text(encoding="utf-8")
    form = text[text.index('<form id="view"') : text.index("</form>")]
    assert re.findall(r'value="([^"]*)" selected', form) == ["input", "student", "", "", "fit"]
    figure = text[text.index('<figure class="crop"') :].partition("</figure>")[0]
    assert re.findall(r'data-picture="([^"]*)"[^>]*?( hidden)? alt', figure) == [
        ("truth", " hidden"),
        ("input", ""),
        ("student", ""),
        ("student crisp", " hidden"),
        ("unsharp mask", " hidden"),
    ]


def test_names_cannot_break_the_page(path, report, tmp_path):
    evil = '"><script>alert(1)</script>&$title'
    text = path.read_text(encoding="utf-8").replace('"face.mkv"', json.dumps(evil))
    text = text.replace('"student crisp"', json.dumps(evil)).replace('"talking heads"', json.dumps(evil))
    text = text.replace('"cpu": "EPYC"', f"{json.dumps(evil)}: {json.dumps(evil)}")
    shutil.copytree(path.parent / "crops", tmp_path / "crops")
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    elements = outline_of(write_report(tmp_path / "report.json").read_text(encoding="utf-8")).elements
    assert len([tag for tag, _ in elements if tag == "script"]) == 1


def page_of(report, records, path, folder):
    """The page of these records of a report, as text and as `Outline`."""
    shutil.copytree(path.parent / "crops", folder / "crops", dirs_exist_ok=True)
    part = {**report, "worst": [], "crops": [], "records": records}
    (folder / "report.json").write_text(json.dumps(part), encoding="utf-8")
    text = write_report(folder / "report.json").read_text(encoding="utf-8")
    return text, outline_of(text)


def test_a_page_shows_real_clips_and_cameras_first(report, path, tmp_path):
    seen = real_pair() + real_pair("b.mkv")
    seen += camera_pair("soft", [30.0], [31.0]) + camera_pair("crisp", [40.0, 42.0], [39.5, 41.5], "b.mkv")
    text, outline = page_of(report, seen + report["records"], path, tmp_path)
    assert "student, mean change: real clips as they are" in text
    tiles = re.findall(r"<dt>(.*?)</dt><dd><b>(.*?)</b>", text)
    assert tiles[:4] == [
        ("edges", "+0.200"),
        ("noise", "+0.100"),
        ("halo (codes)", "+0.40"),
        ("flicker (codes)", "+0.100"),
    ]
    assert outline.rows[0] == ["method", "edges", "noise", "halo (codes)", "flicker (codes)", "ms at 1080p"]
    assert outline.rows[1][1:5] == ["1.000", "1.000", "0.00", "1.200"] and outline.rows[2][1] == "+0.200"
    assert '<td class="worse">+0.40</td>' in text
    groups = re.findall(r'class="group"><span>(.*?)</span>', text)
    assert groups[:2] == ["soft, 1 bucket", "crisp, 1 bucket"]
    options = re.findall(r'<option value="(real|camera|call|x4|image)">(.*?)</option>', text)
    assert options == [(name, rp.PROTOCOLS[name][0]) for name in ("real", "camera", "call", "image")]
    assert 'id="curves"' in text and 'id="cost"' in text


def test_a_page_of_real_clips_alone_counts_no_harm(report, path, tmp_path):
    text, outline = page_of(report, real_pair() + real_pair("b.mkv"), path, tmp_path)
    assert outline.rows[0][1] == "edges" and "Real clips as they are: mean change over 2 clips in 2 buckets" in text
    assert not any(f'id="{section}"' in text for section in ("curves", "cost", "harm", "pictures", "worst"))


def test_one_protocol_alone_makes_a_page(report, path, tmp_path):
    shutil.copytree(path.parent / "crops", tmp_path / "crops")
    for protocol, present, absent in (("call", 'id="curves"', "Pictures:"), ("image", "Pictures:", 'id="curves"')):
        part = {**report, "worst": [], "crops": []}
        part["records"] = [entry for entry in report["records"] if entry["protocol"] == protocol]
        (tmp_path / "report.json").write_text(json.dumps(part), encoding="utf-8")
        text = write_report(tmp_path / "report.json").read_text(encoding="utf-8")
        assert present in text and absent not in text and 'id="pictures"' not in text
        outline_of(text)


def test_a_missing_picture_is_named_and_no_page_is_left(report, tmp_path):
    for place in ("records", "crops"):
        report[place] = [entry for entry in report[place] if entry["protocol"] == "image"]
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(ReportError, match=r"cannot read the picture .*-truth.png \(No such file"):
        write_report(tmp_path / "report.json")
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


# ----------------------------------------------------------------------------------------------------------------------
# The page in a browser

# What a visitor does, and what the page then looks like, told to the page around it.
VISIT = """<script>
addEventListener("load", () => {
  const seen = {};
  const crop = document.querySelector(".crop:not([hidden])");
  const layers = crop.querySelector(".layers"), range = crop.querySelector("input");
  const shown = () => [...crop.querySelectorAll("img:not([hidden])")].map((image) => image.dataset.picture);
  const split = () => layers.style.getPropertyValue("--split");
  const choose = (select, value) => {
    select.value = value;
    select.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const root = document.documentElement;
  seen.width = [innerWidth, root.clientWidth, root.scrollWidth];
  seen.address = [shown(), split(), range.getAttribute("aria-valuetext"), crop.querySelector(".names").textContent];
  range.value = 75;
  range.dispatchEvent(new Event("input"));
  seen.slider = [split(), getComputedStyle(crop.querySelector("img.left")).clipPath];
  const place = layers.getBoundingClientRect();
  const pointer = (type, x, kind) => layers.dispatchEvent(new PointerEvent(type, { pointerId: 1, pointerType: kind,
    clientX: place.left + x * place.width, clientY: place.top + 5 }));
  layers.setPointerCapture = () => {}; // a pointer that is not real cannot be captured
  pointer("pointerdown", 0.1, "touch");
  seen.finger = split();
  pointer("pointerdown", 0.1, "mouse");
  seen.mouse = split();
  choose(document.querySelector("#view [name=zoom]"), "8");
  seen.zoom = [crop.querySelector("img.left").getBoundingClientRect().width,
    getComputedStyle(crop.querySelector("img.left")).imageRendering, document.getElementById("worst-zoom").value];
  choose(document.querySelector("#view [name=category]"), "objects");
  seen.objects = [...document.querySelectorAll(".crop:not([hidden])")].map((crop) => crop.dataset.category);
  seen.hash = location.hash;
  choose(document.querySelector("#curves [data-key=axis]"), "kbps");
  seen.panels = [...document.querySelectorAll("#curves .panel:not([hidden])")].map((panel) => ({ ...panel.dataset }));
  const box = document.querySelector("[data-series=series-3]");
  box.checked = false;
  box.dispatchEvent(new Event("change"));
  seen.curves = [1, 3].map((i) => document.querySelector("#curves .panel:not([hidden]) .series-" + i).style.display);
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>"""

# A window of Chromium is not as narrow as a phone, a frame is.
PHONE = """<!DOCTYPE html><pre id="seen"></pre>
<script>addEventListener("message", (event) => { document.getElementById("seen").textContent = event.data; });</script>
<iframe style="width: 390px; height: 844px; border: 0" src="visited.html#left=truth&right=unsharp+mask&split=30">
</iframe>"""


@pytest.fixture(scope="module")
def seen(page, tmp_path_factory):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    folder = tmp_path_factory.mktemp("visit")
    visited = page.read_text(encoding="utf-8").replace("</body>", VISIT + "</body>")
    (folder / "visited.html").write_text(visited, encoding="utf-8")
    (folder / "phone.html").write_text(PHONE, encoding="utf-8")
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    quiet += "--disable-component-update --disable-sync --virtual-time-budget=4000 --dump-dom"
    result = subprocess.run(
        [browser, *quiet.split(), f"--user-data-dir={folder / 'profile'}", (folder / "phone.html").as_uri()],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    found = re.search(r'<pre id="seen">(.+?)</pre>', result.stdout, re.DOTALL)
    assert found, result.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def test_the_address_says_what_is_compared(seen):
    pictures, split, value, names = seen["address"]
    assert set(pictures) == {"truth", "unsharp mask"} and (split, value) == ("30.00%", "30 % truth")
    assert re.fullmatch(r"truthunsharp mask\d\d\.\d\d dB / 0\.\d{4}", names)


def test_the_slider_and_the_mouse_move_the_divider(seen):
    assert seen["slider"] == ["75.00%", "inset(0px 25% 0px 0px)"]
    assert seen["finger"] == "75.00%"  # it may be about to scroll
    assert seen["mouse"] == "10.00%"


def test_pictures_are_enlarged_by_whole_pixels(seen):
    assert seen["zoom"] == [8 * 96, "pixelated", "8"]


def test_pictures_and_curves_can_be_chosen(seen):
    assert seen["objects"] == ["objects", "objects"]
    assert seen["hash"].startswith("#left=truth&") and "category=objects" in seen["hash"] and "zoom=8" in seen["hash"]
    assert seen["panels"] == [{"metric": "psnr_y", "axis": "kbps"}]
    assert seen["curves"] == ["", "none"]


def test_nothing_is_wider_than_a_phone(seen):
    window, visible, page = seen["width"]
    assert window == 390 and page == visible  # but for a scroll bar
