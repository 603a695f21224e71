"""Measure what a student gains over its input, beside other methods, and how fast it is.

    python evaluate.py                            # pictures and pans that the packages ship: no download
    python evaluate.py --quick                    # a few pictures, under a minute
    python evaluate.py --data FOLDER              # your own pictures and videos, one sub-folder a category
    python evaluate.py --checkpoint FILE --name mine
    python evaluate.py compare results/a/report.json results/b/report.json
    python evaluate.py sheets --data FOLDER       # a page of crops under letters, for viewers; --tally sums up
    python evaluate.py speed                      # milliseconds by size and engine, beside peers, file to file
    python evaluate.py size --data FOLDER         # 360, 540 and 720 lines brought to full size, beside other scalers

A run writes results/NAME/report.json and report.html. It can be stopped with Ctrl-C; the same command goes on.
"""

import argparse
import functools
import itertools
import sys
import time
from pathlib import Path

try:
    from benchmark import conditions, runner, sheets, speed
    from benchmark.metrics import MetricError
    from benchmark.page import write_report
    from benchmark.peers import BICUBIC, FILTERS, INPUT, NETWORKS, peer, student
    from benchmark.report import PROTOCOLS, STUDENT, compare, format_comparison, load_report, markdown_summary
except ModuleNotFoundError as error:
    sys.exit(f"evaluate.py needs the package {error.name}: pip install -r requirements-dev.txt")
from degradation import DataError
from images import VideoError
from inference import RealTimeSharpener, parse_amount
from runtime import RELEASED_STUDENT, CheckpointError, DeviceError

CACHE = "data/cache/benchmark"
OWN_SIZE = [name for name in PROTOCOLS if name not in conditions.LINES]  # protocols whose input has the truth's size
SCALERS = [BICUBIC.name, *(name for name in (*FILTERS, *NETWORKS) if name.startswith(("FFmpeg", "realesr-")))]


def choose_units(arguments):
    """Return the units (see `conditions.Unit`) that a command line asks for, or raise `DataError` if nothing fits."""
    sources = conditions.list_sources(arguments.data, arguments.match)
    if arguments.quick:
        units = conditions.image_units(sources, ("clean", conditions.DEFAULT_CONDITION))
    else:
        by_protocol = [make(sources) for name, make in conditions.UNITS.items() if name in arguments.protocol]
        units = conditions.draw_units(itertools.chain(*by_protocol), arguments.share)
    if not units:
        raise DataError("nothing fits: image needs pictures, real, x4 and 360p to 720p videos; --share draws only some")
    return units


def choose_methods(sharpener, arguments):
    """Return the methods that a command line asks for, in order of display."""
    methods = [INPUT, student(sharpener, STUDENT, sharpener.strength)]
    if arguments.crisp:
        methods.append(student(sharpener, f"{STUDENT}, crisp", arguments.crisp))
    return methods + [peer(name, arguments.device) for name in arguments.peers]


def measure(argv, command="", protocols=OWN_SIZE, peers=tuple(FILTERS)):
    """Run the benchmark, write its report and page, and print its tables."""
    parser = make_parser(command, "Measure what a student gains over its input, against its peers.")
    parser.epilog = "`evaluate.py COMMAND --help` tells of the others: compare, sheets, speed and size."
    add_methods(parser, peers)
    name = command or "latest"
    parser.add_argument("--name", help=f"the report's folder under results/ (default: {name})")
    if not command:
        parser.add_argument("--quick", action="store_true", help="a few pictures, under a minute, to quick/")
    parser.add_argument(
        "--protocol", nargs="+", choices=PROTOCOLS, default=protocols, help=f"default: {', '.join(protocols)}"
    )
    parser.add_argument("--share", type=float, default=1.0, help="measure only this share of all conditions")
    arguments = parser.parse_args(argv, argparse.Namespace(quick=False))
    if arguments.quick:
        arguments.peers, name = ["unsharp mask"], "quick"

    started = time.perf_counter()
    sharpener = RealTimeSharpener(arguments.checkpoint, arguments.device)
    methods = choose_methods(sharpener, arguments)
    records, units = runner.run(choose_units(arguments), methods, CACHE, thorough=not arguments.quick)
    folder = Path("results") / (arguments.name or name)
    crops = runner.write_crops(units, [m for m in methods if not m.is_slow], folder)
    enlarges = {unit.protocol for unit in units} <= {*conditions.LINES}
    times = speed.time_methods(methods if enlarges else methods[1:], "360p" if enlarges else "1080p")
    report = {
        "name": folder.name,
        **runner.describe_run([*command.split(), *argv], sharpener, started),
        "methods": [
            {"name": m.name, "description": m.description, "ms_1080p": round(times.get(m.name, 0.0), 2)}
            for m in methods
        ],
        "records": records,
        "crops": crops,
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


def run_sheets(argv):
    """``evaluate.py sheets``: make blind sheets of real clips, or sum up viewers' scores."""
    parser = make_parser("sheets", "The same crops of real clips, at their own size, by several methods under letters.")
    add_methods(parser, ["unsharp mask, strong", "RCAS"])
    parser.add_argument("folder", nargs="?", default="results/sheets", help="their folder (default: results/sheets)")
    parser.add_argument("--tally", nargs="+", metavar="CSV", help="viewers' copies of scores.csv: sum them up instead")
    arguments = parser.parse_args(argv)
    if arguments.tally:
        print(sheets.tally(arguments.folder, arguments.tally, STUDENT))
        return
    methods = choose_methods(RealTimeSharpener(arguments.checkpoint, arguments.device), arguments)
    scenes = []
    for unit in conditions.real_units(conditions.list_sources(arguments.data, arguments.match)):
        with runner.leave_out(unit):
            crops = runner.cut_crops(conditions.make_sample(unit), methods, count=2)
            scenes += [(f"{unit.source.name}, {number}", pictures) for number, (_, pictures) in enumerate(crops, 1)]
    if not scenes:
        raise DataError("sheets show real clips: name a folder with videos by --data")
    sheets.make_sheets(arguments.folder, scenes)
    print(f"{len(scenes)} sheets: {arguments.folder}/index.html. Keep key.json, which says what the letters mean.")


def run_speed(argv):
    """``evaluate.py speed``: measure times only, and write speed.json and README.md."""
    parser = make_parser("speed", "How long a frame takes: by size and engine, beside peers, from file to file.")
    add_student(parser)
    parser.add_argument("--sizes", nargs="+", choices=speed.SIZES, help="of the engines' frames (default: all)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure, at least three runs (default: 2)")
    parser.add_argument("--networks", action="store_true", help="measure super-resolution networks too; takes minutes")
    parser.add_argument("--short", action="store_true", help="the student alone and files, 720p, 1080p and 2160p")
    parser.add_argument("--name", default="speed", help="the folder under results/ (default: speed)")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    sharpener = RealTimeSharpener(arguments.checkpoint, arguments.device)
    sizes = arguments.sizes or (("720p", "1080p", "2160p") if arguments.short else speed.SIZES)
    files = dict.fromkeys(sizes, 20) if arguments.short else {"1080p": 150}
    names = [] if arguments.short else [*FILTERS, *(NETWORKS if arguments.networks else ())]
    peers = [peer(name, arguments.device) for name in names]
    measured = speed.measure(sharpener, arguments.device, sizes, arguments.seconds, peers, files)
    report = {**runner.describe_run(["speed", *argv], sharpener, started), **measured}
    folder = Path("results") / arguments.name
    print(f"{speed.write_report(report, folder)}\nwritten: {folder}/speed.json and README.md")


def make_parser(command, description):
    """Return a parser of a command's arguments."""
    return argparse.ArgumentParser(prog=f"evaluate.py {command}".strip(), description=description)


def add_student(parser):
    """Add the options that choose a student and what runs it."""
    parser.add_argument("--checkpoint", default=str(RELEASED_STUDENT), help="student (default: the released one)")
    parser.add_argument("--device", default="auto", help="auto, openvino, cpu, cuda or mps")


def add_methods(parser, peers):
    """Add the options that choose pictures, videos and methods."""
    add_student(parser)
    parser.add_argument("--data", help="folder of pictures and videos, one sub-folder a category")
    parser.add_argument("--match", nargs="+", default=["*"], help="only files of --data whose names fit a pattern")
    parser.add_argument("--crisp", type=parse_amount, help="take the student at this strength, too")
    choices, text = (*FILTERS, *NETWORKS, BICUBIC.name), f"instead of: {'; '.join(peers)}"
    parser.add_argument("--peers", nargs="+", choices=choices, metavar="PEER", default=peers, help=text)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    run_size = functools.partial(measure, command="size", protocols=conditions.LINES, peers=SCALERS)
    commands = {"compare": run_comparison, "sheets": run_sheets, "speed": run_speed, "size": run_size}
    command, options = (commands[argv[0]], argv[1:]) if argv and argv[0] in commands else (measure, argv)
    try:
        command(options)
        return 0
    except (CheckpointError, DataError, DeviceError, ImportError, MetricError, VideoError, OSError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: stopped; what was measured is kept, the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
