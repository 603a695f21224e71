"""Convert arrays, PIL images and tensors to pixels, pixels to YUV 4:2:0 planes, and back.

*Pixels* are an array ``(H, W, 3)`` BGR or ``(H, W)`` grey of uint8, uint16 or float32 in [0, 1]. Grey pixels have
neutral chroma and keep only the change of luma.
"""

import sys

import cv2
import numpy as np
from PIL import Image

from scaling import resize_pixels
from utils import bgr_to_planes, double_chroma

# Change of (B, G, R) per change of (Y, Cb, Cr): ITU-T T.871.
_YCC_TO_BGR = np.array([[1, 1.772, 0], [1, -0.344136, -0.714136], [1, 0, 1.402]], np.float32)
_NEUTRAL_CHROMA = np.float32(128 / 255)


def to_pixels(picture, rgb=False):
    """Convert one picture to pixels, and return the way back.

    Args:
        picture: array, PIL image or tensor, see `inference.RealTimeSharpener.sharpen`.
        rgb: arrays are RGB instead of BGR.

    Returns:
        ``(pixels, restore)``; ``restore(sharpened_pixels)`` makes a picture of the same kind.

    Raises:
        ValueError: shape, type, mode or range is not supported.
        TypeError: it is not a picture.
    """
    if isinstance(picture, Image.Image):
        return _from_pil(picture)
    if _is_tensor(picture):
        return _from_tensor(picture)
    if isinstance(picture, np.ndarray):
        return _from_array(picture, rgb)
    came = f"{type(picture)}" + " (OpenCV's imread returns None for what it cannot read)" * (picture is None)
    raise TypeError(f"expected a frame as an array, a PIL image or a tensor, or a list of them, got {came}")


def stack(pictures):
    """Join arrays, or tensors, of one shape along a new first axis."""
    if _is_tensor(pictures[0]):
        import torch

        return torch.stack(pictures)
    return np.stack(pictures)


def _is_tensor(picture):
    """Whether a picture is a PyTorch tensor, without importing PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(picture, torch.Tensor)


def _from_array(array, rgb):
    shape, dtype = array.shape, array.dtype
    grey = array.ndim == 2
    if not (grey or shape[2:] == (3,)) or 0 in shape or dtype not in (np.uint8, np.uint16):
        expected = "a frame (H, W, 3) or (H, W), or a batch (N, H, W, 3), of uint8 or uint16"
        raise ValueError(f"expected {expected}, got {shape} of {dtype}")
    if grey or not rgb:
        return np.ascontiguousarray(array), lambda sharp: sharp
    return np.ascontiguousarray(array[..., ::-1]), lambda sharp: np.ascontiguousarray(sharp[..., ::-1])


def _from_pil(image):
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"expected a PIL image of 8 bits, got mode {image.mode}: pass an array of uint16 instead")
    if 0 in image.size:
        raise ValueError(f"expected a PIL image that is not empty, got size {image.size}")
    grey, transparent = image.mode in ("L", "LA", "La"), image.has_transparency_data
    mode = ("L" if grey else "RGB") + "A" * transparent
    values = np.atleast_3d(image.convert(mode))  # (H, W, 1 to 4)

    def restore(sharp):
        color = sharp if grey else np.ascontiguousarray(sharp[..., ::-1])
        if transparent:
            color = np.dstack([color, resize_pixels(values[..., -1], sharp.shape[1::-1])])
        result = Image.fromarray(color)
        if image.mode == mode:  # a colour profile is for the mode that it came with
            result.info = dict(image.info)
        return result

    return np.ascontiguousarray(values[..., 0] if grey else values[..., 2::-1]), restore


def _from_tensor(tensor):
    import torch

    floating = tensor.is_floating_point()
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape or not (floating or tensor.dtype == torch.uint8):
        came = f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
        raise ValueError(f"expected a tensor (3, H, W) or (N, 3, H, W) of uint8 or floating point, got {came}")
    values = tensor.detach().cpu()
    values = (values.float() if floating else values).numpy()
    if floating and not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"expected values in [0, 1], got {values.min():g} to {values.max():g}: divide or clamp them")

    def restore(sharp):
        rgb = sharp[..., ::-1].transpose(2, 0, 1).copy()  # PyTorch takes no negative strides
        return torch.from_numpy(rgb).to(tensor)

    return np.ascontiguousarray(values[::-1].transpose(1, 2, 0)), restore


def pixels_to_planes(pixels):
    """Convert pixels to full-range planes ``(y, uv)``: uint8 of uint8 pixels, float32 in [0, 1] of deeper ones."""
    shallow = pixels.dtype == np.uint8
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(np.float32) / 65535
    if pixels.ndim == 2:
        height, width = pixels.shape
        neutral = np.uint8(128) if shallow else _NEUTRAL_CHROMA
        return pixels, np.full((2, (height + 1) // 2, (width + 1) // 2), neutral)
    y, uv = bgr_to_planes(pixels)
    return y, uv if shallow else uv + (_NEUTRAL_CHROMA - np.float32(0.5))  # OpenCV's float chroma is around 0.5


def add_change(pixels, dy, duv):
    """Add a change of full-range planes, from an engine's `difference`, to pixels; round and saturate.

    Only the change is converted, so colour keeps its full resolution. Grey pixels need no `duv`.
    """
    if pixels.dtype == np.uint8:  # the change comes in codes around 128
        return cv2.addWeighted(pixels, 1, _change_of_pixels(dy, duv, pixels.ndim, 128), 1, -128)
    change = _change_of_pixels(dy, duv, pixels.ndim, 0)
    if pixels.dtype == np.float32:
        return np.clip(pixels + change, 0, 1)
    return cv2.add(pixels, change * np.float32(65535), dtype=cv2.CV_16U)


def _change_of_pixels(dy, duv, dimensions, offset):
    """Convert a change of planes, stored with `offset` added, to one of grey (2 dimensions) or BGR (3) pixels."""
    if dimensions == 2:
        return dy
    shift = offset * (1 - _YCC_TO_BGR.sum(axis=1, keepdims=True))
    return cv2.transform(cv2.merge([dy, *double_chroma(duv, dy.shape)]), np.hstack([_YCC_TO_BGR, shift]))


def divide_pixels(before, after, divider=0.5):
    """Join pixels (uint8 or uint16) `before` left of `divider` (0-1) and `after` right of it, with a line between."""
    column = round(divider * after.shape[1])
    joined = after.copy()
    joined[:, :column] = before[:, :column]
    joined[:, max(column - 2, 0) : column + 2] = 0
    joined[:, max(column - 1, 0) : column + 1] = np.iinfo(joined.dtype).max
    return joined


def divide_planes(before, after):
    """Join the left half of `before` and the right half of `after`, pairs of planes ``(y, uv)``, with a white line."""
    joined, column = (after[0].copy(), after[1].copy()), after[0].shape[1] // 4  # a column of chroma
    for target, source, scale, white in zip(joined, before, (2, 1), (235, 128), strict=True):
        middle = scale * column
        target[..., :middle], target[..., middle : middle + scale] = source[..., :middle], white  # in either range
    return joined
