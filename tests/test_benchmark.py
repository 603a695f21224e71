import dataclasses
from fractions import Fraction

import cv2
import numpy as np
import pytest
import skimage.data

import dataset
import degradation
from benchmark import conditions, metrics, runner
from benchmark.peers import Peer
from degradation import DataError
from tests.conftest import write_video
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


def blurred(y, uv, full_range):
    return cv2.GaussianBlur(y, (0, 0), 3), uv


def made_twice(unit):
    for _ in range(2):
        conditions.make_sample.cache_clear()
        yield conditions.make_sample(unit)


def test_known_answers(picture):
    by_condition = {}
    for unit in conditions.image_units([picture]):
        sample, again = made_twice(unit)
        assert sample.input[0][0].shape == (160, 200)
        assert all((a == b).all() for a, b in zip(sample.input[0], again.input[0], strict=True))
        methods = {"input": runner.as_it_came, "blur": blurred}
        by_condition[unit.condition] = {
            name: runner.evaluate(sample, method, False) for name, method in methods.items()
        }
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
    assert len({(unit.scale, unit.codec, unit.qp, unit.kbps) for unit in units}) == len(units)
    half, quarter = conditions.draw_units(units, 0.5), conditions.draw_units(units, 0.25)
    assert set(map(id, quarter)) < set(map(id, half)) and 0.35 < len(half) / len(units) < 0.65


def call_unit(source, qp, scale=2):
    return conditions.Unit("call", source, f"x{scale} x264 qp {qp}", scale, "x264", qp)


def test_a_call_is_sent_through_a_real_codec():
    good, bad = (conditions.make_sample(call_unit(CAT, qp)) for qp in (22, 37))
    assert len(good.input) == len(good.truth) == conditions.MEASURED_FRAMES
    assert good.full_range
    scores = [runner.evaluate(sample, runner.as_it_came, False) for sample in (good, bad)]
    assert min(scores[0]["psnr_y"]) > 1 + max(scores[1]["psnr_y"])
    assert 0 < scores[0]["flicker_static"][0] < 10


def test_videos_are_measured_in_their_own_range(video):
    assert conditions.image_units([video]) == []
    sample = conditions.make_sample(call_unit(video, 22, scale=1))
    assert not sample.full_range and sample.truth[0][0].shape == (256, 288)


# ----------------------------------------------------------------------------------------------------------------------
# Real clips


METHODS = [
    Peer("input", "as it came", lambda scale: runner.as_it_came),
    Peer("blur", "a blur", lambda scale: blurred),
]


def test_real_clips_are_as_they_are_and_have_no_truth(video):
    (unit,) = conditions.real_units([CAT, video])
    identity = {"protocol": "real", "category": "heads", "name": "a.mp4", "condition": "as it is"}
    assert unit.identity() == identity
    sample = conditions.make_sample(unit)
    assert sample.truth is None and not sample.full_range
    with VideoReader(video.path) as reader:
        came = [(frame.y, frame.uv) for frame in reader][10:34]
    for one, two in zip(sample.input, came, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


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
    assert runner.run(units, METHODS, tmp_path)[0] == [before, after]  # from the cache


@pytest.mark.parametrize(("count", "first"), [(4, 0), (30, 6)])
def test_of_short_real_clips_less_is_left_out_before(tmp_path, count, first):
    source = conditions.Source("heads", "short.mp4", write_video(tmp_path / "short.mp4", count))
    sample = conditions.make_sample(*conditions.real_units([source]))
    clip, _ = conditions.load_clip(source, 34, 4)
    assert len(sample.input) == min(count, 24) and np.array_equal(sample.input[0][0], clip[first][0])


def test_where_nothing_stands_still_there_is_no_flicker(tmp_path):
    """A metric that was not measured is not there, so that a report can hold the record."""
    path = tmp_path / "lightning.mkv"
    with VideoWriter(path, VideoFormat(96, 64, Fraction(25), **BT601_LIMITED), codec="ffv1") as writer:
        for number in range(14):
            level = 60 + 100 * (number % 2)
            writer.write(Frame(np.full((64, 96), level, np.uint8), np.full((2, 32, 48), 128, np.uint8)))
    units = conditions.real_units([conditions.Source("heads", "lightning.mkv", str(path))])
    (record,), _ = runner.run(units, METHODS[:1], tmp_path)
    assert {name: len(values) for name, values in record["metrics"].items()} == {"edges": 14, "noise": 14, "halo": 14}


# ----------------------------------------------------------------------------------------------------------------------
# Cameras


def test_a_few_sources_are_seen_by_every_camera_through_every_codec():
    units = conditions.camera_units([dataclasses.replace(CAT, name=str(i)) for i in range(4)])
    assert len(units) == 4 * len(conditions.CAMERAS) and {unit.protocol for unit in units} == {"camera"}
    assert {(unit.camera, unit.codec) for unit in units} == {
        (c, codec) for c in conditions.CAMERAS for codec in conditions.CODECS
    }
    assert len({(unit.codec, unit.qp) for unit in units}) >= 12  # of 16
    assert {unit.scale for unit in units} == {1, 1.5} and 0.15 < np.mean([unit.scale > 1 for unit in units]) < 0.25
    assert len({tuple(unit.identity().values()) for unit in units}) == len(units)
    assert {unit.camera for unit in units if unit.identity()["camera"] == "crisp"} == {"perfect", "crisp"}


def camera_unit(source, camera, qp=22, scale=1):
    return conditions.Unit("camera", source, f"{camera}, x{scale:g} x264 qp {qp}", scale, "x264", qp, camera=camera)


@pytest.mark.parametrize("kind", ["photo", "video"])
def test_cameras_see_what_is_crisp(kind, video):
    """The truth is shrunk until it is crisp at its own size; what a soft camera makes of it lacks detail."""
    source = {"photo": CAT, "video": video}[kind]
    samples = {name: conditions.make_sample(camera_unit(source, name)) for name in ("perfect", "out of focus")}
    assert len({sample.truth[0][0].shape for sample in samples.values()}) == 1
    truth = samples["perfect"].truth
    assert (
        truth[0][0].shape == ((128, 144) if kind == "video" else (216, 300))
        and len(truth) == conditions.MEASURED_FRAMES
    )
    assert samples["perfect"].full_range == (kind == "photo")
    edges = {name: np.mean(metrics.visible_change(s.input, s.truth)["edges"]) for name, s in samples.items()}
    assert 0.9 < edges["perfect"] < 1.1 and edges["out of focus"] < 0.8
    once, again = made_twice(camera_unit(source, "out of focus"))
    for one, two in zip(once.input, again.input, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_records_of_cameras(video, tmp_path):
    units = [camera_unit(video, camera, qp, 1.5) for camera, qp in (("soft lens", 32), ("crisp", 22))]
    soft, crisp = runner.run(units, METHODS[:1], tmp_path)[0]
    assert (soft["camera"], crisp["camera"]) == ("soft", "crisp")
    for record in (soft, crisp):  # MS-SSIM does not fit into these few pixels
        assert record["metrics"].keys() == {"psnr_y", "ssim_y", "jod", "flicker_static"}
        assert 5 < record["metrics"]["jod"][0] < 9.99
    assert np.mean(soft["metrics"]["ssim_y"]) < np.mean(crisp["metrics"]["ssim_y"])


# ----------------------------------------------------------------------------------------------------------------------
# A quarter of the lines


def test_a_quarter_of_the_lines_goes_through_x265(video, tmp_path):
    units = conditions.x4_units([CAT, video])
    assert [unit.qp for unit in units] == [17, 22, 27, 32, 37, 42] and {unit.codec for unit in units} == {"x265"}
    assert [unit.identity()["condition"] for unit in units[:2]] == ["x265 qp 17", "x265 qp 22"]
    came, _ = runner.run(units, METHODS[:1], tmp_path, thorough=False)
    psnr = [np.mean(record["metrics"]["psnr_y"]) for record in came]
    assert psnr == sorted(psnr, reverse=True) and psnr[0] > psnr[-1] + 1


# ----------------------------------------------------------------------------------------------------------------------
# Runs, sources


def test_a_run_goes_on_where_it_stopped(picture, tmp_path):
    calls = []

    def method(name, stop_at=None):
        def function(y, uv, full_range):
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            calls.append(name)
            return blurred(y, uv, full_range)

        return Peer(name, "a blur", lambda scale: function)

    units = conditions.image_units([picture])
    with pytest.raises(KeyboardInterrupt):
        runner.run(units, [method("blur", stop_at=3)], tmp_path)
    records, _ = runner.run(units, [method("blur")], tmp_path)
    assert calls == ["blur"] * len(units)
    assert [record["condition"] for record in records] == list(conditions.IMAGE_CONDITIONS)
    assert runner.run(units, [method("blur")], tmp_path)[0] == records and len(calls) == len(units)
    # Another picture under the same name is measured anew.
    cv2.imwrite(picture.path, skimage.data.coffee()[:160, :200, ::-1])
    runner._fingerprint.cache_clear()
    conditions.make_sample.cache_clear()
    assert runner.run(units, [method("blur")], tmp_path)[0] != records


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


def test_sources_of_the_packages_are_not_trained_on():
    sources = conditions.list_sources()
    assert {source.category for source in sources} == {"people", "nature", "objects", "text", "city"}
    assert conditions.load_frame(next(source for source in sources if source.category == "city")).shape == (426, 640, 3)
    trained = {f"skimage:{name}" for name in (*dataset.SKIMAGE_TRAINING, *dataset.SKIMAGE_VALIDATION)}
    assert trained.isdisjoint(source.path for source in sources)
    slide = next(source for source in sources if source.path.startswith("slide:"))
    assert conditions.load_frame(slide).shape == (720, 1280, 3)
    assert bgr_to_planes(conditions.load_frame(slide))[0].std() > 20


def test_a_source_that_cannot_be_made_is_left_out(picture, tmp_path, caplog):
    cv2.imwrite(str(tmp_path / "tiny.png"), skimage.data.chelsea()[:100, :120, ::-1])
    sources = [conditions.Source("cats", "tiny.png", str(tmp_path / "tiny.png")), picture]
    units = [
        conditions.Unit("call", source, f"x4 {codec} 300k", 4, codec, kbps=300)
        for source, codec in zip(sources, ("av1", "x264"), strict=True)
    ]
    methods = [Peer("input", "", lambda scale: runner.as_it_came)]
    records, measured = runner.run(units, methods, tmp_path / "cache", thorough=False)
    assert [record["name"] for record in records] == ["a.png"] and measured == units[1:]
    assert "left out: tiny.png, x4 av1 300k: av1 cannot encode frames of" in caplog.text
    short = conditions.Source("heads", "short.mp4", write_video(tmp_path / "short.mp4", 3))
    with pytest.raises(DataError, match="nothing could be measured"):
        runner.run(conditions.real_units([short]), methods, tmp_path / "cache")
    assert "left out: short.mp4, as it is: the video" in caplog.text
    assert "has 3 frames, the benchmark needs 4" in caplog.text
