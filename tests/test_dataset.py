import dataclasses
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

import dataset
import degradation
from config import Config
from degradation import DataError
from tests.conftest import write_video
from utils import bgr_to_planes, luma_metrics, to_full_range
from video import BT601_LIMITED, Frame, VideoFormat, VideoReader, VideoWriter


@pytest.fixture
def config(tmp_path):
    return Config(cache_dir=str(tmp_path / "cache"), region=256, crop=32, pairs=40, validation_pairs=4)


def test_animate_ends_on_an_exact_crop_and_moves(photo, rng):
    frames = degradation.animate(photo, 4, (100, 120), (2.5, -1.5), rng)
    assert len(frames) == 4 and frames[0].shape == (100, 120, 3)
    matches = cv2.matchTemplate(photo, frames[-1], cv2.TM_SQDIFF)
    _, _, (left, top), _ = cv2.minMaxLoc(matches)
    assert (photo[top : top + 100, left : left + 120] == frames[-1]).all()
    # The frame before shows what two frames' motion would have moved exactly: 2 * (2.5, -1.5) pixels.
    earlier, last = frames[1][20:80, 20:80], frames[3][23:83, 15:75]
    assert (earlier == last).all()


def test_every_kind_of_pair_is_made_and_means_what_it_says(config):
    sources = dataset.list_sources(config, validation=False)
    quality = {}
    for index in range(40):
        damaged, truth, description = dataset.make_pair(sources, 0, index, 256)
        assert damaged.shape == truth.shape == (384, 256) and damaged.dtype == truth.dtype == np.uint8
        assert description["kind"] == "call" or not description["soft"]
        quality.setdefault(description["kind"], []).append(luma_metrics(damaged[:256], truth[:256])[0])
    assert set(quality) == {"clean", "image", "call"}
    assert min(quality["clean"]) == np.inf and max(quality["image"] + quality["call"]) < 60
    assert len(quality["call"]) > len(quality["image"]) > len(quality["clean"])


def test_pairs_of_each_purpose_lie_apart(config, clips):
    config = dataclasses.replace(config, data_root=str(clips), sources={"clips": 1.0}, pairs=3, real_pairs=2, crop=64)
    for purpose, (key, _) in dataset.PURPOSES.items():
        folder = dataset.prepare_pairs(config, purpose, progress=False)
        assert folder.name.partition("-")[0] == purpose
        pairs, side = dataset.open_pairs(folder), dataset.REAL_REGION if purpose == "real" else 256
        assert len(pairs) == getattr(config, key)
        for pair in pairs:
            assert pair.input.shape == pair.goal.shape == (3 * side // 2, side)
            assert pair.taught == (pair.description["kind"] == "real") == (purpose == "real")


def test_crops_of_real_video_are_as_it_is(config, clips):
    config = dataclasses.replace(config, data_root=str(clips), sources={"clips": 1.0})
    sources = dataset.list_sources(config, validation=False)
    for index in range(3):
        crop, truth, description = dataset.make_real(sources, 0, index, 160)
        assert crop.shape == (240, 160) and crop.dtype == np.uint8 and truth is None
        assert (description["kind"], description["soft"]) == ("real", True)
        found = []
        with VideoReader(description["source"]) as reader:
            for frame in reader:
                y, uv = to_full_range(frame.y, frame.uv)
                _, _, (left, top), _ = cv2.minMaxLoc(cv2.matchTemplate(y, crop[:160], cv2.TM_SQDIFF))
                cut = degradation.crop_planes(y, uv, left, top, 160)
                found.append(np.array_equal(degradation.pack_planes(*cut), crop) and left % 2 == top % 2 == 0)
        assert any(found)
        assert (dataset.make_real(sources, 0, index, 160)[0] == crop).all()


def test_crops_of_real_video_prefer_detail(tmp_path):
    """The better of two places is taken, so the flat half of the picture is seldom alone in a crop."""
    path, rng = tmp_path / "half.mkv", np.random.default_rng(0)
    y, uv = np.full((160, 640), 90, np.uint8), np.full((2, 80, 320), 128, np.uint8)
    y[:, 320:] = rng.integers(60, 120, (160, 320))
    with VideoWriter(path, VideoFormat(640, 160, Fraction(25), **BT601_LIMITED), codec="ffv1") as writer:
        for _ in range(dataset.LEAST_FRAMES):
            writer.write(Frame(y, uv))
    crops = [dataset.make_real([(1.0, [str(path)])], 0, index, 160)[0] for index in range(40)]
    flat = np.mean([np.ptp(crop[:160]) == 0 for crop in crops])
    assert 0 < flat < 0.22  # a ninth; a third if it did not choose


def test_small_videos_are_mirrored_to_a_crop(tmp_path):
    path = write_video(tmp_path / "small.mp4", 12, (192, 120))
    crop, _, _ = dataset.make_real([(1.0, [path])], 0, 0, 160)
    y, uv = degradation.unpack_planes(crop)
    assert np.array_equal(y[120:], y[119:79:-1]) and np.array_equal(uv[:, 60:], uv[:, 59:39:-1]) and y.std() > 5


def test_preparation_goes_on_where_it_stopped_with_any_number_of_threads(config, monkeypatch):
    monkeypatch.setattr(dataset, "usable_cores", lambda: 2)
    folder = dataset.prepare_pairs(config, progress=False)
    parts = [file.read_bytes() for file in sorted(folder.iterdir())]
    kept, *_, gone = sorted(folder.glob("*.json"))
    written = kept.stat().st_mtime_ns
    gone.unlink()
    monkeypatch.setattr(dataset, "usable_cores", lambda: 1)
    assert dataset.prepare_pairs(config, progress=False) == folder and kept.stat().st_mtime_ns == written
    assert [file.read_bytes() for file in sorted(folder.iterdir())] == parts and len(parts) == 4
    expected = dataset.make_pair(dataset.list_sources(config, validation=False), 0, 39, 256)
    last = dataset.open_pairs(folder)[39]
    assert (last.input == expected[0]).all() and (last.goal == expected[1]).all() and last.description == expected[2]


def test_training_validation_and_benchmark_share_no_picture(tmp_path):
    benchmark = {name for names in dataset.SKIMAGE_BENCHMARK.values() for name in names}
    assert not benchmark & {*dataset.SKIMAGE_TRAINING, *dataset.SKIMAGE_VALIDATION}
    assert not set(dataset.SKIMAGE_TRAINING) & set(dataset.SKIMAGE_VALIDATION)
    (tmp_path / "photos").mkdir()
    for i in range(25):
        cv2.imwrite(str(tmp_path / "photos" / f"{i:02d}.png"), np.zeros((8, 8, 3), np.uint8))
    config = Config(data_root=str(tmp_path), sources={"photos": 1})
    (_, training), (_, validation) = *dataset.list_sources(config, False), *dataset.list_sources(config, True)
    assert len(training) == 23 and len(validation) == 2 and not set(training) & set(validation)


def test_videos_are_sources(config, clips, tmp_path):
    config = dataclasses.replace(config, data_root=str(clips), sources={"clips": 1.0})
    sources = dataset.list_sources(config, validation=False)
    assert len(sources[0][1]) == 5
    for index in range(6):
        damaged, truth, _ = dataset.make_pair(sources, 0, index, 256)
        assert damaged.shape == (384, 256) and truth[:256].std() > 5
    odd = write_video(tmp_path / "odd.webm", 14, (321, 257))
    assert {y.shape for y, _ in dataset.read_clip(odd, 6, np.random.default_rng(0))} == {(256, 320)}
    path = write_video(tmp_path / "small.mp4", 14, (192, 144))
    with pytest.raises(DataError, match=r"pictures such as .*small\.mp4 are too small for region=256"):
        dataset.make_pair([(1.0, [path])], 0, 0, 256)


def crops_of(source, goal, kind="image", soft=False, name="a.png", **settings):
    """Crops of one pair of packed pictures, which is taught if it is real."""
    pair = dataset.Pair(source, goal, kind == "real", {"source": name, "kind": kind, "soft": soft})
    return dataset.PairDataset([pair], Config(**settings))


def test_crops_start_at_any_even_offset_and_stay_aligned(rng):
    """Luma holds its own coordinates; chroma must be cut, flipped and turned along with it."""
    y = np.add.outer(np.arange(0, 64), np.zeros(64)).astype(np.uint8)
    x = y.T
    chroma = np.stack([y[::2, ::2], x[::2, ::2]])
    crops = crops_of(degradation.pack_planes(y, chroma), degradation.pack_planes(x, chroma), crop=32)
    corners = set()
    for position in range(200):
        item = crops[(0, 0, position, 0)]
        row, uv, column = item["input"][0].numpy(), item["input"][1].numpy(), item["goal"][0].numpy()
        assert item["taught"] == 0 and torch.equal(item["target"], item["goal"][0])
        means = [(plane[0, ::2, ::2] + plane[0, 1::2, 1::2]) / 2 - 0.5 / 255 for plane in (row, column)]
        assert np.abs(means[0] - uv[0]).max() < 1.1 / 255 and np.abs(means[1] - uv[1]).max() < 1.1 / 255
        corners.add((int(row.min() * 255), int(column.min() * 255)))
    assert {top % 8 for top, _ in corners} == {left % 8 for _, left in corners} == {0, 2, 4, 6}


def test_the_targets_of_soft_pairs_are_crisper_and_others_are_the_truth(photo):
    planes = bgr_to_planes(photo)
    goal = degradation.pack_planes(*planes)
    blurred = degradation.pack_planes(*degradation.each_plane(planes, degradation.blur, 0.8))

    def items(kind, soft, **settings):
        crops = crops_of(blurred, goal, kind, soft, crop=64, **settings)
        return [crops[0, position, 0] for position in range(4)]

    def steepness(items):
        return np.mean([item["target"].diff(dim=2).square().mean() for item in items])

    for kind in ("clean", "image"):
        for item in items(kind, kind == "image"):
            assert torch.equal(item["target"], item["goal"][0])
    found = [
        steepness(items("call", soft, crispness=amount)) for soft, amount in ((False, 1.0), (True, 0.3), (True, 1.0))
    ]
    assert found[0] < found[1] < found[2] and found[2] > 1.1 * found[0]
    for item in items("call", True):
        assert item["target"].shape == (1, 64, 64) and item["target"].dtype == torch.float32


def test_teacher_pairs_have_the_teachers_output_at_the_inputs_size(tmp_path, photo):
    small, large = photo[:110, :200], cv2.resize(photo[:110, :200], (800, 440), interpolation=cv2.INTER_NEAREST)
    for name, image in (("lr", small), ("sr", large)):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), image)
    pairs = dataset.read_teacher_pairs(tmp_path, 96)
    assert len(pairs) == 2  # beside each other
    for pair, left in zip(pairs, (0, 96), strict=True):
        assert pair.taught and pair.description["soft"] and pair.description["source"] == "a.png"
        expected = degradation.pack_planes(*bgr_to_planes(np.ascontiguousarray(small[:96, left : left + 96])))
        assert np.array_equal(pair.input, expected) and np.array_equal(pair.goal, expected)
    item = dataset.PairDataset(pairs, Config(crop=32))[(0, 0, 0, 0)]
    assert item["taught"] == 1 and all(torch.equal(a, b) for a, b in zip(item["input"], item["goal"], strict=True))
    assert [pair.input.shape for pair in dataset.read_teacher_pairs(tmp_path, 128)] == [(192, 128)]  # mirrored below
    cv2.imwrite(str(tmp_path / "sr" / "a.png"), photo[:90, :90])
    with pytest.raises(DataError, match="not four times"):
        dataset.read_teacher_pairs(tmp_path, 96)


def test_patterns_are_the_same_in_input_and_truth(rng):
    noise, other = (rng.integers(0, 256, (96, 64), dtype=np.uint8) for _ in range(2))
    plain, painted = (crops_of(noise, other, crop=48, pattern_share=share) for share in (0.0, 1.0))
    shares = []
    for position in range(20):
        before, item = plain[0, position, 0], painted[0, position, 0]
        changed = item["input"][0] != before["input"][0]
        shares.append(changed.float().mean().item())
        same = (item["input"][0] == item["goal"][0]) & (item["input"][0] == item["target"])
        rows, columns = changed[0].any(dim=1).nonzero(), changed[0].any(dim=0).nonzero()
        box = (slice(None), slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        assert same[box].all() and not changed.all()
        assert torch.equal(item["input"][1], before["input"][1])
    assert min(shares) > 0.02 and max(shares) > 0.4
    patterns = np.stack([dataset.periodic_pattern(32, rng) for _ in range(50)]).astype(int)
    assert patterns.min() >= 0 and patterns.max() <= 255 and np.ptp(patterns, axis=(1, 2)).max() > 200


def test_soft_lines_are_the_same_all_along(rng):
    pictures = [dataset.soft_lines(64, rng) for _ in range(60)]
    assert all(picture.shape == (64, 64) and picture.dtype == np.uint8 for picture in pictures)
    upright = sum(not np.ptp(picture, axis=axis).any() for picture in pictures for axis in (0, 1))
    assert 20 <= upright <= 40  # half of them lie along the frame
    heights = np.array([np.ptp(picture.astype(int)) for picture in pictures])
    assert heights.min() >= 2 and heights.max() <= 81 and np.ptp(heights) > 40


def test_the_crisper_goal_has_no_staircase():
    """An edge that is a little aslant: the steeper one crosses the rows as evenly as the soft one."""
    rows, columns = np.mgrid[:64, :64].astype(np.float32)
    edge = 60 + 120 / (1 + np.exp(-(columns - 24 - 0.2 * rows) / 1.2))
    sharp = dataset.crisp(edge, np.rint(edge).astype(np.uint8))
    assert np.abs(np.diff(sharp, axis=1)).max() > 1.4 * np.abs(np.diff(edge, axis=1)).max()
    crossing = np.array([np.interp(120, row[15:50], np.arange(15, 50)) for row in sharp])
    assert np.abs(crossing - (24 + 0.2 * np.arange(64)))[4:-4].max() < 0.12


def test_a_taught_goal_mixes_the_input_with_the_teachers_output(rng):
    source, output = (rng.integers(0, 256, (96, 64), dtype=np.uint8) for _ in range(2))
    item = crops_of(source, output, "real", crop=64)[0, 0, 0]
    swapped = crops_of(output, source, "clean", crop=64)[0, 0, 0]
    for came, made, goal in zip(item["input"], swapped["input"], item["goal"], strict=True):
        torch.testing.assert_close(goal, came + dataset.TEACHER_WEIGHT * (made - came))


def test_what_is_learned_depends_on_the_kind_of_crop(rng):
    picture = rng.integers(0, 256, (96, 64), dtype=np.uint8)
    expected = [
        ("a.png", "clean", False, {"undamaged"}),
        ("rendered", "clean", False, {"undamaged"}),
        ("rendered", "call", False, {"text", "undamaged"}),  # some of it is shown undamaged
        ("data/train/text/pages/a.png", "call", True, {"text", "undamaged"}),
        ("data/train/texture/text/a.png", "call", True, {"soft"}),
        ("data/train/text/pages/a.mp4", "real", True, {"real"}),
        ("a.png", "call", False, {"crisp"}),
        ("a.png", "image", False, {"image"}),
    ]
    named = {tuple(torch.tensor(answer).tolist()): name for name, answer in dataset.ANSWERS.items()}
    folders = {"train/text": 1, "train/texture": 1}
    for source, kind, soft, names in expected:
        crops = crops_of(picture, 255 - picture, kind, soft, source, crop=64, sources=folders)
        items = [crops[0, number, 0] for number in range(40)]
        found = [named[tuple(item["answer"].tolist())] for item in items]
        assert set(found) == names
        undamaged = [torch.equal(item["input"][0], item["goal"][0]) for item in items]
        assert "text" not in names or undamaged == [name == "undamaged" for name in found]
        assert "real" not in names or not any(undamaged)


def test_classic_crops_are_made_from_the_truth(rng):
    grains = [rng.integers(0, 256, (12, 8), np.uint8) for _ in range(2)]
    photo, other = (degradation.resize(picture, (64, 96)) for picture in grains)
    description = {"source": "a.png", "kind": "call", "soft": True}
    pairs = [dataset.Pair(other, photo, taught, description) for taught in (False, True)]
    plain, classic = (dataset.PairDataset(pairs, Config(crop=48, classic_share=share)) for share in (0.0, 1.0))
    before, item = plain[0, 0, 0], classic[0, 0, 0]
    assert torch.equal(item["goal"][0], before["goal"][0]) and not torch.equal(item["input"][0], before["input"][0])
    assert torch.equal(item["target"], item["goal"][0])  # these are not made crisper
    errors = [entry["input"][0] - entry["goal"][0] for entry in (item, before)]
    assert errors[0].abs().mean() < 0.05 < errors[1].abs().mean() and errors[0].std() > 1 / 255
    for name in ("input", "goal"):  # a taught pair stays as it is
        assert torch.equal(plain[0, 0, 1][name][0], classic[0, 0, 1][name][0])


@pytest.fixture
def edge():
    """A step of 120 codes, blurred as by a soft lens, `(64, 96)` uint8."""
    step = np.full((64, 96), 60, np.float32)
    step[:, 48:] = 180
    return np.rint(cv2.GaussianBlur(step, (0, 0), 1.8)).astype(np.uint8)


def steepest(y):
    return np.abs(np.diff(y.astype(np.float32), axis=1)).max()


def test_crisp_edges_are_steeper_in_proportion_to_the_amount_and_have_no_halo(edge):
    none, half, whole = (dataset.crisp(edge, edge, amount) for amount in (0, 0.5, 1))
    assert steepest(whole) > 1.15 * steepest(edge)
    assert edge.min() - 1 < whole.min() and whole.max() < edge.max() + 1
    assert np.allclose(half, (none + whole) / 2, atol=1e-3)
    assert np.abs(none - edge).max() < 1.2  # only grain is removed


def test_crisp_removes_the_faintest_grain_and_leaves_texture(rng):
    flat = np.full((64, 64), 100, np.uint8)
    faint, texture = (flat + rng.integers(-n, n + 1, flat.shape).astype(np.int8) for n in (1, 12))
    faint, texture = faint.astype(np.uint8), texture.astype(np.uint8)
    assert dataset.crisp(faint, faint, 0).std() < 0.5 * faint.std()
    assert dataset.crisp(texture, texture, 0).std() > 0.85 * texture.std()


def test_a_goal_may_leave_the_range_of_the_input_only_a_little():
    """What the teacher invents beside an edge does not become a halo."""
    source = np.full((48, 48), 100, np.uint8)
    goal = source.copy()
    goal[20:28, 20:28] = 160
    assert dataset.crisp(goal, source).max() < 100 + 0.7 * 60


def test_what_is_wrong_with_the_sources_is_named(tmp_path, config, clips):
    def refuse(message, purpose="training", **changes):
        with pytest.raises(DataError, match=message):
            dataset.prepare_pairs(dataclasses.replace(config, **changes), purpose, progress=False)

    photos = {"data_root": str(tmp_path), "sources": {"photos": 1.0}}
    refuse("data_root", **photos)
    (tmp_path / "photos").mkdir()
    refuse("at least 6", **photos)
    for i in range(8):
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"not an image")
    refuse("cannot read the image", **photos)
    refuse("crop=32 must be multiples of 8, region at least 256", region=128)
    refuse("real_pairs needs videos", "real", real_pairs=2)
    videos = {"data_root": str(clips), "sources": {"clips": 1.0}}
    refuse("crop=168 is too large for crops of real video", "real", **videos, real_pairs=2, crop=168)
    with pytest.raises(DataError, match="no PNG"):
        dataset.read_teacher_pairs(tmp_path, 96)
