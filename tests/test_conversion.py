"""Arrays, PIL images and tensors that are sharpened, and pictures that are divided into before and after."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conversion import divide_pixels, divide_planes
from inference import RealTimeSharpener
from tests.test_inference import noise
from utils import bgr_to_planes, planes_to_bgr


@pytest.fixture(scope="module", params=["cpu", "openvino"])
def each_sharpener(request, exported):
    return RealTimeSharpener(exported, request.param)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([np.uint8, np.uint16]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_any_size_keeps_its_shape_and_strength_0_is_the_identity(sharpener, height, width, dtype, grey):
    frame = noise(height, width, dtype=dtype)
    frame = frame[..., 0] if grey else frame
    assert np.array_equal(sharpener.sharpen(frame, strength=0), frame)
    for strength in (1, 1e9):
        sharp = sharpener.sharpen(frame, strength=strength)
        assert (sharp.shape, sharp.dtype) == (frame.shape, dtype)


def test_arrays_of_either_order_and_grey(each_sharpener):
    frame = noise(30, 41)
    sharp = each_sharpener.sharpen(frame)
    assert np.abs(sharp.astype(int) - frame).mean() > 2
    from_rgb = each_sharpener.sharpen(frame[..., ::-1], rgb=True)
    assert np.array_equal(from_rgb[..., ::-1], sharp) and from_rgb.flags.c_contiguous
    assert not np.array_equal(from_rgb, each_sharpener.sharpen(frame[..., ::-1]))
    grey = each_sharpener.sharpen(frame[..., 1])
    assert (grey.shape, grey.dtype) == ((30, 41), np.uint8) and not np.array_equal(grey, frame[..., 1])
    assert np.array_equal(each_sharpener.sharpen(frame[..., 1], rgb=True), grey)


def test_pixels_and_planes_agree(sharpener):
    # Smooth colour and grey noise: conversion to planes and back loses next to nothing, so both ways must agree.
    color = cv2.resize(noise(4, 5) // 4 + 64, (80, 64), interpolation=cv2.INTER_CUBIC)
    frame = color + noise(64, 80)[..., :1] // 4
    through_planes = planes_to_bgr(*sharpener.sharpen_planes(*bgr_to_planes(frame), full_range=True))
    sharp = sharpener.sharpen(frame).astype(int)
    assert np.abs(sharp - frame).mean() > 2
    assert np.abs(sharp - through_planes).mean() < 0.5 * np.abs(sharp - frame).mean()
    grey = frame[..., 0].copy()
    expected, _ = sharpener.sharpen_planes(grey, np.full((2, 32, 40), 128, np.uint8), full_range=True)
    assert np.abs(sharpener.sharpen(grey).astype(int) - expected).mean() < 1  # video is rounded before the gain


def test_16_bits_get_the_same_change_at_their_precision(sharpener):
    deep = cv2.GaussianBlur(noise(40, 40, dtype=np.uint16), (0, 0), 1)
    sharp = sharpener.sharpen(deep)
    assert sharp.dtype == np.uint16 and len(np.unique(sharp)) > 1000  # more than 8 bits can tell
    shallow = np.rint(deep / 257).astype(np.uint8)
    expected = sharpener.sharpen(shallow).astype(float) - shallow
    assert np.abs((sharp.astype(float) - deep) / 257 - expected).mean() < 0.3 * np.abs(expected).mean()
    assert np.array_equal(sharpener.sharpen(deep[..., ::-1], rgb=True)[..., ::-1], sharp)


@pytest.mark.parametrize("kind", [np.array, list])
def test_several_pictures_are_what_each_gives_alone(sharpener, kind):
    frames = np.stack([noise(24, 33, seed) for seed in range(3)])
    for rgb in (False, True):
        sharp = sharpener.sharpen(kind(frames), rgb=rgb)
        assert type(sharp) is type(kind(frames))
        for got, frame in zip(sharp, frames, strict=True):
            assert np.array_equal(got, sharpener.sharpen(frame, rgb=rgb))


def test_lists_may_be_mixed_and_anything_may_be_empty(sharpener):
    array, image, tensor = sharpener.sharpen([noise(9, 8), Image.new("L", (7, 6)), torch.zeros(3, 5, 4)])
    assert (array.shape, image.size, tensor.shape) == ((9, 8, 3), (7, 6), (3, 5, 4))
    assert sharpener.sharpen([]) == [] and sharpener.sharpen(np.zeros((0, 8, 9, 3), np.uint8)).shape == (0, 8, 9, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"])
def test_pil_images(sharpener, mode):
    image = Image.fromarray(noise(20, 31)).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(noise(20, 31, 1)[..., 0]))
    image.info["icc_profile"] = b"profile"
    before = image.tobytes()
    sharp = sharpener.sharpen(image)
    assert image.tobytes() == before
    kept = mode in ("RGB", "L", "RGBA", "LA")
    expected = mode if kept else "RGB"
    assert (sharp.mode, sharp.size, "icc_profile" in sharp.info) == (expected, (31, 20), kept)
    if mode in ("L", "LA"):
        assert np.array_equal(sharp.getchannel("L"), sharpener.sharpen(np.array(image.convert("L"))))
        return
    assert np.array_equal(sharp.convert("RGB"), sharpener.sharpen(np.array(image.convert("RGB")), rgb=True))
    if mode == "RGBA":
        assert np.array_equal(sharp.getchannel("A"), image.getchannel("A"))


def test_a_pil_images_transparent_colour_becomes_alpha(sharpener):
    image = Image.fromarray(noise(20, 31)).quantize(8)
    image.info["transparency"] = 0
    sharp = sharpener.sharpen(image)
    assert "transparency" not in sharp.info
    assert np.array_equal(sharp.getchannel("A"), image.convert("RGBA").getchannel("A"))


def test_byte_tensors_are_rgb(sharpener):
    rgb = noise(20, 31)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    sharp = sharpener.sharpen(tensor)
    assert (sharp.dtype, sharp.shape) == (torch.uint8, tensor.shape)
    assert np.array_equal(sharp.permute(1, 2, 0), sharpener.sharpen(rgb, rgb=True))
    batch = sharpener.sharpen(torch.stack([tensor, tensor.flip(2)]))
    assert torch.equal(batch[0], sharp) and torch.equal(batch[1], sharpener.sharpen(tensor.flip(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_tensors(each_sharpener, dtype):
    rgb = cv2.GaussianBlur(noise(20, 31), (0, 0), 1)
    tensor = (torch.from_numpy(rgb).permute(2, 0, 1) / 255).to(dtype).requires_grad_()
    sharp = each_sharpener.sharpen(tensor[None])
    assert (sharp.dtype, sharp.shape, sharp.requires_grad) == (dtype, (1, 3, 20, 31), False)
    assert sharp.min() >= 0 and sharp.max() <= 1
    expected = each_sharpener.sharpen(rgb, rgb=True).astype(float)
    change = np.abs(expected - rgb).mean()
    assert np.abs(255 * sharp[0].double().permute(1, 2, 0).numpy() - expected).mean() < 0.3 * change
    assert torch.equal(each_sharpener.sharpen(tensor, strength=0), tensor.detach().float().to(dtype))
    values = sharp.float().unique() * 255
    assert dtype == torch.bfloat16 or ((values - values.round()).abs() > 0.1).any()  # not rounded to bytes


def test_inputs_are_not_changed_or_shared_and_may_be_read_only_views(sharpener):
    frame = noise(8, 9)
    for picture in (frame, frame[None], torch.from_numpy(frame.copy()).permute(2, 0, 1), torch.rand(3, 8, 9)):
        before = np.asarray(picture).copy()
        for strength in (0, 1):
            sharp = sharpener.sharpen(picture, strength=strength)
            assert np.array_equal(sharp, before) == (strength == 0)
            sharp[...] = 0
            assert np.array_equal(picture, before)
    view = frame[:, ::-1]
    view.flags.writeable = False
    assert np.array_equal(sharpener.sharpen(view), sharpener.sharpen(view.copy()))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((20, 30, 4), np.uint8), r"\(H, W, 3\).*got \(20, 30, 4\)"),
        (np.zeros((0, 30, 3), np.uint8), r"got \(0, 30, 3\)"),
        (np.zeros((20, 30, 3), np.float32), "uint8 or uint16, got .* of float32"),
        (torch.zeros(20, 30, 3), r"\(3, H, W\).*got \(20, 30, 3\) of float32"),
        (torch.zeros(3, 20, 30, dtype=torch.int32), "of int32"),
        (torch.full((3, 20, 30), 255.0), r"in \[0, 1\], got 255 to 255"),
        (Image.new("I;16", (30, 20)), "got mode I;16: pass an array of uint16"),
        (Image.new("RGB", (0, 20)), r"not empty, got size \(0, 20\)"),
        ([np.zeros((20, 30), np.uint8), np.zeros((3, 20, 30), np.uint8)], r"got \(3, 20, 30\)"),
    ],
)
def test_errors_name_what_was_expected_and_what_came(sharpener, picture, message):
    with pytest.raises(ValueError, match=message):
        sharpener.sharpen(picture)
    with pytest.raises(TypeError, match="expected a frame as an array, a PIL image or a tensor"):
        sharpener.sharpen("photo.jpg")
    with pytest.raises(TypeError, match=r"got .*NoneType.*OpenCV's imread returns None"):
        sharpener.sharpen(cv2.imread("missing.jpg"))


@pytest.mark.parametrize(("divider", "left"), [(0, 0), (0.25, 10), (0.5, 20), (1, 40)])
def test_divided_pixels(divider, left):
    before, after = np.full((4, 40, 3), 100, np.uint8), np.full((4, 40, 3), 200, np.uint8)
    joined = divide_pixels(before, after, divider)
    assert (joined[:, : max(left - 2, 0)] == 100).all() and (joined[:, left + 2 :] == 200).all()
    assert 255 in joined and 0 in joined
    assert (after == 200).all()


def test_divided_planes():
    before, after = bgr_to_planes(noise(20, 30, 1)), bgr_to_planes(noise(20, 30, 2))
    y, uv = divide_planes(before, after)
    assert np.array_equal(y[:, :14], before[0][:, :14]) and np.array_equal(y[:, 16:], after[0][:, 16:])
    assert np.array_equal(uv[..., :7], before[1][..., :7]) and np.array_equal(uv[..., 8:], after[1][..., 8:])
