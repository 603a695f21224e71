"""How fast a student is: alone on planes, beside its peers, from file to file, and against what the machine can do.

`python evaluate.py speed` runs it. All of it is measured on one machine in one go. What is compared runs in turns, a
call of each, so that whatever else keeps the machine busy slows all alike. Times are those of the wall clock.
"""

import argparse
import functools
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import cv2  # before av: see video.py

# isort: split
import av
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from tqdm import tqdm

import dataset
import degradation
from benchmark.peers import peers, time_1080p
from benchmark.report import format_milliseconds, format_share, markdown_table
from models import CheckpointError
from runtime import DeviceError, OpenVINOEngine, TorchEngine, make_engine
from utils import atomic_path, bgr_to_planes, to_limited_range
from video import VideoReader, VideoWriter

SIZES = {  # name: (width, height)
    "360p": (640, 360),
    "540p": (960, 540),
    "720p": (1280, 720),
    "1080p": (1920, 1080),
    "1440p": (2560, 1440),
    "2160p": (3840, 2160),
}
BUDGETS = (1000 / 30, 1000 / 60)  # milliseconds for a frame of video
FRAMES = 5  # different ones that an engine is shown in turn
MOVING = 3  # of what a still camera sees, the middle one of so many parts of its height and of its width moves
RATE = 25  # frames per second of the clip
SAMPLES = 1920  # of its sound during a frame, at 48 kHz
PRODUCT = {"cpu": (1024, 512, 512), "cuda": (8192, 8192, 8192)}  # rows, depth and columns that reach the peak
COPIED = 1 << 28  # bytes, more than any cache holds


def parse_size(text):
    """``(width, height)`` of a size on a command line: a name of `SIZES`, or ``WIDTHxHEIGHT``."""
    numbers = re.fullmatch(r"(\d+)x(\d+)", text)
    size = SIZES.get(text) or (numbers and tuple(map(int, numbers.groups())))
    if not size or min(size) < 16:
        names = ", ".join(SIZES)
        raise argparse.ArgumentTypeError(f"expected {names} or WIDTHxHEIGHT of at least 16x16, got {text!r}")
    return size


# ----------------------------------------------------------------------------------------------------------------------
# Timing


def time_in_turns(steps, seconds, warmup=2, least=3, warm=False):
    """Time functions in rounds, a call of each; one that has had its share of time drops out.

    Args:
        steps: dict of name -> function without arguments.
        seconds: how long each is measured; at least `least` calls are.
        warmup: calls of each that are not timed.
        warm: call each once more before, untimed: in a video it comes after itself, and what others leave behind of
            caches and clock frequency costs it up to a sixth.

    Returns:
        Dict of name -> list of seconds, one a call that is timed.
    """
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(warmup):
            step()
    while waiting := [name for name in steps if len(times[name]) < least or sum(times[name]) < seconds]:
        for name in waiting:
            if warm:
                steps[name]()
            synchronize()
            begin = time.perf_counter()
            steps[name]()
            synchronize()
            times[name].append(time.perf_counter() - begin)
    return times


def summarise(times, frames=1):
    """Median and 95th percentile of times in seconds, each of `frames` frames, as milliseconds and frames a second."""
    milliseconds = 1000 * np.array(times) / frames
    median, p95 = float(np.median(milliseconds)), float(np.percentile(milliseconds, 95))
    return {"runs": len(times), "median_ms": median, "p95_ms": p95, "fps": 1000 / median}


def pan(size, count):
    """Pan over a photo, mirrored at its edges, soft as in a call that was scaled down by 2; no frame comes twice.

    Args:
        size: (width, height) of the frames.

    Yields:
        `count` limited-range planes ``(y, uv)``.
    """
    width, height = size
    right, bottom = width + 4 * count, height + 2 * count
    photo = dataset.load_photo("skimage:astronaut")
    missing = [max(0, wanted - side) for wanted, side in zip((bottom, right), photo.shape, strict=False)]
    photo = cv2.copyMakeBorder(photo, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT)[:bottom, :right]
    small = degradation.resize_planes(*bgr_to_planes(photo), degradation.low_resolution((right, bottom), 2), "area")
    y, uv = to_limited_range(*degradation.resize_planes(*small, (right, bottom)))
    for row, column in zip(range(count), range(0, 2 * count, 2), strict=True):  # of chroma
        moved = y[2 * row :, 2 * column :], uv[:, row:, column:]
        yield moved[0][:height, :width].copy(), moved[1][:, : (height + 1) // 2, : (width + 1) // 2].copy()


# ----------------------------------------------------------------------------------------------------------------------
# The student alone, and its peers


def list_engines(sharpener, device):
    """The engines to measure: the sharpener's and others.

    With device ``"auto"`` those are the int8 network and PyTorch on the CPU; on a CPU, PyTorch at float32 joins
    PyTorch at the precision of its choice.

    Returns:
        ``(dict of description -> engine, list of reasons why others are left out)``.
    """
    engines, left_out = {sharpener.description: sharpener.engine}, []
    for name in ("openvino", "cpu") if device == "auto" else ():
        try:
            engine = make_engine(sharpener.student, sharpener.checkpoint, name)
        except DeviceError as error:
            left_out.append(str(error).replace(f"{sharpener.checkpoint.parent}{os.sep}", ""))
        else:
            engines.setdefault(engine.description, engine)
    if device in ("auto", "cpu"):
        engine = TorchEngine(sharpener.student, "cpu", torch.float32)
        engines.setdefault(engine.description, engine)
    return engines, left_out


def count_macs(student, size):
    """Multiply-accumulates of a student's convolutions for a frame ``(width, height)``.

    Each weight is used once at each position of the folded map, which is a quarter of the frame in width and height,
    padded to multiples of 8 before.
    """
    width, height = (side + -side % 8 for side in size)
    kernels = [module.weight.numel() for module in student.modules() if isinstance(module, torch.nn.Conv2d)]
    return sum(kernels) * (width // 4) * (height // 4)


def time_engines(engines, size, seconds):
    """Time engines on planes of one size in memory, in and out.

    Args:
        engines: dict of description -> engine.
        size: (width, height).

    Returns:
        A row for each engine: ``engine``, ``size`` and the figures of `summarise`.
    """
    frames = list(pan(size, FRAMES))

    def step(engine, begin):
        shown = itertools.islice(itertools.cycle(frames), begin, None)
        return lambda: engine(*next(shown))

    # What takes turns may be one engine under two names: it never sees a frame twice in a row.
    begins = itertools.cycle((0, 2))
    steps = {name: step(engine, next(begins)) for name, engine in engines.items()}
    times = time_in_turns(steps, seconds, warm=True)
    return [{"engine": name, "size": size, **summarise(found)} for name, found in times.items()]


def time_still(make, size, seconds):
    """Time an engine where all of the picture moves and where only the middle ninth does, before a still camera.

    Args:
        make: function that returns a new `runtime.OpenVINOEngine`.
        size: (width, height).

    Returns:
        Dict: ``size``, and ``moving`` and ``still``, each `summarise`.
    """
    frames = list(pan(size, FRAMES))
    still = [tuple(_inset(*planes) for planes in zip(frames[0], frame, strict=True)) for frame in frames]

    def step(engine, pictures):
        shown = itertools.cycle(pictures)
        return lambda: engine(*next(shown))

    sparing = make()
    steps = {"moving": step(make(), frames), "still": step(sparing, still)}
    for _ in range(4 * FRAMES):  # after some of them a network for the part that moves is compiled, beside
        steps["still"]()
    sparing.settle()
    times = time_in_turns(steps, seconds, warm=True)
    return {"size": size, **{name: summarise(found) for name, found in times.items()}}


def _inset(around, moving):
    """A plane with the middle of another."""
    middle = (..., *(slice(side // MOVING, 2 * side // MOVING) for side in around.shape[-2:]))
    picture = around.copy()
    picture[middle] = moving[middle]
    return picture


def time_peers(names, device, seconds):
    """Time peers at 1920x1080, see `peers.time_1080p`.

    Returns:
        ``(list of dicts with name, description and ms_1080p, list of reasons why others are left out)``.
    """
    rows, left_out = [], []
    for name in tqdm(names, desc="peers", unit="peer"):
        try:
            (peer,) = peers([name], device)
        except (CheckpointError, ValueError) as error:  # weights out of reach; an FFmpeg without the filter
            left_out.append(f"{name}: {error}".replace(str(Path.home()), "~"))
        else:
            rows.append({"name": name, "description": peer.description, "ms_1080p": time_1080p(peer, seconds)})
    return rows, left_out


# ----------------------------------------------------------------------------------------------------------------------
# The machine


def peak_of(description):
    """Which of `measure_peaks` bounds an engine of this description: ``"cpu int8"``, ``"cuda float16"``."""
    _, device, precision = description.lower().partition(",")[0].split()
    return f"{device} {precision}"


def measure_peaks(descriptions, seconds):
    """What the machine reaches at best: matrix products in the engines' precisions, and copies in memory.

    The fastest call counts: it is the machine that is measured, not what else runs on it. All are PyTorch's on the
    threads it has. Products in float are 1x1 convolutions, which go through the library that runs the student's
    (oneDNN, cuDNN), where ``@`` would take another that can be several times slower; int8 is `torch._int_mm`, which is
    oneDNN's product of int8 to int32 on CPUs with VNNI or AMX. A copy counts bytes read and bytes written.

    Args:
        descriptions: of the engines; OpenVINO's on other devices than the CPU have no product here.

    Returns:
        Dict of name -> ``{"value", "unit", "how"}``; units are GMAC/s, and GB/s for ``"copy"``. Without ``"cpu int8"``
        where that is slower than float32: on CPUs without VNNI PyTorch's product is a plain loop, and no peak.
    """
    source = torch.ones(COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    steps, work = {"copy": lambda: target.copy_(source)}, {"copy": 2 * COPIED}
    how = {"copy": f"{COPIED >> 20} MiB copied with PyTorch, read and written bytes"}
    reachable = [d for d in descriptions if d.startswith("torch") or " CPU " in d]
    for name in dict.fromkeys(["cpu int8", "cpu float32", *map(peak_of, reachable)]):
        device, precision = name.split()
        rows, depth, columns = shape = PRODUCT.get(device.partition(":")[0], PRODUCT["cpu"])
        steps[name] = _matrix_product(device, getattr(torch, precision), *shape)
        work[name] = rows * depth * columns
        operation = "torch._int_mm" if precision == "int8" else "a 1x1 convolution of PyTorch"
        how[name] = f"{rows}x{depth} times {depth}x{columns} as {operation}"
    times = time_in_turns(steps, seconds)
    rates = {name: work[name] / min(found) / 1e9 for name, found in times.items()}
    if rates["cpu int8"] < rates["cpu float32"]:
        del rates["cpu int8"]
    units = {"copy": "GB/s"}
    return {name: {"value": rates[name], "unit": units.get(name, "GMAC/s"), "how": how[name]} for name in rates}


def _matrix_product(device, dtype, rows, depth, columns):
    """A function that multiplies two random matrices of these sizes."""
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.int8:
        shapes = (rows, depth), (depth, columns)
        a, b = (torch.randint(-127, 128, shape, dtype=dtype, generator=generator).to(device) for shape in shapes)
        return lambda: torch._int_mm(a, b)
    pixels = torch.randn(1, depth, rows // 32, 32, generator=generator).to(device, dtype)
    weight = torch.randn(columns, depth, 1, 1, generator=generator).to(device, dtype)
    pixels, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (pixels, weight))

    @torch.inference_mode()
    def multiply():
        F.conv2d(pixels, weight)
        if device != "cpu":
            torch.accelerator.synchronize(device)

    return multiply


# ----------------------------------------------------------------------------------------------------------------------
# From file to file


def make_clip(path, size, count):
    """Write a pan over a photo as H.264 with a tone as AAC beside it."""
    tone = np.sin(2 * np.pi * 440 / 48000 * np.arange(SAMPLES)).astype(np.float32)[None] / 10
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "23", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=48000)
        audio.codec_context.layout = "mono"
        for number, planes in enumerate(pan(size, count)):
            picture = av.VideoFrame.from_ndarray(degradation.pack_planes(*planes), format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, RATE)
            sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 48000, number * SAMPLES
            container.mux(video.encode(picture))
            container.mux(audio.encode(sound))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def time_files(sharpener, device, size, count, seconds):
    """Time `process_video_stream` on an H.264 file with audio, and decoding and encoding by themselves.

    Encoded are the sharpened frames, from memory, where they take 3 MB each at 1080p. Opening and closing files counts.

    Returns:
        Dict: ``size``, ``frames``, ``kbps`` of the input, ``whole``, ``decode`` and ``encode``, each `summarise` per
        frame, and ``peak_memory_mib`` of inference.py in a process of its own, None with ``peak_memory_reason``.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target, copy = (Path(folder) / name for name in ("source.mp4", "target.mp4", "copy.mp4"))
        make_clip(source, size, count)
        kbps = source.stat().st_size * 8 / 1000 / (count / RATE)
        whole = functools.partial(sharpener.process_video_stream, source, target)
        whole()
        with VideoReader(target) as reader:
            video_format, sharp = reader.format, list(reader)

        def decode():
            with VideoReader(source, audio=True) as reader:
                for _ in reader:
                    pass

        def encode():
            with VideoWriter(copy, video_format) as writer:
                for frame in sharp:
                    writer.write(frame)

        times = time_in_turns({"whole": whole, "decode": decode, "encode": encode}, seconds, warmup=0)
        program = [sys.executable, str(Path(__file__).with_name("inference.py")), str(source), "--overwrite"]
        options = ["-o", str(target), "--checkpoint", str(sharpener.checkpoint.resolve()), "--device", device]
        memory, reason = peak_memory([*program, *options])
    parts = {name: summarise(found, count) for name, found in times.items()}
    return {
        "size": size,
        "frames": count,
        "kbps": kbps,
        "engine": sharpener.description,
        **parts,
        "peak_memory_mib": memory,
        "peak_memory_reason": reason,
    }


def peak_memory(command):
    """Run a command and watch the most memory that it had resident (Linux's VmHWM).

    Not `resource.getrusage` of children: that figure begins with the parent's own, from before the program started.

    Returns:
        ``(MiB, "")``, or ``(None, why not)``.
    """
    if not Path("/proc/self/status").exists():
        return None, "it is read from /proc, which this system does not have"
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            found = re.search(r"^VmHWM:\s*(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
            peak = max(peak, int(found[1])) if found else peak  # a process that has just ended has none
            time.sleep(0.01)
    if process.returncode:
        return None, f"inference.py ended with exit code {process.returncode}"
    return peak / 1024, ""


# ----------------------------------------------------------------------------------------------------------------------
# The whole measurement and its pages


def measure(sharpener, device, sizes, seconds, peer_names, clip):
    """Measure everything.

    Args:
        sharpener: an `inference.RealTimeSharpener`, made for `device`.
        sizes: list of (width, height) for the engines.
        seconds: time for each figure.
        peer_names: what to measure beside the student, see `peers.peers`.
        clip: ((width, height), number of frames) of the video file.

    Returns:
        Dict of plain data: ``gmac_1080p``, ``engines``, ``still``, ``peers``, ``files``, ``peaks`` and ``left_out``. A
        row of ``engines`` has ``gmac`` (a frame's), ``gmac_per_second``, and ``share_of_peak`` where its peak was
        measured.
    """
    engines, left_out = list_engines(sharpener, device)
    rows = []
    for size in tqdm(sizes, desc="engines", unit="size"):
        rows += time_engines(engines, size, seconds)
    peaks = measure_peaks(engines, seconds)
    for row in rows:
        row["gmac"] = count_macs(sharpener.student, row["size"]) / 1e9
        row["gmac_per_second"] = row["gmac"] * row["fps"]
        peak = peaks.get(peak_of(row["engine"]))
        row["share_of_peak"] = row["gmac_per_second"] / peak["value"] if peak else None
    parts = isinstance(sharpener.engine, OpenVINOEngine) and sharpener.device == "CPU"  # others compute whole frames
    make = functools.partial(make_engine, sharpener.student, sharpener.checkpoint, "openvino")
    still = [time_still(make, size, seconds) for size in sizes] if parts else []
    peer_rows, peers_left_out = time_peers(peer_names, device, seconds)
    return {
        "gmac_1080p": count_macs(sharpener.student, SIZES["1080p"]) / 1e9,
        "engines": rows,
        "still": still,
        "peers": peer_rows,
        "files": time_files(sharpener, device, *clip, seconds),
        "peaks": peaks,
        "left_out": left_out + peers_left_out,
    }


def plot(report, path):
    """Draw milliseconds over megapixels, a line for each engine with its 95th percentile as a shade above."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["engine"] for row in report["engines"]):
        rows = sorted((row for row in report["engines"] if row["engine"] == name), key=_megapixels)
        places, medians = [_megapixels(row) for row in rows], [row["median_ms"] for row in rows]
        (line,) = axes.loglog(places, medians, "o-", label=name)
        axes.fill_between(places, medians, [row["p95_ms"] for row in rows], color=line.get_color(), alpha=0.15)
    for budget in BUDGETS:
        axes.axhline(budget, color="grey", linestyle="--", linewidth=1)
        label = f"{budget:.1f} ms, {1000 / budget:.0f} frames/s"
        axes.text(
            0.99, budget, label, transform=axes.get_yaxis_transform(), ha="right", va="bottom", color="grey", size=8
        )
    sizes = {_megapixels(row): size_name(row["size"]) for row in report["engines"]}
    axes.set_xticks(list(sizes), [f"{place:.2g}\n{name}" for place, name in sizes.items()])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set(xlabel="megapixels", ylabel="median ms a frame", title=f"{report['machine']['cpu']}, planes in and out")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _megapixels(row):
    return row["size"][0] * row["size"][1] / 1e6


def size_name(size):
    """``1080p`` for a size of `SIZES`, else ``WIDTHxHEIGHT``."""
    names = {tuple(known): name for name, known in SIZES.items()}
    return names.get(tuple(size), f"{size[0]}x{size[1]}")


def markdown(report):
    """The report as a page of Markdown, with the picture of `plot` as speed.png beside it."""
    machine, files, peaks = report["machine"], report["files"], report["peaks"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    engines = [
        [
            row["engine"],
            size_name(row["size"]),
            *_times(row),
            f"{row['gmac_per_second']:,.0f}",
            "–" if row["share_of_peak"] is None else format_share(row["share_of_peak"]),
        ]
        for row in report["engines"]
    ]
    others = [
        [peer["name"], format_milliseconds(peer["ms_1080p"]), _rate(1000 / peer["ms_1080p"])]
        for peer in report["peers"]
    ]
    still = [
        [
            size_name(row["size"]),
            *_times(row["still"]),
            format_share(row["still"]["median_ms"] / row["moving"]["median_ms"]),
        ]
        for row in report["still"]
    ]
    moving = "The same, bit for bit, where only the middle ninth moves before a still camera, and how much of the time "
    moving += "that takes which frames take that move as a whole:"
    stages = {"whole": f"decode, sharpen ({files['engine']}), encode", "decode": "decode", "encode": "encode"}
    chain = [[label, *_times(files[stage])] for stage, label in stages.items()]
    reached = [[name, f"{peak['value']:,.0f} {peak['unit']}", peak["how"]] for name, peak in peaks.items()]
    memory = files["peak_memory_mib"]
    memory = f"{memory:,.0f} MiB" if memory else f"not measured: {files['peak_memory_reason']}"
    parts = [
        "# Speed",
        f"`{' '.join(report['command'])}`, commit {report['commit']}, {report['date']}, {report['seconds']:.0f} s\n"
        f"on {machine['cpu']}{gpu}, {machine['cores']} cores, {machine['threads']} threads of PyTorch, "
        f"{machine['memory_gb']} GB, {machine['system']}\nwith {versions}.",
        f"![Milliseconds over megapixels](speed.png)\n\nPlanes in, planes out, in memory; {report['gmac_1080p']:.2f} "
        "GMAC a frame of the student at 1080p. *Of the peak*: of the matrix product below in the same precision.",
        markdown_table([["engine", "size", "median ms", "p95 ms", "frames/s", "GMAC/s", "of the peak"], *engines]),
        *(still and [moving, markdown_table([["size", "median ms", "p95 ms", "frames/s", "of the time"], *still])]),
        "Others at 1080p:",
        markdown_table([["method", "median ms", "frames/s"], *others]),
        f"From file to file: {files['frames']} frames of {size_name(files['size'])}, H.264 of {files['kbps']:,.0f} "
        f"kbit/s with audio; p95 of {files['whole']['runs']} runs, not frames. Most memory resident: {memory}.",
        markdown_table([["a frame", "median ms", "p95 ms", "frames/s"], *chain]),
        "What the machine reaches at best:",
        markdown_table([["peak", "value", "measured with"], *reached]),
        *(f"Left out: {reason.rstrip('.')}." for reason in report["left_out"]),
    ]
    return "\n\n".join(parts) + "\n"


def _times(row):
    """Cells of a row's median, 95th percentile and frames a second."""
    return [format_milliseconds(row["median_ms"]), format_milliseconds(row["p95_ms"]), _rate(row["fps"])]


def _rate(fps):
    return f"{fps:,.1f}" if fps >= 1 else f"{fps:.2g}"
