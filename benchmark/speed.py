"""Measure how fast a student is: alone on planes, beside its peers, and from file to file (`evaluate.py speed`).

What is compared runs in turns, a call of each, so that other load on the machine slows all alike. Times are wall time.
"""

import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import dataset
import degradation
from benchmark.conditions import Sample
from benchmark.page import load_template
from benchmark.report import format_milliseconds
from engines import make_engine
from models import load_student
from runtime import DeviceError, openvino_core
from torch_engine import TorchEngine, pick_precision
from utils import bgr_to_planes, to_limited_range, write_text
from video import VideoReader, VideoWriter

SIZES = {  # name: (width, height)
    "360p": (640, 360),
    "540p": (960, 540),
    "720p": (1280, 720),
    "1080p": (1920, 1080),
    "1440p": (2560, 1440),
    "2160p": (3840, 2160),
}
FRAMES = 5  # different ones that an engine gets in turn
RATE = 25  # frames per second of a clip
ROOT = Path(__file__).resolve().parent.parent


def time_in_turns(steps, seconds, warmup=2, least=3, warm=False):
    """Time functions in rounds, a call of each, until each has had its time.

    Args:
        steps: dict of name -> function without arguments.
        seconds: total for each function, but at least `least` calls.
        warmup: untimed calls of each at first.
        warm: make an untimed call before each timed one: in a video a function follows itself, and after another one
            caches and clock frequency cost it up to a sixth.

    Returns:
        Dict of name -> list of seconds, one for each timed call.
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
    """Return median and 95th percentile in ms a frame, and frames a second, of times in s of `frames` frames each."""
    milliseconds = 1000 * np.array(times) / frames
    median, p95 = float(np.median(milliseconds)), float(np.percentile(milliseconds, 95))
    return {"runs": len(times), "median_ms": median, "p95_ms": p95, "fps": 1000 / median}


def pan(size, count):
    """Yield `count` different limited-range planes of `size` = (width, height), both even: a pan over a soft photo."""
    width, height = size
    photo = dataset.pad(dataset.load_photo("skimage:astronaut"), max(size))[:height, :width]
    y, uv = to_limited_range(*degradation.at_scale(bgr_to_planes(photo), 2, lambda small: small))
    for step in range(count):
        yield np.roll(y, (-2 * step, -4 * step), (0, 1)), np.roll(uv, (-step, -2 * step), (1, 2))


def list_engines(sharpener, device):
    """List the engines to measure: the sharpener's, and if the device is ``"auto"``, all others on the CPU.

    On the CPU, PyTorch is measured at float32, too.

    Returns:
        ``(dict of description -> engine, list of reasons why others are left out)``.
    """
    engines, left_out = {sharpener.description: sharpener.engine}, []
    for name in ("openvino", "cpu") if device == "auto" else ():
        try:
            engine = make_engine(sharpener.checkpoint, name)
            engines.setdefault(engine.description, engine)
        except DeviceError as error:
            left_out.append(str(error).replace(f"{sharpener.checkpoint.parent}{os.sep}", ""))
    if device in ("auto", "cpu"):
        engine = TorchEngine(load_student(sharpener.checkpoint)[0], "cpu", torch.float32)
        engines.setdefault(engine.description, engine)
    return engines, left_out


def count_macs(student, size):
    """Count the multiply-accumulates of a student for a frame ``(width, height)``."""
    width, height = size
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        student.predict(torch.rand(1, 1, height, width), torch.rand(1, 2, (height + 1) // 2, (width + 1) // 2))
    return counter.get_total_flops() // 2


def int8_peak(seconds):
    """Return the peak int8 speed of this CPU: the GMAC/s of a 1x1 convolution of 2048 channels in OpenVINO."""
    import openvino
    from openvino import opset13 as ops

    rng, channels, side = np.random.default_rng(0), 2048, 32
    planes = ops.parameter([1, channels, side, side], np.uint8)
    weights = ops.constant(rng.integers(-127, 128, (channels, channels, 1, 1), np.int8))
    scale = ops.constant(np.full((1, 1, 1, 1), 0.01, np.float32))
    factors = [ops.multiply(ops.convert(x, "f32"), scale) for x in (planes, weights)]  # which runs in int8
    product = ops.convolution(*factors, [1, 1], [0, 0], [0, 0], [1, 1])
    steps = [ops.constant(np.float32(value)) for value in (0, 255, 0, 255)]
    network = openvino.Model([ops.fake_quantize(product, *steps, 256)], [planes])
    request = openvino_core().compile_model(network, "CPU", {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
    request.set_input_tensor(openvino.Tensor(rng.integers(0, 256, planes.shape, np.uint8)))
    times = time_in_turns({"peak": request.infer}, seconds)["peak"]
    return channels**2 * side**2 / min(times) / 1e9


def network_step(student, device, size):
    """Return a function that runs only a student's convolutions, at `pick_precision`, on planes on a device."""
    dtype, _ = pick_precision(device)
    student = student.eval().to(device, memory_format=torch.channels_last)
    width, height = size
    y, uv = torch.rand(1, 1, height, width, device=device), torch.rand(1, 2, height // 2, width // 2, device=device)

    @torch.inference_mode()
    def step():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            student.predict(y, uv)

    return step


def time_methods(methods, size="1080p", seconds=2.0):
    """Return a dict of name -> median milliseconds that `peers.Method` objects take for a 1080p frame, in memory.

    A slow method gets a frame of a quarter of the width and height, and its time is multiplied by 16.

    Args:
        size: of the input frames, a key of `SIZES`; those of 1080p count as enlarged by 2.
    """

    def clip(count, divisor):
        small, large = ([side // divisor for side in SIZES[name]] for name in (size, "1080p"))
        return Sample(list(pan(small, count)), list(pan(large, 1)), False, 2 if size == "1080p" else 1)

    clips = {False: clip(FRAMES, 1), True: clip(1, 4)}
    times = time_in_turns({m.name: functools.partial(m.run, clips[m.is_slow]) for m in methods}, seconds)
    frames = {m.name: 1 / 16 if m.is_slow else FRAMES for m in methods}  # of full size in a run
    return {name: summarise(found, frames[name])["median_ms"] for name, found in times.items()}


def make_clip(path, size, count):
    """Write a pan over a photo as H.264 with a tone as AAC beside it."""
    video = f"-f rawvideo -pix_fmt yuv420p -s {size[0]}x{size[1]} -r {RATE} -i -"
    sound = f"-f lavfi -i sine=sample_rate=48000:duration={count / RATE}"
    options = f"-v error {video} {sound} -c:v libx264 -preset veryfast -c:a aac"
    with subprocess.Popen([imageio_ffmpeg.get_ffmpeg_exe(), *options.split(), path], stdin=subprocess.PIPE) as process:
        for planes in pan(size, count):
            process.stdin.write(degradation.pack_planes(*planes).tobytes())


def time_files(sharpener, device, size, count, seconds):
    """Time `process_video_stream` on an H.264 file of `count` frames with audio, and decoding it, and encoding the
    sharpened frames, alone.

    Opening and closing files counts.

    Returns:
        Dict: ``size`` (a key of `SIZES`), ``frames``, ``kbps`` of the input, ``whole``, ``decode`` and ``encode`` (see
        `summarise`), and ``peak_memory_mib`` of inference.py.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target, copy = (Path(folder) / name for name in ("source.mp4", "target.mp4", "copy.mp4"))
        make_clip(source, SIZES[size], count)
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
        options = ["-o", target, "--checkpoint", sharpener.checkpoint.resolve(), "--device", device, "--overwrite"]
        memory = peak_memory("import sys, inference; assert not inference.main(sys.argv[1:])", source, *options)
    parts = {name: summarise(found, count) for name, found in times.items()}
    return {"size": size, "frames": count, "kbps": kbps, **parts, "peak_memory_mib": memory}


def peak_memory(code, *arguments):
    """Run Python code in a new process and return its peak resident memory in MiB; None if this is not Linux.

    It is Linux's VmHWM, as `resource.getrusage` would begin with this process's own.
    """
    if not sys.platform.startswith("linux"):
        return None
    code += "\nprint(open('/proc/self/status').read(), file=sys.stderr)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(re.search(r"^VmHWM:\s*(\d+) kB", finished.stderr, re.MULTILINE)[1]) / 1024


def measure(sharpener, device, sizes, seconds, peers, files):
    """Measure everything, and return it as plain data.

    Args:
        sharpener: an `inference.RealTimeSharpener`, made for `device`.
        sizes: keys of `SIZES` for the engines.
        seconds: time for each figure.
        peers: list of `peers.Method` to measure beside the student.
        files: dict of a key of `SIZES` -> number of frames of a video file.
    """
    engines, left_out = list_engines(sharpener, device)
    student, rows = load_student(sharpener.checkpoint)[0], []
    gmac = count_macs(student, SIZES["1080p"]) / 1e9
    for size in tqdm(sizes, desc="engines", unit="size"):
        frames = itertools.cycle(list(pan(SIZES[size], FRAMES)))
        steps = {name: lambda engine=engine, frames=frames: engine(*next(frames)) for name, engine in engines.items()}
        if isinstance(sharpener.engine, TorchEngine):
            device_used = sharpener.engine.device
            steps[f"network alone, on {device_used}"] = network_step(student, device_used, SIZES[size])
        times = time_in_turns(steps, seconds, warm=True)
        rows += [{"engine": name, "size": size, **summarise(found)} for name, found in times.items()]
    return {
        "int8_peak": int8_peak(seconds) if sharpener.description.startswith("openvino CPU") else None,
        "gmac_1080p": gmac,
        "engine": sharpener.description,
        "engines": rows,
        "peers": [{"name": name, "ms_1080p": ms} for name, ms in time_methods(peers, seconds=seconds).items()],
        "files": [
            time_files(sharpener, device, size, count, seconds)
            for size, count in tqdm(files.items(), desc="files", unit="size")
        ],
        "left_out": left_out,
    }


def write_report(report, folder):
    """Write a report of `measure`, with `runner.describe_run`, as speed.json and README.md."""
    page = load_template("speed.md", ms=format_milliseconds).render(report)
    write_text(folder / "speed.json", json.dumps(report, indent=1, allow_nan=False))
    write_text(folder / "README.md", page)
    return page
