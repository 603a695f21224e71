"""Sizes: what ``--size`` means for a picture, and the enlarging of planes and pixels to it.

Pictures are enlarged with a bicubic kernel before the student sharpens them: from 360 to 1080 lines, Lanczos takes
eight times as long for the same quality once sharpened (results/size/kernels.md).
"""

import dataclasses
import re
from fractions import Fraction

import cv2
import numpy as np

from images import MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE, VideoError

_LEAST_SIDE = 16  # pixels
# Distance of a chroma sample from the middle of its 2x2 pixels, in chroma samples (x, y), by FFmpeg's names.
_SITES = {"center": (0, 0), "topleft": (-0.25, -0.25), "top": (0, -0.25), "bottomleft": (-0.25, 0.25)}
_SITES |= {"left": (-0.25, 0), "bottom": (0, 0.25)}


class SizeError(VideoError, ValueError):
    """A size that is no size, or that a picture cannot have. The message says what to do."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A size to bring pictures to: a factor, or a box that they just fit into; without either, the window's size.

    Attributes:
        width, height: of the box in pixels of the upright picture as players show it; None for no limit.
        factor: of both sides.
    """

    width: int | None = None
    height: int | None = None
    factor: Fraction | None = None


WINDOW = Size()


def parse_size(size):
    """Return the `Size` that a text such as 1080p, 1920x1080, 2x or window, or a pair ``(width, height)``, means.

    Raises:
        SizeError: it means none, or one that is absurd.
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
    """Return the ``(width, height)`` to bring a picture to. Its aspect stays, and so does pixel aspect.

    A picture that has the size already stays as it is. Of another, a side that `size` does not name becomes the nearest
    even number, as encoders want it.

    Args:
        size: `Size`, not `WINDOW`; None leaves the picture as it is.
        width, height: of the picture, upright.
        pixel_aspect: width to height of a stored pixel; None for square.
        limit: most pixels that a side may have.

    Raises:
        SizeError: the result is too large.
    """
    if size is None:
        return width, height
    scale = size.factor
    if scale is None:
        shown = [width * Fraction(pixel_aspect or 1), Fraction(height)]
        boxes = zip((size.width, size.height), shown, strict=True)
        scale = min(most / side for most, side in boxes if most is not None)
    if scale == 1:
        return width, height
    exact = (width * scale, height * scale)
    named = size.width, size.height
    target = tuple(int(side) if side in named else max(2 * round(side / 2), 2) for side in exact)
    if max(target) > limit or target[0] * target[1] > MAX_IMAGE_PIXELS:
        raise SizeError(
            f"{width}x{height} would become {target[0]}x{target[1]}: name a smaller size, at most {limit} pixels a "
            f"side and {MAX_IMAGE_PIXELS // 10**6} million in all"
        )
    return target


def resize_pixels(pixels, size):
    """Resample pixels ``(H, W)`` or ``(H, W, C)`` of uint8, uint16 or float32 in [0, 1] to `size` (width, height)."""
    height, width = pixels.shape[:2]
    if (width, height) == tuple(size):
        return pixels
    resized = cv2.resize(pixels, size, interpolation=_kernel(size[0] / width, size[1] / height))
    return np.clip(resized, 0, 1) if pixels.dtype == np.float32 else resized  # integers are saturated


def resize_planes(y, uv, size, chroma_location=None):
    """Resample uint8 planes (see utils.py) to luma `size` (width, height), so that colours stay on their shapes.

    Args:
        chroma_location: where chroma samples lie, as `video.VideoFormat` has it; None for left, as in most video.
    """
    if y.shape[::-1] == tuple(size):
        return y, uv
    # Resampling keeps the middles of the corners' pixels together; samples that lie elsewhere are moved there first.
    scale = size[0] / y.shape[1], size[1] / y.shape[0]
    shift = [site * (1 / k - 1) for site, k in zip(_SITES[chroma_location or "left"], scale, strict=True)]
    width, height = ((side + 1) // 2 for side in size)
    return resize_pixels(y, size), np.stack([_resize_chroma(plane, scale, shift)[:height, :width] for plane in uv])


def _kernel(*scale):
    return cv2.INTER_CUBIC if max(scale) > 1 else cv2.INTER_AREA


def _resize_chroma(plane, scale, shift):
    """Resample by luma's scales (x, y), which chroma's sizes do not tell if a side is odd; at least that large."""
    if any(shift):
        moved = np.float32([[1, 0, shift[0]], [0, 1, shift[1]]])
        cubic = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        plane = cv2.warpAffine(plane, moved, plane.shape[::-1], flags=cubic, borderMode=cv2.BORDER_REPLICATE)
    right, bottom = (1 + int(1 / k) for k in scale)
    plane = cv2.copyMakeBorder(plane, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return cv2.resize(plane, None, fx=scale[0], fy=scale[1], interpolation=_kernel(*scale))
