"""Measure what a student gains over its input, against what people use today, and how fast it is.

    python evaluate.py                            # pictures and pans that the packages ship: no download
    python evaluate.py --quick                    # a glance, under a minute
    python evaluate.py --data FOLDER              # your own pictures and videos, one sub-folder a category
    python evaluate.py --checkpoint FILE --name mine
    python evaluate.py compare results/a/report.json results/b/report.json
    python evaluate.py sheets --data FOLDER       # crops under letters, for viewers who give scores; --tally sums up
    python evaluate.py subjective                 # a blind comparison in the browser; --summarise gives its result
    python evaluate.py speed                      # milliseconds by size and engine, file to file, against the machine

A run writes results/NAME/report.json and report.html. It can be stopped with Ctrl-C; the same command goes on.
What is measured, on what, is in benchmark/conditions.py.
"""

import argparse
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmark import conditions, runner, sheets, speed
from benchmark.metrics import MetricError
from benchmark.page import write_report
from benchmark.peers import FILTERS, NETWORKS, Peer, peers, time_1080p
from benchmark.report import FORMAT, ReportError, compare, format_comparison, load_report, markdown_summary
from benchmark.runner import record_key
from benchmark.study import StudyError, format_summary, make_study, serve_study, summarise_study, write_clip
from degradation import FRAME_RATE, DataError
from images import VideoError
from inference import RealTimeSharpener, parse_amount
from models import RELEASED_STUDENT, CheckpointError
from runtime import DeviceError
from utils import atomic_path, planes_to_bgr, to_full_range

STUDENT = "student"
CACHE = "data/cache/benchmark"
CROPS = 16  # before/after pictures in a report, spread over its units


def choose_units(arguments):
    """The units (see `conditions.Unit`) that a command line asks for.

    Raises:
        DataError: nothing fits.
    """
    sources = conditions.list_sources(arguments.data, arguments.match)
    if arguments.quick:
        first = {}  # picture of each category
        for source in sources:
            if not source.is_video:
                first.setdefault(source.category, source)
        units = conditions.image_units(first.values(), ("clean", conditions.DEFAULT_CONDITION))
        return units + conditions.call_units(sources[:1], scales=(2,), codecs=("x264",))[1:6:2]
    scales, codecs = arguments.scales or conditions.SCALES, arguments.codecs or conditions.CODECS
    by_protocol = {
        "real": conditions.real_units(sources),
        "camera": conditions.camera_units(sources, codecs),
        "call": conditions.call_units(sources, arguments.full, scales, codecs),
        "x4": conditions.x4_units(sources),
        "image": conditions.image_units(sources),
    }
    wanted = arguments.protocol or list(by_protocol)
    by_protocol = {protocol: units for protocol, units in by_protocol.items() if protocol in wanted}
    if not any(by_protocol.values()):
        raise DataError(
            f"nothing fits --protocol {' '.join(wanted)}: real and x4 measure videos, image measures pictures"
        )
    shares = {"real": 1.0, "image": arguments.share[-1]}
    units = [
        u
        for protocol, units in by_protocol.items()
        for u in conditions.draw_units(units, shares.get(protocol, arguments.share[0]))
    ]
    if not units:
        raise DataError("--share leaves nothing to measure: choose a larger one")
    return units


def choose_methods(sharpener, peer_names, device="auto", crisp=None):
    """The input, the student, also at strength `crisp` if given, and peers as `Peer` objects, in order of display."""
    digest = file_digest(sharpener.checkpoint)

    def student(name, strength):
        sharpen = functools.partial(sharpener.sharpen_planes, strength=strength)
        description = f"strength {strength:g}; checkpoint {digest[:12]}; {sharpener.engine.identity}"
        return Peer(name, description, lambda scale: sharpen)

    methods = [Peer("input", "as it arrives, enlarged with Lanczos", lambda scale: runner.as_it_came)]
    methods.append(student(STUDENT, sharpener.strength))
    if crisp:
        methods.append(student(f"{STUDENT}, crisp", crisp))
    return methods + peers(peer_names, device)


def file_digest(path):
    """SHA-256 of a file as hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# Pictures of a report


def write_crops(units, records, methods, folder):
    """Write crops of some units, and of the frames that the student harms most.

    Returns:
        ``(crops, worst)`` as report.json has them.
    """
    by_key = {record_key(unit.identity()): unit for unit in units}
    step = max(1, len(units) // CROPS)
    worst = runner.worst_frames(records, STUDENT)
    wanted = [(record_key(unit.identity()), None) for unit in units[step // 2 :: step]]
    entries = []
    for number, (key, frame) in enumerate([*wanted, *((key, frame) for key, frame, *_ in worst)]):
        sample = conditions.make_sample(by_key[key], CACHE)
        index = -1 if frame is None else sample.frames.index(frame)
        box = runner.detailed_box((sample.truth or sample.input)[index][0])
        pictures = {"truth": sample.truth[index]} if sample.truth else {}
        for method in methods:
            pictures[method.name] = method.at(by_key[key].scale)(*sample.input[index], sample.full_range)
        files = {}
        for name, planes in pictures.items():
            files[name] = f"crops/{number:03d}-{'-'.join(name.replace(',', '').split())}.png"
            write_png(folder / files[name], cut_frame(planes, sample.full_range, box))
        identity = dict(zip(("protocol", "category", "name", "condition"), key, strict=True))
        entries.append({**identity, "frame": sample.frames[index], "box": box, "files": files})
    crops, harmed = entries[: len(wanted)], entries[len(wanted) :]
    for entry, (_, _, before, after) in zip(harmed, worst, strict=True):
        entry |= {"metric": "ssim_y", "method": STUDENT, "change": after - before}
        entry |= {"input_value": before, "value": after}
    return crops, harmed


def write_png(path, frame):
    """Write a BGR frame, completely or not at all; `cv2.imwrite` would not raise where the disk is full."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", frame)[1].tobytes())


def cut_frame(planes, full_range, box):
    """The ``(x, y, width, height)`` of planes that `box` names, as a BGR frame."""
    x, y, width, height = box
    frame = planes_to_bgr(*(planes if full_range else to_full_range(*planes)))
    return np.ascontiguousarray(frame[y : y + height, x : x + width])


# ----------------------------------------------------------------------------------------------------------------------
# Where a report comes from


def describe_run(command, started):
    """What a report says of the run that ends now, which began at `started` (of `time.perf_counter`)."""
    return {
        "command": command,
        "commit": git_commit(),
        "date": date.today().isoformat(),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def describe_machine():
    """The machine that measured, for the record."""
    cpu, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": memory and round(memory, 1),
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def describe_versions():
    """Versions of what decides the figures."""
    packages = ("torch", "openvino", "opencv-python", "av", "scikit-image", "numpy", "pillow", "imageio-ffmpeg")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def git_commit():
    """The commit that is checked out, marked where files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


# ----------------------------------------------------------------------------------------------------------------------
# Commands


def measure(arguments, command):
    """Run the benchmark and write its report; returns the exit code."""
    started = time.perf_counter()
    sharpener = RealTimeSharpener(arguments.checkpoint, arguments.device, arguments.strength)
    peer_names = ["unsharp mask"] if arguments.quick else [*(arguments.peers or FILTERS)]
    methods = choose_methods(sharpener, peer_names, arguments.device, arguments.crisp)
    units = choose_units(arguments)
    vmaf, reason = (False, "") if arguments.quick else runner.vmaf_available()
    jod, missing = (False, "") if arguments.quick else runner.jod_available()
    for names, why in (("VMAF and MS-SSIM are", reason), ("ColorVideoVDP is", missing)):
        if why:
            print(f"{names} left out: {why}", file=sys.stderr)
    slow = [method.name for method in methods if method.name in NETWORKS]
    records = runner.run(units, methods, CACHE, vmaf, jod, slow)
    measured = {record_key(record) for record in records}
    units = [unit for unit in units if record_key(unit.identity()) in measured]
    folder = Path("results") / arguments.name
    crops, worst = write_crops(units, records, [method for method in methods if method.name not in slow], folder)
    times = {method.name: 0.0 if method.name == "input" else time_1080p(method) for method in methods}
    report = {
        "format": FORMAT,
        "name": arguments.name,
        **describe_run(command, started),
        "checkpoint": {
            "path": str(arguments.checkpoint),
            "sha256": file_digest(sharpener.checkpoint),
            "parameters": sum(weights.numel() for weights in sharpener.student.parameters()),
            "kib": round(sharpener.checkpoint.stat().st_size / 1024),
            "engine": sharpener.description,
            "meta": sharpener.meta,
        },
        "methods": [
            {"name": m.name, "description": m.description, "ms_1080p": round(times[m.name], 2)} for m in methods
        ],
        "records": records,
        "crops": crops,
        "worst": worst,
    }
    path = folder / "report.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(runner.without_infinity(report), allow_nan=False), encoding="utf-8")
    print(markdown_summary(load_report(path)))
    print(f"written: {path} and {write_report(path)}")
    return 0


def run_comparison(argv):
    """``evaluate.py compare A.json B.json``."""
    parser = argparse.ArgumentParser(prog="evaluate.py compare", description="What became better or worse from A to B.")
    parser.add_argument("a", help="report.json of one run")
    parser.add_argument("b", help="report.json of another")
    arguments = parser.parse_args(argv)
    a, b = load_report(arguments.a), load_report(arguments.b)
    print(format_comparison(compare(a, b), a, b))
    return 0


def run_study(argv):
    """``evaluate.py subjective``: make a study unless there is one, serve it, or evaluate its votes."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py subjective",
        description="A blind pairwise comparison (CCR, ITU-T P.910) as a web page on this computer.",
    )
    parser.add_argument("folder", nargs="?", default="results/study", help="where it is kept (default: results/study)")
    parser.add_argument("--summarise", action="store_true", help="evaluate the votes instead")
    parser.add_argument("--checkpoint", default=str(RELEASED_STUDENT), help="the student (default: the released one)")
    parser.add_argument("--data", help="folder of pictures and videos, one sub-folder a category")
    parser.add_argument(
        "--limit", type=parse_count, default=40, help="comparisons in a study, traps not counted (default: 40)"
    )
    parser.add_argument("--seed", type=parse_count, default=0, help="of the order and the sides")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in the network take part")
    parser.add_argument("--port", type=parse_port, default=0, help="default: one that is free")
    arguments = parser.parse_args(argv)
    folder = Path(arguments.folder)
    if arguments.summarise:
        print(format_summary(summarise_study(folder)))
        return 0
    if (folder / "study.json").exists():
        making = ("checkpoint", "data", "limit", "seed")
        if given := [name for name in making if getattr(arguments, name) != parser.get_default(name)]:
            options = ", ".join(f"--{name}" for name in given)
            print(f"{folder} holds a study already, which is served; for one with {options} name another folder")
    else:
        sharpener = RealTimeSharpener(arguments.checkpoint)
        make_study(folder, make_stimuli(sharpener, arguments.data, folder / "stimuli"), arguments.seed, arguments.limit)
    serve_study(folder, arguments.host, arguments.port)
    return 0


def run_sheets(argv):
    """``evaluate.py sheets``: make blind sheets of real clips, or sum up viewers' scores."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py sheets",
        description="The same crops of real clips, at their own size, by several methods under letters.",
    )
    parser.add_argument(
        "folder", nargs="?", default="results/sheets", help="where they are kept (default: results/sheets)"
    )
    parser.add_argument("--tally", nargs="+", metavar="CSV", help="filled-in copies of scores.csv: sum them up instead")
    parser.add_argument("--data", help="folder of videos, one sub-folder a category")
    parser.add_argument("--match", nargs="+", default=["*"], help="only files of --data whose names fit a pattern")
    parser.add_argument("--checkpoint", default=str(RELEASED_STUDENT), help="the student (default: the released one)")
    parser.add_argument("--crisp", type=parse_amount, help="show the student at this strength too")
    parser.add_argument("--peers", nargs="+", choices=(*FILTERS, *NETWORKS), default=["unsharp mask, strong", "RCAS"])
    parser.add_argument("--crops", type=parse_count, default=2, help="of each clip (default: 2)")
    parser.add_argument("--seed", type=parse_count, default=0, help="of the order and the letters")
    arguments = parser.parse_args(argv)
    if arguments.tally:
        print(sheets.tally(arguments.folder, arguments.tally, STUDENT))
        return 0
    methods = choose_methods(RealTimeSharpener(arguments.checkpoint), arguments.peers, crisp=arguments.crisp)
    methods = {method.name: method.at(1) for method in methods}
    units = conditions.real_units(conditions.list_sources(arguments.data, arguments.match))
    scenes = [scene for unit in units for scene in real_crops(unit, methods, arguments.crops)]
    if not scenes:
        raise DataError("sheets show real clips: name a folder with videos by --data")
    paths = sheets.make_sheets(arguments.folder, scenes, arguments.seed)
    print(f"{len(paths)} sheets and scores.csv are in {arguments.folder}; key.json says which letter was which method")
    return 0


def real_crops(unit, methods, count, size=(240, 180)):
    """Cut the `count` most detailed places out of the last frame of a real clip.

    Args:
        unit: of protocol ``real``.
        methods: dict of name -> method.
        size: (width, height) of a crop.

    Returns:
        List of ``(name, {method: crop})``, crops uint8 BGR.
    """
    try:
        sample = conditions.make_sample(unit, CACHE)
    except (DataError, VideoError) as error:
        print(f"left out: {unit.source.name}: {error}", file=sys.stderr)
        return []
    planes, scenes = sample.input[-1], []
    outputs = {name: method(*planes, sample.full_range) for name, method in methods.items()}
    seen = planes[0].copy()
    for number in range(count):
        box = x, y, width, height = runner.detailed_box(seen, size)
        seen[y : y + height, x : x + width] = 128  # the next one lies elsewhere
        crops = {name: cut_frame(output, sample.full_range, box) for name, output in outputs.items()}
        scenes.append((f"{unit.source.name}, {number + 1}", crops))
    return scenes


def parse_count(text):
    """A whole number from 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def parse_port(text):
    """A number of a TCP port, for argparse."""
    if parse_count(text) >= 1 << 16:
        raise argparse.ArgumentTypeError(f"{text} is not a port: there are 65535")
    return int(text)


def make_stimuli(sharpener, data, folder):
    """Make the scenes of a study: crops of real clips as they are, and of calls at half size, QP 32 and 300 kbit/s.

    Returns:
        Stimuli as `study.make_study` takes them.
    """
    methods = {"input": runner.as_it_came, STUDENT: sharpener.sharpen_planes}
    methods |= {peer.name: peer.at(1) for peer in peers(["unsharp mask"])}
    sources, stimuli = conditions.list_sources(data), []
    for unit in conditions.real_units(sources):
        for scene, crops in real_crops(unit, methods, 2, (480, 360)):
            files = {name: folder / f"{len(stimuli):03d}-{name.replace(' ', '-')}.png" for name in crops}
            for name, crop in crops.items():
                write_png(files[name], crop)
            stimuli.append({"scene": scene, "kind": "image", "files": files})
    units = conditions.call_units(sources, scales=(2,), codecs=("x264",))
    for unit in [unit for unit in units if unit.qp == 32 or unit.kbps == 300]:
        try:
            sample = conditions.make_sample(unit, CACHE, conditions.CLIP_FRAMES)
        except (DataError, VideoError) as error:
            print(f"left out: {unit.source.name}, {unit.condition}: {error}", file=sys.stderr)
            continue
        box, files = runner.detailed_box(sample.truth[-1][0], (480, 360)), {}
        for name, method in {**methods, "truth": None}.items():
            clip = sample.truth if method is None else [method(*p, sample.full_range) for p in sample.input]
            files[name] = folder / f"{len(stimuli):03d}-{name.replace(' ', '-')}.mp4"
            write_clip([cut_frame(planes, sample.full_range, box) for planes in clip], files[name], FRAME_RATE)
        stimuli.append({"scene": f"{unit.source.name}, {unit.condition}", "kind": "video", "files": files})
    return stimuli


def run_speed(argv):
    """``evaluate.py speed``: measure times only, and write speed.json, speed.png and README.md."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py speed",
        description="How long a frame takes: by size and engine, beside peers, from file to file.",
    )
    parser.add_argument("--checkpoint", default=str(RELEASED_STUDENT), help="the student (default: the released one)")
    parser.add_argument("--device", default="auto", help="auto (every engine that works), openvino, cpu, cuda or mps")
    parser.add_argument(
        "--sizes", nargs="+", type=speed.parse_size, metavar="SIZE", help=f"{', '.join(speed.SIZES)} or WIDTHxHEIGHT"
    )
    parser.add_argument("--seconds", type=float, help="for each figure, at least three runs (default: 2)")
    parser.add_argument("--networks", action="store_true", help="measure super-resolution networks too; takes minutes")
    parser.add_argument("--name", help="the folder under results/ (default: speed, or quick)")
    parser.add_argument("--quick", action="store_true", help="two small sizes, a short clip, a tenth of the time")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    sizes = arguments.sizes or [speed.SIZES[name] for name in (("360p", "540p") if quick else speed.SIZES)]
    seconds = (0.2 if quick else 2.0) if arguments.seconds is None else arguments.seconds
    clip = (speed.SIZES["360p"], 12) if quick else (speed.SIZES["1080p"], 150)

    started = time.perf_counter()
    sharpener = RealTimeSharpener(arguments.checkpoint, arguments.device)
    names = [*FILTERS, *(NETWORKS if arguments.networks else ())]
    measured = speed.measure(sharpener, arguments.device, sizes, seconds, names, clip)
    report = {
        **describe_run(["python", "evaluate.py", "speed", *argv], started),
        "checkpoint": {"name": sharpener.checkpoint.name, "sha256": file_digest(sharpener.checkpoint)},
        **measured,
    }
    folder = Path("results") / (arguments.name or ("quick" if quick else "speed"))
    page = speed.markdown(report)
    for name, text in (("speed.json", json.dumps(report, indent=1, allow_nan=False)), ("README.md", page)):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    speed.plot(report, folder / "speed.png")
    print(f"{page}\nwritten: {folder}/speed.json, speed.png and README.md")
    return 0


def parse_arguments(argv):
    """The arguments of a measurement."""
    parser = argparse.ArgumentParser(
        description="Measure what a student gains over its input, against its peers, and how fast it is.",
        epilog="`evaluate.py COMMAND --help` tells of the other commands: compare, sheets, subjective and speed.",
    )
    parser.add_argument("--checkpoint", default=str(RELEASED_STUDENT), help="the student (default: the released one)")
    parser.add_argument("--device", default="auto", help="auto, openvino, cpu, cuda or mps")
    parser.add_argument("--strength", type=parse_amount, default=1.0, help="see inference.py (default: 1)")
    parser.add_argument("--crisp", type=parse_amount, help="measure the student at this strength too")
    parser.add_argument("--name", help="the report's folder under results/ (default: latest, or quick)")
    parser.add_argument("--quick", action="store_true", help="a glance, under a minute")
    parser.add_argument("--data", help="folder of pictures and videos, one sub-folder a category")
    parser.add_argument("--match", nargs="+", default=["*"], help="only files of --data whose names fit a pattern")
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=("real", "camera", "call", "x4", "image"),
        help="what to measure (default: all)",
    )
    parser.add_argument("--full", action="store_true", help="call: every scale with every codec and rate; takes hours")
    parser.add_argument(
        "--share",
        nargs="+",
        type=float,
        default=[1.0],
        metavar="SHARE",
        help="measure only this share of all conditions (default: 1); two numbers: of clips and of pictures",
    )
    parser.add_argument("--scales", nargs="+", type=float, choices=conditions.SCALES, help="call: only these scales")
    parser.add_argument("--codecs", nargs="+", choices=conditions.CODECS, help="call: only these codecs")
    parser.add_argument(
        "--peers", nargs="+", choices=(*FILTERS, *NETWORKS), metavar="PEER", help="default: all filters"
    )
    arguments = parser.parse_args(argv)
    if arguments.match != parser.get_default("match") and not arguments.data:
        parser.error("--match chooses among the files of --data: name a folder")
    if len(arguments.share) > 2:
        parser.error("--share takes one number, or two: of clips and of pictures")
    arguments.name = arguments.name or ("quick" if arguments.quick else "latest")
    return arguments


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["compare"]:
            return run_comparison(argv[1:])
        if argv[:1] == ["sheets"]:
            return run_sheets(argv[1:])
        if argv[:1] == ["subjective"]:
            return run_study(argv[1:])
        if argv[:1] == ["speed"]:
            return run_speed(argv[1:])
        return measure(parse_arguments(argv), ["python", "evaluate.py", *argv])
    except (
        CheckpointError,
        DataError,
        DeviceError,
        MetricError,
        ReportError,
        StudyError,
        VideoError,
        OSError,
    ) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: stopped; what was measured is kept, the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
