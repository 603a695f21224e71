import cv2  # before av: see video.py

# isort: split
import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw, ImageFont

import degradation
from benchmark import metrics
from benchmark.metrics import MetricError
from utils import bgr_to_planes, luma_metrics, to_limited_range, unsharp

needs_tesseract = pytest.mark.skipif(not metrics.tesseract_available(), reason="tesseract is not installed")


def per_frame(clip, change):
    """Apply `change(y, t)` to the luma of each frame."""
    return [(change(y, t), uv) for t, (y, uv) in enumerate(clip)]


def add(y, amount):
    return np.clip(y.astype(np.int16) + amount, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def truth():
    """Six full-range frames of 320x192: the right half pans, the left half stands still."""
    photo = np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1])
    frames = degradation.animate(photo, 6, (192, 320), (1.5, 0.5), np.random.default_rng(3))
    for frame in frames:
        frame[:, :160] = frames[0][:, :160]
    return [bgr_to_planes(frame) for frame in frames]


@pytest.fixture(scope="module")
def coded(truth):
    return degradation.codec_roundtrip(truth, "x264", 32)


# ----------------------------------------------------------------------------------------------------------------------
# Known answers


def test_identical_clips(truth):
    """libvmaf gives identical clips 97.4 where nothing moves (the first frame, a still) and 100 elsewhere."""
    scores = metrics.vmaf_scores(truth, truth)
    for name in ("vmaf", "vmaf_neg"):
        assert 97 < scores[name][0] < 98 and scores[name][1:] == pytest.approx([100] * 5, abs=0.5)
    still = metrics.vmaf_scores(truth[:1] * 3, truth[:1] * 3)
    assert still["vmaf"] == pytest.approx([scores["vmaf"][0]] * 3, abs=1e-3)


# ----------------------------------------------------------------------------------------------------------------------
# libvmaf


def test_full_range_is_brought_to_limited_range(truth, coded):
    clips = [clip[:2] for clip in (coded, truth)]
    limited = [[to_limited_range(*planes) for planes in clip] for clip in clips]
    expected = metrics.vmaf_scores(*limited, full_range=False)
    assert metrics.vmaf_scores(*clips, full_range=True) == expected
    assert metrics.vmaf_scores(*clips, full_range=False) != expected


def test_an_ffmpeg_that_fails_is_quoted(truth, monkeypatch, tmp_path):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho 'No such filter: libvmaf' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(MetricError, match=r"No such filter: libvmaf.*requirements-dev\.txt"):
        metrics.vmaf_scores(truth[:1], truth[:1])


# ----------------------------------------------------------------------------------------------------------------------
# Ranking


def test_each_damage_ranks_last_where_it_must(truth, coded):
    sharpened = per_frame(truth, lambda y, t: cv2.addWeighted(y, 2, cv2.GaussianBlur(y, (0, 0), 1.5), -1, 0))
    clips = {
        "coded": coded,
        "shifted": per_frame(truth, lambda y, t: np.roll(y, 3, axis=1)),
        "blurred": per_frame(truth, lambda y, t: degradation.blur(y, 3)),
        "flickering": per_frame(truth, lambda y, t: add(y, 3 if t % 2 else -3)),
        "sharpened": sharpened,
    }
    figures = {}
    for name, clip in clips.items():
        pictures = np.mean([luma_metrics(y, truth_y) for (y, _), (truth_y, _) in zip(clip, truth, strict=True)], axis=0)
        figures[name] = {key: np.mean(values) for key, values in metrics.vmaf_scores(clip, truth).items()}
        figures[name] |= {"psnr_y": pictures[0], "ssim_y": pictures[1]}
        figures[name]["calm"] = -metrics.flicker(clip, truth)  # so that higher is better throughout

    def ranking(metric):
        return sorted(clips, key=lambda name: figures[name][metric])

    assert {ranking(metric)[0] for metric in ("psnr_y", "ssim_y")} == {"shifted"}
    assert {ranking(metric)[0] for metric in ("vmaf", "vmaf_neg")} == {"blurred"}
    assert ranking("calm")[0] == "flickering"
    # What flickers is nearly perfect to each of the others, VMAF too.
    assert figures["flickering"]["vmaf"] > figures["coded"]["vmaf"] > 85
    # VMAF takes sharpening beyond the truth for perfection, NEG does not.
    assert ranking("vmaf")[-1] == "sharpened"
    assert figures["sharpened"]["vmaf_neg"] < figures["coded"]["vmaf_neg"]


# ----------------------------------------------------------------------------------------------------------------------
# Flicker


def test_flicker_counts_grey_levels_where_the_truth_stands_still(truth, rng):
    assert np.isnan(metrics.flicker(truth[:1], truth[:1]))
    mid = per_frame(truth, lambda y, t: np.clip(y, 20, 235))  # room for the error: nothing is clipped
    constant = rng.integers(-20, 21, mid[0][0].shape)
    assert metrics.flicker(per_frame(mid, lambda y, t: add(y, constant)), mid) == 0

    def flickering(side):
        return per_frame(mid, lambda y, t: add(y, side * (3 if t % 2 else -3)))

    assert metrics.flicker(flickering(np.ones(320, np.int16)), mid) == pytest.approx(6)
    assert metrics.flicker(flickering((np.arange(320) < 150).astype(np.int16)), mid) > 3
    assert metrics.flicker(flickering((np.arange(320) >= 170).astype(np.int16)), mid) < 3  # smooth surfaces stay static


def test_the_surroundings_of_an_edge_that_moves_are_no_flicker():
    uv = np.full((2, 16, 16), 128, np.uint8)
    edge = np.where(np.arange(32) < 16, 50, 200).astype(np.uint8) * np.ones((32, 1), np.uint8)
    moved = np.roll(edge, 1, axis=1)
    moved[:, 0] = 50
    output = edge.copy()
    output[:, 18] += 10  # two pixels beside the column that changed: in the window; three beside it: outside
    output[:, 19] += 20
    found = metrics.flicker([(edge, uv), (moved + output - edge, uv)], [(edge, uv), (moved, uv)])
    assert found == pytest.approx(20 / 27)


# ----------------------------------------------------------------------------------------------------------------------
# Clips without ground truth


def grey_clip(*frames):
    """Frames of luma with neutral chroma."""
    return [(y, np.full((2, y.shape[0] // 2, y.shape[1] // 2), 128, np.uint8)) for y in frames]


def noise_around(level, noise):
    return np.clip(np.rint(level + noise), 0, 255).astype(np.uint8)


def test_noise_is_relative_to_the_sources(rng):
    noise = rng.normal(0, 1, (128, 160))
    source, louder, calmer = (grey_clip(noise_around(128, sigma * noise)) for sigma in (2, 4, 1))
    assert metrics.visible_change(louder, source)["noise"] == pytest.approx([1.97], abs=0.05)
    assert metrics.visible_change(calmer, source)["noise"] == pytest.approx([0.53], abs=0.05)


def test_an_unsharp_mask_has_edges_and_halos_and_a_blur_has_neither(truth):
    changes = [lambda y, t: degradation.blur(y, 1.6), lambda y, t: degradation.blur(y, 1)]
    changes += [lambda y, t: unsharp(y, 0.3, 0.85), lambda y, t: unsharp(y, 1.5, 0.85)]
    found = [metrics.visible_change(per_frame(truth, change), truth) for change in changes]
    halo, edges, noise = ([np.mean(change[name]) for change in found] for name in ("halo", "edges", "noise"))
    assert halo[0] == 0 < halo[2] < halo[3] and halo[3] > 1 and noise[0] < 1
    assert 0.3 < edges[0] < edges[1] < 0.9 and 1 < edges[2] < edges[3]


def test_a_halo_is_what_leaves_the_range_of_its_neighbours():
    """Ten columns lie beside the edge or on it; one is ten codes brighter than all that was near, one ten darker."""
    edge = np.tile(np.where(np.arange(64) < 32, 50, 200).astype(np.uint8), (64, 1))
    bright, both = edge.copy(), edge.copy()
    bright[:, 34], both[:, 34], both[:, 29] = 210, 210, 40
    (halo,), (more,) = (metrics.visible_change(grey_clip(y), grey_clip(edge))["halo"] for y in (bright, both))
    assert halo == pytest.approx(1, abs=0.12) and more == pytest.approx(2 * halo)
    inside = edge.copy()
    inside[:, 33] = 150  # between its neighbours
    assert metrics.visible_change(grey_clip(inside), grey_clip(edge))["halo"] == [0]


def test_flicker_is_looked_for_where_the_source_stands_still():
    """The right half becomes brighter by two codes a frame, in the source as well: that is no flicker."""
    source = grey_clip(
        *(np.tile(np.where(np.arange(128) < 64, 60, 100 + 2 * t), (64, 1)).astype(np.uint8) for t in range(3))
    )
    right = per_frame(source, lambda y, t: add(y, (np.arange(128) >= 72) * (t % 2) * 9))
    left = per_frame(source, lambda y, t: add(y, (np.arange(128) < 64) * (t % 2) * 9))
    assert metrics.visible_change(right, source)["flicker"] == pytest.approx([0, 0], abs=0.05)
    assert metrics.visible_change(left, source)["flicker"] == pytest.approx([9, 9], abs=0.3)
    moving = grey_clip(*(np.full((48, 64), 50 + 100 * (t % 2), np.uint8) for t in range(3)))
    assert np.isnan(metrics.visible_change(moving, moving)["flicker"]).all()


# ----------------------------------------------------------------------------------------------------------------------
# ColorVideoVDP


def test_jod_is_ten_for_the_truth_and_less_for_worse_clips(truth, coded):
    assert metrics.jod(truth, truth) == pytest.approx(10, abs=1e-3)
    worse = degradation.codec_roundtrip(truth, "x264", 42)
    scores = [metrics.jod(clip, truth) for clip in (coded, worse)]
    assert 9.99 > scores[0] > scores[1] + 0.3 > 3
    flickering = per_frame(truth, lambda y, t: add(y, 6 if t % 2 else -6))
    assert metrics.jod(flickering, truth) < 9.9


# ----------------------------------------------------------------------------------------------------------------------
# Text

TEXT = (
    "Quarterly revenue grew in every region while the team kept calls sharp and clear on older laptops in the "
    "meeting room so that small letters stay easy to read for all of us"
)
WORDS = TEXT.split()


def draw_slide(font_size):
    """A light slide `(200, 480)` with `WORDS`."""
    page = Image.new("L", (480, 200), 235)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(font_size)
    for line in range(0, len(WORDS), 8):
        draw.text((16, 16 + 3 * line), " ".join(WORDS[line : line + 8]), fill=20, font=font)
    return np.asarray(page)


@needs_tesseract
def test_words_are_read_and_lost_with_sharpness():
    slide = draw_slide(font_size=14)
    accuracies = [metrics.word_accuracy(degradation.blur(slide, sigma), WORDS) for sigma in (0.5, 2, 4)]
    assert accuracies[0] > 0.9 and accuracies[0] > accuracies[1] >= accuracies[2] and accuracies[2] < 0.1
    assert metrics.word_accuracy(draw_slide(font_size=11), WORDS) > 0.75  # thanks to the enlargement
    assert metrics.read_words(np.full((100, 200), 235, np.uint8)) == []


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ("a b c d", 1),
        ("a x c d", 0.75),  # replaced
        ("a c d", 0.75),  # lost
        ("a b x c d", 0.75),  # invented
        ("b a c d", 0.5),  # out of order
        ("A b c d.", 0.5),  # case and punctuation
        ("", 0),
        ("w x y z v u t s r", 0),  # more errors than words
    ],
)
def test_word_accuracy_is_one_less_the_word_error_rate(monkeypatch, read, expected):
    monkeypatch.setattr(metrics, "read_words", lambda y: read.split())
    assert metrics.word_accuracy(None, ["a", "b", "c", "d"]) == expected


# ----------------------------------------------------------------------------------------------------------------------
# Confidence


def test_interval_resamples_clusters(rng):
    values = rng.normal(5, 2, (400, 1))
    interval, half = metrics.bootstrap_interval(values), 1.96 * values.std() / 20
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    repeated = values.repeat(30, axis=1)  # thirty frames that say the same are one observation
    assert metrics.bootstrap_interval(repeated) == pytest.approx(interval)
    # Only whole clusters are drawn: the mean of two is that of one, of the other, or of all their values.
    assert metrics.bootstrap_interval([[0, 0, 0], [4]]) == (0, 4)
    assert np.isnan(metrics.bootstrap_interval([[1.0, 2.0, 3.0]])).all()
