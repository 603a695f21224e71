"""What a viewer gets from a call of few lines shown at full size: quality, and time with the enlarging.

Clips are scaled down, sent through low-delay x264 at four quantisers, and brought back to their size by each method,
which gets the decoded frames as they are. ``evaluate.py size --data FOLDER`` writes results/size/README.md.
"""

import functools
import logging
import shlex
import statistics
import time

import numpy as np
import pandas as pd

from benchmark.conditions import QUANTISERS, Unit, load_clip, send
from benchmark.metrics import MS_SSIM_SIDE, jod, vmaf_scores
from benchmark.peers import FILTERS, FFmpegFilter, load_animevideo
from benchmark.report import markdown_table
from degradation import resize_planes as resize_lanczos
from scaling import resize_planes as resize_bicubic
from utils import atomic_path, first_line, luma_metrics, plural

SCALES = {"360p": 3, "540p": 2, "720p": 1.5}  # lines of a clip that had 1080: what its sides are divided by
SLOW, SLOW_LINES = ("realesr-animevideov3",), "360p"  # methods that would take an hour, and where they are measured
METRICS = {"psnr_y": ("PSNR", 2), "ssim_y": ("SSIM", 4), "vmaf_neg": ("VMAF-NEG", 2), "jod": ("JOD", 2)}
_STEP = 12  # of a clip's sides in pixels: each scale leaves even ones
_FRAMES = 12  # of a clip
_JOD_SIDE = 480  # pixels of a clip's middle whose JOD is measured: whole 1080p frames take ten times as long
_REPEATS, _SECONDS = 7, 2  # of a measurement of time; no more runs begin after so many seconds

logger = logging.getLogger(__name__)


def make_methods(sharpener):
    """Return methods by name: functions ``(clip, full_range, size)`` of consecutive planes that return a list of them.

    The student steadies each frame against the one before. `SLOW` methods are left out if they are not installed.
    """

    def each(method):
        return lambda clip, full_range, size: [method(*planes, full_range, size) for planes in clip]

    def scaled_by_ffmpeg(sharpen):
        return each(lambda y, uv, full_range, size: sharpen(*_scaler(*size)(y, uv), full_range))

    def student(clip, full_range, size):
        sharp = []
        for planes in clip:
            after = sharp[-1] if sharp else None
            sharp.append(sharpener.sharpen_planes(*planes, full_range, size=size, after=after))
        return sharp

    methods = {
        "bicubic (OpenCV)": each(lambda y, uv, full_range, size: resize_bicubic(y, uv, size)),
        "Lanczos": each(lambda y, uv, full_range, size: resize_lanczos(y, uv, size)),
        **{f"scaler, {name}": scaled_by_ffmpeg(FILTERS[name][1]) for name in FILTERS if name.startswith("FFmpeg")},
        "student": student,
    }
    try:
        methods["realesr-animevideov3"] = each(load_animevideo())
    except ImportError as error:
        logger.warning("realesr-animevideov3 is left out (%s): pip install -r requirements-dev.txt", first_line(error))
    return methods


@functools.cache
def _scaler(width, height):
    return FFmpegFilter(f"scale={width}:{height}:flags=lanczos")


def measure(sources, methods, lines, last):
    """Return a table of `METRICS` by lines and method: means over clips, quantisers and the last frames."""
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
                    if label in SLOW and name != SLOW_LINES:
                        continue
                    found = method(small, full_range, (width, height))
                    pairs = zip(found, truth, strict=True)
                    psnr, ssim = np.mean([luma_metrics(y, true) for (y, _), (true, _) in pairs], axis=0)
                    row = {"lines": name, "method": label, "psnr_y": psnr, "ssim_y": ssim}
                    if min(height, width) > MS_SSIM_SIDE:
                        row["vmaf_neg"] = np.mean(vmaf_scores(found, truth, full_range)["vmaf_neg"])
                    row["jod"] = jod(_middle(found), _middle(truth), full_range)
                    rows.append(row)
    means = pd.DataFrame(rows).groupby(["lines", "method"], sort=False).mean().reset_index()
    return means.reindex(columns=["lines", "method", *METRICS])


def _middle(clip):
    height, width = clip[0][0].shape
    top, left = (max(side - _JOD_SIDE, 0) // 4 for side in (height, width))  # in chroma's pixels
    side = _JOD_SIDE // 2
    return [(y[2 * top :, 2 * left :][: 2 * side, : 2 * side], uv[:, top:, left:][:, :side, :side]) for y, uv in clip]


def time_method(method):
    """Return milliseconds for a frame from 640x360 to 1920x1080: of processor time on all cores, and on the clock.

    The former are about the same on a busy machine and their median is taken; of the latter the least.
    """
    rng = np.random.default_rng(0)
    y = rng.integers(16, 236, (360, 640), dtype=np.uint8)
    uv = rng.integers(16, 241, (2, 180, 320), dtype=np.uint8)
    method([(y, uv)], False, (1920, 1080))  # compiles
    times = []
    while len(times) < _REPEATS and sum(clock for _, clock in times) < _SECONDS:
        begin = time.process_time(), time.perf_counter()
        method([(y, uv)], False, (1920, 1080))
        times.append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
    busy, clock = zip(*times, strict=True)
    return 1000 * statistics.median(busy), 1000 * min(clock)


def write_report(path, figures, times, described, sources, last):
    """Write the figures, and times by method from `time_method`, as a page of Markdown, and return it."""
    columns = {
        label: figures[metric].map(f"{{:.{digits}f}}".format).replace("nan", "–")
        for metric, (label, digits) in METRICS.items()
    }
    columns["CPU ms"] = [f"{times[method][0]:.0f}" for method in figures["method"]]
    columns["frames/s"] = [f"{1000 / times[method][1]:.3g}" for method in figures["method"]]
    table = pd.DataFrame({"method": figures["method"], **columns}).set_index(figures["lines"])
    cpu = "{cores} cores of {cpu}".format(**described["machine"])
    names = ", ".join(f"`{source.name}`" for source in sources)
    page = f"""# From few lines to full size

{plural(len(sources), "clip")} ({names}), with sides divided by 3, 2 and 1.5 (of 1080 lines that leaves 360, 540 and
720), through low-delay x264 at QP {", ".join(map(str, QUANTISERS["x264"]))}, and brought back to full size by each
method. Means over the last {last} of {_FRAMES} frames of each stream; JOD (ColorVideoVDP) is that of the middle
{_JOD_SIDE}x{_JOD_SIDE} pixels. `{", ".join(SLOW)}` enlarges by 4, an area kernel brings that to the size; it is
measured at {SLOW_LINES} only. Time is that of a frame from 640x360 to 1920x1080, enlarging included: CPU ms of all
cores together (median of up to {_REPEATS} runs), frames/s on the clock (the best run, on a machine that may be busy).

Command: `{shlex.join(described["command"])}`, commit {described["commit"]}, {cpu}.
Why a bicubic kernel enlarges before the student: [kernels.md](../size/kernels.md).

{markdown_table(table)}"""
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return page
