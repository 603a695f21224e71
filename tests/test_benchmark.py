import dataclasses
from fractions import Fraction

import cv2
import numpy as np
import pytest
import skimage.data

import degradation
from benchmark import conditions, metrics, runner
from benchmark.peers import INPUT, Method
from degradation import DataError
from tests.conftest import same_clips, write_video
from utils import bgr_to_planes
from video import BT601_LIMITED, Frame, VideoFormat, VideoReader, VideoWriter

CAT = conditions.Source("nature", "chelsea", "skimage:chelsea")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "pictures" / "cats" / "a.png"
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), skimage.data.chelsea()[40:201, 100:301, ::-1])  # odd on purpose
    return conditions.Source("cats", "a.png", str(path))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A video of 36 frames of 288x256."""
    path = write_video(tmp_path_factory.mktemp("clips") / "heads" / "a.mp4", 36, (288, 256))
    return conditions.Source("heads", "a.mp4", path)


def blurred(sample):
    return [(cv2.GaussianBlur(y, (0, 0), 3), uv) for y, uv in sample.input]


METHODS = [INPUT, Method("blur", "a blur", blurred)]


def is_repeatable(unit):
    sample = conditions.make_sample(unit)
    conditions.make_sample.cache_clear()
    return same_clips(sample.input, conditions.make_sample(unit).input)


def test_known_answers(picture):
    by_condition = {}
    for unit in conditions.image_units([picture]):
        sample = conditions.make_sample(unit)
        assert sample.input[0][0].shape == (160, 200) and is_repeatable(unit)
        by_condition[unit.condition] = {m.name: runner.evaluate(sample, m, False) for m in METHODS}
    assert list(by_condition) == list(conditions.IMAGE_CONDITIONS)
    for condition, found in by_condition.items():
        assert found["blur"]["ssim_y"] < found["input"]["ssim_y"], condition
        assert found["blur"]["psnr_y"] < found["input"]["psnr_y"], condition
    assert by_condition["clean"]["input"] == {"psnr_y": [np.inf], "ssim_y": [1]}
    quality = [by_condition[name]["input"]["psnr_y"][0] for name in ("light jpeg", "bicubic+noise", "severe")]
    assert quality[0] > 33 > quality[1] > quality[2] + 2 > 20


def test_a_few_sources_meet_every_scale_with_every_codec_and_rate():
    sources = [dataclasses.replace(CAT, name=str(i)) for i in range(5)]
    rates = len(conditions.BITRATES) + len(conditions.QUANTISERS["x264"])
    units = conditions.call_units(sources)
    assert len(units) == 5 * len(conditions.CODECS) * rates
    assert len({(unit.scale, unit.codec, unit.rate) for unit in units}) == len(units)
    half, quarter = conditions.draw_units(units, 0.5), conditions.draw_units(units, 0.25)
    assert set(map(id, quarter)) < set(map(id, half)) and 0.35 < len(half) / len(units) < 0.65


# ----------------------------------------------------------------------------------------------------------------------
# Real clips


@pytest.mark.parametrize(("count", "first"), [(4, 0), (30, 6), (36, 10)])
def test_real_clips_are_as_they_are_but_for_their_start(tmp_path, count, first):
    source = conditions.Source("heads", "a.mp4", write_video(tmp_path / "a.mp4", count))
    (unit,) = conditions.real_units([CAT, source])
    identity = {"protocol": "real", "category": "heads", "name": "a.mp4", "condition": "as it is"}
    assert unit.identity() == identity
    sample = conditions.make_sample(unit)
    assert sample.truth is None and not sample.full_range
    with VideoReader(source.path) as reader:
        assert same_clips(sample.input, [(frame.y, frame.uv) for frame in reader][first : first + 24])


def test_real_clips_are_measured_against_what_came(video, tmp_path):
    units = conditions.real_units([video])
    (before, after), measured = runner.run(units, METHODS, tmp_path)
    assert measured == units
    assert before.keys() == {"protocol", "category", "name", "condition", "method", "metrics"}
    assert after["method"] == "blur"
    assert {name: len(values) for name, values in after["metrics"].items()} == {
        **{"edges": 24, "noise": 24, "halo": 24},
        "flicker": 1,  # the mean of the clip
    }
    came = before["metrics"]
    assert came["edges"] == came["noise"] == [1] * 24 and came["halo"] == [0] * 24 and came["flicker"][0] > 0
    assert max(after["metrics"]["edges"]) < 0.7 and max(after["metrics"]["noise"]) < 1


def test_where_nothing_stands_still_there_is_no_flicker(tmp_path):
    """A metric that was not measured is not there, so that a report can hold the record."""
    path = tmp_path / "lightning.mkv"
    with VideoWriter(path, VideoFormat(96, 64, Fraction(25), **BT601_LIMITED), codec="ffv1") as writer:
        for number in range(14):
            level = 60 + 100 * (number % 2)
            writer.write(Frame(np.full((64, 96), level, np.uint8), np.full((2, 32, 48), 128, np.uint8)))
    units = conditions.real_units([conditions.Source("heads", "lightning.mkv", str(path))])
    (record,), _ = runner.run(units, [INPUT], tmp_path)
    assert {name: len(values) for name, values in record["metrics"].items()} == {"edges": 14, "noise": 14, "halo": 14}


# ----------------------------------------------------------------------------------------------------------------------
# Cameras


def test_a_few_sources_are_seen_by_every_camera_through_every_codec():
    units = conditions.camera_units([dataclasses.replace(CAT, name=str(i)) for i in range(4)])
    assert len(units) == 4 * len(conditions.CAMERAS) and {unit.protocol for unit in units} == {"camera"}
    assert {(unit.camera, unit.codec) for unit in units} == {
        (c, codec) for c in conditions.CAMERAS for codec in conditions.CODECS
    }
    assert len({(unit.codec, unit.rate) for unit in units}) >= 12  # of 16
    assert {unit.scale for unit in units} == {1, 1.5} and 0.15 < np.mean([unit.scale > 1 for unit in units]) < 0.25
    assert len({tuple(unit.identity().values()) for unit in units}) == len(units)
    assert {unit.camera for unit in units if unit.identity()["camera"] == "crisp"} == {"perfect", "crisp"}


def camera_unit(source, camera, qp=22, scale=1):
    return conditions.Unit("camera", source, f"{camera}, x{scale:g} x264 qp {qp}", scale, "x264", ("qp", qp), camera)


@pytest.mark.parametrize("kind", ["photo", "video"])
def test_cameras_see_what_is_crisp(kind, video):
    """The truth is shrunk until it is crisp at its own size; what a soft camera makes of it lacks detail."""
    source, size = {"photo": (CAT, (300, 216)), "video": (video, (144, 128))}[kind]
    samples = {name: conditions.make_sample(camera_unit(source, name)) for name in ("perfect", "out of focus")}
    for sample in samples.values():
        assert sample.size == size and len(sample.input) == len(sample.truth) == conditions.MEASURED_FRAMES
        assert sample.full_range == (kind == "photo")
    edges = {name: np.mean(metrics.visible_change(s.input, s.truth)["edges"]) for name, s in samples.items()}
    assert 0.9 < edges["perfect"] < 1.1 and edges["out of focus"] < 0.8
    assert is_repeatable(camera_unit(source, "out of focus"))


def test_records_of_cameras(video, tmp_path):
    units = [camera_unit(video, camera, qp, 1.5) for camera, qp in (("soft lens", 32), ("crisp", 22))]
    soft, crisp = runner.run(units, [INPUT], tmp_path)[0]
    assert (soft["camera"], crisp["camera"]) == ("soft", "crisp")
    for record in (soft, crisp):
        assert record["metrics"].keys() == {"psnr_y", "ssim_y", "vmaf", "vmaf_neg", "jod", "flicker_static"}
        assert 5 < record["metrics"]["jod"][0] < 9.99 and 0 < record["metrics"]["flicker_static"][0] < 10
    assert np.mean(soft["metrics"]["ssim_y"]) < np.mean(crisp["metrics"]["ssim_y"])


# ----------------------------------------------------------------------------------------------------------------------
# Few lines


def test_a_quarter_of_the_lines_goes_through_x265(video, tmp_path):
    units = conditions.UNITS["x4"]([CAT, video])
    assert [unit.rate for unit in units] == [("qp", qp) for qp in (17, 22, 27, 32, 37, 42)]
    assert {unit.codec for unit in units} == {"x265"}
    assert [unit.identity()["condition"] for unit in units[:2]] == ["x265 qp 17", "x265 qp 22"]
    came, _ = runner.run(units, [INPUT], tmp_path, thorough=False)
    psnr = [np.mean(record["metrics"]["psnr_y"]) for record in came]
    assert psnr == sorted(psnr, reverse=True) and psnr[0] > psnr[-1] + 1


@pytest.mark.parametrize(("protocol", "size"), [("360p", (96, 84)), ("540p", (144, 126)), ("720p", (192, 168))])
def test_methods_get_few_lines_as_they_are_decoded(video, protocol, size):
    sample = conditions.make_sample(conditions.UNITS[protocol]([CAT, video])[0])
    assert (
        not sample.full_range
        and sample.size == (288, 252)
        and sample.input[0][0].shape[::-1] == size
        and sample.scale == 1
    )
    assert all(y.shape == (252, 288) and uv.shape == (2, 126, 144) for y, uv in INPUT.run(sample))


# ----------------------------------------------------------------------------------------------------------------------
# Runs, sources


def test_a_run_goes_on_where_it_stopped(picture, tmp_path):
    seen = []

    def run_up_to(count):
        def blur(sample):
            if len(seen) == count:
                raise KeyboardInterrupt
            seen.append(sample)
            return blurred(sample)

        return runner.run(units, [Method("blur", "a blur", blur)], tmp_path)

    units = conditions.image_units([picture])
    with pytest.raises(KeyboardInterrupt):
        run_up_to(3)
    records, _ = run_up_to(None)
    assert len(seen) == len(units)
    assert [record["condition"] for record in records] == list(conditions.IMAGE_CONDITIONS)
    assert run_up_to(None)[0] == records and len(seen) == len(units)
    # Another picture under the same name is measured anew.
    cv2.imwrite(picture.path, skimage.data.coffee()[:160, :200, ::-1])
    runner._fingerprint.cache_clear()
    conditions.make_sample.cache_clear()
    assert run_up_to(None)[0] != records


def test_the_box_shows_detail():
    y = np.full((300, 400), 90, np.uint8)
    y[200:290, 250:390] = degradation.add_noise(y[200:290, 250:390], 30, np.random.default_rng(0))
    left, top, width, height = runner.detailed_box(y, (140, 90))
    assert abs(left - 250) <= 4 and abs(top - 200) <= 4 and (width, height) == (140, 90)
    assert runner.detailed_box(y[:50, :61]) == (0, 0, 60, 50)


def test_sources_of_a_folder(picture):
    folder = picture.path.removesuffix("/cats/a.png")
    assert conditions.list_sources(folder) == [picture]
    for arguments in ((folder, ["*.mp4"]), (folder + "/nothing",)):
        with pytest.raises(DataError, match="no sub-folder"):
            conditions.list_sources(*arguments)


def test_sources_of_the_packages():
    sources = conditions.list_sources()
    assert {source.category for source in sources} == {"people", "nature", "objects", "text", "city"}
    assert conditions.load_frame(next(source for source in sources if source.category == "city")).shape == (426, 640, 3)
    slide = next(source for source in sources if source.path.startswith("slide:"))
    assert conditions.load_frame(slide).shape == (720, 1280, 3)
    assert bgr_to_planes(conditions.load_frame(slide))[0].std() > 20


def test_a_source_that_cannot_be_made_is_left_out(picture, tmp_path, caplog):
    cv2.imwrite(str(tmp_path / "tiny.png"), skimage.data.chelsea()[:100, :120, ::-1])
    sources = [conditions.Source("cats", "tiny.png", str(tmp_path / "tiny.png")), picture]
    units = [
        conditions.Unit("call", source, f"x4 {codec} 300k", 4, codec, ("kbps", 300))
        for source, codec in zip(sources, ("av1", "x264"), strict=True)
    ]
    records, measured = runner.run(units, [INPUT], tmp_path / "cache", thorough=False)
    assert [record["name"] for record in records] == ["a.png"] and measured == units[1:]
    assert "left out: tiny.png, x4 av1 300k: av1 cannot encode frames of" in caplog.text
    cv2.imwrite(str(tmp_path / "line.png"), np.zeros((1, 500, 3), np.uint8))
    line = conditions.Source("cats", "line.png", str(tmp_path / "line.png"))
    for unit in (dataclasses.replace(unit, source=line) for unit in units):
        with runner.leave_out(unit):
            runner.make_sample(unit)
    assert caplog.text.count("line.png is too small to be measured (500x0)") == 2
    short = conditions.Source("heads", "short.mp4", write_video(tmp_path / "short.mp4", 3))
    with pytest.raises(DataError, match="nothing could be measured"):
        runner.run(conditions.real_units([short]), [INPUT], tmp_path / "cache")
    assert "left out: short.mp4, as it is: the video" in caplog.text
    assert "has 3 frames, the benchmark needs 4" in caplog.text
