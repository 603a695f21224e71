"""Tools shared by the other modules: metrics, colour planes, processors, files.

There are two picture layouts: a *frame* is ``(H, W, 3)`` BGR as in OpenCV, uint8 unless stated otherwise; *planes* are
those of video (YUV 4:2:0), luma ``y (H, W)`` and chroma ``uv (2, ceil(H/2), ceil(W/2))``.
"""

import contextlib
import os
import re
import sys
import threading
from pathlib import Path

import cv2
import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".avif")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm")


def luma_metrics(y, truth):
    """Return PSNR in dB and SSIM (see `train.ssim`) of a uint8 luma plane ``(H, W)`` against its ground truth.

    Equal to scikit-image in a fifth of its time. PSNR is infinite if the planes are equal.

    Raises:
        ValueError: the shapes differ or are smaller than the window.
    """
    if y.shape != truth.shape or min(y.shape) < 11:
        raise ValueError(f"expected two planes of one size, at least 11x11, got {y.shape} and {truth.shape}")
    y, truth = y.astype(np.float64), truth.astype(np.float64)

    def blur(plane):
        return cv2.GaussianBlur(plane, (11, 11), 1.5)[5:-5, 5:-5]

    mean_y, mean_truth = blur(y), blur(truth)
    products = mean_y * mean_truth
    squares = mean_y**2 + mean_truth**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * products + c1) / (squares + c1)
    structure = (2 * (blur(y * truth) - products) + c2) / (blur(y**2 + truth**2) - squares + c2)
    mse = np.square(y - truth).mean()
    psnr = 10 * np.log10(255**2 / mse) if mse > 0 else np.inf
    return float(psnr), float((luminance * structure).mean())


def bgr_to_planes(frame):
    """Convert a BGR frame ``(H, W, 3)`` to full-range planes ``y (H, W)``, ``uv (2, ceil(H/2), ceil(W/2))``.

    ITU-T T.871, BT.601 as in JPEG. Neutral chroma is 128 for uint8 frames, 0.5 for float32 ones in [0, 1].
    """
    y, v, u = cv2.split(cv2.cvtColor(frame, cv2.COLOR_BGR2YCrCb))
    return y, np.stack([halve_chroma(u), halve_chroma(v)])


def planes_to_bgr(y, uv):
    """Convert full-range uint8 planes (see `bgr_to_planes`) to a uint8 BGR frame ``(H, W, 3)``."""
    u, v = double_chroma(uv, y.shape)
    return cv2.cvtColor(cv2.merge([y, v, u]), cv2.COLOR_YCrCb2BGR)


def double_chroma(uv, shape):
    """Enlarge chroma planes ``(2, ceil(H/2), ceil(W/2))`` bilinearly to a list of two of luma's shape ``(H, W)``."""
    height, width = shape
    size = (2 * uv.shape[2], 2 * uv.shape[1])
    return [cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR)[:height, :width] for plane in uv]


def halve_chroma(plane):
    """Average a full-size chroma plane ``(H, W)`` over 2x2 pixels; an odd last row or column counts twice."""
    h, w = plane.shape
    plane = cv2.copyMakeBorder(plane, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
    return cv2.resize(plane, (plane.shape[1] // 2, plane.shape[0] // 2), interpolation=cv2.INTER_AREA)


def unsharp(pixels, amount, sigma):
    """Unsharp-mask pixels ``(H, W)`` or ``(H, W, C)`` of uint8, uint16 or float32; integers are rounded and saturated.

    Adds `amount` times the difference to a Gaussian blur of `sigma` pixels.
    """
    return cv2.addWeighted(pixels, 1 + amount, cv2.GaussianBlur(pixels, (0, 0), sigma), -amount, 0)


def to_full_range(y, uv):
    """Map uint8 planes from limited range (BT.601/BT.709 video: luma 16-235, chroma 16-240) to full range."""
    return _LUMA_TO_FULL[y], _CHROMA_TO_FULL[uv]


def to_limited_range(y, uv):
    """Map uint8 planes from full range to limited range: the inverse of `to_full_range`, apart from rounding."""
    return _LUMA_TO_LIMITED[y], _CHROMA_TO_LIMITED[uv]


def _lookup_table(function):
    return np.clip(np.rint(function(np.arange(256.0))), 0, 255).astype(np.uint8)


_LUMA_TO_FULL = _lookup_table(lambda v: (v - 16) * 255 / 219)
_CHROMA_TO_FULL = _lookup_table(lambda v: (v - 128) * 255 / 224 + 128)
_LUMA_TO_LIMITED = _lookup_table(lambda v: v * 219 / 255 + 16)
_CHROMA_TO_LIMITED = _lookup_table(lambda v: (v - 128) * 224 / 255 + 128)


def usable_cores():
    """Return how many cores this process may use, by its affinity and its container's quota (Linux cgroups 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        limit, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        cores = min(cores, max(1, limit // period))
    return cores


def open_encoder(context):
    """Open a PyAV encoder quietly and without a change of priorities.

    SVT-AV1, run by root, leaves the calling thread and its own at the highest real-time priority, which all threads and
    programs that start later inherit.
    """
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    linux = sys.platform == "linux"
    usual = (os.sched_getscheduler(0), os.sched_getparam(0)) if linux else None
    try:
        context.open()
    finally:
        if linux and os.sched_getscheduler(0) != usual[0]:
            for thread in os.listdir("/proc/self/task"):
                with contextlib.suppress(ProcessLookupError):  # the thread has ended
                    os.sched_setscheduler(int(thread), *usual)


def first_line(error):
    """Return an exception's message as one line without its error number."""
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().split("\n")[0][:200] or type(error).__name__


def plural(number, noun):
    """Return a number with its noun: ``1 frame``, ``2 frames``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def without_password(address):
    """Return an address without user, password and token; other text as it is."""
    if "://" not in address:
        return address
    # A password with a slash: what follows the colon is no port.
    address = re.sub(r"(?<=://)([^/\s]*|[^/\s:]*:(?!\d+([/?]|$))\S*)@", "***@", address)
    secret = r"(?i)((?:pas|psw|pw|token|key|auth|secret|sig)[\w-]*=)[^&\s]*?(?=[&\s]|$|_[^\W_]+=)"
    return re.sub(secret, r"\1***", address)


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`: renamed to `path` if the block succeeds, removed if it fails.

    If `path` is a link, its target is replaced. The temporary name is unique to the thread and keeps the suffix, which
    some writers need. A killed process leaves its temporary file behind.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path, content):
    """Write a file completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path, text):
    """Write a UTF-8 file completely or not at all."""
    write_bytes(path, text.encode())
