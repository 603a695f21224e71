"""What a viewer gets from a call of few lines shown at full size: quality, and time with the enlarging.

Clips are scaled down, sent through low-delay x264 at four quantisers, and brought back to their size by each method,
which gets the decoded frames as they are. ``evaluate.py size --data FOLDER`` writes results/size/README.md.
"""

import functools
import shlex
import statistics
import time
from collections import defaultdict

import numpy as np

from benchmark.conditions import QUANTISERS, Unit, load_clip, send
from benchmark.metrics import MS_SSIM_SIDE, MetricError, picture_metrics, vmaf_scores
from benchmark.peers import FFmpegFilter, peers
from degradation import resize_planes as resize_lanczos
from scaling import resize_planes as resize_bicubic
from utils import atomic_path, plural

SCALES = {"360p": 3, "540p": 2, "720p": 1.5}
METRICS = {"psnr_y": "PSNR", "ssim_y": "SSIM", "vmaf_neg": "VMAF-NEG"}
_STEP = 12  # of a clip's sides in pixels: each scale leaves even ones
_FRAMES, _SLOW_FRAMES = 12, 1  # of a clip, and what slow methods see of those measured
SLOW = ("animevideov3", "Real-ESRGAN")


def make_methods(sharpener, slow=()):
    """Return methods by name: functions of a scale that return functions ``(y, uv, full_range, size) -> (y, uv)``."""

    def after(enlarge, sharpen):
        """Enlarge, then sharpen; `sharpen` is a function of the scale that returns a method (see peers.py)."""
        return lambda scale: lambda y, uv, full_range, size: sharpen(scale)(*enlarge(y, uv, size), full_range)

    def with_ffmpeg(y, uv, size):
        return _scaler(*size)(y, uv)

    by_name = {peer.name: peer for peer in peers(["FFmpeg unsharp", "FFmpeg cas", *slow], "cpu")}
    return {
        "bicubic": lambda scale: lambda y, uv, full_range, size: resize_bicubic(y, uv, size),
        "Lanczos": lambda scale: lambda y, uv, full_range, size: resize_lanczos(y, uv, size),
        "student": lambda scale: lambda y, uv, full_range, size: sharpener.sharpen_planes(y, uv, full_range, size=size),
        "FFmpeg scale + unsharp": after(with_ffmpeg, by_name["FFmpeg unsharp"].at),
        "FFmpeg scale + cas": after(with_ffmpeg, by_name["FFmpeg cas"].at),
        # A super-resolution network shrinks what it gets to the decoded size first, see `peers.super_resolver`.
        **{name: after(resize_lanczos, by_name[name].at) for name in slow},
    }


@functools.cache
def _scaler(width, height):
    return FFmpegFilter(f"scale={width}:{height}:flags=lanczos")


def measure(sources, methods, lines, last):
    """Return a dict of (lines, method) -> dict of metric -> mean over clips, quantisers and the last frames."""
    found = defaultdict(lambda: defaultdict(list))
    for source in sources:
        clip, full_range = load_clip(source, _FRAMES, _FRAMES)
        height, width = (side // _STEP * _STEP for side in clip[0][0].shape)
        clip = [(y[:height, :width], uv[:, : height // 2, : width // 2]) for y, uv in clip]
        for name in lines:
            for qp in QUANTISERS["x264"]:
                unit = Unit("call", source, f"{name} x264 qp {qp}", SCALES[name], "x264", qp)
                small, _ = send(clip, unit, last, enlarge=False)
                for label, make in methods.items():
                    count = _SLOW_FRAMES if label in SLOW else last
                    outputs = [make(unit.scale)(*planes, full_range, (width, height)) for planes in small[-count:]]
                    truth = clip[-count:]
                    figures = [picture_metrics(*pair, full_range) for pair in zip(outputs, truth, strict=True)]
                    scores = found[name, label]
                    for metric in ("psnr_y", "ssim_y"):
                        scores[metric] += [frame[metric] for frame in figures]
                    if label not in SLOW and min(height, width) > MS_SSIM_SIDE:  # a single frame has no motion
                        try:
                            scores["vmaf_neg"] += vmaf_scores(outputs, truth, full_range)["vmaf_neg"]
                        except MetricError:
                            continue
    return {key: {metric: float(np.mean(values)) for metric, values in row.items()} for key, row in found.items()}


def cpu_milliseconds(method, scale, repeats=7):
    """Return the milliseconds of processor time, on all cores, for a frame of 1920x1080, enlarging included.

    Unlike the time on the clock, they are about the same on a busy machine.
    """
    rng = np.random.default_rng(0)
    width, height = round(1920 / scale), round(1080 / scale)
    y = rng.integers(16, 236, (height, width), dtype=np.uint8)
    uv = rng.integers(16, 241, (2, height // 2, width // 2), dtype=np.uint8)
    times = []
    for _ in range(repeats + 1):  # the first is not counted
        begin = time.process_time()
        method(y, uv, False, (1920, 1080))
        times.append(time.process_time() - begin)
    return 1000 * statistics.median(times[1:])


def write_report(path, figures, milliseconds, described, clips, last):
    """Write the figures as a page of Markdown, and return it."""
    rows = []
    for (lines, method), row in figures.items():
        cells = [f"{row[m]:.{4 if m == 'ssim_y' else 2}f}" if m in row else "-" for m in METRICS]
        rows.append(f"| {lines} | {method} | {' | '.join(cells)} | {milliseconds[method]:.0f} |")
    machine = described["machine"]
    page = "\n".join(
        [
            "# From few lines to full size",
            "",
            f"{plural(clips, 'clip')}, scaled down, through low-delay x264 at QP "
            f"{', '.join(map(str, QUANTISERS['x264']))}, and brought back to full size",
            f"by each method; mean over the last {last} frames of each stream ({_SLOW_FRAMES} for networks). The time "
            "is processor time of all cores together, in",
            "milliseconds for a frame from 640x360 to 1920x1080, enlarging included.",
            "",
            f"Command: `{shlex.join(described['command'])}`, commit {described['commit']}, {machine['cores']} cores of "
            f"{machine['cpu']}.",
            "",
            f"| lines | method | {' | '.join(METRICS.values())} | CPU ms |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return page
