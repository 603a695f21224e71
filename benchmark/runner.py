"""Measure methods on the units of `benchmark.conditions`.

A unit's figures are kept in a cache under a hash of all that decides them, so a run that was interrupted goes on from
there, and another student is measured without its peers.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from benchmark import metrics
from benchmark.conditions import DEFAULT_CONDITION, MEASURED_FRAMES, REAL_FRAMES, make_sample
from degradation import DataError
from images import VideoError
from utils import atomic_path

logger = logging.getLogger(__name__)

VERSION = 5  # of what a unit's figures mean: raise it to have all measured anew


def evaluate(samples, methods, thorough=False, vmaf=False, jod=False):
    """Measure methods on samples; training and the benchmark share this one path.

    Args:
        samples: iterable of `Sample`.
        methods: dict of name -> function ``(y, uv, full_range) -> (y, uv)`` on uint8 planes.
        thorough: measure everything that suits the sample, not only PSNR and SSIM of luma.
        vmaf: with `thorough`: VMAF, VMAF NEG and MS-SSIM too, which need imageio-ffmpeg.
        jod: with `thorough`: ColorVideoVDP of clips too, which needs cvvdp.

    Returns:
        One dict per sample and method: the sample's identity, ``method``, ``frames`` and ``metrics`` (each a list, one
        figure a frame or one for the clip).
    """
    records = []
    for sample in samples:
        for name, method in methods.items():
            output = [method(*planes, sample.full_range) for planes in sample.input]
            record = {**sample.identity, "method": name, "frames": list(sample.frames)}
            if sample.truth is None:
                found = metrics.visible_change(output, sample.input)
                if flicker := [value for value in found.pop("flicker") if math.isfinite(value)]:
                    found["flicker"] = [float(np.mean(flicker))]
            else:
                found = _against_truth(output, sample, thorough, vmaf, jod)
            records.append(record | {"metrics": found})
    return records


def _against_truth(output, sample, thorough, vmaf, jod):
    found = defaultdict(list)
    for planes, truth in zip(output, sample.truth, strict=True):
        for metric, value in metrics.picture_metrics(planes, truth, sample.full_range, rgb=thorough).items():
            found[metric].append(value)
    return dict(found) | (_thorough_metrics(output, sample, vmaf, jod) if thorough else {})


def _thorough_metrics(output, sample, vmaf, jod):
    found = {}
    is_clip = sample.identity["protocol"] != "image"
    if vmaf and min(output[0][0].shape) >= metrics.MS_SSIM_SIDE + 1:
        scores = metrics.vmaf_scores(output, sample.truth, sample.full_range)
        found |= scores if is_clip else {"ms_ssim": scores["ms_ssim"]}
    if is_clip and jod:
        found["jod"] = [metrics.jod(output, sample.truth, sample.full_range)]
    if is_clip:
        kinds = zip(("flicker_static", "flicker_moving"), metrics.flicker(output, sample.truth), strict=True)
        found |= {name: [value] for name, value in kinds if math.isfinite(value)}
    if sample.words:
        found["ocr"] = [metrics.word_accuracy(output[0][0], sample.words)]
    return found


def as_it_came(y, uv, full_range):
    """The method that does nothing, against which the others are measured."""
    return y, uv


def vmaf_available():
    """Whether VMAF can be measured here: ``(bool, why not)``."""
    grey = [(np.full((192, 192), 128, np.uint8), np.full((2, 96, 96), 128, np.uint8))]
    try:
        metrics.vmaf_scores(grey, grey)
    except metrics.MetricError as error:
        return False, str(error)
    return True, ""


def jod_available():
    """Whether ColorVideoVDP can be measured here: ``(bool, why not)``."""
    try:
        metrics.load_colour_video_vdp()
    except metrics.MetricError as error:
        return False, str(error)
    return True, ""


def run(units, methods, cache_dir, vmaf, jod=False, few=()):
    """Measure methods on units, with a progress bar; what is in the cache is not measured again.

    Args:
        units: list of `Unit`.
        methods: list of `peers.Peer`; their description and name must tell them apart from all others.
        cache_dir: folder for streams and figures.
        vmaf, jod: see `evaluate`.
        few: names of methods that are so slow that they see only the units of `is_for_all`, and of clips 2 frames.

    Returns:
        Records of `evaluate`, in the order of units and methods. A unit that cannot be made is left out, with a
        warning.

    Raises:
        DataError: all are left out.
    """
    records = []
    for unit in tqdm(units, desc="benchmark", unit="unit"):
        sample = None
        for method in methods:
            if method.name in few and not is_for_all(unit):
                continue
            frames = 2 if method.name in few else REAL_FRAMES if unit.protocol == "real" else MEASURED_FRAMES
            path = _record_path(unit, method, frames, (vmaf, jod), cache_dir)
            with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one is measured anew
                records.append(json.loads(path.read_text("utf-8")))
                continue
            try:
                sample = sample or make_sample(unit, cache_dir)
            except (DataError, VideoError) as error:  # one bad file must not cost the hours of the others
                logger.warning("left out: %s, %s: %s", unit.source.name, unit.condition, error)
                break
            part = {field: getattr(sample, field)[-frames:] for field in ("input", "frames")}
            part["truth"] = sample.truth and sample.truth[-frames:]
            measured = dataclasses.replace(sample, **part)
            (record,) = evaluate([measured], {method.name: method.at(unit.scale)}, thorough=True, vmaf=vmaf, jod=jod)
            record = without_infinity(record)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
            records.append(record)
    if not records:
        raise DataError("nothing could be measured: see the warnings")
    return records


def is_for_all(unit):
    """Whether even slow methods are measured on a unit: one condition of each source."""
    if unit.protocol == "image":
        return unit.condition == DEFAULT_CONDITION
    if unit.protocol == "real":
        return False
    return unit.qp == 32 and unit.codec == ("x265" if unit.protocol == "x4" else "x264")


def _record_path(unit, method, frames, tools, cache_dir):
    tools = (*tools, metrics.tesseract_available() and unit.source.category == "text")
    decides = (VERSION, unit, _fingerprint(unit.source.path), method.name, method.description, frames, tools)
    digest = hashlib.sha256(repr(decides).encode()).hexdigest()
    return Path(cache_dir) / "figures" / f"{digest[:32]}.json"


@functools.lru_cache(maxsize=1024)
def _fingerprint(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else path


def without_infinity(value):
    """JSON has no infinity: the PSNR of identical pictures is written as null."""
    if isinstance(value, dict):
        return {key: without_infinity(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_infinity(entry) for entry in value]
    return None if value == math.inf else value


# ----------------------------------------------------------------------------------------------------------------------
# Looking


def detailed_box(y, size=(240, 180)):
    """The box ``(x, y, width, height)``, on even pixels, of most detail in luma `(H, W)`: what is worth looking at."""
    width, height = (min(side, limit) // 2 * 2 for side, limit in zip(size, y.shape[::-1], strict=True))
    detail = np.minimum(np.abs(cv2.Laplacian(y, cv2.CV_32F)), 60)  # a hard edge counts no more than fine texture
    detail = cv2.boxFilter(detail, -1, (width, height), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    detail = detail[: y.shape[0] - height + 1 : 2, : y.shape[1] - width + 1 : 2]
    row, column = np.unravel_index(detail.argmax(), detail.shape)
    return int(2 * column), int(2 * row), width, height


def worst_frames(records, method, metric="ssim_y", count=10):
    """The frames that `method` harms most against the input, worst first, one of each unit.

    Returns:
        List of ``(unit's key, frame, input's value, method's value)``; see `record_key`.
    """
    inputs = {record_key(record): record for record in records if record["method"] == "input"}
    harmed = []
    for record in records:
        if record["method"] != method:
            continue
        before = inputs[record_key(record)]["metrics"].get(metric)
        if before is None:  # the truth is not known
            continue
        values = zip(record["metrics"][metric], before, record["frames"], strict=True)
        changes = [(value - came, frame, came, value) for value, came, frame in values]
        harmed.append((*min(changes), record_key(record)))
    harmed.sort()
    return [(key, frame, before, after) for change, frame, before, after, key in harmed[:count] if change < 0]


def record_key(record):
    """What tells units apart."""
    return tuple(record[name] for name in ("protocol", "category", "name", "condition"))
