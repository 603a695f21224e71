"""Measure what a student gains over its input, against what people use today, and how fast it is.

    python evaluate.py                            # pictures and pans that the packages ship: no download
    python evaluate.py --quick                    # a glance, under a minute
    python evaluate.py --data FOLDER              # your own pictures and videos, one sub-folder a category
    python evaluate.py --checkpoint FILE --name mine
    python evaluate.py compare results/a/report.json results/b/report.json
    python evaluate.py sheets --data FOLDER       # crops under letters, for viewers who give scores; --tally sums up
    python evaluate.py subjective                 # a blind comparison as a page; --summarise VOTES... sums up
    python evaluate.py speed                      # milliseconds by size and engine, beside peers, file to file
    python evaluate.py size --data FOLDER         # 360, 540 and 720 lines shown at full size, beside other scalers

A run writes results/NAME/report.json and report.html. It can be stopped with Ctrl-C; the same command goes on.
What is measured, on what, is in benchmark/conditions.py.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import numpy as np

try:
    from benchmark import conditions, runner, sheets, sizes, speed
    from benchmark.metrics import MetricError
    from benchmark.page import write_report
    from benchmark.peers import FILTERS, NETWORKS, Peer, peers
    from benchmark.report import FORMAT, PROTOCOLS, STUDENT, compare, format_comparison, load_report, markdown_summary
    from benchmark.runner import cut_frame, describe_run, file_digest, record_key
    from benchmark.study import make_study, summarise_study
except ModuleNotFoundError as error:
    sys.exit(f"evaluate.py needs the package {error.name}: pip install -r requirements-dev.txt")
from degradation import DataError
from images import VideoError
from inference import RealTimeSharpener, parse_amount
from models import load_student
from runtime import RELEASED_STUDENT, CheckpointError, DeviceError

CACHE = "data/cache/benchmark"


def choose_units(arguments):
    """Return the units (see `conditions.Unit`) that a command line asks for; a DataError says that nothing fits."""
    sources = conditions.list_sources(arguments.data, arguments.match)
    if arguments.quick:
        first = {}  # picture of each category
        for source in sources:
            if not source.is_video:
                first.setdefault(source.category, source)
        units = conditions.image_units(first.values(), ("clean", conditions.DEFAULT_CONDITION))
        return units + conditions.call_units(sources[:1], scales=(2,), codecs=("x264",))[1:6:2]
    by_protocol = {
        "real": conditions.real_units(sources),
        "camera": conditions.camera_units(sources, arguments.codecs),
        "call": conditions.call_units(sources, codecs=arguments.codecs),
        "x4": conditions.x4_units(sources),
        "image": conditions.image_units(sources),
    }
    units = [
        unit
        for protocol, units in by_protocol.items()
        if protocol in arguments.protocol
        for unit in conditions.draw_units(units, 1 if protocol == "real" else arguments.share)
    ]
    if not units:
        raise DataError("nothing fits: real and x4 measure videos, image measures pictures, --share draws some of them")
    return units


def choose_methods(sharpener, peer_names, device="auto", crisp=None):
    """Return the input, the student (also at strength `crisp` if given) and peers as `Peer`, in order of display."""
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


# ----------------------------------------------------------------------------------------------------------------------
# Commands


def measure(arguments, command):
    """Run the benchmark, write its report and page, and print its tables."""
    started = time.perf_counter()
    sharpener = RealTimeSharpener(arguments.checkpoint, arguments.device, arguments.strength)
    student, meta = load_student(sharpener.checkpoint)
    peer_names = ["unsharp mask"] if arguments.quick else arguments.peers or list(FILTERS)
    methods = choose_methods(sharpener, peer_names, arguments.device, arguments.crisp)
    units = choose_units(arguments)
    vmaf, jod = (False, False) if arguments.quick else runner.available_tools()
    slow = [method.name for method in methods if method.name in NETWORKS]
    records = runner.run(units, methods, CACHE, vmaf, jod, slow)
    measured = {record_key(record) for record in records}
    units = [unit for unit in units if record_key(unit.identity()) in measured]
    folder = Path("results") / arguments.name
    shown = [method for method in methods if method.name not in slow]
    crops, worst = runner.write_crops(units, records, shown, folder, STUDENT)
    times = {method.name: 0.0 if method.name == "input" else speed.time_peer(method) for method in methods}
    report = {
        "format": FORMAT,
        "name": arguments.name,
        **describe_run(command, started),
        "checkpoint": {
            "path": str(arguments.checkpoint),
            "sha256": file_digest(sharpener.checkpoint),
            "parameters": sum(weights.numel() for weights in student.parameters()),
            "kib": round(sharpener.checkpoint.stat().st_size / 1024),
            "engine": sharpener.description,
            "meta": runner.without_infinity(meta),
        },
        "methods": [
            {"name": m.name, "description": m.description, "ms_1080p": round(times[m.name], 2)} for m in methods
        ],
        "records": records,
        "crops": crops,
        "worst": worst,
    }
    write_report(report, folder)
    print(markdown_summary(report))
    print(f"written: {folder / 'report.json'} and {folder / 'report.html'}")


def run_comparison(argv):
    """``evaluate.py compare A.json B.json``."""
    parser = make_parser("compare", "What became better or worse from A to B.")
    parser.add_argument("a", help="report.json of one run")
    parser.add_argument("b", help="report.json of another")
    arguments = parser.parse_args(argv)
    a, b = load_report(arguments.a), load_report(arguments.b)
    print(format_comparison(compare(a, b), a, b))


def make_parser(command, description, measures=False):
    """Return a parser of a command's arguments; what `measures` takes a student and a folder of data."""
    parser = argparse.ArgumentParser(prog=f"evaluate.py {command}".strip(), description=description)
    if measures:
        parser.add_argument("--checkpoint", default=str(RELEASED_STUDENT), help="student (default: the released one)")
        parser.add_argument("--data", help="folder of pictures and videos, one sub-folder a category")
    return parser


def run_study(argv):
    """``evaluate.py subjective``: make the page of a study, or summarise the votes that it collected."""
    description = "A blind pairwise comparison (CCR, ITU-T P.910) as one HTML file that collects votes."
    parser = make_parser("subjective", description, measures=True)
    parser.add_argument("folder", nargs="?", default="results/study", help="where it is kept (default: results/study)")
    parser.add_argument("--summarise", nargs="+", metavar="VOTES", help="evaluate files that the page saved instead")
    parser.add_argument("--limit", type=parse_count, default=40, help="comparisons without traps (default: 40)")
    parser.add_argument("--seed", type=parse_count, default=0, help="of the choice of comparisons")
    arguments = parser.parse_args(argv)
    if arguments.summarise:
        print(summarise_study(arguments.folder, arguments.summarise))
        return
    scenes = study_scenes(RealTimeSharpener(arguments.checkpoint), arguments.data)
    page = make_study(arguments.folder, scenes, arguments.seed, arguments.limit)
    print(f"{page} is the study: open it in a browser or hand it out. Keep key.json, which says what it shows.")


def run_sheets(argv):
    """``evaluate.py sheets``: make blind sheets of real clips, or sum up viewers' scores."""
    description = "The same crops of real clips, at their own size, by several methods under letters."
    parser = make_parser("sheets", description, measures=True)
    parser.add_argument("folder", nargs="?", default="results/sheets", help="their folder (default: results/sheets)")
    parser.add_argument("--tally", nargs="+", metavar="CSV", help="filled-in copies of scores.csv: sum them up instead")
    parser.add_argument("--match", nargs="+", default=["*"], help="only files of --data whose names fit a pattern")
    parser.add_argument("--crisp", type=parse_amount, help="show the student at this strength too")
    parser.add_argument("--peers", nargs="+", choices=(*FILTERS, *NETWORKS), default=["unsharp mask, strong", "RCAS"])
    parser.add_argument("--crops", type=parse_count, default=2, help="of each clip (default: 2)")
    parser.add_argument("--seed", type=parse_count, default=0, help="of the order and the letters")
    arguments = parser.parse_args(argv)
    if arguments.tally:
        print(sheets.tally(arguments.folder, arguments.tally, STUDENT))
        return
    methods = choose_methods(RealTimeSharpener(arguments.checkpoint), arguments.peers, crisp=arguments.crisp)
    methods = {method.name: method.at(1) for method in methods}
    units = conditions.real_units(conditions.list_sources(arguments.data, arguments.match))
    scenes = [scene for unit in units for scene in real_crops(unit, methods, arguments.crops)]
    if not scenes:
        raise DataError("sheets show real clips: name a folder with videos by --data")
    paths = sheets.make_sheets(arguments.folder, scenes, arguments.seed)
    print(f"{len(paths)} sheets and scores.csv are in {arguments.folder}; key.json says which letter was which method")


def real_crops(unit, methods, count, size=(240, 180)):
    """Cut the `count` most detailed places out of the last frame of a real clip, of `size` = (width, height).

    Returns:
        List of ``(name, {method: crop})``, crops uint8 BGR; empty if the clip cannot be read.
    """
    sample = read_sample(unit)
    if sample is None:
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


def read_sample(unit, *frames):
    """The sample of a unit (see `conditions.make_sample`); None, with a message, if its file cannot be read."""
    try:
        return conditions.make_sample(unit, *frames)
    except (DataError, VideoError) as error:
        print(f"left out: {unit.source.name}, {unit.condition}: {error}", file=sys.stderr)
        return None


def parse_count(text):
    """A whole number from 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def study_scenes(sharpener, data):
    """Yield scenes for `make_study`: crops of real clips, and of calls at half size, at QP 32 and at 300 kbit/s."""
    methods = {"input": runner.as_it_came, STUDENT: sharpener.sharpen_planes}
    methods |= {peer.name: peer.at(1) for peer in peers(["unsharp mask"])}
    sources, size = conditions.list_sources(data), (480, 360)
    for unit in conditions.real_units(sources):
        yield from real_crops(unit, methods, 2, size)
    for unit in conditions.call_units(sources, scales=(2,), codecs=("x264",)):
        sample = read_sample(unit, conditions.CLIP_FRAMES) if unit.qp == 32 or unit.kbps == 300 else None
        if sample is None:
            continue
        box = runner.detailed_box(sample.truth[-1][0], size)
        clips = {name: [method(*p, sample.full_range) for p in sample.input] for name, method in methods.items()}
        clips["truth"] = sample.truth
        clips = {name: np.stack([cut_frame(p, sample.full_range, box) for p in clip]) for name, clip in clips.items()}
        yield f"{unit.source.name}, {unit.condition}", clips


def run_speed(argv):
    """``evaluate.py speed``: measure times only, and write speed.json, speed.png and README.md."""
    parser = make_parser("speed", "How long a frame takes: by size and engine, beside peers, from file to file.")
    parser.add_argument("--checkpoint", default=str(RELEASED_STUDENT), help="student (default: the released one)")
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
    others = peers([*FILTERS, *(NETWORKS if arguments.networks else ())], arguments.device)
    measured = speed.measure(sharpener, arguments.device, sizes, seconds, others, clip)
    report = {
        **describe_run(["python", "evaluate.py", "speed", *argv], started),
        "checkpoint": {"name": sharpener.checkpoint.name, "sha256": file_digest(sharpener.checkpoint)},
        **measured,
    }
    folder = Path("results") / (arguments.name or ("quick" if quick else "speed"))
    print(f"{speed.write_report(report, folder)}\nwritten: {folder}/speed.json, speed.png and README.md")


def run_size(argv):
    """``evaluate.py size``: measure clips of few lines brought to full size, and write README.md."""
    description = "What a viewer gets from a call of few lines shown at full size, beside other scalers."
    parser = make_parser("size", description, measures=True)
    parser.add_argument("--match", nargs="+", default=["*"], help="only files of --data whose names fit a pattern")
    parser.add_argument("--lines", nargs="+", choices=sizes.SCALES, default=list(sizes.SCALES), help="default: all")
    parser.add_argument("--frames", type=parse_count, default=4, help="measured of each stream (default: 4)")
    parser.add_argument("--slow", nargs="+", choices=sizes.SLOW, default=[], help="networks to measure, too")
    parser.add_argument("--name", default="size", help="the folder under results/ (default: size)")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    sources = conditions.list_sources(arguments.data, arguments.match)
    methods = sizes.make_methods(RealTimeSharpener(arguments.checkpoint), arguments.slow)
    figures = sizes.measure(sources, methods, arguments.lines, arguments.frames)
    times = {name: sizes.cpu_milliseconds(make(3), 3, 2 if name in sizes.SLOW else 7) for name, make in methods.items()}
    described = describe_run(["python", "evaluate.py", "size", *argv], started)
    path = Path("results") / arguments.name / "README.md"
    print(sizes.write_report(path, figures, times, described, len(sources), arguments.frames))


def parse_arguments(argv):
    """The arguments of a measurement."""
    description = "Measure what a student gains over its input, against its peers, and how fast it is."
    parser = make_parser("", description, measures=True)
    parser.epilog = "`evaluate.py COMMAND --help` tells of the others: compare, sheets, subjective, speed and size."
    parser.add_argument("--device", default="auto", help="auto, openvino, cpu, cuda or mps")
    parser.add_argument("--strength", type=parse_amount, default=1.0, help="see inference.py (default: 1)")
    parser.add_argument("--crisp", type=parse_amount, help="measure the student at this strength too")
    parser.add_argument("--name", help="the report's folder under results/ (default: latest, or quick)")
    parser.add_argument("--quick", action="store_true", help="a glance, under a minute")
    parser.add_argument("--match", nargs="+", default=["*"], help="only files of --data whose names fit a pattern")
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="default: all")
    parser.add_argument("--share", type=float, default=1.0, help="measure only this share of all conditions")
    choices = conditions.CODECS
    parser.add_argument("--codecs", nargs="+", choices=choices, default=choices, help="camera and call: only these")
    choices = (*FILTERS, *NETWORKS)
    parser.add_argument("--peers", nargs="+", choices=choices, metavar="PEER", help="default: all filters")
    arguments = parser.parse_args(argv)
    if arguments.match != ["*"] and not arguments.data:
        parser.error("--match chooses among the files of --data: name a folder")
    arguments.name = arguments.name or ("quick" if arguments.quick else "latest")
    return arguments


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    commands = {"compare": run_comparison, "sheets": run_sheets, "subjective": run_study}
    commands |= {"speed": run_speed, "size": run_size}
    try:
        if argv and argv[0] in commands:
            commands[argv[0]](argv[1:])
        else:
            measure(parse_arguments(argv), ["python", "evaluate.py", *argv])
        return 0
    except (CheckpointError, DataError, DeviceError, MetricError, VideoError, OSError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: stopped; what was measured is kept, the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
