"""Measure what a student gains over its input, against what people use today, and how fast it is.

    python evaluate.py                            # pictures and pans that the packages ship: no download
    python evaluate.py --quick                    # a glance at pictures, under a minute
    python evaluate.py --data FOLDER              # your own pictures and videos, one sub-folder a category
    python evaluate.py --checkpoint FILE --name mine
    python evaluate.py compare results/a/report.json results/b/report.json
    python evaluate.py sheets --data FOLDER       # a page of crops under letters, for viewers; --tally sums up
    python evaluate.py speed                      # milliseconds by size and engine, beside peers, file to file
    python evaluate.py size --data FOLDER         # 360, 540 and 720 lines shown at full size, beside other scalers

A run writes results/NAME/report.json and report.html. It can be stopped with Ctrl-C; the same command goes on.
What is measured, on what, is in benchmark/conditions.py.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

try:
    from benchmark import conditions, runner, sheets, sizes, speed
    from benchmark.metrics import MetricError
    from benchmark.page import write_report
    from benchmark.peers import FILTERS, NETWORKS, Peer, peers
    from benchmark.report import PROTOCOLS, STUDENT, compare, format_comparison, load_report, markdown_summary
    from benchmark.runner import describe_run, file_digest
except ModuleNotFoundError as error:
    sys.exit(f"evaluate.py needs the package {error.name}: pip install -r requirements-dev.txt")
from degradation import DataError
from images import VideoError
from inference import RealTimeSharpener, parse_amount
from runtime import RELEASED_STUDENT, CheckpointError, DeviceError

CACHE = "data/cache/benchmark"


def choose_units(arguments):
    """Return the units (see `conditions.Unit`) that a command line asks for; a DataError says that nothing fits."""
    sources = conditions.list_sources(arguments.data, arguments.match)
    if arguments.quick:
        units = conditions.image_units(sources, ("clean", conditions.DEFAULT_CONDITION))
    else:
        by_protocol = [make(sources) for name, make in conditions.UNITS.items() if name in arguments.protocol]
        units = conditions.draw_units(itertools.chain(*by_protocol), arguments.share)
    if not units:
        raise DataError("nothing fits: real and x4 measure videos, image measures pictures, --share draws some of them")
    return units


def choose_methods(sharpener, peer_names, device="auto", crisp=None):
    """Return the input, the student (also at strength `crisp` if given) and peers as `Peer`, in order of display."""
    digest = file_digest(sharpener.checkpoint)

    def student(name, strength):
        def of_a_clip(scale):
            sharp = None

            def sharpen(y, uv, full_range):
                nonlocal sharp
                sharp = sharpener.sharpen_planes(y, uv, full_range, strength, after=sharp)
                return sharp

            return sharpen

        description = f"strength {strength:g}, steady; checkpoint {digest[:12]}; {sharpener.engine.identity}"
        return Peer(name, description, of_a_clip)

    methods = [Peer("input", "as it arrives, enlarged with Lanczos", lambda scale: runner.as_it_came)]
    methods.append(student(STUDENT, sharpener.strength))
    if crisp:
        methods.append(student(f"{STUDENT}, crisp", crisp))
    return methods + peers(peer_names, device)


# ----------------------------------------------------------------------------------------------------------------------
# Commands


def measure(argv):
    """Run the benchmark, write its report and page, and print its tables."""
    parser = make_parser("", "Measure what a student gains over its input, against its peers.")
    parser.epilog = "`evaluate.py COMMAND --help` tells of the others: compare, sheets, speed and size."
    add_data(parser)
    parser.add_argument("--device", default="auto", help="auto, openvino, cpu, cuda or mps")
    parser.add_argument("--crisp", type=parse_amount, help="measure the student at this strength too")
    parser.add_argument("--name", help="the report's folder under results/ (default: latest, or quick)")
    parser.add_argument("--quick", action="store_true", help="a glance at pictures, under a minute")
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="default: all")
    parser.add_argument("--share", type=float, default=1.0, help="measure only this share of all conditions")
    choices = (*FILTERS, *NETWORKS)
    parser.add_argument("--peers", nargs="+", choices=choices, metavar="PEER", help="default: all filters")
    arguments = parser.parse_args(argv)

    started = time.perf_counter()
    sharpener = RealTimeSharpener(arguments.checkpoint, arguments.device)
    peer_names = ["unsharp mask"] if arguments.quick else arguments.peers or list(FILTERS)
    methods = choose_methods(sharpener, peer_names, arguments.device, arguments.crisp)
    units = choose_units(arguments)
    records, units = runner.run(units, methods, CACHE, thorough=not arguments.quick)
    folder = Path("results") / (arguments.name or ("quick" if arguments.quick else "latest"))
    crops = runner.write_crops(units, [m for m in methods if not m.is_slow], folder)
    times = {method.name: 0.0 if method.name == "input" else speed.time_peer(method) for method in methods}
    report = {
        "name": folder.name,
        **describe_run(["python", "evaluate.py", *argv], started),
        "checkpoint": {"checkpoint": arguments.checkpoint, "sha256": file_digest(sharpener.checkpoint)},
        "methods": [
            {"name": m.name, "description": m.description, "ms_1080p": round(times[m.name], 2)} for m in methods
        ],
        "records": records,
        "crops": crops,
    }
    write_report(report, folder)
    print(markdown_summary(report))
    print(f"written: {folder / 'report.json'} and {folder / 'report.html'}")


def run_comparison(argv):
    """``evaluate.py compare A.json B.json``."""
    parser = make_parser("compare", "What became better or worse from A to B.", measures=False)
    parser.add_argument("a", help="report.json of one run")
    parser.add_argument("b", help="report.json of another")
    arguments = parser.parse_args(argv)
    a, b = load_report(arguments.a), load_report(arguments.b)
    print(format_comparison(compare(a, b), a, b))


def run_sheets(argv):
    """``evaluate.py sheets``: make blind sheets of real clips, or sum up viewers' scores."""
    parser = make_parser("sheets", "The same crops of real clips, at their own size, by several methods under letters.")
    add_data(parser)
    parser.add_argument("folder", nargs="?", default="results/sheets", help="their folder (default: results/sheets)")
    parser.add_argument("--tally", nargs="+", metavar="CSV", help="viewers' copies of scores.csv: sum them up instead")
    parser.add_argument("--crisp", type=parse_amount, help="show the student at this strength too")
    parser.add_argument("--peers", nargs="+", choices=(*FILTERS, *NETWORKS), default=["unsharp mask, strong", "RCAS"])
    arguments = parser.parse_args(argv)
    if arguments.tally:
        print(sheets.tally(arguments.folder, arguments.tally, STUDENT))
        return
    methods = choose_methods(RealTimeSharpener(arguments.checkpoint), arguments.peers, crisp=arguments.crisp)
    scenes = []
    for unit in conditions.real_units(conditions.list_sources(arguments.data, arguments.match)):
        try:
            sample = conditions.make_sample(unit)
        except (DataError, VideoError) as error:
            print(f"left out: {unit.source.name}: {error}", file=sys.stderr)
            continue
        crops = sheets.cut_scenes(sample, {method.name: method.at(1) for method in methods})
        scenes += [(f"{unit.source.name}, {number}", scene) for number, scene in enumerate(crops, 1)]
    if not scenes:
        raise DataError("sheets show real clips: name a folder with videos by --data")
    sheets.make_sheets(arguments.folder, scenes)
    print(f"{len(scenes)} sheets: {arguments.folder}/index.html. Keep key.json, which says what the letters mean.")


def run_speed(argv):
    """``evaluate.py speed``: measure times only, and write speed.json, speed.png and README.md."""
    parser = make_parser("speed", "How long a frame takes: by size and engine, beside peers, from file to file.")
    parser.add_argument("--device", default="auto", help="auto (every engine that works), openvino, cpu, cuda or mps")
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
    others = peers(names, arguments.device)
    measured = speed.measure(sharpener, arguments.device, sizes, arguments.seconds, others, files)
    report = {
        **describe_run(["python", "evaluate.py", "speed", *argv], started),
        "checkpoint": {"name": sharpener.checkpoint.name, "sha256": file_digest(sharpener.checkpoint)},
        **measured,
    }
    folder = Path("results") / arguments.name
    print(f"{speed.write_report(report, folder)}\nwritten: {folder}/speed.json, speed.png and README.md")


def run_size(argv):
    """``evaluate.py size``: measure clips of few lines brought to full size, and write README.md."""
    parser = make_parser("size", "What a call of few lines looks like at full size, beside other scalers.")
    add_data(parser)
    parser.add_argument("--lines", nargs="+", choices=sizes.SCALES, default=list(sizes.SCALES), help="default: all")
    parser.add_argument("--frames", type=int, default=2, help="measured of each stream (default: 2)")
    parser.add_argument("--name", default="size", help="the folder under results/ (default: size)")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    sources = conditions.list_sources(arguments.data, arguments.match)
    methods = sizes.make_methods(RealTimeSharpener(arguments.checkpoint))
    figures = sizes.measure(sources, methods, arguments.lines, arguments.frames)
    times = {name: sizes.time_method(method) for name, method in methods.items()}
    described = describe_run(["python", "evaluate.py", "size", *argv], started)
    path = Path("results") / arguments.name / "README.md"
    print(sizes.write_report(path, figures, times, described, sources, arguments.frames))


def make_parser(command, description, measures=True):
    """Return a parser of a command's arguments; what `measures` takes a student."""
    parser = argparse.ArgumentParser(prog=f"evaluate.py {command}".strip(), description=description)
    if measures:
        parser.add_argument("--checkpoint", default=str(RELEASED_STUDENT), help="student (default: the released one)")
    return parser


def add_data(parser):
    """Add the options that choose pictures and videos."""
    parser.add_argument("--data", help="folder of pictures and videos, one sub-folder a category")
    parser.add_argument("--match", nargs="+", default=["*"], help="only files of --data whose names fit a pattern")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
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
