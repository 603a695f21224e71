import subprocess

import cv2  # before av: see video.py

# isort: split
import numpy as np
import pytest
import skimage.data
import torch

from benchmark import peers
from benchmark.peers import FFmpegFilter, rcas, super_resolver
from degradation import resize_planes
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
    (peer,) = peers.peers([name])
    tolerance = 1 if "cas" in name else 0  # FFmpeg's cas cuts fractions off, and 99.9999 becomes 99
    for code in range(0, 256, 15):
        y = np.full((20, 24), code, np.uint8)
        for full_range in (True, False):
            sharp, uv = peer.at(2)(y, chroma_of(y), full_range)
            assert sharp.shape == y.shape and sharp.dtype == np.uint8 and (uv == 90).all()
            assert np.abs(sharp.astype(int) - y).max() <= tolerance
    step = np.full((32, 48), 80, np.uint8)
    step[:, 24:] = 160
    soft = cv2.GaussianBlur(step, (0, 0), 1)
    sharp, uv = peer.at(2)(soft, chroma_of(soft), False)
    contrast, contrast_before = (np.square(np.diff(y[16].astype(int))).sum() for y in (sharp, soft))
    assert contrast > 1.05 * contrast_before and (uv == 90).all()


def test_strong_settings_are_stronger():
    y, uv = photo_planes(64, 64)
    for name in peers.FILTERS:
        if not name.endswith(", strong"):
            weak, strong = peers.peers([name, f"{name}, strong"])
            change = [np.abs(peer.at(2)(y, uv, True)[0].astype(int) - y).mean() for peer in (weak, strong)]
            assert 0 < change[0] < change[1]


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


def test_rcas_overshoots_its_ring_but_not_the_range():
    y = np.full((9, 9), 102, np.uint8)
    y[:, 5:] = 153
    sharp, _ = rcas(y, chroma_of(y), True, stops=0, denoise=False)
    assert sharp.min() < 102 and sharp.max() > 153
    for low, high in ((2, 253), (0, 255)):  # the same step at the ends of the range
        y[:, :5], y[:, 5:] = low, high
        sharp, _ = rcas(y, chroma_of(y), True, stops=0, denoise=False)
        assert (sharp[:, :5] <= low).all() and (sharp[:, 5:] >= high).all()


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
    sharp, sharp_uv = FFmpegFilter(description)(y, uv)
    assert (sharp != y).any()
    assert np.array_equal(np.concatenate([sharp.ravel(), sharp_uv.ravel()]), expected)


def test_each_frame_gives_its_own(rng):
    """Graphs are kept for each size, and none of them holds a frame back."""
    method = FFmpegFilter("unsharp=lx=5:ly=5:la=0")  # the identity
    for size in ((16, 24), (33, 17), (16, 24), (16, 24), (33, 17)):
        y = rng.integers(0, 256, size, dtype=np.uint8)
        uv = rng.integers(0, 256, chroma_of(y).shape, dtype=np.uint8)
        same, same_uv = method(y, uv)
        assert np.array_equal(same, y) and np.array_equal(same_uv, uv)


# ----------------------------------------------------------------------------------------------------------------------
# Networks


class Nearest(torch.nn.Module):
    """Enlarges by 4 and notes the sizes that it was given."""

    def __init__(self):
        super().__init__()
        self.unused, self.sizes = torch.nn.Parameter(torch.zeros(1)), []

    def forward(self, x):
        assert x.min() >= 0 and x.max() <= 1
        self.sizes.append(tuple(x.shape))
        return torch.nn.functional.interpolate(x, scale_factor=4, mode="nearest")


@pytest.mark.parametrize("scale", [1, 1.5, 2, 4])
@pytest.mark.parametrize("size", [(48, 64), (33, 51), (47, 32)])
def test_super_resolver_keeps_size_content_and_colour(size, scale):
    y, uv = photo_planes(*size)
    y, uv = cv2.GaussianBlur(y, (0, 0), 8), np.stack([cv2.GaussianBlur(plane, (0, 0), 8) for plane in uv])
    for full_range in (True, False):
        planes = (y, uv) if full_range else to_limited_range(y, uv)
        for found, expected in zip(super_resolver(Nearest(), scale)(*planes, full_range), planes, strict=True):
            assert found.shape == expected.shape and found.dtype == np.uint8
            difference = found.astype(int) - expected
            assert np.abs(difference.mean()) < 1 and np.abs(difference).mean() < 2.5


def test_super_resolver_gives_the_network_the_decoded_size():
    network = Nearest()
    for scale in (2, 3):
        super_resolver(network, scale)(*photo_planes(48, 96), True)
    assert network.sizes == [(1, 3, 24, 48), (1, 3, 16, 32)]


def test_the_anime_network_keeps_colours_and_draws_edges():
    pytest.importorskip("ncnn", reason="needs ncnn of requirements-dev.txt")
    y, uv = photo_planes(96, 144)
    for full_range in (True, False):
        truth = (y, uv) if full_range else to_limited_range(y, uv)
        small = resize_planes(*truth, (48, 32), "area")
        found, soft = peers.load_animevideo()(*small, full_range, (144, 96)), resize_planes(*small, (144, 96))
        for plane, expected in zip((found[0], *found[1]), (truth[0], *truth[1]), strict=True):
            assert plane.shape == expected.shape and plane.dtype == np.uint8
            assert abs(plane.mean() - expected.mean()) < 4
            assert np.corrcoef(plane.ravel(), expected.ravel())[0, 1] > 0.8
        assert np.diff(found[0].astype(int)).std() > 1.1 * np.diff(soft[0].astype(int)).std()
