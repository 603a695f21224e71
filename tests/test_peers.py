import subprocess

import cv2  # before av: see video.py

# isort: split
import numpy as np
import pytest
import skimage.data

from benchmark import peers
from benchmark.conditions import Sample
from benchmark.peers import ffmpeg_filter, peer, rcas
from degradation import low_resolution, resample_planes
from inference import RealTimeSharpener
from runtime import steady
from utils import bgr_to_planes, to_limited_range

pytestmark = pytest.mark.usefixtures("one_thread")


def photo_planes(height, width):
    return bgr_to_planes(np.ascontiguousarray(skimage.data.astronaut()[40 : 40 + height, 160 : 160 + width, ::-1]))


def chroma_of(y):
    return np.full((2, (y.shape[0] + 1) // 2, (y.shape[1] + 1) // 2), 90, np.uint8)


# ----------------------------------------------------------------------------------------------------------------------
# Filters


@pytest.mark.parametrize("name", peers.FILTERS)
def test_flat_frames_stay_and_edges_gain_contrast(name):
    def sharpened(y, full_range):
        ((sharp, uv),) = peer(name).run(Sample([(y, chroma_of(y))], None, full_range))
        assert sharp.shape == y.shape and sharp.dtype == np.uint8 and (uv == 90).all()
        return sharp.astype(int)

    tolerance = 1 if "cas" in name else 0  # FFmpeg's cas cuts fractions off, and 99.9999 becomes 99
    for code in range(0, 256, 15):
        y = np.full((20, 24), code, np.uint8)
        for full_range in (True, False):
            assert np.abs(sharpened(y, full_range) - y).max() <= tolerance
    step = np.full((32, 48), 80, np.uint8)
    step[:, 24:] = 160
    soft = cv2.GaussianBlur(step, (0, 0), 1)
    contrast, contrast_before = (np.square(np.diff(y[16].astype(int))).sum() for y in (sharpened(soft, False), soft))
    assert contrast > 1.05 * contrast_before


def test_strong_settings_are_stronger():
    sample = Sample([photo_planes(64, 64)], None)
    change = {
        name: np.abs(peer(name).run(sample)[0][0].astype(int) - sample.input[0][0]).mean() for name in peers.FILTERS
    }
    for name in ("unsharp mask", "FFmpeg unsharp", "FFmpeg cas", "RCAS"):
        assert 0 < change[name] < change[f"{name}, strong"]


def rcas_pixel_by_pixel(y, black, span, stops, denoise):
    """The published formulas in float64, one pixel after the other."""
    luma = np.pad(np.clip((y.astype(float) - black) / span, 0, 1), 1, mode="edge")
    sharp = np.empty(y.shape)
    for row in range(y.shape[0]):
        for column in range(y.shape[1]):
            n, w, m, e, s = (
                luma[row + 1 + dy, column + 1 + dx] for dy, dx in ((-1, 0), (0, -1), (0, 0), (0, 1), (1, 0))
            )
            ring = (n, w, e, s)
            to_black = min(ring) / (4 * max(ring)) if max(ring) > 0 else 0
            to_white = (1 - max(ring)) / (4 - 4 * min(ring)) if min(ring) < 1 else 0
            lobe = -min(to_black, to_white, 0.25 - 1 / 16) * 2**-stops
            if denoise and max(*ring, m) > min(*ring, m):
                lobe *= 1 - 0.5 * abs(sum(ring) / 4 - m) / (max(*ring, m) - min(*ring, m))
            sharp[row, column] = (lobe * sum(ring) + m) / (4 * lobe + 1)
    return np.clip(sharp, 0, 1) * span + black


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("stops", [0, 1.25])
@pytest.mark.parametrize(("full_range", "black", "span"), [(True, 0, 255), (False, 16, 219)])
def test_rcas_is_what_was_published(rng, full_range, black, span, stops, denoise):
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (17, 20), dtype=np.uint8), (0, 0), 1)
    for y in (rng.integers(black, black + span + 1, (17, 20), dtype=np.uint8), smooth):
        y = np.clip(y, black, black + span)
        sharp, _ = rcas(y, chroma_of(y), full_range, stops, denoise)
        assert np.abs(sharp - rcas_pixel_by_pixel(y, black, span, stops, denoise)).max() < 0.501  # rounding
        assert (sharp != y).any()


def test_beyond_limited_range_nothing_happens():
    y = np.repeat(np.array([0, 5, 15, 240, 255], np.uint8), 4)[None].repeat(12, axis=0)
    flat = np.delete(np.arange(20), [11, 12])  # beside the step from black to white both sides touch an end
    assert (rcas(y, chroma_of(y), False, stops=0, denoise=False)[0][:, flat] == y[:, flat]).all()


@pytest.mark.parametrize("size", [(48, 64), (21, 33)])
@pytest.mark.parametrize(
    "description", ["cas=strength=0.6:planes=1", "cas=strength=0.9", "unsharp=lx=3:ly=3:la=2", "unsharp"]
)
def test_same_bits_as_the_ffmpeg_program(rng, description, size):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs imageio-ffmpeg of requirements-dev.txt")
    y, uv = photo_planes(*size)
    height, width = size
    raw = ["-f", "rawvideo", "-pix_fmt", "yuv420p"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *raw, "-s", f"{width}x{height}", "-i", "-"]
    output = subprocess.run(
        [*command, "-vf", description, *raw, "-"], input=y.tobytes() + uv.tobytes(), stdout=subprocess.PIPE, check=True
    ).stdout
    expected = np.frombuffer(output, np.uint8)
    sharp, sharp_uv = ffmpeg_filter(y, uv, graph=description)
    assert (sharp != y).any()
    assert np.array_equal(np.concatenate([sharp.ravel(), sharp_uv.ravel()]), expected)


def test_each_frame_gives_its_own(rng):
    """Graphs are kept for each size, and none of them holds a frame back."""
    for size in ((16, 24), (33, 17), (16, 24), (16, 24), (33, 17)):
        y = rng.integers(0, 256, size, dtype=np.uint8)
        uv = rng.integers(0, 256, chroma_of(y).shape, dtype=np.uint8)
        same, same_uv = ffmpeg_filter(y, uv, graph="unsharp=lx=5:ly=5:la=0")  # the identity
        assert np.array_equal(same, y) and np.array_equal(same_uv, uv)


# ----------------------------------------------------------------------------------------------------------------------
# Networks


@pytest.fixture
def nearest(monkeypatch):
    """A network that repeats pixels; gives the list of the sizes that it sees."""
    sizes = []

    def enlarge(rgb):
        assert rgb.dtype == np.float32 and rgb.min() >= 0 and rgb.max() <= 1
        sizes.append(rgb.shape)
        return rgb.repeat(4, axis=1).repeat(4, axis=2)

    monkeypatch.setitem(peers.NETWORKS, "nearest", ("", lambda device: enlarge))
    return sizes


@pytest.mark.parametrize("scale", [1, 1.5, 2, 4])
@pytest.mark.parametrize("size", [(48, 64), (34, 52)])
def test_networks_get_the_decoded_size_and_keep_content_and_colour(nearest, size, scale):
    y, uv = photo_planes(*size)
    y, uv = cv2.GaussianBlur(y, (0, 0), 8), np.stack([cv2.GaussianBlur(plane, (0, 0), 8) for plane in uv])
    for full_range in (True, False):
        planes = (y, uv) if full_range else to_limited_range(y, uv)
        (restored,) = peer("nearest").run(Sample([planes], None, full_range, scale))
        assert nearest[-1] == (3, *low_resolution(size, scale))
        for found, expected in zip(restored, planes, strict=True):
            assert found.shape == expected.shape and found.dtype == np.uint8
            difference = found.astype(int) - expected
            assert np.abs(difference.mean()) < 1 and np.abs(difference).mean() < 2.5


@pytest.mark.parametrize("name", ["Real-ESRGAN", "realesr-animevideov3"])
def test_networks_keep_colours_and_draw_edges(name):
    pytest.importorskip("ncnn", reason="needs ncnn of requirements-dev.txt")
    network = peer(name)
    y, uv = photo_planes(96, 144)
    for full_range in (True, False):
        truth = (y, uv) if full_range else to_limited_range(y, uv)
        small = resample_planes(*truth, (48, 32), "area")
        (found,) = network.run(Sample([small], [truth], full_range))
        soft = resample_planes(*small, (144, 96))
        for plane, expected in zip((found[0], *found[1]), (truth[0], *truth[1]), strict=True):
            assert plane.shape == expected.shape and plane.dtype == np.uint8
            assert abs(plane.mean() - expected.mean()) < 4
            assert np.corrcoef(plane.ravel(), expected.ravel())[0, 1] > 0.8
        assert np.diff(found[0].astype(int)).std() > 1.1 * np.diff(soft[0].astype(int)).std()


# ----------------------------------------------------------------------------------------------------------------------
# Few lines


def test_scalers_bring_a_small_frame_to_the_size(exported):
    """The student and its kernel alone enlarge alike; filters see FFmpeg's own scaler."""
    truth = photo_planes(96, 144)
    sample = Sample([resample_planes(*truth, (48, 32), "area")] * 2, [truth] * 2)
    strength_zero = peers.student(RealTimeSharpener(exported, "cpu"), "student", 0)
    found = {m.name: m.run(sample) for m in (peers.INPUT, strength_zero, *map(peer, ("bicubic", "RCAS")))}
    for clip in found.values():
        assert [(y.shape, uv.shape) for y, uv in clip] == [((96, 144), (2, 48, 72))] * 2
        assert np.abs(clip[0][0].astype(int) - truth[0]).mean() < 12
    assert all(map(np.array_equal, found["student"][0], found["bicubic"][0]))
    assert not np.array_equal(found["input"][0][0], found["bicubic"][0][0])


def test_the_student_is_steadied_within_a_clip(sharpener, rng):
    y, uv = photo_planes(96, 144)
    noisy = [rng.normal(y, 3).clip(0, 255).astype(np.uint8) for _ in range(2)]
    _, second = peers.student(sharpener, "student", 1).run(Sample([(y, uv) for y in noisy], None))
    expected = sharpener.sharpen_planes(steady(noisy[1], noisy[0]), uv, True, 1)
    assert all(map(np.array_equal, second, expected))
    assert not np.array_equal(second[0], sharpener.sharpen_planes(noisy[1], uv, True, 1)[0])
