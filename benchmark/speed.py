"""Measure how fast a student is: alone on planes, beside its peers, and from file to file.

`python evaluate.py speed` runs it. All of it is measured on one machine in one go. What is compared runs in turns, a
call of each, so that whatever else keeps the machine busy slows all alike. Times are those of the wall clock.
"""

import functools
import itertools
import json
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import dataset
import degradation
from benchmark.page import load_template
from benchmark.report import format_milliseconds
from engines import make_engine
from utils import atomic_path, bgr_to_planes, to_limited_range
from video import BT601_LIMITED, Frame, VideoFormat, VideoReader, VideoWriter

SIZES = {  # name: (width, height)
    "360p": (640, 360),
    "540p": (960, 540),
    "720p": (1280, 720),
    "1080p": (1920, 1080),
    "1440p": (2560, 1440),
    "2160p": (3840, 2160),
}
FRAMES = 5  # different ones that an engine is shown in turn
RATE = 25  # frames per second of a clip


# ----------------------------------------------------------------------------------------------------------------------
# Timing


def time_in_turns(steps, seconds, warmup=2, least=3, warm=False):
    """Time functions in rounds, a call of each; one that has had its time drops out.

    Args:
        steps: dict of name -> function without arguments.
        seconds: how long each is measured; at least `least` calls are.
        warmup: calls of each that are not timed.
        warm: call each once more before, untimed: in a video it follows itself, and after another function caches and
            clock frequency cost it up to a sixth.

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
    """Return median and 95th percentile of times in seconds, each of `frames` frames, in ms, and frames a second."""
    milliseconds = 1000 * np.array(times) / frames
    median, p95 = float(np.median(milliseconds)), float(np.percentile(milliseconds, 95))
    return {"runs": len(times), "median_ms": median, "p95_ms": p95, "fps": 1000 / median}


def pan(size, count):
    """Yield `count` frames of a pan over tiles of a photo, as soft as a call that was scaled down by 2; all differ.

    They are limited-range planes ``(y, uv)`` of `size`, (width, height), both even.
    """
    width, height = size
    photo = dataset.load_photo("skimage:astronaut")
    photo = np.tile(photo, (-(-height // photo.shape[0]), -(-width // photo.shape[1]), 1))[:height, :width]
    y, uv = to_limited_range(*degradation.at_scale(bgr_to_planes(photo), 2, lambda small: small))
    for step in range(count):
        yield np.roll(y, (-2 * step, -4 * step), (0, 1)), np.roll(uv, (-step, -2 * step), (1, 2))


# ----------------------------------------------------------------------------------------------------------------------
# The student alone, and its peers


def time_engines(engines, size, seconds):
    """Time engines (a dict of description -> engine) on planes of one size, a key of `SIZES`, in memory, in and out.

    Returns:
        A row for each engine: ``engine``, ``size`` and the figures of `summarise`.
    """
    frames = list(pan(SIZES[size], FRAMES))
    times = time_in_turns({name: _step(engine, frames) for name, engine in engines.items()}, seconds, warm=True)
    return [{"engine": name, "size": size, **summarise(found)} for name, found in times.items()]


def time_peer(peer, seconds=2.0):
    """Return the milliseconds that a `peers.Peer` takes for a frame of 1920x1080 enlarged by 2, in memory.

    The median of repeated calls, at least five. A slow one would take minutes: it is measured on a frame an eighth as
    wide and high, and the time is multiplied by 64.
    """
    shrink = 8 if peer.is_slow else 1
    height, width = 1080 // shrink, 1920 // shrink
    rng = np.random.default_rng(0)
    y = rng.integers(16, 236, (height, width), dtype=np.uint8)
    uv = rng.integers(16, 241, (2, (height + 1) // 2, (width + 1) // 2), dtype=np.uint8)
    step = _step(peer.at(2), [(y, uv, False), (255 - y, uv, False)])
    times = time_in_turns({"peer": step}, seconds, warmup=1, least=5)["peer"]
    return shrink**2 * summarise(times)["median_ms"]


def _step(function, arguments):
    """A function that calls another one with the next of some arguments: equal frames may cost less."""
    shown = itertools.cycle(arguments)
    return lambda: function(*next(shown))


# ----------------------------------------------------------------------------------------------------------------------
# From file to file


def time_files(sharpener, size, count, seconds):
    """Time `process_video_stream` on an H.264 file of `count` frames, and decoding and encoding by themselves.

    The sharpened frames are encoded from memory. Opening and closing files counts.

    Returns:
        Dict: ``size``, ``frames``, and ``whole``, ``decode`` and ``encode``, each `summarise` per frame.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target, copy = (Path(folder) / name for name in ("source.mp4", "target.mp4", "copy.mp4"))

        def encode(path, frames):
            with VideoWriter(path, VideoFormat(*SIZES[size], Fraction(RATE), **BT601_LIMITED)) as writer:
                for frame in frames:
                    writer.write(frame)

        def decode():
            with VideoReader(source) as reader:
                for _ in reader:
                    pass

        encode(source, (Frame(*planes) for planes in pan(SIZES[size], count)))
        whole = functools.partial(sharpener.process_video_stream, source, target)
        whole()
        with VideoReader(target) as reader:
            sharp = list(reader)
        steps = {"whole": whole, "decode": decode, "encode": functools.partial(encode, copy, sharp)}
        times = time_in_turns(steps, seconds, warmup=0)
    return {"size": size, "frames": count, **{name: summarise(found, count) for name, found in times.items()}}


# ----------------------------------------------------------------------------------------------------------------------
# The whole measurement and its page


def measure(sharpener, device, sizes, seconds, peers, files):
    """Measure everything.

    Args:
        sharpener: an `inference.RealTimeSharpener`, made for `device`.
        sizes: keys of `SIZES` for the engines.
        seconds: time for each figure.
        peers: list of `peers.Peer` to measure beside the student.
        files: dict of a key of `SIZES` -> number of frames of a video file.

    Returns:
        Dict of plain data: ``engine``, ``engines``, ``peers`` and ``files``.
    """
    engines = {sharpener.description: sharpener.engine}
    if device == "auto":
        other = make_engine(sharpener.checkpoint, "cpu")
        engines.setdefault(other.description, other)
    return {
        "engine": sharpener.description,
        "engines": [
            row for size in tqdm(sizes, desc="engines", unit="size") for row in time_engines(engines, size, seconds)
        ],
        "peers": [
            {"name": peer.name, "description": peer.description, "ms_1080p": time_peer(peer, seconds)}
            for peer in tqdm(peers, desc="peers", unit="peer")
        ],
        "files": [
            time_files(sharpener, size, count, seconds)
            for size, count in tqdm(files.items(), desc="files", unit="size")
        ],
    }


def write_report(report, folder):
    """Write a report of `measure`, with `runner.describe_run`, as speed.json and README.md; return the page."""
    page = load_template("speed.md", ms=format_milliseconds).render(report)
    for name, text in (("speed.json", json.dumps(report, indent=1)), ("README.md", page)):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return page
