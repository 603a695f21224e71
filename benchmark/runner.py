"""Measure methods on the units of `benchmark.conditions`, cut pictures for a report and describe the run.

A unit's figures are cached under a hash of all that decides them. So a run that was interrupted goes on from there, and
another student is measured without measuring its peers again.
"""

import contextlib
import dataclasses
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
from collections import defaultdict
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmark import metrics
from benchmark.conditions import DEFAULT_CONDITION, MEASURED_FRAMES, REAL_FRAMES, make_sample
from benchmark.report import UNIT, to_table
from degradation import DataError
from images import Picture, VideoError, write_image
from utils import atomic_path, planes_to_bgr, to_full_range

logger = logging.getLogger(__name__)

VERSION = 5  # of what a unit's figures mean: raise it to have all measured anew
CROPS = 16  # before/after pictures in a report, spread over its units


# ----------------------------------------------------------------------------------------------------------------------
# Measuring


def evaluate(sample, method, vmaf=False, jod=False):
    """Measure a method on a sample.

    Args:
        sample: a `conditions.Sample`.
        method: function ``(y, uv, full_range) -> (y, uv)`` on uint8 planes.
        vmaf: measure VMAF, VMAF NEG and MS-SSIM too.
        jod: measure ColorVideoVDP of clips too.

    Returns:
        Dict of metric -> list with one figure for each frame, or one for the clip.
    """
    output = [method(*planes, sample.full_range) for planes in sample.input]
    if sample.truth is None:
        found = metrics.visible_change(output, sample.input)
        flicker = [value for value in found.pop("flicker") if math.isfinite(value)]
        return found | ({"flicker": [float(np.mean(flicker))]} if flicker else {})
    found = defaultdict(list)
    for planes, truth in zip(output, sample.truth, strict=True):
        for metric, value in metrics.picture_metrics(planes, truth, sample.full_range).items():
            found[metric].append(value)
    is_clip = sample.identity["protocol"] != "image"
    if vmaf and min(output[0][0].shape) > metrics.MS_SSIM_SIDE:
        scores = metrics.vmaf_scores(output, sample.truth, sample.full_range)
        found |= scores if is_clip else {"ms_ssim": scores["ms_ssim"]}
    if is_clip:
        if jod:
            found["jod"] = [metrics.jod(output, sample.truth, sample.full_range)]
        kinds = zip(("flicker_static", "flicker_moving"), metrics.flicker(output, sample.truth), strict=True)
        found |= {name: [value] for name, value in kinds if math.isfinite(value)}
    if sample.words:
        found["ocr"] = [metrics.word_accuracy(output[0][0], sample.words)]
    return dict(found)


def as_it_came(y, uv, full_range):
    """The method that does nothing, against which the others are measured."""
    return y, uv


def available_tools():
    """Return whether VMAF and ColorVideoVDP can be measured here, as two bools, and log why not."""
    grey = [(np.full((192, 192), 128, np.uint8), np.full((2, 96, 96), 128, np.uint8))]
    works = []
    for measure in (lambda: metrics.vmaf_scores(grey, grey), metrics.load_colour_video_vdp):
        try:
            measure()
            works.append(True)
        except metrics.MetricError as error:
            logger.warning("left out: %s", error)
            works.append(False)
    return tuple(works)


def run(units, methods, cache_dir, vmaf=False, jod=False):
    """Measure methods (`peers.Peer`) on units, with a progress bar; what is in the cache is not measured again.

    Slow methods are measured on the units of `is_for_all` only, and on 2 frames of clips. For `vmaf` and `jod` see
    `evaluate`.

    Returns:
        One dict for each unit and method, in their order: the unit's identity, ``method``, ``frames`` and ``metrics``
        (see `evaluate`, infinity as None). A unit that cannot be made is left out, with a warning.

    Raises:
        DataError: all are left out.
    """
    records = []
    for unit in tqdm(units, desc="benchmark", unit="unit"):
        sample = None
        for method in methods:
            if method.is_slow and not is_for_all(unit):
                continue
            frames = 2 if method.is_slow else REAL_FRAMES if unit.protocol == "real" else MEASURED_FRAMES
            path = _record_path(unit, method, frames, (vmaf, jod), cache_dir)
            with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one is measured anew
                records.append(json.loads(path.read_text("utf-8")))
                continue
            try:
                sample = sample or make_sample(unit)
            except (DataError, VideoError) as error:  # one bad file must not cost the hours of the others
                logger.warning("left out: %s, %s: %s", unit.source.name, unit.condition, error)
                break
            last = dataclasses.replace(
                sample,
                input=sample.input[-frames:],
                truth=sample.truth and sample.truth[-frames:],
                frames=sample.frames[-frames:],
            )
            figures = without_infinity(evaluate(last, method.at(unit.scale), vmaf, jod))
            record = {**sample.identity, "method": method.name, "frames": list(last.frames), "metrics": figures}
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
            records.append(record)
    if not records:
        raise DataError("nothing could be measured: see the warnings")
    return records


def is_for_all(unit):
    """Return whether slow methods are measured on a unit, too: one condition of each source."""
    if unit.protocol == "image":
        return unit.condition == DEFAULT_CONDITION
    if unit.protocol == "real":
        return False
    return unit.qp == 32 and unit.codec == ("x265" if unit.protocol == "x4" else "x264")


def without_infinity(value):
    """Replace infinity, the PSNR of identical pictures, by None in nested dicts and lists: JSON does not have it."""
    if isinstance(value, dict):
        return {key: without_infinity(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_infinity(entry) for entry in value]
    return None if value == math.inf else value


def _record_path(unit, method, frames, tools, cache_dir):
    tools = (*tools, metrics.tesseract_available() and unit.source.category == "text")
    decides = (VERSION, unit, _fingerprint(unit.source.path), method.name, method.description, frames, tools)
    digest = hashlib.sha256(repr(decides).encode()).hexdigest()
    return Path(cache_dir) / "figures" / f"{digest[:32]}.json"


@functools.lru_cache(maxsize=1024)
def _fingerprint(path):
    return file_digest(path) if Path(path).is_file() else path


def file_digest(path):
    """Return the SHA-256 of a file as hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def write_crops(units, records, methods, folder, student):
    """Write crops of some units, and of the frames that the student harms most; return the lists of their entries."""
    step = max(1, len(units) // CROPS)
    crops = [write_crop(unit, -1, methods, folder, number) for number, unit in enumerate(units[step // 2 :: step])]
    by_key, worst = {record_key(unit.identity()): unit for unit in units}, []
    for case in worst_frames(records, student).to_dict("records"):
        entry = write_crop(by_key[record_key(case)], case["frame"], methods, folder, len(crops) + len(worst))
        worst.append({**entry, "ssim": {"input": case["before"], student: case["level"]}})
    return crops, worst


def write_crop(unit, frame, methods, folder, number):
    """Write what methods make of the most detailed part of a frame (-1: the last) of a unit; return the entry."""
    sample = make_sample(unit)
    index = sample.frames.index(frame) if frame >= 0 else -1
    box = detailed_box((sample.truth or sample.input)[index][0])
    pictures = {"truth": sample.truth[index]} if sample.truth else {}
    for method in methods:
        sharpen, until = method.at(unit.scale), index % len(sample.input) + 1
        *_, pictures[method.name] = (sharpen(*planes, sample.full_range) for planes in sample.input[:until])
    files = {name: f"crops/{number:03d}-{'-'.join(name.replace(',', '').split())}.png" for name in pictures}
    for name, planes in pictures.items():
        write_image(folder / files[name], Picture(cut_frame(planes, sample.full_range, box)))
    identity = dict(zip(UNIT, record_key(unit.identity()), strict=True))
    return {**identity, "frame": sample.frames[index], "box": box, "files": files}


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


def worst_frames(records, method, count=10):
    """Return the rows of `report.to_table` with the greatest losses of SSIM, worst first, one of each unit."""
    table = to_table(records)
    lost = table[(table["method"] == method) & (table["metric"] == "ssim_y") & (table["change"] < 0)]
    return lost.sort_values("change", kind="stable").drop_duplicates(UNIT).head(count)


def record_key(record):
    """What tells units apart."""
    return tuple(record[name] for name in UNIT)


# ----------------------------------------------------------------------------------------------------------------------
# Where a report comes from


def describe_run(command, started):
    """Describe a run that ends now and began at `started` (of `time.perf_counter`), for a report."""
    packages = ("torch", "openvino", "opencv-python", "av", "scikit-image", "numpy", "pillow", "imageio-ffmpeg")
    installed = {package.name.lower(): package.version for package in importlib.metadata.distributions()}
    return {
        "command": command,
        "commit": git_commit(),
        "date": date.today().isoformat(),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": describe_machine(),
        "versions": {"python": platform.python_version()} | {name: installed.get(name) for name in packages},
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
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
