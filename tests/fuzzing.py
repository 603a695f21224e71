"""Hostile files: mutations of real ones, read in child processes whose memory and time are limited.

    python -m tests.fuzzing --cases 2000 --seed 0            # all targets; a table at the end
    python -m tests.fuzzing --targets image video --cases 50

A case is *accepted* (read to its end) or *refused* (the documented error, with a message). Anything else is a failure:
another exception, a crash, over `SECONDS` or `GIGABYTES`. It is printed with its seed and its file is kept in a folder
that is named. Case n of a seed is the same file however many cases run. Linux and macOS.
"""

import argparse
import copy
import dataclasses
import io
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2  # before av: see video.py

# isort: split
import av
import numpy as np
import torch
from PIL import Image

import models
from benchmark import report
from benchmark import study as subjective
from config import ConfigError, load_config
from images import VideoError, read_image
from runtime import ArtefactError, OpenVINOEngine
from video import VideoReader

SECONDS, GIGABYTES = 20, 3  # for a case
PROGRAM = ("-m", "tests.fuzzing")  # the child's
EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 10**5, 2**24)
STRANGE = (
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    float("nan"),
    "",
    "../../etc/passwd",
    "\0",
    "é" * 200,
    [],
    {},
    [[]],
    {"a": 1},
)

# ----------------------------------------------------------------------------------------------------------------------
# Mutations


def mutate(data, rng):
    """Bytes after one to four accidents: bits turn, parts vanish, move or repeat, a number becomes an extreme."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        head = rng.random() < 0.5  # where sizes are
        at = rng.randrange(max(1, min(len(data), 256) if head else len(data)))
        length = rng.choice((1, 4, 16, 256))
        kind = rng.choice(("flip", "flip", "extreme", "extreme", "cut", "delete", "repeat", "move", "noise"))
        if kind == "flip" and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == "extreme":
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice(EXTREMES) % 2 ** (8 * size)
            data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
        elif kind == "cut":
            del data[rng.randrange(len(data) + 1) :]
        elif kind == "delete":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
        elif kind == "move":
            there = rng.randrange(len(data) + 1)
            data[there : there + length] = data[at : at + length]
        elif kind == "noise":
            data[at : at + length] = rng.randbytes(length)
    return bytes(data)


def mutate_image(data, rng):
    """Half of the damaged PNG files get right checksums, so that the damage comes as far as the decoder."""
    data = mutate(data, rng)
    return right_checksums(data) if data[:4] == b"\x89PNG" and rng.random() < 0.5 else data


def right_checksums(png):
    fixed, at = bytearray(png), 8
    while at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed)


def mutate_archive(data, rng):
    """Damage a zip archive from without, or one of its entries, sometimes compressed, with right checksums."""
    if rng.random() < 0.4:
        return mutate(data, rng)
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(packed, "w") as target:
        entries = source.infolist()
        pickles = [entry.filename for entry in entries if entry.filename.endswith("data.pkl")]
        victim = rng.choice((pickles[0], rng.choice(entries).filename))
        for entry in entries:
            content = source.read(entry)
            if entry.filename == victim:
                if rng.random() < 0.1:
                    continue
                content = mutate(content, rng)
            target.writestr(entry.filename, content, zipfile.ZIP_DEFLATED if rng.random() < 0.02 else None)
    return packed.getvalue()


def mutate_json(data, rng):
    """Damage JSON as text, or replace, drop or double one to three of its values."""
    if rng.random() < 0.3:
        return mutate(data, rng)
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 3))):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = rng.choice(keys) if keys else None
            if key is None or not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.25:
                break
            node = node[key]
        if key is not None:
            kind = rng.choice(("strange", "strange", "drop", "double"))
            if kind == "drop":
                del node[key]
            elif kind == "double" and isinstance(node, list):
                node.append(copy.deepcopy(node[key]))
            else:
                node[key] = copy.deepcopy(rng.choice(STRANGE))  # the next may be put into it
    text = json.dumps(tree)
    return (text if rng.random() < 0.95 else "[" * 100_000 + text).encode()


def mutate_config(data, rng):
    """Damage YAML as text, or give one of its keys a strange value."""
    if rng.random() < 0.5:
        return mutate(data, rng)
    aliases = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [{f'*{a}, ' * 4}]\n" for a, b in itertools.pairwise("abcdefghijkl")
    )
    strange = ["1e999", ".nan", "0x" + "f" * 9000, "9" * 9000, "2026-13-41", "[" * 5000, "!!python/object:os.system {}"]
    strange += ["!!binary ====", "&a [*a]", "{[1]: 2}", "1:2:3:4", "\x00", "!!int x", "!!float", "? ", "-", "2" * 300]
    key = rng.choice(("epochs", "learning_rate", "sources", "name", "channels", "region", "*", "? x", "1"))
    return (data.decode() + f"\n{key}: {rng.choice(strange)}\n" + rng.choice(("", "", aliases))).encode()


# ----------------------------------------------------------------------------------------------------------------------
# Targets


@dataclasses.dataclass(frozen=True)
class Target:
    """What is fuzzed: `seeds(folder)` gives (file name, content) of real files, `read(path)` reads one or raises."""

    seeds: Callable
    read: Callable
    errors: tuple
    mutate: Callable = mutate


def image_seeds(folder):
    noise = np.random.default_rng(0)
    small = cv2.resize(noise.integers(0, 256, (6, 8, 3), np.uint8), (40, 30), interpolation=cv2.INTER_CUBIC)
    deep = small.astype(np.uint16) * 257
    for name, pixels in {"deep.png": deep, "deep.tif": deep, "grey16.png": deep[..., 0]}.items():
        cv2.imwrite(str(folder / name), pixels)
    picture = Image.fromarray(small)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(folder / "a.png", exif=exif)
    picture.save(folder / "a.jpg", exif=exif)
    picture.save(folder / "progressive.jpg", progressive=True, icc_profile=b"profile" * 20)
    picture.save(folder / "a.webp")
    picture.save(folder / "lossless.webp", lossless=True)
    picture.save(folder / "a.bmp")
    picture.save(folder / "a.tif")
    picture.save(folder / "deflate.tif", compression="tiff_deflate")
    picture.save(folder / "lzw.tif", compression="tiff_lzw")
    picture.convert("RGBA").save(folder / "alpha.png")
    picture.convert("P").save(folder / "palette.png")
    return files_of(folder)


def video_seeds(folder):
    kinds = {
        "a.mp4": ("libx264", {"bf": "2", "preset": "ultrafast"}),
        "mpeg4.mp4": ("mpeg4", {}),
        "a.mkv": ("libx264", {"preset": "ultrafast"}),
        "ffv1.mkv": ("ffv1", {}),
        "a.avi": ("mpeg4", {}),
        "mjpeg.avi": ("mjpeg", {}),
        "a.webm": ("libvpx", {"deadline": "realtime"}),
        "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
        "interlaced.avi": ("mpeg2video", {"flags": "+ilme+ildct", "top": "1"}),
    }
    noise = np.random.default_rng(0)
    for name, (codec, options) in kinds.items():
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for _ in range(8):
                frame = cv2.resize(noise.integers(0, 256, (6, 8, 3), np.uint8), (64, 48))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
            container.mux(stream.encode())
    return files_of(folder)


def files_of(folder):
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def small_student():
    torch.manual_seed(0)
    student = models.Student(channels=8, blocks=1).eval()
    torch.nn.init.normal_(student.tail.weight, std=0.3)
    return student


def checkpoint_seeds(folder):
    models.save_student(folder / "student.pth", small_student(), {"teacher": "none", "rows": [1, 2.5, None]})
    return files_of(folder)


SMALL = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.PReLU(3), torch.nn.Conv2d(3, 5, 3, padding=1))


def ncnn_seeds(folder):
    lines = ["Input in 0 1 data", "Convolution a 1 1 b c 0=3 1=3 4=1 5=1 6=81", "PReLU p 1 1 d e 0=3"]
    lines += ["Convolution c 1 1 e f 0=5 1=3 4=1 5=1 6=135"]
    weights = bytes.fromhex("476b3001") + bytes(81 * 2 + 2) + bytes(12) + bytes(12) + bytes(4) + bytes(135 * 4 + 20)
    param = f"7767517\n{len(lines)} 4\n" + "\n".join(lines) + "\n"
    (folder / "small.param").write_text(param)
    (folder / "small.bin").write_bytes(weights)
    return files_of(folder)


def onnx_seeds(folder):
    from export import export  # of requirements-dev.txt

    models.save_student(folder / "student.pth", small_student(), {})
    export(folder / "student.pth", frames=2, steps=2, progress=False)
    return [(name, data) for name, data in files_of(folder) if name.endswith(".onnx")]


def config_seeds(folder):
    root = Path(__file__).resolve().parent.parent / "configs"
    return [(path.name, path.read_bytes()) for path in sorted(root.glob("*.yaml"))]


def report_seeds(folder):
    unit = {"protocol": "call", "category": "heads", "name": "a", "condition": "x2"}
    record = {
        **unit,
        "frames": [2, 5],
        "metrics": {"psnr_y": [30.5, None], "vmaf": [70.0]},
        "scale": 2,
        "codec": "x264",
    }
    record["rate"] = "qp 22"
    crop = {**unit, "frame": 5, "box": [0, 0, 9, 9], "files": {"input": "crops/a.png"}}
    content = {
        "format": 1,
        **{key: kind() for key, kind in report.REQUIRED.items()},
        "methods": [{"name": "input"}, {"name": "student"}],
        "records": [{**record, "method": "input"}, {**record, "method": "student"}],
        "crops": [crop],
        "worst": [{**crop, "method": "student", "metric": "psnr_y", "change": -0.5}],
    }
    return [("report.json", json.dumps(content).encode())]


STUDY_KEY = {"study": "0123", "trials": {str(n): {"methods": ["input", "student"], "trap": None} for n in range(3)}}


def study_seeds(folder):
    votes = {number: {"swapped": number == "1", "score": int(number)} for number in STUDY_KEY["trials"]}
    return [("votes.json", json.dumps({"study": "0123", "participant": "ann", "votes": votes}).encode())]


def read_video(path):
    with VideoReader(path, audio=True) as reader:
        for count, frame in enumerate(reader):
            reader.take_packets()
            if count == 0:
                reader.to_bgr(frame.y, frame.uv)


def read_ncnn(path):
    with tempfile.TemporaryDirectory() as folder:  # the other file of the two as it was
        seeds = dict(ncnn_seeds(Path(folder)))
        other = Path(folder) / ("small.bin" if path.suffix == ".param" else "small.param")
        assert other.name in seeds
        models.read_ncnn(*((path, other) if path.suffix == ".param" else (other, path)), SMALL)


def read_onnx(path):
    OpenVINOEngine(small_student(), path, threads=1, cache=path.parent / "cache")


def read_config(path):
    load_config([str(path)])
    for line in path.read_text(encoding="utf-8").splitlines():
        key, separator, value = line.partition(":")
        if separator and key.isidentifier() and value:
            load_config([f"{key}={value}"])


def read_study(path):
    subjective.read_votes(path, STUDY_KEY)


def read_report(path):
    found = report.load_report(path)
    report.summarise(found["records"], ["category"], ["psnr_y", "vmaf"])


TARGETS = {
    "image": Target(image_seeds, read_image, (VideoError,), mutate_image),
    "video": Target(video_seeds, read_video, (VideoError,)),
    "checkpoint": Target(checkpoint_seeds, models.load_student, (models.CheckpointError,), mutate_archive),
    "ncnn": Target(ncnn_seeds, read_ncnn, (models.CheckpointError,)),
    "onnx": Target(onnx_seeds, read_onnx, (ArtefactError,)),
    "config": Target(config_seeds, read_config, (ConfigError,), mutate_config),
    "report": Target(report_seeds, read_report, (report.ReportError,), mutate_json),
    "study": Target(study_seeds, read_study, (subjective.StudyError,), mutate_json),
}


def case_file(target, seeds, seed, number):
    """Name and content of a case; the first ones are the files as they were."""
    if number < len(seeds):
        return seeds[number]
    rng = random.Random(f"{seed} {number}")
    name, content = seeds[number % len(seeds)]
    return name, target.mutate(content, rng)


# ----------------------------------------------------------------------------------------------------------------------
# The child reads, the parent watches


def work(name, seed, start, stop, folder):
    """Read cases; prints a line when one begins and one when it has ended."""
    target, folder = TARGETS[name], Path(folder)
    with tempfile.TemporaryDirectory() as place:
        seeds = target.seeds(Path(place))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 if Path("/proc/self/statm").exists() else 2**34
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * GIGABYTES * 2**30,) * 2)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    unit = 1 if sys.platform == "darwin" else 1024
    for number in range(start, stop):
        file, content = case_file(target, seeds, seed, number)
        path = folder / f"{number}-{file}"
        path.write_bytes(content)
        print(f"begin {number} {path.name}", flush=True)
        try:
            target.read(path)
            outcome = "accepted"
        except target.errors as error:
            outcome = "refused" if str(error).strip() else "failed no message"
            if number < len(seeds):
                outcome = f"failed a whole file is refused: {str(error)[:150]!r}"
        except Exception as error:
            outcome = f"failed {type(error).__module__}.{type(error).__name__}: {str(error)[:150]!r}"
        if (peak := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) > GIGABYTES * 2**30 + 2**30:
            outcome = f"failed took {peak / 2**30:.1f} GiB"
        print(f"end {number} {outcome}", flush=True)
        if not outcome.startswith("failed"):
            path.unlink()
        elif "GiB" in outcome:
            return  # the peak stays: a new process


def run_target(name, cases, seed=0, folder=None):
    """Run cases 0 to `cases` of a target; returns a dict of ``refused``, ``accepted``, ``failures`` and ``seconds``."""
    folder = Path(folder or tempfile.mkdtemp(prefix="fuzzing-"))
    result, begun, next_case = {"refused": 0, "accepted": 0, "failures": []}, time.monotonic(), 0
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "PYTHONFAULTHANDLER": "1"}
    while next_case < cases:
        command = [
            sys.executable,
            *PROGRAM,
            "--work",
            name,
            str(seed),
            str(next_case),
            str(cases),
            str(folder),
        ]
        first = next_case
        with (
            open(folder / "stderr.txt", "w") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=root, env=environment
            ) as child,
        ):
            alarm = threading.Timer(600, child.kill)  # to import and to make the seeds
            alarm.start()
            for line in child.stdout:
                word, number, rest = line.rstrip("\n").split(" ", 2)
                alarm.cancel()
                alarm = threading.Timer(SECONDS, child.kill)
                alarm.start()
                next_case = int(number) + 1
                if word == "begin":
                    open_case = rest
                    continue
                open_case = None
                if rest.startswith("failed"):
                    result["failures"].append(f"{name}, seed {seed}, case {number}: {rest}")
                else:
                    result[rest] += 1
            alarm.cancel()
        if next_case == first:
            raise RuntimeError(f"{name} does not start: {(folder / 'stderr.txt').read_text()[-2000:]}")
        if open_case:
            trace = (folder / "stderr.txt").read_text(errors="replace")[-1500:]
            result["failures"].append(f"{name}, seed {seed}, {open_case}: ended with {child.returncode}\n{trace}")
    return {**result, "seconds": time.monotonic() - begun, "folder": folder}


def main(argv=None):
    parser = argparse.ArgumentParser(description="Read damaged and hostile files with everything that reads files.")
    parser.add_argument("--cases", type=int, default=200, help="of each target (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0)")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        name, seed, start, stop, folder = arguments.work
        return work(name, int(seed), int(start), int(stop), folder)
    rows, failed = [], False
    for name in arguments.targets:
        found = run_target(name, arguments.cases, arguments.seed)
        for failure in found["failures"]:
            print(f"{failure} (files in {found['folder']})", flush=True)
        failed |= bool(found["failures"])
        counts = found["refused"], found["accepted"], len(found["failures"])
        rows.append(f"| {name} | {arguments.cases} | {' | '.join(map(str, counts))} | {found['seconds']:.0f} |")
        print(rows[-1], flush=True)
    print("\n| target | cases | refused | accepted | failures | seconds |\n| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
