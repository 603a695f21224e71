"""Measure what a student gains over its input, and how fast it is.

    python evaluate.py                          # scikit-image's photos and rendered text: no download
    python evaluate.py --data FOLDER            # your own images and videos, one sub-folder a category
    python evaluate.py --quick                  # one picture a category, two conditions
    python evaluate.py --checkpoint FILE --device cpu --json results/mine.json

Each picture is degraded under named conditions with fixed seeds, sharpened, and compared with the original on luma:
PSNR and SSIM of the input as it came, of an unsharp mask and of the student. Videos go through x264 at constant QP.
"""

import argparse
import dataclasses
import json
import platform
import sys
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

import dataset
from dataset import DataError
from inference import RealTimeSharpener, parse_strength
from models import RELEASED_STUDENT, CheckpointError
from runtime import DeviceError
from utils import IMAGE_SUFFIXES, VIDEO_SUFFIXES, atomic_path, benchmark_fps, bgr_to_planes, luma_metrics
from video import VideoError, VideoReader


@dataclasses.dataclass(frozen=True)
class Sample:
    """One degraded picture and its ground truth: uint8 planes `(y (H, W), uv (2, H/2, W/2))`."""

    category: str
    condition: str
    name: str
    input: tuple
    truth: tuple
    full_range: bool = True


def evaluate(samples, methods):
    """Measure methods on samples; training and the script share this one path.

    Args:
        samples: iterable of `Sample`.
        methods: dict of name -> function ``(y, uv, full_range) -> (y, uv)`` on uint8 planes. The input itself is
            always measured too, as ``input``.

    Returns:
        One dict per sample and method: ``category``, ``condition``, ``name``, ``method``, ``psnr`` in dB (infinite
        where nothing differs), ``ssim``, and ``phase_error``, the 4x4 list of mean squared luma errors at each phase
        of the student's folding grid.
    """
    records = []
    for sample in samples:
        outputs = {"input": sample.input}
        outputs |= {name: method(*sample.input, sample.full_range) for name, method in methods.items()}
        for method, (y, _) in outputs.items():
            psnr, ssim = luma_metrics(y, sample.truth[0])
            identity = {"category": sample.category, "condition": sample.condition, "name": sample.name}
            phases = phase_error(y, sample.truth[0])
            records.append({**identity, "method": method, "psnr": psnr, "ssim": ssim, "phase_error": phases.tolist()})
    return records


def phase_error(y, truth, period=4):
    """Mean squared error `(period, period)` of luma at each position of a grid: even unless the folding shows."""
    height, width = (side - side % period for side in y.shape)
    error = np.square(y[:height, :width].astype(np.float64) - truth[:height, :width])
    return error.reshape(height // period, period, width // period, period).mean(axis=(0, 2))


def summarise(records, keys):
    """Average records that agree in `keys` (and in method).

    Returns:
        List of dicts with `keys`, ``method``, ``samples``, mean ``psnr`` and ``ssim``, and ``phase_spread``, the
        largest less the smallest phase error over their mean.
    """
    groups = defaultdict(list)
    for record in records:
        groups[(*(record[key] for key in keys), record["method"])].append(record)
    rows = []
    for group, members in groups.items():
        phases = np.mean([member["phase_error"] for member in members], axis=0)
        rows.append(
            {
                **dict(zip((*keys, "method"), group, strict=True)),
                "samples": len(members),
                "psnr": float(np.mean([member["psnr"] for member in members])),
                "ssim": float(np.mean([member["ssim"] for member in members])),
                "phase_spread": float((phases.max() - phases.min()) / phases.mean()) if phases.mean() > 0 else 0.0,
            }
        )
    return rows


def unsharp_mask(y, uv, full_range=True, sigma=1.0, amount=0.5):
    """What people use today: luma plus `amount` times its difference to a Gaussian blur of `sigma` pixels."""
    return cv2.addWeighted(y, 1 + amount, cv2.GaussianBlur(y, (0, 0), sigma), -amount, 0), uv


# ----------------------------------------------------------------------------------------------------------------------
# The benchmark


def at_half_size(planes, damage):
    """Halve planes with a bicubic kernel, apply `damage` to ``(y, uv)``, enlarge with Lanczos."""
    size = planes[0].shape[::-1]
    small = dataset.resize_planes(*planes, dataset.low_resolution(size, 2), "bicubic")
    return dataset.resize_planes(*damage(small), size)


def halve_with_noise(y, uv, rng):
    """Gaussian noise of sigma 2/255 at half size: the default condition."""
    return at_half_size((y, uv), lambda small: dataset.each_plane(small, dataset.add_noise, 2, rng))


def halve_with_jpeg(y, uv, rng):
    """JPEG of quality 50 at half size."""
    return at_half_size((y, uv), lambda small: dataset.each_plane(small, dataset.jpeg, 50))


def leave_clean(y, uv, rng):
    """Nothing is wrong with the input: whatever changes is harm."""
    return y, uv


def halve_with_codec(clip, qp):
    """Halve a clip with a bicubic kernel, x264 in its low-delay mode at constant `qp`, enlarge with Lanczos."""
    height, width = clip[0][0].shape
    small = dataset.low_resolution((width, height), 2)
    decoded = dataset.codec_roundtrip([dataset.resize_planes(*p, small, "bicubic") for p in clip], "x264", qp)
    return [dataset.resize_planes(*planes, (width, height)) for planes in decoded]


IMAGE_CONDITIONS = {"bicubic+noise": halve_with_noise, "jpeg": halve_with_jpeg, "clean": leave_clean}
CODEC_QPS = (22, 27, 32, 37)
PAN_FRAMES = 8  # an image becomes a short pan for the codec; its last frame is measured


def image_samples(category, name, frame, conditions=None):
    """Degrade one BGR frame under each of `conditions` (of `IMAGE_CONDITIONS` and ``x264 qp N``; all by default)."""
    height, width = (side - side % 2 for side in frame.shape[:2])
    frame = np.ascontiguousarray(frame[:height, :width])
    truth = bgr_to_planes(frame)
    for condition in conditions or [*IMAGE_CONDITIONS, *(f"x264 qp {qp}" for qp in CODEC_QPS)]:
        rng = np.random.default_rng(0)
        if condition in IMAGE_CONDITIONS:
            damaged = IMAGE_CONDITIONS[condition](*truth, rng)
        else:
            pan = dataset.animate(frame, PAN_FRAMES, (height, width), (1.5, 0.5), rng)
            damaged = halve_with_codec([bgr_to_planes(f) for f in pan], int(condition.split()[-1]))[-1]
        yield Sample(category, condition, name, damaged, truth)


def video_samples(category, path, frames, qps=CODEC_QPS):
    """Degrade the first `frames` frames of a video with x264 at each QP; every fifth frame is measured."""
    clip = []
    with VideoReader(path) as reader:
        full_range = reader.format.full_range
        for frame in reader:
            clip.append((frame.y, frame.uv))
            if len(clip) == frames:
                break
    height, width = (side - side % 2 for side in clip[0][0].shape)
    clip = [(y[:height, :width], uv[:, : height // 2, : width // 2]) for y, uv in clip]
    for qp in qps:
        damaged = halve_with_codec(clip, qp)
        for i in range(4, len(clip), 5):
            yield Sample(category, f"x264 qp {qp}", Path(path).name, damaged[i], clip[i], full_range)


def benchmark_samples(data=None, match=("*",), frames=30, quick=False):
    """All samples of the benchmark, made one after the other.

    Args:
        data: folder with one sub-folder of images and videos a category; scikit-image's photos when None.
        match: only files whose name fits one of these patterns.
        frames: how many frames of each video.
        quick: one picture a category, two conditions.

    Raises:
        DataError: the folder is missing or holds nothing that matches.
    """
    categories = _skimage_categories() if data is None else _folder_categories(Path(data), match)
    conditions, qps = (("bicubic+noise", "x264 qp 32"), (32,)) if quick else (None, CODEC_QPS)
    work = [(category, name) for category, names in categories.items() for name in (names[:1] if quick else names)]
    for category, name in tqdm(work, desc="benchmark", unit="file", leave=False):
        if Path(name).suffix.lower() in VIDEO_SUFFIXES:
            yield from video_samples(category, name, frames, qps)
        else:
            if name.startswith("rendered:"):
                frame = dataset.render_text(np.random.default_rng(int(name.removeprefix("rendered:"))), (512, 512))
            else:
                frame = dataset.load_photo(name)
            yield from image_samples(category, Path(name).name, frame, conditions)


def _skimage_categories():
    categories = {
        category: [f"skimage:{name}" for name in names] for category, names in dataset.SKIMAGE_BENCHMARK.items()
    }
    categories["text"] += ["rendered:1", "rendered:2"]
    return categories


def _folder_categories(folder, match):
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give one that holds a sub-folder of images or videos for each category")
    suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    categories = {}
    for category in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = [path for path in sorted(category.rglob("*")) if path.suffix.lower() in suffixes]
        names = [str(path) for path in files if any(fnmatch(path.name, pattern) for pattern in match)]
        if names:
            categories[category.name] = names
    if not categories:
        raise DataError(f"{folder} has no sub-folder with images or videos whose names fit {' or '.join(match)}")
    return categories


# ----------------------------------------------------------------------------------------------------------------------
# Speed and report


def measure_speed(sharpener, seconds=3.0):
    """Frames per second at 1920x1080 of planes in and planes out (uint8 in memory, decoding and display excluded)."""
    rng = np.random.default_rng(0)
    y = rng.integers(16, 236, (1080, 1920), dtype=np.uint8)
    uv = rng.integers(16, 241, (2, 540, 960), dtype=np.uint8)
    frame = rng.integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    return {
        "sharpen_planes": benchmark_fps(lambda: sharpener.sharpen_planes(y, uv), seconds),
        "sharpen (BGR)": benchmark_fps(lambda: sharpener.sharpen(frame), seconds),
    }


def format_table(rows, keys, methods):
    """A Markdown table: one line per group, PSNR and SSIM of each method, the student's phase spread."""
    groups = defaultdict(dict)
    for row in rows:
        groups[tuple(row[key] for key in keys)][row["method"]] = row
    lines = [
        "| " + " | ".join([*keys, *(f"{method} PSNR / SSIM" for method in methods), "grid"]) + " |",
        "|" + " --- |" * (len(keys) + len(methods) + 1),
    ]
    for group, by_method in groups.items():
        cells = [f"{by_method[method]['psnr']:.2f} / {by_method[method]['ssim']:.4f}" for method in methods]
        spread = by_method[methods[-1]]["phase_spread"]
        lines.append("| " + " | ".join([*group, *cells, f"{100 * spread:.1f} %"]) + " |")
    return "\n".join(lines)


def _machine(device):
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if str(device).startswith("cuda") else None
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu, "torch": torch.__version__}


def _without_infinity(value):
    """JSON has no infinity: the PSNR of identical pictures is written as null."""
    if isinstance(value, dict):
        return {key: _without_infinity(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_infinity(entry) for entry in value]
    return None if value == float("inf") else value


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Measure what a student gains over its input, and how fast it is.",
        epilog="The grid column is the spread of the student's error over the phases of its 4x4 folding grid.",
    )
    parser.add_argument("--checkpoint", default=str(RELEASED_STUDENT), help="the student (default: the released one)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--data", help="folder of images and videos, one sub-folder a category")
    parser.add_argument("--match", nargs="+", default=["*"], help="only files of --data whose names fit a pattern")
    parser.add_argument("--frames", type=int, default=30, help="frames of each video (default: 30)")
    parser.add_argument("--strength", type=parse_strength, default=1.0, help="scale of the residual (default: 1)")
    parser.add_argument("--quick", action="store_true", help="one picture a category, two conditions")
    parser.add_argument("--json", default="results/benchmark.json", help="where the figures are written")
    arguments = parser.parse_args(argv)
    try:
        sharpener = RealTimeSharpener(arguments.checkpoint, arguments.device, arguments.strength)
        methods = {"unsharp mask": unsharp_mask, "student": sharpener.sharpen_planes}
        samples = benchmark_samples(arguments.data, arguments.match, arguments.frames, arguments.quick)
        records = evaluate(samples, methods)
    except (CheckpointError, DataError, DeviceError, VideoError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2

    names = ["input", *methods]
    by_category = summarise(records, ["category", "condition"])
    by_condition = summarise(records, ["condition"])
    parameters = sum(weights.numel() for weights in sharpener.student.parameters())
    speed = measure_speed(sharpener)
    print(format_table(by_category, ["category", "condition"], names))
    print()
    print(format_table(by_condition, ["condition"], names))
    machine = _machine(sharpener.device)
    print(f"\n{parameters:,} parameters, {sharpener.checkpoint.stat().st_size / 1024:.0f} KiB")
    place = f"{sharpener.description}; {machine['cpu']}, {machine['threads']} threads"
    for name, fps in speed.items():
        print(f"{fps:.1f} FPS at 1920x1080, {name}; {place}")

    report = {
        "command": ["python", "evaluate.py", *(sys.argv[1:] if argv is None else argv)],
        "machine": machine,
        "engine": sharpener.description,
        "checkpoint": sharpener.meta,
        "parameters": parameters,
        "fps_1080p": speed,
        "by_category": by_category,
        "by_condition": by_condition,
        "records": records,
    }
    with atomic_path(arguments.json) as temporary:
        temporary.write_text(json.dumps(_without_infinity(report), indent=1, allow_nan=False), encoding="utf-8")
    print(f"written: {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
