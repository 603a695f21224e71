import dataclasses

import cv2
import numpy as np
import pytest
import skimage.data
import torch

import dataset
from config import Config
from dataset import DataError
from utils import bgr_to_planes, luma_metrics


@pytest.fixture
def photo():
    return np.ascontiguousarray(skimage.data.astronaut()[:256, 100:356, ::-1])


@pytest.fixture
def config(tmp_path):
    return Config(
        cache_dir=str(tmp_path / "cache"), region=256, crop=32, pairs=40, validation_pairs=4, prepare_workers=1
    )


@pytest.mark.parametrize("codec", dataset.CODECS)
def test_codecs_are_real_and_get_worse_with_qp(photo, codec):
    clip = [bgr_to_planes(f) for f in dataset.animate(photo, 6, (128, 128), (2, 1), np.random.default_rng(1))]
    lightest, heaviest = dataset.CODECS[codec].quantisers
    quality = []
    for qp in (lightest, heaviest):
        decoded = dataset.codec_roundtrip(clip, codec, qp)
        assert len(decoded) == len(clip) and decoded[0][1].shape == (2, 64, 64)
        quality.append(luma_metrics(decoded[-1][0], clip[-1][0])[0])
        again = dataset.codec_roundtrip(clip, codec, qp)
        assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(decoded, again, strict=True))
    assert 34 < quality[0] < 60 and 18 < quality[1] < quality[0] - 5


@pytest.mark.parametrize("codec", dataset.CODECS)
def test_rate_control_is_real(photo, codec):
    """The stream is nearly as large as was asked for; more bits look better; the same again, byte for byte."""
    clip = [bgr_to_planes(f) for f in dataset.animate(photo, 30, (192, 224), (1, 1), np.random.default_rng(1))]
    quality = []
    for kbps in (150, 600):
        packets = dataset.encode_clip(clip, codec, kbps=kbps)
        assert packets == dataset.encode_clip(clip, codec, kbps=kbps)
        assert 0.3 * kbps < sum(map(len, packets)) * 8 / 1000 / (30 / 25) < 1.7 * kbps
        decoded = dataset.decode_clip(packets, codec)
        assert len(decoded) == 30
        quality.append(luma_metrics(decoded[-1][0], clip[-1][0])[0])
    assert quality[0] + 2 < quality[1]


def test_the_last_frame_of_a_codec_clip_is_predicted(photo):
    """In a still clip the frames after the key frame are copied from it, bit for bit."""
    encoded = []
    for count in (1, 6):
        clip = [bgr_to_planes(photo)] * count
        encoded.append(dataset.codec_roundtrip(clip, "x264", 38)[-1][0])
    assert (encoded[0] == encoded[1]).all()


def test_animate_ends_on_an_exact_crop_and_moves(photo, rng):
    frames = dataset.animate(photo, 4, (100, 120), (2.5, -1.5), rng)
    assert len(frames) == 4 and frames[0].shape == (100, 120, 3)
    matches = cv2.matchTemplate(photo, frames[-1], cv2.TM_SQDIFF)
    _, _, (left, top), _ = cv2.minMaxLoc(matches)
    assert (photo[top : top + 100, left : left + 120] == frames[-1]).all()
    # The frame before shows what two frames' motion would have moved exactly: 2 * (2.5, -1.5) pixels.
    earlier, last = frames[1][20:80, 20:80], frames[3][23:83, 15:75]
    assert (earlier == last).all()


def test_noise_has_the_requested_sigma_and_colour(rng):
    grey = np.full((200, 200, 3), 128, np.uint8)
    coloured = dataset.add_noise(grey, 5, rng).astype(float) - 128
    assert coloured.std() == pytest.approx(5, rel=0.05)
    assert abs(np.corrcoef(coloured[..., 0].ravel(), coloured[..., 1].ravel())[0, 1]) < 0.05
    monochrome = dataset.add_noise(grey, 5, rng, grey=True)
    assert (monochrome[..., 0] == monochrome[..., 1]).all() and monochrome.std() == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize("kernel", ["area", "bilinear", "bicubic", "lanczos"])
def test_shrinking_does_not_alias(kernel):
    """The finest checkerboard becomes flat grey."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.ptp(dataset.resize(board, (16, 16), kernel)[4:-4, 4:-4].astype(int)) <= 2


def test_pack_and_unpack_are_inverse(photo):
    y, uv = bgr_to_planes(photo[:64, :48])
    unpacked_y, unpacked_uv = dataset.unpack_planes(dataset.pack_planes(y, uv))
    assert (unpacked_y == y).all() and (unpacked_uv == uv).all()


def test_every_kind_of_pair_is_made_and_means_what_it_says(config):
    sources = dataset.list_sources(config, validation=False)
    quality = {}
    for index in range(40):
        damaged, truth, description = dataset.make_pair(sources, 0, index, 256)
        assert damaged.shape == truth.shape == (384, 256) and damaged.dtype == truth.dtype == np.uint8
        quality.setdefault(description["kind"], []).append(luma_metrics(damaged[:256], truth[:256])[0])
    assert set(quality) == {"clean", "mild", "image", "codec"}
    assert min(quality["clean"]) == np.inf and min(quality["mild"]) > 28
    assert np.median(quality["codec"]) < np.median(quality["mild"]) < np.inf


def test_a_gates_pairs_are_late_and_of_soft_sources(config, monkeypatch):
    sources, clips = dataset.list_sources(config, validation=False), []
    monkeypatch.setattr(dataset, "encode_clip", _watched(dataset.encode_clip, clips))
    late = [dataset.make_pair(sources, 0, index, 256, "gate") for index in range(24)]
    counts = [len(clip) for clip in clips]
    assert set(counts) <= {1, dataset.LATE_FRAMES} and counts.count(dataset.LATE_FRAMES) >= 8
    described = [description for *_, description in late if description["kind"] == "codec"]
    assert 2 <= sum("kbps" in description for description in described) <= len(described) - 2
    assert all(("kbps" in description) != ("qp" in description) for description in described)
    again = dataset.make_pair(sources, 0, 3, 256, "gate")
    assert (again[0] == late[3][0]).all() and (again[1] == late[3][1]).all() and again[2] == late[3][2]
    early = [dataset.make_pair(sources, 0, index, 256) for index in range(24)]

    def detail(pair):
        y = pair[1][:256].astype(float)
        return np.abs(y - cv2.GaussianBlur(y, (0, 0), 1)).mean()

    assert np.median([detail(pair) for pair in late]) < 0.9 * np.median([detail(pair) for pair in early])


def test_late_pairs_have_all_gone_through_a_codec(config, monkeypatch):
    sources, clips = dataset.list_sources(config, validation=False), []
    monkeypatch.setattr(dataset, "codec_roundtrip", _watched(dataset.codec_roundtrip, clips))
    for index in range(6):
        _, _, description = dataset.make_pair(sources, 0, index, 256, "late")
        assert description["kind"] == "codec" and "codec" in description
    assert [len(clip) for clip in clips] == [dataset.LATE_FRAMES] * 6


def _watched(function, seen):
    """`function`, which notes the first argument of each call in `seen`."""

    def watched(first, *arguments):
        seen.append(first)
        return function(first, *arguments)

    return watched


def test_pairs_of_each_purpose_lie_apart(config):
    config = dataclasses.replace(config, late_pairs=3, gate_pairs=2)
    for purpose, (key, _) in dataset.PURPOSES.items():
        folder = dataset.prepare_pairs(config, purpose, progress=False)
        assert folder.name.partition("-")[0] == purpose
        assert len(dataset.open_pairs(folder)) == getattr(config, key)


def test_pairs_do_not_depend_on_the_number_of_workers(config):
    pictures = []
    for workers in (1, 2):
        changed = dataclasses.replace(config, prepare_workers=workers, cache_dir=config.cache_dir + str(workers))
        folder = dataset.prepare_pairs(changed, progress=False)
        pairs = dataset.open_pairs(folder)
        assert len(pairs) == 40
        pictures.append(np.stack([[pair.input, pair.truth] for pair in pairs]))
    assert (pictures[0] == pictures[1]).all()


def test_preparation_goes_on_where_it_stopped(config, monkeypatch):
    folder = dataset.prepare_pairs(config, progress=False)
    parts = sorted(folder.glob("*.json"))
    assert len(parts) == 2
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    assert dataset.prepare_pairs(config, progress=False) == folder
    assert parts[0].stat().st_mtime_ns == kept and parts[1].exists()


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


def test_videos_are_sources(tmp_path, config, photo):
    import av

    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(6):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width = stream.height = 192
            stream.pix_fmt = "yuv420p"
            for image in dataset.animate(photo, 14, (192, 192), (1, number / 5), np.random.default_rng(number)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
            container.mux(stream.encode())
    config = dataclasses.replace(config, data_root=str(tmp_path), sources={"clips": 1.0})
    sources = dataset.list_sources(config, validation=False)
    assert len(sources[0][1]) == 5
    for index in range(6):
        damaged, truth, _ = dataset.make_pair(sources, 0, index, 256)
        assert damaged.shape == (384, 256) and truth[:256].std() > 5


def test_crops_start_at_any_even_offset_and_stay_aligned(rng):
    """Luma holds its own coordinates; chroma must be cut, flipped and turned along with it."""
    y = np.add.outer(np.arange(0, 64), np.zeros(64)).astype(np.uint8)
    x = y.T
    chroma = np.stack([y[::2, ::2], x[::2, ::2]])
    pairs = [dataset.Pair(dataset.pack_planes(y, chroma), dataset.pack_planes(x, chroma), None, {})]
    crops = dataset.PairDataset(pairs, 32)
    corners = set()
    for position in range(200):
        item = crops[(0, 0, position, 0)]
        row, uv, column = item["input"][0].numpy(), item["input"][1].numpy(), item["truth"][0].numpy()
        assert item["known"].tolist() == [1, 0]
        means = [(plane[0, ::2, ::2] + plane[0, 1::2, 1::2]) / 2 - 0.5 / 255 for plane in (row, column)]
        assert np.abs(means[0] - uv[0]).max() < 1.1 / 255 and np.abs(means[1] - uv[1]).max() < 1.1 / 255
        corners.add((int(row.min() * 255), int(column.min() * 255)))
    assert {top % 8 for top, _ in corners} == {left % 8 for _, left in corners} == {0, 2, 4, 6}


def test_teacher_pairs_have_no_truth(tmp_path, photo):
    for name, image in (("lr", photo[:50, :60]), ("sr", cv2.resize(photo[:50, :60], (240, 200)))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), image)
    pairs = dataset.read_teacher_pairs(tmp_path, 96)
    assert [pair.description["scale"] for pair in pairs] == [4, 4, 4, 4, 2]
    assert all(pair.truth is None and pair.teacher.shape == (144, 96) for pair in pairs)
    item = dataset.PairDataset(pairs, 32)[(0, 0, 0, 0)]
    assert item["known"].tolist() == [0, 1]
    cv2.imwrite(str(tmp_path / "sr" / "a.png"), photo[:90, :90])
    with pytest.raises(DataError, match="not four times"):
        dataset.read_teacher_pairs(tmp_path, 96)


def test_missing_sources_say_what_to_do(tmp_path, config):
    with pytest.raises(DataError, match="data_root"):
        dataset.list_sources(Config(data_root=str(tmp_path), sources={"photos": 1.0}), False)
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="at least 6"):
        dataset.list_sources(Config(data_root=str(tmp_path), sources={"photos": 1.0}), False)
    with pytest.raises(DataError, match="no PNG"):
        dataset.read_teacher_pairs(tmp_path, 96)


def test_a_damaged_image_ends_the_preparation(tmp_path, config):
    (tmp_path / "photos").mkdir()
    for i in range(8):
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"not an image")
    config = dataclasses.replace(config, data_root=str(tmp_path), sources={"photos": 1.0})
    with pytest.raises(DataError, match="cannot read the image"):
        dataset.prepare_pairs(config, progress=False)


def test_rendered_text_is_decided_by_the_seed():
    pages = [dataset.render_text(np.random.default_rng(seed), (160, 128)) for seed in (1, 1, 2)]
    assert (pages[0] == pages[1]).all() and not (pages[0] == pages[2]).all()
    assert pages[0].std() > 10


def test_patterns_are_the_same_in_input_and_truth(rng):
    noise, other = (rng.integers(0, 256, (96, 64), dtype=np.uint8) for _ in range(2))
    pairs = [dataset.Pair(noise, other, None, {})]
    plain, painted = (dataset.PairDataset(pairs, 48, share) for share in (0.0, 1.0))
    shares = []
    for position in range(20):
        before, item = plain[0, position, 0], painted[0, position, 0]
        changed = item["input"][0] != before["input"][0]
        shares.append(changed.float().mean().item())
        same = item["input"][0] == item["truth"][0]
        rows, columns = changed[0].any(dim=1).nonzero(), changed[0].any(dim=0).nonzero()
        box = (slice(None), slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        assert same[box].all() and not changed.all()
        assert torch.equal(item["input"][1], before["input"][1])
    assert min(shares) > 0.02 and max(shares) > 0.4
    patterns = np.stack([dataset.periodic_pattern(32, rng) for _ in range(50)]).astype(int)
    assert patterns.min() >= 0 and patterns.max() <= 255 and np.ptp(patterns, axis=(1, 2)).max() > 200


def test_classic_crops_are_made_from_the_truth(rng):
    photo, other = (
        np.ascontiguousarray(dataset.resize(rng.integers(0, 256, (12, 8), np.uint8), (64, 96))) for _ in "ab"
    )
    pairs = [dataset.Pair(other, photo, None, {}), dataset.Pair(other, None, photo, {})]
    plain, classic = (dataset.PairDataset(pairs, 48, classic_share=share) for share in (0.0, 1.0))
    before, item = plain[0, 0, 0], classic[0, 0, 0]
    assert torch.equal(item["truth"][0], before["truth"][0]) and not torch.equal(item["input"][0], before["input"][0])
    assert (
        (item["input"][0] - item["truth"][0]).abs().mean() < 0.05 < (before["input"][0] - item["truth"][0]).abs().mean()
    )
    assert (item["input"][0] - item["truth"][0]).std() > 1 / 255
    for before, item in ((plain[0, 0, 1], classic[0, 0, 1]), (classic[0, 0, 0], classic[0, 0, 0])):
        assert all(
            torch.equal(a, b) for name in ("input", "truth") for a, b in zip(before[name], item[name], strict=True)
        )
