"""Parse sizes as in ``--size``, and resample planes and pixels to them.

Pictures are enlarged with a bicubic kernel before they are sharpened: from 360 to 1080 lines, Lanczos takes eight times
as long, and the sharpened result is no better (results/size/kernels.md).
"""

import dataclasses
import re
from fractions import Fraction

import cv2
import numpy as np

from images import MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE, VideoError

_LEAST_SIDE = 16  # pixels
# Offset (x, y) of a chroma sample from the middle of its 2x2 pixels, in chroma samples, by FFmpeg's names.
_SITES = {"center": (0, 0), "topleft": (-0.25, -0.25), "top": (0, -0.25), "bottomleft": (-0.25, 0.25)}
_SITES |= {"left": (-0.25, 0), "bottom": (0, 0.25)}


class SizeError(VideoError, ValueError):
    """A size that cannot be parsed, or that a picture cannot have. The message says what to do."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A target size: a factor of both sides, or a box to fit into; without either, the window's size.

    `width` and `height` of the box are in pixels of the upright picture as players show it; None for no limit.
    """

    width: int | None = None
    height: int | None = None
    factor: Fraction | None = None


WINDOW = Size()


def parse_size(size):
    """Parse a text such as 1080p, 1920x1080, 2x or window, or a pair ``(width, height)``, to a `Size`.

    Raises:
        SizeError: it is no size, or an absurd one.
    """
    text = "x".join(map(str, size)) if isinstance(size, tuple | list) else str(size)
    if text == "window":
        return WINDOW
    if lines := re.fullmatch(r"([0-9]{1,9})p", text):
        found = Size(height=int(lines[1]))
    elif sides := re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text):
        found = Size(int(sides[1]), int(sides[2]))
    elif factor := re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)x", text):
        found = Size(factor=Fraction(factor[1]))
    else:
        raise SizeError(f"{text} is no size: write 1080p, 1920x1080, 2x or window")
    named = [side for side in (found.width, found.height) if side is not None]
    scale = 1 if found.factor is None else found.factor
    if not all(_LEAST_SIDE <= side <= MAX_IMAGE_SIDE for side in named) or not 1 / 16 <= scale <= 16:
        raise SizeError(f"size {text}: a side has {_LEAST_SIDE} to {MAX_IMAGE_SIDE} pixels, a factor is 0.0625 to 16")
    return found


def target_size(size, width, height, pixel_aspect=None, limit=MAX_IMAGE_SIDE):
    """Return the ``(width, height)`` to bring a picture to; its aspect and pixel aspect stay.

    If the size changes, a side that `size` does not name is rounded to an even number, as encoders want it.

    Args:
        size: `Size`, not `WINDOW`; None for the picture's own.
        width, height: of the picture, upright.
        pixel_aspect: width to height of a stored pixel; None for square.
        limit: most pixels of a side.

    Raises:
        SizeError: the result is too large.
    """
    if size is None:
        return width, height
    scale, box = size.factor, (size.width, size.height)
    if scale is None:
        shown = width * Fraction(pixel_aspect or 1), Fraction(height)
        scale = min(most / side for most, side in zip(box, shown, strict=True) if most is not None)
    if scale == 1:
        return width, height
    exact = width * scale, height * scale
    target = tuple(int(side) if side in box else max(2 * round(side / 2), 2) for side in exact)
    if max(target) > limit or target[0] * target[1] > MAX_IMAGE_PIXELS:
        most = f"at most {limit} pixels a side and {MAX_IMAGE_PIXELS // 10**6} million in all"
        raise SizeError(f"{width}x{height} would become {target[0]}x{target[1]}: name a smaller size, {most}")
    return target


def resize_pixels(pixels, size):
    """Resample pixels ``(H, W)`` or ``(H, W, C)`` of uint8, uint16 or float32 in [0, 1] to `size` (width, height)."""
    height, width = pixels.shape[:2]
    if (width, height) == tuple(size):
        return pixels
    resized = cv2.resize(pixels, size, interpolation=_kernel(size[0] / width, size[1] / height))
    return np.clip(resized, 0, 1) if pixels.dtype == np.float32 else resized  # OpenCV saturates integers


def resize_planes(y, uv, size, chroma_location=None):
    """Resample uint8 planes (see `utils`) to luma `size` (width, height), with chroma in register.

    Args:
        chroma_location: position of chroma samples, see `video.VideoFormat`; None for left, as in most video.
    """
    if y.shape[::-1] == tuple(size):
        return y, uv
    # OpenCV assumes chroma samples in the middle of their pixels: others are moved there first.
    scale = size[0] / y.shape[1], size[1] / y.shape[0]
    shift = [site * (1 / k - 1) for site, k in zip(_SITES[chroma_location or "left"], scale, strict=True)]
    width, height = ((side + 1) // 2 for side in size)
    return resize_pixels(y, size), np.stack([_resize_chroma(plane, scale, shift)[:height, :width] for plane in uv])


def _kernel(*scale):
    return cv2.INTER_CUBIC if max(scale) > 1 else cv2.INTER_AREA


def _resize_chroma(plane, scale, shift):
    """Resample by luma's scales (x, y), not chroma's sizes, which are rounded; the result may be larger than needed."""
    if any(shift):
        moved = np.float32([[1, 0, shift[0]], [0, 1, shift[1]]])
        cubic = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        plane = cv2.warpAffine(plane, moved, plane.shape[::-1], flags=cubic, borderMode=cv2.BORDER_REPLICATE)
    right, bottom = (1 + int(1 / k) for k in scale)
    plane = cv2.copyMakeBorder(plane, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return cv2.resize(plane, None, fx=scale[0], fy=scale[1], interpolation=_kernel(*scale))
