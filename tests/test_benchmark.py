import dataclasses

import av
import cv2
import numpy as np
import pytest
import skimage.data

import benchmark as bm
import dataset
from dataset import DataError
from peers import Peer
from utils import bgr_to_planes

CAT = bm.Source("nature", "chelsea", "skimage:chelsea")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "pictures" / "cats" / "a.png"
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), skimage.data.chelsea()[40:201, 100:301, ::-1])  # odd on purpose
    return bm.Source("cats", "a.png", str(path))


def blurred(y, uv, full_range):
    return cv2.GaussianBlur(y, (0, 0), 3), uv


def test_known_answers(picture, tmp_path):
    samples = [bm.make_sample(unit, tmp_path) for unit in bm.image_units([picture])]
    records = bm.evaluate(samples, {"input": bm.as_it_came, "blur": blurred}, thorough=True)
    by_condition = {}
    for record in records:
        by_condition.setdefault(record["condition"], {})[record["method"]] = record["metrics"]
    assert list(by_condition) == list(bm.IMAGE_CONDITIONS)
    for condition, found in by_condition.items():
        assert found["blur"]["ssim_y"] < found["input"]["ssim_y"], condition
        assert found["blur"]["psnr_rgb"] < found["input"]["psnr_rgb"], condition
    assert by_condition["clean"]["input"] == {"psnr_y": [np.inf], "ssim_y": [1], "psnr_rgb": [np.inf], "ssim_rgb": [1]}
    quality = [by_condition[name]["input"]["psnr_y"][0] for name in ("light jpeg", "bicubic+noise", "severe")]
    assert quality[0] > 33 > quality[1] > quality[2] + 2 > 20


def test_image_conditions_repeat(picture, tmp_path):
    for unit in bm.image_units([picture]):
        one, again = (bm.make_sample(unit, tmp_path).input[0] for _ in range(2))
        assert one[0].shape == (160, 200)
        assert all((a == b).all() for a, b in zip(one, again, strict=True))


def test_a_few_sources_meet_every_scale_with_every_codec_and_rate():
    sources = [dataclasses.replace(CAT, name=str(i)) for i in range(5)]
    rates = len(bm.BITRATES) + len(bm.QUANTISERS["x264"])
    units = bm.call_units(sources)
    assert len(units) == 5 * len(bm.CODECS) * rates
    assert len({(unit.scale, unit.codec, unit.qp, unit.kbps) for unit in units}) == len(units)
    assert len(bm.call_units(sources[:1], full=True)) == len(units)
    assert {unit.condition for unit in bm.call_units(sources[:1], scales=(2,), codecs=("vp9",))} == {
        *(f"x2 vp9 qp {qp}" for qp in bm.QUANTISERS["vp9"]),
        *(f"x2 vp9 {kbps}k" for kbps in bm.BITRATES),
    }


def test_a_share_of_the_units_holds_a_smaller_one():
    units = bm.call_units([dataclasses.replace(CAT, name=str(i)) for i in range(5)])
    half, quarter = bm.draw_units(units, 0.5), bm.draw_units(units, 0.25)
    assert set(map(id, quarter)) < set(map(id, half)) and bm.draw_units(units, 1) == units
    assert 0.35 < len(half) / len(units) < 0.65 and 0.15 < len(quarter) / len(units) < 0.35


def test_a_call_is_sent_through_a_real_codec(picture, tmp_path, monkeypatch):
    units = {unit.condition: unit for unit in bm.call_units([CAT], scales=(2,), codecs=("x264",))}
    good, bad, slow = (bm.make_sample(units[f"x2 x264 {rate}"], tmp_path) for rate in ("qp 22", "qp 37", "150k"))
    assert len(good.input) == len(good.truth) == len(good.frames) == bm.MEASURED_FRAMES
    assert good.frames[-1] == bm.CLIP_FRAMES - 1 and good.full_range
    assert good.identity["kbps"] > 3 * bad.identity["kbps"] and 75 < slow.identity["kbps"] < 250
    scores = [record["metrics"] for record in bm.evaluate([good, bad], {"input": bm.as_it_came}, thorough=True)]
    assert min(scores[0]["psnr_y"]) > 1 + max(scores[1]["psnr_y"])
    assert 0 < scores[0]["flicker_moving"][0] < 10
    # Again the stream comes out of the cache.
    monkeypatch.setattr(dataset, "encode_clip", lambda *_, **__: pytest.fail("encoded again"))
    again = bm.make_sample(units["x2 x264 qp 22"], tmp_path)
    assert all((a[0] == b[0]).all() for a, b in zip(good.input, again.input, strict=True))


def test_videos_are_measured_in_their_own_range(tmp_path):
    path = tmp_path / "clip.mp4"
    photo = np.ascontiguousarray(skimage.data.astronaut()[..., ::-1])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "10"})
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for image in dataset.animate(photo, 32, (128, 160), (1, 1), np.random.default_rng(0)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())
    source = bm.Source("people", "clip.mp4", str(path))
    assert bm.image_units([source]) == []
    sample = bm.make_sample(bm.call_units([source], scales=(1,), codecs=("x264",))[0], tmp_path)
    assert not sample.full_range and sample.truth[0][0].shape == (128, 160)
    with pytest.raises(DataError, match="has 32 frames, the benchmark needs 40"):
        bm.load_clip(source, 40)


def test_phases_show_a_grid(rng):
    truth = np.full((66, 71), 100, np.uint8)
    dotted = truth.copy()
    dotted[1::4, 2::4] += 8
    phases = bm.phase_error(dotted, truth)
    assert phases[1, 2] == 64 and phases.sum() == 64
    assert bm.phase_spread([phases.tolist()]) == 16
    grey = np.full((400, 400), 128, np.uint8)
    noisy = bm.phase_error(dataset.add_noise(grey, 4, rng), grey)
    assert 0 < bm.phase_spread([noisy.tolist()]) < 0.1
    assert bm.phase_spread([np.zeros((4, 4)).tolist()]) == 0


@pytest.mark.parametrize("own", [0, 6])
def test_shifts_tell_the_students_grid_from_the_pictures(rng, own):
    truth = rng.integers(40, 200, (96, 104), dtype=np.uint8)
    damaged = dataset.add_noise(truth, 6, rng)
    damaged[::4, ::4] = truth[::4, ::4]  # a grid of the picture's
    uv = np.full((2, 48, 52), 128, np.uint8)

    def sharpen(y, uv, full_range):
        assert uv.shape == (2, y.shape[0] // 2, y.shape[1] // 2) and full_range
        y = y.copy()
        y[2::4, 1::4] += own
        return y, uv

    sharp, _ = sharpen(damaged, uv, True)
    assert bm.phase_spread([bm.phase_error(sharp, truth)]) > 0.9
    shifted = bm.shifted_phase_error(sharpen, (damaged, uv), truth, True)
    assert bm.phase_spread([shifted]) == pytest.approx(own**2 / shifted.mean(), abs=0.2)
    assert (bm.phase_spread([shifted]) < 0.15) == (own == 0)


def test_a_run_goes_on_where_it_stopped(picture, tmp_path):
    calls = []

    def method(name, stop_at=None):
        def function(y, uv, full_range):
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            calls.append(name)
            return blurred(y, uv, full_range)

        return Peer(name, "a blur", lambda scale: function)

    units = bm.image_units([picture])
    with pytest.raises(KeyboardInterrupt):
        bm.run(units, [method("blur", stop_at=3)], tmp_path, vmaf=False)
    records = bm.run(units, [method("blur")], tmp_path, vmaf=False)
    assert calls == ["blur"] * len(units)
    assert [record["condition"] for record in records] == list(bm.IMAGE_CONDITIONS)
    assert bm.run(units, [method("blur")], tmp_path, vmaf=False) == records and len(calls) == len(units)
    bm.run(units, [method("blur"), method("other")], tmp_path, vmaf=False, few=["other"])
    assert calls.count("other") == 1  # slow methods see one condition of each source
    # Another picture under the same name is measured anew.
    cv2.imwrite(picture.path, skimage.data.coffee()[:160, :200, ::-1])
    bm._fingerprint.cache_clear()
    assert bm.run(units, [method("blur")], tmp_path, vmaf=False) != records


def test_worst_frames_are_those_that_lost_most():
    def record(name, method, values):
        identity = {"protocol": "call", "category": "c", "name": name, "condition": "x2"}
        return {**identity, "method": method, "frames": [4, 5], "metrics": {"ssim_y": values}}

    records = [record("a", "input", [0.9, 0.9]), record("a", "student", [0.89, 0.85])]
    records += [record("b", "input", [0.5, 0.6]), record("b", "student", [0.4, 0.7])]
    records += [record("c", "input", [0.5, 0.6]), record("c", "student", [0.6, 0.7])]
    worst = bm.worst_frames(records, "student")
    assert [(key[2], frame, before, after) for key, frame, before, after in worst] == [
        ("b", 4, 0.5, 0.4),
        ("a", 5, 0.9, 0.85),
    ]


def test_the_box_shows_detail():
    y = np.full((300, 400), 90, np.uint8)
    y[200:290, 250:390] = dataset.add_noise(y[200:290, 250:390], 30, np.random.default_rng(0))
    left, top, width, height = bm.detailed_box(y, (140, 90))
    assert abs(left - 250) <= 4 and abs(top - 200) <= 4 and (width, height) == (140, 90)
    assert bm.detailed_box(y[:50, :61]) == (0, 0, 60, 50)


def test_sources_of_a_folder(picture):
    folder = picture.path.removesuffix("/cats/a.png")
    assert bm.list_sources(folder) == [picture]
    for arguments, message in (((folder, ["*.mp4"]), "no sub-folder"), ((folder + "/nothing",), "no folder")):
        with pytest.raises(DataError, match=message):
            bm.list_sources(*arguments)


def test_without_scikit_learn_the_rest_is_measured(monkeypatch, caplog):
    monkeypatch.setattr(bm.importlib.util, "find_spec", lambda name: None)
    sources = bm.list_sources()
    assert {source.category for source in sources} == {"people", "nature", "objects", "text"}
    assert "no city" in caplog.text


def test_sources_of_the_packages_are_not_trained_on():
    sources = bm.list_sources()
    assert {source.category for source in sources} == {"people", "nature", "objects", "text", "city"}
    assert bm.load_frame(next(source for source in sources if source.category == "city")).shape == (426, 640, 3)
    trained = {f"skimage:{name}" for name in (*dataset.SKIMAGE_TRAINING, *dataset.SKIMAGE_VALIDATION)}
    assert trained.isdisjoint(source.path for source in sources)
    slide = next(source for source in sources if source.path.startswith("slide:"))
    assert bm.load_frame(slide).shape == (720, 1280, 3)
    assert bgr_to_planes(bm.load_frame(slide))[0].std() > 20


def test_a_source_that_cannot_be_made_is_left_out(picture, tmp_path, caplog):
    cv2.imwrite(str(tmp_path / "tiny.png"), skimage.data.chelsea()[:100, :120, ::-1])
    sources = [bm.Source("cats", "tiny.png", str(tmp_path / "tiny.png")), picture]
    units = [unit for unit in bm.call_units(sources, scales=(4,), codecs=("av1", "x264")) if unit.kbps == 300]
    wanted = [unit for unit in units if (unit.source is picture) == (unit.codec == "x264")]
    methods = [Peer("input", "", lambda scale: bm.as_it_came)]
    records = bm.run(wanted, methods, tmp_path / "cache", vmaf=False)
    assert [(record["name"], record["codec"]) for record in records] == [("a.png", "x264")]
    assert "left out: tiny.png, x4 av1 300k: av1 cannot encode frames of" in caplog.text
    with pytest.raises(DataError, match="nothing could be measured"):
        bm.run(wanted[:1], methods, tmp_path / "cache", vmaf=False)


def test_a_picture_without_an_even_size_is_left_out_by_name(tmp_path):
    cv2.imwrite(str(tmp_path / "line.png"), np.zeros((40, 1, 3), np.uint8))
    with pytest.raises(DataError, match=r"line\.png is too small"):
        bm.load_frame(bm.Source("lines", "line.png", str(tmp_path / "line.png")))
