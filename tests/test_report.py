import base64
import copy
import html.parser
import io
import json
import math
import re

import cv2
import numpy as np
import pytest
from PIL import Image

import benchmark.report as rp
from benchmark.page import render_page, write_report
from degradation import DataError

# ----------------------------------------------------------------------------------------------------------------------
# Records with figures that are made up

CLIP = {"scale": 2, "codec": "x264", "rate": "qp 22", "kbps": 300.0}
SEEN = {"edges": (1.0, 1.2), "noise": (1.0, 1.1), "halo": (0.0, 0.4), "flicker": (1.2, 1.3)}


def record(method="student", name="a.mkv", condition="x2 x264 qp 22", frames=(4, 9), protocol="call", **metrics):
    codec, _, rate = condition.removeprefix("x2 ").partition(" ")
    identity = {"protocol": protocol, "category": "heads", "name": name, "condition": condition}
    clip = {} if protocol == "image" else {"scale": 2, "codec": codec, "rate": rate, "kbps": 300.0}
    return {**identity, **clip, "method": method, "frames": list(frames), "metrics": metrics}


def pair(before, after, metric="psnr_y", **identity):
    """Records of a unit as it came and as the student made it."""
    frames = range(len(before))
    return [
        record("input", frames=frames, **{metric: before}, **identity),
        record(frames=frames, **{metric: after}, **identity),
    ]


def real_pair(name="a.mkv", **changes):
    records = pair([0.0] * 3, [0.0] * 3, protocol="real", name=name, condition="as it is")
    for index, entry in enumerate(records):
        entry["metrics"] = {metric: [levels[index]] * 3 for metric, levels in (SEEN | changes).items()}
        entry["metrics"]["flicker"] = entry["metrics"]["flicker"][:1]
    return records


def camera_pair(camera, before, after, name="a.mkv"):
    records = pair(before, after, protocol="camera", name=name, condition=f"{camera} lens, x1 x264 qp 22")
    return [{**entry, **CLIP, "camera": camera} for entry in records]


METHODS = {"input": 0.0, "student": 58.2, "student, crisp": 59.0, "unsharp mask": 0.41}


def a_report(records, name="first"):
    methods = [{"name": n, "description": f"{n}, <described>", "ms_1080p": ms} for n, ms in METHODS.items()]
    run = {"command": ["python", "evaluate.py", "--data", "my clips"], "commit": "abc1234", "date": "2026-11-22"}
    run |= {"seconds": 1234.5, "machine": {"cpu": "EPYC", "gpu": None}, "versions": {"python": "3.11.7"}}
    run["checkpoint"] = {"path": "student.pth", "engine": "torch cpu", "meta": {}}
    return {"format": 1, "name": name, **run, "methods": methods, "records": records, "crops": [], "worst": []}


# ----------------------------------------------------------------------------------------------------------------------
# Averages, by hand


def test_each_unit_counts_once():
    """A long clip weighs no more than a short one."""
    records = pair([30.0] * 4, [31.0] * 4) + pair([40.0, 42.0], [44.0, 44.0], name="b.mkv")
    levels, changes = rp.summarise(rp.to_table(records), ["psnr_y", "vmaf"])
    assert levels.at["input", "psnr_y"] == (30 + 41) / 2 and changes.at["student", "psnr_y"] == (1 + 3) / 2
    assert levels["vmaf"].isna().all()


def test_infinite_psnr_is_shown_and_left_out_of_means():
    records = pair([None, 30.0], [50.0, 31.0]) + pair([None], [None], name="b.mkv")
    levels, changes = rp.summarise(rp.to_table(records), ["psnr_y"])
    assert levels.at["input", "psnr_y"] == 30 and changes.at["student", "psnr_y"] == 1
    levels, changes = rp.summarise(rp.to_table(records[2:]), ["psnr_y"])
    assert rp.format_level("psnr_y", levels.at["student", "psnr_y"]) == "∞"
    assert rp.format_change("psnr_y", changes.at["student", "psnr_y"]) == "–"


def test_what_was_not_measured_is_left_out():
    table = rp.to_table([record("input", vmaf=[None, 80.0], flicker_static=[math.nan], flicker_moving=[0.5])])
    assert list(zip(table["metric"], table["frame"], table["level"], strict=True)) == [
        ("vmaf", 9, 80),
        ("flicker_moving", rp.WHOLE_CLIP, 0.5),
    ]


def test_changes_are_taken_on_the_same_frame():
    records = [record("input", frames=[4, 9, 14], ssim_y=[0.5, 0.6, 0.7]), record(frames=[14, 4], ssim_y=[0.9, 0.6])]
    table = rp.to_table(records)
    assert table[table["method"] == "student"]["change"].tolist() == pytest.approx([0.2, 0.1])


@pytest.fixture
def with_slow_method():
    """Two clips; a slow method saw one frame of the first, and would look best if that were not told."""
    records = pair([30.0, 32.0], [31.0, 31.5]) + pair([40.0], [40.0], name="b.mkv")
    return [*records, record("unsharp mask", frames=[1], psnr_y=[34.0])]


def test_slow_methods_are_compared_where_all_were_measured(with_slow_method):
    everywhere, shared = rp.comparable(rp.to_table(with_slow_method))
    assert rp.summarise(everywhere, ["psnr_y"])[1]["psnr_y"].to_dict() == {"input": 0, "student": 0.125}
    levels, changes = rp.summarise(shared, ["psnr_y"])
    assert changes["psnr_y"].to_dict() == {"input": 0, "student": -0.5, "unsharp mask": 2}
    assert levels.at["input", "psnr_y"] == 32
    text = rp.markdown_summary(a_report(with_slow_method))
    first, second = text.split("Calls where all methods were measured (1 clip, 1 encoding)")
    assert "unsharp" not in first and "| unsharp mask | **+2.00** | 0.41 |" in second
    assert set(rp.rate_points(rp.to_table(with_slow_method))["method"]) == {"input", "student"}


def test_harm_counts_frames_beyond_the_tolerance():
    records = pair([30.0, 30.0, 30.0, None], [29.94, 29.96, 31.0, 50.0]) + pair([30.0], [29.5], name="b.mkv")
    below = rp.share_below(rp.to_table(records))
    assert below.at["student", "psnr_y"] == 3 / 5  # 0.06 dB, the one that was identical, 0.5 dB
    assert list(below) == ["psnr_y"] and not len(rp.share_below(rp.to_table(real_pair())))


def test_best_is_what_is_printed_best_and_better_than_the_input():
    for values, metric, best in (
        ({"a": 0.104, "b": 0.0961, "c": 0.05, "d": math.nan}, "psnr_y", {"a", "b"}),
        ({"a": -0.2, "b": 0.001}, "psnr_y", set()),
        ({"a": -0.2, "b": 0.1}, "flicker_static", {"a"}),
    ):
        assert rp.best_methods(rp.pd.Series(values), metric) == best


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("psnr_y", 0.184, "+0.18"),
        ("psnr_y", -0.004, "0.00"),
        ("ssim_y", -0.00226, "−0.0023"),
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
    points = rp.rate_points(rp.to_table(records + camera_pair("soft", [30.0], [31.0])))
    assert set(points["codec"]) == {"x264"} and set(points["scale"]) == {2}
    by_axis = {axis: part[part["method"] == "student"] for axis, part in points.groupby("axis")}
    assert by_axis["qp"][["x", "level", "change"]].to_numpy().tolist() == [[22, 43, 2], [37, 33, 2]]
    assert by_axis["kbps"]["x"].tolist() == pytest.approx([200, 200])
    assert by_axis["bitrate"][["level", "change"]].to_numpy().tolist() == [[35.5, 0.5]]


def test_markdown_of_a_report():
    records = [*pair([30.0], [30.5]), record("unsharp mask", frames=[0], psnr_y=[29.0])]
    for condition, level in (("bicubic+noise", 0.8), ("clean", 0.9)):
        levels = [level], [level + 0.01]
        records += pair(*levels, metric="ssim_y", protocol="image", name="cat", condition=condition)
    text = rp.markdown_summary(a_report(records))
    assert "| input | 30.00 | – |\n| student | **+0.50** | 58.2 |\n| unsharp mask | −1.00 | 0.41 |" in text
    assert "Calls (1 clip, 1 encoding):" in text and "by condition (1 picture; changes of SSIM-Y):" in text
    assert "| method | heads |\n| --- | --- |\n| input | 0.8000 |\n| student | **0.8100** |" in text
    assert "| input | 0.8000 | 0.9000 |\n| student | **+0.0100** | **+0.0100** |" in text


def test_tables_of_real_clips_show_what_a_viewer_sees():
    records = real_pair() + real_pair("b.mkv", noise=(1.0, 0.9), edges=(1.0, 1.4))
    text = rp.markdown_summary(a_report(records))
    assert text.startswith("Real clips as they are (2 clips, 2 encodings)")
    assert "| method | edges | noise | halo (codes) | flicker (codes) | ms at 1080p |" in text
    assert "| input | 1.000 | 1.000 | 0.00 | 1.200 | – |" in text
    assert "| student | **+0.300** | 0.000 | +0.40 | +0.100 | 58.2 |" in text  # but for edges less is better


def test_soft_and_crisp_cameras_have_tables_of_their_own():
    records = camera_pair("soft", [30.0], [31.0]) + camera_pair("crisp", [40.0, 42.0], [39.5, 41.5], "b.mkv")
    soft, crisp = rp.markdown_summary(a_report(records)).split("\n\nCameras, crisp (1 clip, ")
    assert soft.startswith("Cameras, soft (1 clip, ")
    assert "| input | 30.00 | – |\n| student | **+1.00** | 58.2 |" in soft
    assert "| input | 41.00 | – |\n| student | −0.50 | 58.2 |" in crisp


# ----------------------------------------------------------------------------------------------------------------------
# Two reports


def moved(report, metric, change, method="student"):
    """A copy of a report in which `change(name)` is added to a metric of a method."""
    other = copy.deepcopy(report)
    for entry in other["records"]:
        if entry["method"] == method:
            entry["metrics"][metric] = [value + change(entry["name"]) for value in entry["metrics"][metric]]
    return other


def rows_of(a, b):
    """The rows of a comparison by method."""
    return {row.method: row for row in rp.compare(a, b)["rows"].itertuples()}


@pytest.fixture
def six_clips():
    records = []
    for number in range(6):
        for condition in ("x2 x264 qp 22", "x2 x264 qp 32"):
            records += pair([30.0, 31.0], [30.5, 31.5], name=f"{number}.mkv", condition=condition)
    return a_report(records)


def test_equal_reports_do_not_differ(six_clips):
    comparison = rp.compare(six_clips, copy.deepcopy(six_clips))
    assert set(comparison["rows"]["verdict"]) == {"same"}
    assert not len(comparison["unmatched"]) and not len(comparison["input"])
    text = rp.format_comparison(comparison, six_clips, six_clips)
    assert "the same in every unit: input, student\n" in text
    assert "most" not in text and "only" not in text and "input itself" not in text


def test_a_shift_of_all_clips_is_found(six_clips):
    other = moved(six_clips, "psnr_y", lambda name: 0.1 + 0.02 * int(name[0]))
    rows = rows_of(six_clips, other)
    row = rows["student"]
    assert row.difference == pytest.approx(0.15) and 0.1 < row.low < 0.15 < row.high < 0.2
    assert (row.units, row.names, row.verdict) == (12, 6, "better") and rows["input"].verdict == "same"
    assert rows_of(other, six_clips)["student"].verdict == "worse"
    text = rp.format_comparison(rp.compare(six_clips, other), six_clips, other)
    assert re.search(r"student +psnr_y +31.00 +31.15 +\+0.15 .* 12 +6 +better \*", text)
    text.encode("cp1252")  # a Windows terminal can print it


def test_less_flicker_is_better_and_one_clip_or_noise_proves_nothing(six_clips):
    noisy = moved(six_clips, "psnr_y", lambda name: (-1) ** int(name[0]))
    assert rows_of(six_clips, noisy)["student"].verdict == ""
    for entry in six_clips["records"]:
        entry["metrics"]["flicker_static"] = [1.0] * 2
    calmer = moved(six_clips, "flicker_static", lambda name: -0.2)
    assert list(rp.compare(six_clips, calmer)["rows"]["verdict"]) == ["same", "same", "same", "better"]
    single = a_report([entry for entry in six_clips["records"] if entry["name"] == "0.mkv"])
    rows = rp.compare(single, moved(single, "psnr_y", lambda name: 1.0))["rows"]
    assert rows["verdict"][2] == "" and math.isnan(rows["low"][2])


def test_the_units_that_moved_most_are_named(six_clips):
    other = moved(six_clips, "psnr_y", lambda name: {"2.mkv": 0.5, "3.mkv": 0.2, "4.mkv": -0.25}.get(name, 0))
    comparison = rp.compare(six_clips, other)
    assert comparison["units"]["name"].tolist()[:4] == ["2.mkv", "2.mkv", "3.mkv", "3.mkv"]
    assert comparison["units"]["score"].tolist()[:1] == pytest.approx([10])
    text = rp.format_comparison(comparison, six_clips, other)
    improved, worsened = text.split("most worsened")
    assert "+10.0  student: call / heads / 2.mkv / x2 x264 qp 22" in improved
    assert worsened.count("  -5.0  student: call / heads / 4.mkv / ") == 2


def test_what_has_no_match_is_counted_and_named(six_clips):
    other = copy.deepcopy(six_clips)
    other["records"] = [entry for entry in other["records"] if entry["name"] != "3.mkv"]
    other["records"].append({**other["records"][1], "method": "unsharp mask"})
    text = rp.format_comparison(rp.compare(six_clips, other), six_clips, other)
    assert "4 records only in the report before\n  input: call / heads / 3.mkv / x2 x264 qp 22\n" in text
    assert "1 record only in the report after\n  unsharp mask: call / heads / 0.mkv / x2 x264 qp 22" in text
    nothing = a_report(pair([1.0], [1.0], name="other"))
    assert "24 records only in the report before" in rp.format_comparison(
        rp.compare(six_clips, nothing), six_clips, nothing
    )


def test_other_inputs_are_noticed(six_clips):
    other = moved(six_clips, "psnr_y", lambda name: float(name == "5.mkv"), method="input")
    assert "input itself differs in 2 units" in rp.format_comparison(rp.compare(six_clips, other), six_clips, other)


def test_files_that_are_no_report_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the report .*No such file"):
        rp.load_report(tmp_path / "report.json")
    for content, message in (
        (b"\xff\xfe\x00", "cannot read the report"),
        (b'["psnr"]', "cannot read the report"),
        (b'{"format": 2}', "has format 2, expected 1"),
    ):
        (tmp_path / "other.json").write_bytes(content)
        with pytest.raises(DataError, match=message):
            rp.load_report(tmp_path / "other.json")


# ----------------------------------------------------------------------------------------------------------------------
# The page

SIDE = 96  # pixels of a crop
PICTURES = {"people": "astronaut", "text": "page"}


def add_unit(report, folder, with_crop, **identity):
    """Add records of all methods with figures that are made up, and a crop of noise."""
    number = len(report["records"])
    files = {"truth": f"crops/{number:04d}-truth.png"}
    for index, name in enumerate(METHODS):
        gain = (0, 0.4, 0.2, -0.3)[index]
        if identity["condition"] == "clean":
            psnr = [None if index == 0 else 50 - index]
        else:
            psnr = [30 + number % 7 + gain, 31 + number % 5 + gain][: 2 if identity["protocol"] == "call" else 1]
        metrics = {"psnr_y": psnr, "ssim_y": [0.9 + gain / 10] * len(psnr)}
        if identity["protocol"] == "call":
            metrics |= {"vmaf_neg": [80 + gain] * 2, "flicker_static": [1 - gain]}
        frames = [2, 5][-len(psnr) :]
        report["records"].append({**identity, "method": name, "frames": frames, "metrics": metrics})
        files[name] = f"crops/{number:04d}-{index}.png"
    if with_crop:
        place = {key: identity[key] for key in rp.UNIT}
        report["crops"].append({**place, "frame": 5, "box": [16, 16, SIDE, SIDE], "files": files})
        rng = np.random.default_rng(number)
        for file in files.values():
            small = rng.integers(40, 200, (SIDE // 16, SIDE // 16, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / file), cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a report with pictures of two clips and two pictures."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "crops").mkdir()
    report = a_report([], "released")
    for category, name in (("talking heads", "face.mkv"), ("objects", "cup & saucer.mkv")):
        for codec in ("x264", "vp9"):
            for qp in (22, 32, 42):
                clip = {"scale": 2, "codec": codec, "rate": f"qp {qp}", "kbps": 4000 * 0.88**qp}
                identity = {"protocol": "call", "category": category, "name": name, "condition": f"x2 {codec} qp {qp}"}
                add_unit(report, folder, qp == 32, **identity, **clip)
    for category, name in PICTURES.items():
        for condition in ("bicubic+noise", "clean"):
            identity = {"protocol": "image", "category": category, "name": name, "condition": condition}
            add_unit(report, folder, condition != "clean", **identity)
    case = {"metric": "ssim_y", "method": "unsharp mask", "change": -0.03, "input_value": 0.9, "value": 0.87}
    report["worst"] = [{**crop, **case} for crop in report["crops"][:3]]
    write_report(report, folder)
    return folder


@pytest.fixture
def report(folder):
    return rp.load_report(folder / "report.json")


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text("utf-8")


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
    elements = outline_of(page).elements
    for tag, attributes in elements:
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith("#") and attributes.get("xlink:href", "#").startswith("#"), tag
        assert tag not in ("link", "iframe", "object", "embed")
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"|http-equiv', "", page) and "@import" not in page
    names = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(names) == len(set(names))
    referred = {attributes["xlink:href"][1:] for _, attributes in elements if "xlink:href" in attributes}
    referred |= set(re.findall(r"url\(#([^)]*)\)", page))
    referred |= {attributes["href"][1:] for tag, attributes in elements if tag == "a"}
    assert referred and referred <= set(names)
    assert not re.search(r"#(1a000|5e..01)", page)  # every stand-in for a colour was replaced
    assert len([tag for tag, _ in elements if tag == "img"]) == sum(len(c["files"]) for c in report["crops"]) + 3 * 3


def test_the_pictures_inside_are_those_of_the_report(page, folder, report):
    images = [attributes for tag, attributes in outline_of(page).elements if tag == "img"]
    crop = report["crops"][0]
    for attributes in images[: len(crop["files"])]:
        data = base64.b64decode(attributes["src"].partition("base64,")[2])
        inside = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., ::-1]
        original = cv2.imread(str(folder / crop["files"][attributes["data-picture"]]))
        assert inside.shape == original.shape == (SIDE, SIDE, 3)
        assert np.abs(inside.astype(float) - original).mean() < 4


def test_the_tables_hold_the_figures(page):
    rows = outline_of(page).rows
    assert rows[0] == ["method", "PSNR-Y (dB)", "SSIM-Y", "VMAF-NEG", "flicker, still", "ms at 1080p"]
    summary = {row[0]: row for row in rows[1:5]}
    assert summary["input"][-1] == "–" and summary["student"][-1] == "58.2"
    assert summary["student"][1] == "+0.40" and summary["student"][4] == "−0.400"
    assert '<td class="best">−0.400</td>' in page  # less flicker is better
    assert '<td class="worse">−0.30</td>' in page and '<td class="level">0.9000</td>' in page
    assert re.search(r"<dt>PSNR-Y \(dB\)</dt><dd><b>\+0.40</b>", page)
    assert "python evaluate.py --data &#39;my clips&#39;" in page and "student, &lt;described&gt;" in page


def test_names_cannot_break_the_page(report, folder):
    evil = '"><script>alert(1)</script>&{{ title }}'
    text = json.dumps(report)
    for name in ("face.mkv", "student, crisp", "talking heads", "cpu", "EPYC"):
        text = text.replace(json.dumps(name), json.dumps(evil))
    elements = outline_of(render_page(json.loads(text), folder)).elements
    assert len([tag for tag, _ in elements if tag == "script"]) == 1


def page_of(records, folder):
    """The page of a report of these records without pictures, as text and as `Outline`."""
    text = render_page(a_report(records), folder)
    return text, outline_of(text)


def test_a_page_shows_real_clips_and_cameras_first(report, tmp_path):
    seen = real_pair() + real_pair("b.mkv")
    seen += camera_pair("soft", [30.0], [31.0]) + camera_pair("crisp", [40.0, 42.0], [39.5, 41.5], "b.mkv")
    text, outline = page_of(seen + report["records"], tmp_path)
    assert "student, mean change: real clips as they are" in text
    tiles = re.findall(r"<dt>(.*?)</dt><dd><b>(.*?)</b>", text)
    assert tiles == [
        ("edges", "+0.200"),
        ("noise", "+0.100"),
        ("halo (codes)", "+0.40"),
        ("flicker (codes)", "+0.100"),
        ("ms for a 1080p frame", "58.2"),
    ]
    assert outline.rows[0] == ["method", "edges", "noise", "halo (codes)", "flicker (codes)", "ms at 1080p"]
    assert outline.rows[1][1:5] == ["1.000", "1.000", "0.00", "1.200"] and outline.rows[2][1] == "+0.200"
    captions = re.findall(r"<caption>([^<]*) \(", text)
    assert captions[:4] == ["Real clips as they are", "Cameras, soft", "Cameras, crisp", "Calls"]
    options = re.findall(r'<option value="(real|camera|call|x4|image)">(.*?)</option>', text)
    assert options == [(name, rp.PROTOCOLS[name][0]) for name in ("real", "camera", "call", "image")]


def test_a_page_has_the_sections_that_its_records_fill(report, page, tmp_path):
    sections = {"summary", "curves", "conditions", "pictures", "worst", "made"}
    assert set(re.findall(r'<section id="(.*?)"', page)) == sections
    for records, expected in (
        (real_pair(), {"summary", "conditions", "made"}),
        ([entry for entry in report["records"] if entry["protocol"] == "image"], {"summary", "conditions", "made"}),
        ([entry for entry in report["records"] if entry["protocol"] == "call"], sections - {"pictures", "worst"}),
    ):
        text, _ = page_of(records, tmp_path)
        assert set(re.findall(r'<section id="(.*?)"', text)) == set(re.findall(r'<a href="#(\w+)"', text)) == expected


# ----------------------------------------------------------------------------------------------------------------------
# The page in a browser

# What a visitor does with the first picture, and what the page then looks like.
VISIT = """(async () => {
  await new Promise((done) => document.readyState === "complete" ? done() : addEventListener("load", done));
  const crop = document.querySelector(".crop:not([hidden])");
  const layers = crop.querySelector(".layers"), range = crop.querySelector("input");
  const split = () => layers.style.getPropertyValue("--split");
  const choose = (selector, value) => {
    const select = document.querySelector(selector);
    select.value = value;
    select.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const seen = { width: [innerWidth, document.documentElement.scrollWidth] };
  seen.pictures = [...crop.querySelectorAll("img:not([hidden])")].map((image) => image.dataset.picture);
  seen.address = [split(), range.getAttribute("aria-valuetext"), crop.querySelector(".names").textContent];
  range.value = 75;
  range.dispatchEvent(new Event("input"));
  seen.slider = [split(), getComputedStyle(crop.querySelector("img.left")).clipPath];
  const place = layers.getBoundingClientRect();
  layers.setPointerCapture = () => {}; // a pointer that is not real cannot be captured
  for (const pointerType of ["touch", "mouse"]) {
    const clientX = place.left + 0.1 * place.width;
    layers.dispatchEvent(new PointerEvent("pointerdown", { pointerId: 1, pointerType, clientX, clientY: place.top }));
    seen[pointerType] = split();
  }
  choose("#view [name=zoom]", "8");
  seen.zoom = [crop.querySelector("img.left").getBoundingClientRect().width,
    getComputedStyle(crop.querySelector("img.left")).imageRendering, document.getElementById("worst-zoom").value];
  choose("#view [name=category]", "objects");
  seen.objects = [...document.querySelectorAll(".crop:not([hidden])")].map((crop) => crop.dataset.category);
  seen.hash = location.hash;
  choose("#curves [data-key=axis]", "kbps");
  seen.panels = [...document.querySelectorAll("#curves .panel:not([hidden])")].map((panel) => ({ ...panel.dataset }));
  document.querySelector("[data-series=series-3]").click();
  seen.curves = [1, 3].map((i) => document.querySelector("#curves .panel:not([hidden]) .series-" + i).style.display);
  return seen;
})()"""


def test_a_visitor_with_a_phone_chooses_what_to_compare(page, folder, browser):
    browser("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    address = (folder / "report.html").as_uri() + "#left=truth&right=unsharp+mask&split=30"
    browser("Page.navigate", url=address)
    seen = browser("Runtime.evaluate", expression=VISIT, awaitPromise=True, returnByValue=True)["result"]["value"]
    assert seen["width"] == [390, 390] and seen["pictures"] == ["truth", "unsharp mask"]
    split, value, names = seen["address"]
    assert (split, value) == ("30.00%", "30 % truth")
    assert re.fullmatch(r"truthunsharp mask\d\d\.\d\d dB / 0\.\d{4}", names)
    assert seen["slider"] == ["75.00%", "inset(0px 25% 0px 0px)"]
    assert seen["touch"] == "75.00%" and seen["mouse"] == "10.00%"  # a finger may be about to scroll
    assert seen["zoom"] == [8 * SIDE, "pixelated", "8"] and seen["objects"] == ["objects", "objects"]
    assert seen["hash"].startswith("#left=truth&") and "category=objects" in seen["hash"] and "zoom=8" in seen["hash"]
    assert seen["panels"] == [{"metric": "psnr_y", "axis": "kbps"}] and seen["curves"] == ["", "none"]
