"""Measure methods on the units of `benchmark.conditions`, cut pictures for a report and describe the run.

A unit's figures are cached under a hash of all that decides them. So a run that was interrupted goes on from there, and
another student is measured without measuring its peers again.
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
from utils import atomic_path, luma_metrics, planes_to_bgr, to_full_range

logger = logging.getLogger(__name__)

VERSION = 6  # of what a unit's figures mean: raise it to have all measured anew
CROPS = 16  # before/after pictures in a report, spread over its units


# ----------------------------------------------------------------------------------------------------------------------
# Measuring


def evaluate(sample, method, thorough=True):
    """Measure a method, a function ``(y, uv, full_range) -> (y, uv)`` on uint8 planes, on a `conditions.Sample`.

    Returns:
        Dict of metric -> list with one figure for each frame, or one for the clip. Unless `thorough`, what takes long
        is left out: VMAF, VMAF NEG, MS-SSIM and, of clips, ColorVideoVDP.
    """
    output = sample.seen_through(method)
    if sample.truth is None:
        found = metrics.visible_change(output, sample.input)
        flicker = [value for value in found.pop("flicker") if math.isfinite(value)]
        return found | ({"flicker": [float(np.mean(flicker))]} if flicker else {})
    figures = [luma_metrics(planes[0], truth[0]) for planes, truth in zip(output, sample.truth, strict=True)]
    found = {name: list(values) for name, values in zip(("psnr_y", "ssim_y"), zip(*figures, strict=True), strict=True)}
    is_clip = len(output) > 1
    if thorough and min(output[0][0].shape) > metrics.MS_SSIM_SIDE:
        scores = metrics.vmaf_scores(output, sample.truth, sample.full_range)
        found |= scores if is_clip else {"ms_ssim": scores["ms_ssim"]}
    if thorough and is_clip:
        found["jod"] = [metrics.jod(output, sample.truth, sample.full_range)]
    if is_clip and math.isfinite(flicker := metrics.flicker(output, sample.truth)):
        found["flicker_static"] = [flicker]
    if sample.words:
        found["ocr"] = [metrics.word_accuracy(output[0][0], sample.words)]
    return found


def as_it_came(y, uv, full_range):
    """The method that does nothing, against which the others are measured."""
    return y, uv


def run(units, methods, cache_dir, thorough=True):
    """Measure methods (`peers.Peer`) on units, with a progress bar; what is in the cache is not measured again.

    Returns:
        One dict for each unit and method, in their order: the unit's identity, ``method`` and ``metrics``, see
        `evaluate`; and the units that were measured. One that cannot be made is left out, with a warning.

    Raises:
        DataError: all are left out.
    """
    records, measured = [], []
    for unit in tqdm(units, desc="benchmark", unit="unit"):
        try:
            records += [_measure(unit, method, Path(cache_dir), thorough) for method in methods]
        except (DataError, VideoError) as error:  # one bad file must not cost the hours of the others
            logger.warning("left out: %s, %s: %s", unit.source.name, unit.condition, error)
        else:
            measured.append(unit)
    if not records:
        raise DataError("nothing could be measured: see the warnings")
    return records, measured


def _measure(unit, method, cache_dir, thorough):
    of_unit = (unit, _fingerprint(unit.source.path), can_be_read(unit.source))
    decides = (VERSION, *of_unit, method.name, method.description, thorough)
    path = cache_dir / "figures" / f"{hashlib.sha256(repr(decides).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one is measured anew
        return json.loads(path.read_text("utf-8"))
    sample = make_sample(unit)
    figures = evaluate(sample, method.at(unit.scale), thorough)
    record = {**unit.identity(), "method": method.name, "metrics": figures}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")
    return record


@functools.lru_cache(maxsize=1024)
def _fingerprint(path):
    return file_digest(path) if Path(path).is_file() else path


def file_digest(path):
    """Return the SHA-256 of a file as hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def write_crops(units, methods, folder):
    """Write what methods make of the most detailed part of the last frames of some units; return their entries."""
    entries, step = [], max(1, len(units) // CROPS)
    for number, unit in enumerate(units[step // 2 :: step]):
        sample = make_sample(unit)
        box = detailed_box((sample.truth or sample.input)[-1][0])
        pictures = {"truth": sample.truth[-1]} if sample.truth else {}
        pictures |= {method.name: sample.seen_through(method.at(unit.scale))[-1] for method in methods}
        files = {name: f"crops/{number:03d}-{'-'.join(name.replace(',', '').split())}.png" for name in pictures}
        for name, planes in pictures.items():
            write_image(folder / files[name], Picture(cut_frame(planes, sample.full_range, box)))
        entries.append({**unit.identity(), "box": box, "files": files})
    return entries


def cut_frame(planes, full_range, box):
    """Return the ``(x, y, width, height)`` of planes that `box` names, as a BGR frame."""
    x, y, width, height = box
    frame = planes_to_bgr(*(planes if full_range else to_full_range(*planes)))
    return np.ascontiguousarray(frame[y : y + height, x : x + width])


def detailed_box(y, size=(240, 180)):
    """Return the box ``(x, y, width, height)``, on even pixels, of most detail in luma `(H, W)`."""
    width, height = (min(side, limit) // 2 * 2 for side, limit in zip(size, y.shape[::-1], strict=True))
    detail = np.minimum(np.abs(cv2.Laplacian(y, cv2.CV_32F)), 60)  # a hard edge counts no more than fine texture
    detail = cv2.boxFilter(detail, -1, (width, height), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    detail = detail[: y.shape[0] - height + 1 : 2, : y.shape[1] - width + 1 : 2]
    row, column = np.unravel_index(detail.argmax(), detail.shape)
    return int(2 * column), int(2 * row), width, height


# ----------------------------------------------------------------------------------------------------------------------
# Where a report comes from


def describe_run(command, started):
    """Describe a run that ends now and began at `started` (of `time.perf_counter`), for a report."""
    packages = ("torch", "openvino", "av", "numpy", "scikit-image", "imageio-ffmpeg")
    return {
        "command": command,
        "commit": git_commit(),
        "date": date.today().isoformat(),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": describe_machine(),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
    }


def describe_machine():
    """Describe the machine that measured."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.*)", cpuinfo, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def git_commit():
    """Return the commit that is checked out, marked if files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    with contextlib.suppress(OSError):  # git is not installed
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
