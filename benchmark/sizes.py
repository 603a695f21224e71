"""What a viewer gets from a call of few lines shown at full size: quality, and time with the enlarging.

Clips are scaled down, sent through low-delay x264 at four quantisers, and brought back to their size by each method,
which gets the decoded frames as they are. ``evaluate.py size --data FOLDER`` writes results/size/README.md.
"""

import functools
import shlex
import statistics
import time

import numpy as np
import pandas as pd

from benchmark.conditions import QUANTISERS, Unit, load_clip, send
from benchmark.metrics import MS_SSIM_SIDE, vmaf_scores
from benchmark.peers import FILTERS, FFmpegFilter
from benchmark.report import markdown_table
from degradation import resize_planes as resize_lanczos
from scaling import resize_planes as resize_bicubic
from utils import atomic_path, luma_metrics, plural

SCALES = {"360p": 3, "540p": 2, "720p": 1.5}
_STEP = 12  # of a clip's sides in pixels: each scale leaves even ones
_FRAMES = 12  # of a clip
_REPEATS = 7  # of a measurement of time


def make_methods(sharpener):
    """Return methods by name: functions ``(y, uv, full_range, size) -> (y, uv)``."""

    def with_ffmpeg(sharpen):
        return lambda y, uv, full_range, size: sharpen(*_scaler(*size)(y, uv), full_range)

    return {
        "bicubic": lambda y, uv, full_range, size: resize_bicubic(y, uv, size),
        "Lanczos": lambda y, uv, full_range, size: resize_lanczos(y, uv, size),
        "student": lambda y, uv, full_range, size: sharpener.sharpen_planes(y, uv, full_range, size=size),
        "FFmpeg scale + unsharp": with_ffmpeg(FILTERS["FFmpeg unsharp"][1]),
        "FFmpeg scale + cas": with_ffmpeg(FILTERS["FFmpeg cas"][1]),
    }


@functools.cache
def _scaler(width, height):
    return FFmpegFilter(f"scale={width}:{height}:flags=lanczos")


def measure(sources, methods, lines, last):
    """Return a table of metrics by lines and method: means over clips, quantisers and the last frames."""
    rows = []
    for source in sources:
        clip, full_range = load_clip(source, _FRAMES, _FRAMES)
        height, width = (side // _STEP * _STEP for side in clip[0][0].shape)
        clip = [(y[:height, :width], uv[:, : height // 2, : width // 2]) for y, uv in clip]
        truth = clip[-last:]
        for name in lines:
            for qp in QUANTISERS["x264"]:
                unit = Unit("call", source, f"{name} x264 qp {qp}", SCALES[name], "x264", qp)
                small = send(clip, unit, last, enlarge=False)
                for label, method in methods.items():
                    outputs = [method(*planes, full_range, (width, height)) for planes in small]
                    pairs = [luma_metrics(one[0], other[0]) for one, other in zip(outputs, truth, strict=True)]
                    figures = [{"psnr_y": psnr, "ssim_y": ssim} for psnr, ssim in pairs]
                    if min(height, width) > MS_SSIM_SIDE:
                        scores = vmaf_scores(outputs, truth, full_range)["vmaf_neg"]
                        figures = [{**frame, "vmaf_neg": s} for frame, s in zip(figures, scores, strict=True)]
                    rows += [{"lines": name, "method": label, **frame} for frame in figures]
    means = pd.DataFrame(rows).groupby(["lines", "method"], sort=False).mean().reset_index()
    return means.reindex(columns=["lines", "method", "psnr_y", "ssim_y", "vmaf_neg"])


def cpu_milliseconds(method):
    """Return the milliseconds of processor time, on all cores, from 640x360 to 1920x1080, enlarging included.

    Unlike the time on the clock, they are about the same on a busy machine.
    """
    rng = np.random.default_rng(0)
    y = rng.integers(16, 236, (360, 640), dtype=np.uint8)
    uv = rng.integers(16, 241, (2, 180, 320), dtype=np.uint8)
    times = []
    for _ in range(_REPEATS + 1):  # the first is not counted
        begin = time.process_time()
        method(y, uv, False, (1920, 1080))
        times.append(time.process_time() - begin)
    return 1000 * statistics.median(times[1:])


def write_report(path, figures, milliseconds, described, clips, last):
    """Write the figures as a page of Markdown, and return it."""
    digits = {"psnr_y": ("PSNR", 2), "ssim_y": ("SSIM", 4), "vmaf_neg": ("VMAF-NEG", 2)}
    columns = {
        label: figures[metric].map(f"{{:.{count}f}}".format).replace("nan", "–")
        for metric, (label, count) in digits.items()
    }
    times = figures["method"].map(milliseconds).map("{:.0f}".format)
    table = pd.DataFrame({"method": figures["method"], **columns, "CPU ms": times}).set_index(figures["lines"])
    cpu = "{cores} cores of {cpu}".format(**described["machine"])
    page = f"""# From few lines to full size

{plural(clips, "clip")}, scaled down, through low-delay x264 at QP {", ".join(map(str, QUANTISERS["x264"]))}, and
brought back to full size by each method; mean over the last {last} frames of each stream. The time is processor time of
all cores together, in milliseconds for a frame from 640x360 to 1920x1080, enlarging included.

Command: `{shlex.join(described["command"])}`, commit {described["commit"]}, {cpu}.

{markdown_table(table)}"""
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return page
