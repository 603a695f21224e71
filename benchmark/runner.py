"""Measure methods on the units of `benchmark.conditions`, cut pictures for a report and describe the run.

A unit's figures are cached under a hash of all that decides them, including code. So an interrupted run goes on, and
another student is measured without its peers.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import subprocess
import time
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmark import metrics
from benchmark.conditions import can_be_read, make_sample
from degradation import DataError
from images import Picture, VideoError, write_image
from runtime import checkpoint_digest
from utils import luma_metrics, planes_to_bgr, to_full_range, write_text

log = logging.getLogger(__name__)

CROPS = 16  # approximate number of before/after pictures in a report, spread over its units
# Modules that decide a unit's figures.
CODE = ["conversion", "dataset", "degradation", "images", "inference", "models", "runtime", "scaling", "torch_engine"]
CODE += ["utils", "video", *(f"benchmark/{name}" for name in ("conditions", "metrics", "peers"))]


def evaluate(sample, method, thorough=True):
    """Measure a `peers.Method` on a `conditions.Sample`.

    Returns a dict of metric -> list of figures, one for each frame or one for the clip. VMAF, VMAF NEG and JOD of clips
    take long and are measured only if `thorough`.
    """
    output = method.run(sample)
    if sample.truth is None:
        found = metrics.visible_change(output, sample.input)
        flicker = [value for value in found.pop("flicker") if math.isfinite(value)]
        return found | ({"flicker": [float(np.mean(flicker))]} if flicker else {})
    figures = [luma_metrics(planes[0], truth[0]) for planes, truth in zip(output, sample.truth, strict=True)]
    found = {name: list(values) for name, values in zip(("psnr_y", "ssim_y"), zip(*figures, strict=True), strict=True)}
    is_clip = len(output) > 1
    if thorough and is_clip:
        found |= metrics.vmaf_scores(output, sample.truth, sample.full_range)
        found["jod"] = [metrics.jod(output, sample.truth, sample.full_range)]
    if is_clip and math.isfinite(flicker := metrics.flicker(output, sample.truth)):
        found["flicker_static"] = [flicker]
    if sample.words:
        found["ocr"] = [metrics.word_accuracy(output[0][0], sample.words)]
    return found


def run(units, methods, cache_dir, thorough=True):
    """Measure methods on units, except for cached figures; units that cannot be made are left out with a warning.

    Returns:
        ``(records, measured)``: a dict for each unit and method, in their order, of the unit's identity, ``method`` and
        ``metrics`` (see `evaluate`); and the units that were measured.

    Raises:
        DataError: all are left out.
    """
    records, measured = [], []
    for unit in tqdm(units, desc="benchmark", unit="unit"):
        with leave_out(unit):
            records += [_measure(unit, method, Path(cache_dir), thorough) for method in methods]
            measured.append(unit)
    if not records:
        raise DataError("nothing could be measured: see the warnings")
    return records, measured


@contextlib.contextmanager
def leave_out(unit):
    """Warn if a unit cannot be made, so that a bad file does not end a run of hours."""
    try:
        yield
    except (DataError, VideoError) as error:
        log.warning("left out: %s, %s: %s", unit.source.name, unit.condition, error)


def _measure(unit, method, cache_dir, thorough):
    of_unit = (unit, _fingerprint(unit.source.path), can_be_read(unit.source))
    decides = (_code_digest(), *of_unit, method.name, method.description, thorough)
    path = cache_dir / "figures" / f"{hashlib.sha256(repr(decides).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(FileNotFoundError, ValueError):  # if it is damaged, measure again
        return json.loads(path.read_text("utf-8"))
    figures = evaluate(make_sample(unit), method, thorough)
    record = {**unit.identity(), "method": method.name, "metrics": figures}
    write_text(path, json.dumps(record))
    return record


@functools.cache
def _code_digest():
    root = Path(__file__).resolve().parents[1]
    return hashlib.sha256(b"".join((root / f"{name}.py").read_bytes() for name in CODE)).hexdigest()


@functools.lru_cache(maxsize=1024)
def _fingerprint(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else path


def write_crops(units, methods, folder):
    """Write the most detailed crop of methods' last frames of some units, and return entries for the report."""
    entries, step = [], max(1, len(units) // CROPS)
    for number, unit in enumerate(units[step // 2 :: step]):
        ((box, crops),) = cut_crops(make_sample(unit), methods)
        files = {name: f"crops/{number:03d}-{'-'.join(name.replace(',', '').split())}.png" for name in crops}
        for name, crop in crops.items():
            write_image(folder / files[name], Picture(crop))
        entries.append({**unit.identity(), "box": box, "files": files})
    return entries


def cut_crops(sample, methods, count=1):
    """Cut the `count` most detailed places out of the last frames of a `conditions.Sample`.

    Returns:
        List of at most `count` pairs: a box ``(x, y, width, height)``, and a dict of a method's name (or ``truth``) ->
        BGR uint8 `(180, 240, 3)` or smaller.
    """
    frames = {"truth": sample.truth[-1]} if sample.truth else {}
    frames |= {method.name: method.run(sample)[-1] for method in methods}
    pixels = {name: planes_to_bgr(*(p if sample.full_range else to_full_range(*p))) for name, p in frames.items()}
    seen, crops = (sample.truth or sample.input)[-1][0].copy(), {}
    for _ in range(count):
        box = x, y, width, height = detailed_box(seen)
        here = slice(y, y + height), slice(x, x + width)
        crops[box] = {name: np.ascontiguousarray(frame[here]) for name, frame in pixels.items()}
        seen[here] = 128  # so that the next one lies elsewhere, unless the picture is small
    return list(crops.items())


def detailed_box(y, size=(240, 180)):
    """Return the box ``(x, y, width, height)`` of most detail in luma `(H, W)`, on even pixels."""
    width, height = (min(side, limit) // 2 * 2 for side, limit in zip(size, y.shape[::-1], strict=True))
    detail = np.minimum(np.abs(cv2.Laplacian(y, cv2.CV_32F)), 60)  # a hard edge counts no more than fine texture
    detail = cv2.boxFilter(detail, -1, (width, height), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    detail = detail[: y.shape[0] - height + 1 : 2, : y.shape[1] - width + 1 : 2]
    row, column = np.unravel_index(detail.argmax(), detail.shape)
    return int(2 * column), int(2 * row), width, height


def describe_run(command, sharpener, started):
    """Describe a run of evaluate.py that began at `started` (of `time.perf_counter`) and ends now, for a report."""
    packages = ("torch", "openvino", "av", "numpy", "scikit-image", "imageio-ffmpeg")
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.*)", cpuinfo, re.MULTILINE)
    return {
        "command": ["python", "evaluate.py", *command],
        "checkpoint": {"checkpoint": sharpener.checkpoint.name, "sha256": checkpoint_digest(sharpener.checkpoint)},
        "commit": git_commit(),
        "date": date.today().isoformat(),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": {
            "cpu": model[1] if model else platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
    }


def git_commit():
    """Return the current commit, marked if files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    with contextlib.suppress(OSError):  # git is not installed
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
