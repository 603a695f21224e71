"""Sizes, and the enlarging of planes and pixels."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from images import Picture, read_image, write_image
from runtime import steady
from scaling import WINDOW, Size, SizeError, parse_size, resize_pixels, resize_planes, target_size
from tests.conftest import CONSTANT, QUARTER_TURN, encode, read_times
from tests.test_inference import noise
from video import VideoReader


@pytest.mark.parametrize(
    ("size", "came", "target"),
    [
        ("1080p", (640, 360), (1920, 1080)),
        ("1080p", (640, 480), (1440, 1080)),
        ("1080p", (853, 480), (1920, 1080)),  # 1919.25: even, as encoders want it
        ((1279, 719), (1280, 720), (1278, 719)),  # a box
        ("1x", (641, 361), (641, 361)),
        ("0.5x", (1920, 1080), (960, 540)),
    ],
)
def test_a_size_keeps_the_aspect(size, came, target):
    assert target_size(parse_size(size), *came) == target
    assert target_size(None, *came) == came


def test_lines_are_those_of_the_picture_as_it_is_shown():
    wide = Fraction(64, 45)
    assert target_size(parse_size("1080p"), 720, 576, wide) == (1350, 1080)
    assert target_size(parse_size("960x1080"), 720, 576, wide) == (676, 540)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(16, 4000), st.integers(16, 4000))
def test_any_picture_fits_into_any_box(width, height, right, bottom):
    target = target_size(Size(right, bottom), width, height)
    assert all(side <= max(most + 1, 2) for side, most in zip(target, (right, bottom), strict=True))
    assert target[0] in range(right, right + 2) or target[1] in range(bottom, bottom + 2)


@pytest.mark.parametrize("size", ["0", "banana", "40000x3", "0x", "-2x", "17x", "15p", "1080", "", (0, 0), (1, 2, 3)])
def test_absurd_sizes_are_refused(size):
    with pytest.raises(SizeError, match=r"size|side|factor"):
        parse_size(size)


def test_a_picture_that_would_be_too_large_is_refused():
    with pytest.raises(SizeError, match="would become 32000x16000"):
        target_size(parse_size("16x"), 2000, 1000)
    assert parse_size("window") == WINDOW


@pytest.mark.parametrize(("location", "site"), [(None, 0), ("left", 0), ("center", 0.5)])
@pytest.mark.parametrize("width", [480, 200, 80, 61])
def test_colours_stay_on_their_shapes(location, site, width):
    def wave(width):
        """Planes of one wave in luma and chroma, whose samples lie `site` pixels right of every second column."""
        luma, chroma = np.arange(width) + 0.5, 2 * np.arange((width + 1) // 2) + 0.5 + site
        rows = [np.rint(128 + 80 * np.sin(20 * place / width)).astype(np.uint8) for place in (luma, chroma)]
        return np.tile(rows[0], (40, 1)), np.tile(rows[1], (2, 20, 1))

    y, uv = resize_planes(*wave(160), (width, width // 4), location)
    expected_y, expected_uv = wave(width)
    assert y.shape == (width // 4, width) and uv.shape == (2, (width // 4 + 1) // 2, (width + 1) // 2)
    assert np.abs(y[0, 4:-4].astype(int) - expected_y[0, 4:-4]).max() <= 2
    assert np.abs(uv[0, 0, 4:-4].astype(int) - expected_uv[0, 0, 4:-4]).mean() <= 1.2


def test_pixels_of_every_kind_are_enlarged_and_sharpened(sharpener, tmp_path):
    for pixels in (noise(24, 32), noise(24, 32, dtype=np.uint16), noise(24, 32)[..., 0]):
        large = sharpener.sharpen(pixels, size="2x")
        assert large.shape == (48, 64, *pixels.shape[2:]) and large.dtype == pixels.dtype
        assert np.array_equal(large, sharpener.sharpen(resize_pixels(pixels, (64, 48))))
    tensor = torch.from_numpy(noise(24, 32)).permute(2, 0, 1) / 255
    assert sharpener.sharpen(tensor, size="2x").shape == (3, 48, 64)
    transparent = Image.fromarray(np.dstack([noise(24, 32), np.full((24, 32), 7, np.uint8)]))
    assert np.all(np.asarray(sharpener.sharpen(transparent, size=(64, 64)).getchannel("A")) == 7)
    with pytest.raises(ValueError, match="live window"):
        sharpener.sharpen(noise(24, 32), size="window")

    deep = Picture(noise(24, 32, dtype=np.uint16), np.full((24, 32), 9, np.uint16))
    write_image(tmp_path / "in.png", deep)
    sharpener.sharpen_image(tmp_path / "in.png", tmp_path / "out.png", size="48p")
    written = read_image(tmp_path / "out.png")
    assert np.array_equal(written.pixels, sharpener.sharpen(deep.pixels, size="48p")) and np.all(written.alpha == 9)


@pytest.mark.parametrize("compare", [False, True])
def test_a_video_keeps_all_but_its_size(sharpener, tmp_path, compare):
    encode(tmp_path / "in.mp4", times=CONSTANT, audio="aac", matrix=QUARTER_TURN, aspect=Fraction(4, 3))
    stats = sharpener.process_video_stream(tmp_path / "in.mp4", tmp_path / "out.mp4", compare, quality=0, size="2x")
    assert (stats["source_size"], stats["size"], stats["frames"]) == ((48, 64), (96, 128), 20)
    assert read_times(tmp_path / "out.mp4") == CONSTANT
    with VideoReader(tmp_path / "in.mp4") as reader, VideoReader(tmp_path / "out.mp4", audio=True) as written:
        assert written.format == dataclasses.replace(reader.format, width=96, height=128)
        sound, steadied = 0, None
        for came, went in zip(reader, written, strict=True):
            sound += len(went.packets)
            steadied = steady(came.y, steadied)
            planes = sharpener.sharpen_planes(steadied, came.uv, size="2x")
            large, _ = resize_planes(came.y, came.uv, (96, 128))
            assert np.array_equal(went.y[:, 60:], planes[0][:, 60:])
            assert np.array_equal(went.y[:, :40], (large if compare else planes[0])[:, :40])
        assert sound + len(written.packets) > 10


def test_shrinking_is_said(sharpener, tmp_path, caplog):
    source = encode(tmp_path / "in.mp4", times=CONSTANT[:2])
    assert sharpener.process_video_stream(source, tmp_path / "out.mp4", size=(32, 32))["size"] == (32, 24)
    assert "shrunk from 64x48 to 32x24" in caplog.text
