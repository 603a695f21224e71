"""The HTML page of a report: tables, rate curves and pictures to compare, all in one file that needs no network.

What the figures mean and how they are averaged is in report.py; how they are laid out is in templates/report.html.
"""

import base64
import io
import itertools
import json
import re
import shlex
from html import escape
from pathlib import Path

import jinja2
import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from benchmark import report as tables
from benchmark.report import METRICS, PROTOCOLS, STUDENT, UNIT, Table
from utils import atomic_path

CURVE_METRICS = ("psnr_y", "ssim_y", "vmaf_neg")
CONDITION_METRICS = (*tables.SUMMARY_METRICS["real"], *CURVE_METRICS, "jod")
SHOWN_CURVES = 6  # more hide one another; the others can be switched on
ENLARGEMENTS = {"fit": "fitted to the page", "1": "pixel for pixel"} | {n: f"{n} times, pixels" for n in "248"}


def write_report(report, folder):
    """Write report.json and report.html, one file with everything inside, to the folder with the report's pictures."""
    with atomic_path(folder / "report.json") as temporary:
        temporary.write_text(json.dumps(report, allow_nan=False), encoding="utf-8")
    with atomic_path(folder / "report.html") as temporary:
        temporary.write_text(render_page(report, folder), encoding="utf-8")


def render_page(report, folder):
    """Return the page of a report whose pictures lie in `folder`."""
    table = tables.to_table(report["records"])
    names = tables.method_names(report)
    return load_template("report.html").render(
        vars(tables),
        report=report,
        names=names,
        protocols=_protocols(table),
        tiles=_tiles(report, table),
        summary=tables.summary_tables(report, table),
        below=_below_tables(table, names),
        curves=_curves(table, names),
        axes=AXES,
        markers=[MARKERS[index % len(MARKERS)][1] for index in range(len(names))],
        series=SERIES,
        shown=_shown_at_first(names),
        conditions=_condition_tables(table, names),
        condition_metrics=tables.measured(table, CONDITION_METRICS),
        harm_metrics=tables.measured(table, tables.HARM_METRICS),
        enlargements=ENLARGEMENTS,
        crops=[_with_pictures(case, folder, names, table) for case in report["crops"]],
        worst=[_with_pictures(case, folder, names, table) for case in report["worst"]],
        command=shlex.join(report["command"]),
        training=json.dumps(report["checkpoint"].get("meta"), ensure_ascii=False, indent=1),
    )


def load_template(name, **filters):
    """Load a template from templates/; HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= filters
    return environment.get_template(name)


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def _protocols(table):
    """How much was measured in each protocol, in the order of `PROTOCOLS`."""
    counts = table.groupby("protocol").agg(things=("name", "nunique"), conditions=("condition", "nunique"))
    counts = counts.to_dict("index")
    return {
        protocol: {"title": title, "thing": thing, **counts[protocol]}
        for protocol, (title, thing, _) in PROTOCOLS.items()
        if protocol in counts
    }


def _tiles(report, table):
    """The student's main figures with their intervals, over the first protocol that was measured."""
    protocol = next(protocol for protocol in PROTOCOLS if (table["protocol"] == protocol).any())
    chosen = tables.of_protocol(table, protocol)
    below = tables.share_below(chosen)
    tiles = []
    for metric in tables.measured(chosen, tables.SUMMARY_METRICS[protocol])[:4]:
        changes = tables.unit_changes(chosen, STUDENT, metric)
        value = tables.format_change(metric, changes["change"].mean())
        interval = tables.format_interval(metric, *tables.interval_over_names(changes))
        notes = [f"95 % interval {interval}"]
        if metric in below:
            notes.append(f"{tables.format_share(below.at[STUDENT, metric])} of frames below the input")
        tiles.append((tables.heading(metric), value, notes))
    time = next(method["ms_1080p"] for method in report["methods"] if method["name"] == STUDENT)
    if time:
        notes = [f"{1000 / time:.0f} frames/s", report["checkpoint"]["engine"]]
        tiles.append(("ms for a 1080p frame", tables.format_milliseconds(time), notes))
    return {"title": PROTOCOLS[protocol][0].lower(), "figures": tiles}


def _below_tables(table, names):
    """For each protocol with ground truth the share of frames that each method makes worse than the input."""
    found = []
    for protocol, (title, *_) in PROTOCOLS.items():
        below = tables.share_below(tables.of_protocol(table, protocol))
        rows = [
            [name, *(tables.Cell("–" if share != share else tables.format_share(share)) for share in below.loc[name])]
            for name in names
            if name in below.index and name != "input"
        ]
        if rows:
            columns = ["method", *(METRICS[metric].label for metric in below)]
            found.append(Table(f"{title}: share of frames below the input", columns, rows))
    return found


def _condition_tables(table, names):
    """Levels of the input and changes of the methods: list of (protocol, metric, tables by category and condition).

    The list of tables is empty for a metric that only another protocol has.
    """
    found = []
    for protocol, metric in itertools.product(_protocols(table), tables.measured(table, CONDITION_METRICS)):
        chosen = table[(table["protocol"] == protocol) & (table["metric"] == metric)]
        keys = ("category", "condition") if len(chosen) else ()
        found.append((protocol, metric, [_condition_table(chosen, metric, key, names) for key in keys]))
    return found


def _condition_table(table, metric, key, names):
    columns = [name for name in names if name in set(table["method"])]
    rows = []
    for value, part in table.groupby(key, sort=False):
        cells = tables.metric_cells(*tables.summarise(tables.measured_everywhere(part), [metric]), metric)
        rows.append([value, *(cells.get(name, tables.Cell("–")) for name in columns)])
    return Table(f"{tables.heading(metric)} by {key}", [key, *columns], rows)


# ----------------------------------------------------------------------------------------------------------------------
# Rate curves, as SVG that takes colours and font from the page

INK, MUTED, RULE = "#1a0001", "#1a0002", "#1a0003"  # stand-ins for colours that the page defines
SERIES = 10  # colours of methods that the page defines
MARKERS = ("o●", "s■", "^▲", "D◆", "v▼", "P✚", "X✖")  # matplotlib's name, and as text
AXES = {
    "qp": ("against QP", "QP"),
    "kbps": ("against kbit/s, constant QP", "kbit/s"),
    "bitrate": ("against kbit/s, rate control", "kbit/s"),
}
PLOT_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 10.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


def _shown_at_first(names):
    """The methods whose curves are shown at first: the input, the student and its variants, then the others."""
    first = ["input", *(name for name in names if name.startswith(STUDENT))]
    return (first + [name for name in names if name not in first])[:SHOWN_CURVES]


def _curves(table, names):
    """Rate-quality curves: list of (metric, axis, one SVG for each codec and scale)."""
    points = tables.rate_points(table[table["metric"].isin(CURVE_METRICS)])
    panels = []
    for metric, axis in itertools.product(tables.measured(points, CURVE_METRICS), AXES):
        chosen = points[(points["metric"] == metric) & (points["axis"] == axis)]
        by_codec = chosen.groupby(["codec", "scale"], sort=False)
        plots = [_curves_plot(part, metric, axis, codec, scale, names) for (codec, scale), part in by_codec]
        if plots:
            panels.append((metric, axis, plots))
    return panels


def _curves_plot(points, metric, axis, codec, scale, names):
    """Rate-quality curves of one codec and scale: levels above, changes below.

    The vertical axes fit the methods that are shown at first; others may leave them.
    """
    title = f"{codec}, scaled down by {scale:g}" if scale > 1 else f"{codec}, full size"
    label = f"{METRICS[metric].label} {AXES[axis][0]}, {title}: levels and changes of each method"
    with matplotlib.rc_context({**PLOT_STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(5, 4.9), layout="constrained")  # 360 points wide, a phone's width in CSS pixels
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 2))
        shown = _shown_at_first(names)
        for name in sorted(points["method"].unique(), key=lambda name: name not in shown):
            curve, index = points[points["method"] == name], names.index(name)
            look = {"color": _colour(index), "marker": MARKERS[index % len(MARKERS)][0], "gid": f"series-{index}"}
            for plot, column in ((upper, "level"), (lower, "change")):
                if name not in shown:
                    plot.set_ylim(plot.get_ylim())
                plot.plot(curve["x"], curve[column], **look)
        upper.set_title(title)
        upper.set_ylabel(tables.heading(metric))
        lower.set_ylabel("change")
        lower.set_xlabel(AXES[axis][1])
        lower.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
        if axis == "qp":
            lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            lower.set_xscale("log")
            lower.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            lower.xaxis.set_minor_locator(NullLocator())
            lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        return _svg(figure, label)


def _colour(index):
    return f"#5e{index % SERIES:02x}01"


def _svg(figure, label):
    """A figure as an `<svg>` element with the page's colours and font, without a fixed size."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue().partition("<svg")[2]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", "<svg" + svg, flags=re.DOTALL)
    svg = re.sub(r'id="(series-\d+)"', r'class="\1"', svg)
    svg = re.sub(r'\sid="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)  # those that are left are referred to
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    colours = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)"}
    for stand_in, colour in (colours | {_colour(i): f"var(--series-{i})" for i in range(SERIES)}).items():
        svg = svg.replace(stand_in, colour)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{escape(label)}"', svg, count=1)


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def _with_pictures(case, folder, names, table):
    """A crop or worst case of a report with its ``pictures``: method, data URI (WebP), PSNR and SSIM of the frame."""
    figures = table[(table[UNIT] == [case[key] for key in UNIT]).all(axis=1) & (table["frame"] == case["frame"])]
    pictures = []
    for name in ("truth", *names):
        if name in case["files"]:
            chosen = figures[figures["method"] == name].set_index("metric")["level"]
            texts = [tables.format_level(metric, chosen[metric]) for metric in ("psnr_y", "ssim_y") if metric in chosen]
            buffer = io.BytesIO()
            Image.open(folder / case["files"][name]).save(buffer, "WEBP", quality=90)
            uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            pictures.append({"name": name, "uri": uri, "figures": " dB / ".join(texts)})
    return {**case, "where": f"{case['name']}, {case['condition']}", "pictures": pictures}
