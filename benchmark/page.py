"""The HTML page of a report: tables, plots, pictures to compare, all in one file that asks nothing of a network.

`write_report` turns ``results/NAME/report.json`` into ``report.html`` beside it. What the figures mean and how they are
averaged is in report.py; the page's frame, style and script lie in templates/.
"""

import base64
import io
import json
import re
import shlex
import zlib
from html import escape
from pathlib import Path
from string import Template

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image, UnidentifiedImageError

from benchmark.metrics import bootstrap_interval
from benchmark.report import (
    HARM_METRICS,
    MAIN_METRICS,
    METRICS,
    NO_BREAK,
    PROTOCOLS,
    STUDENT,
    SUMMARY_METRICS,
    UNIT,
    ReportError,
    best_methods,
    by_group,
    by_unit,
    clusters,
    comparable,
    count_of,
    finite_mean,
    format_change,
    format_interval,
    format_level,
    format_milliseconds,
    format_share,
    frame_values,
    harm,
    heading,
    is_worse,
    load_report,
    measured,
    method_names,
    of_protocol,
    rate_points,
    summarise,
    unit_changes,
)
from utils import atomic_path, first_line

TEMPLATES = Path(__file__).resolve().parent / "templates"

# ----------------------------------------------------------------------------------------------------------------------
# Plots, as SVG that takes colours and font from the page

INK, MUTED, RULE, WORSE = "#1a0001", "#1a0002", "#1a0003", "#1a0004"  # stand-ins for colours that the page defines
SERIES = 10  # colours of methods that the page defines
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
PLOT_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
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
AXES = {
    "qp": ("against QP", "QP"),
    "kbps": ("against kbit/s, constant QP", "kbit/s"),
    "bitrate": ("against kbit/s, rate control", "kbit/s"),
}


def _colour(index):
    return f"#5e{index % SERIES:02x}01"


def _marker(index):
    return list(MARKERS)[index % len(MARKERS)]


def _svg(figure, label):
    """A figure as an `<svg>` element: the page's colours and font, no fixed size, and no names but its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r'id="(series-\d+)"', r'class="\1"', svg)
    # What is referred to is named by a hash of its content, so equal names mean equal things, but a reference into
    # another plot finds nothing while that one is hidden.
    svg = re.sub(r'\sid="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)
    svg = re.sub(r'(\sid="|url\(#|xlink:href="#)', rf"\g<1>plot{zlib.crc32((label + svg).encode())}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    colours = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)", WORSE: "var(--worse)"}
    colours |= {_colour(i): f"var(--series-{i})" for i in range(SERIES)}
    for stand_in, colour in colours.items():
        svg = svg.replace(stand_in, colour)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{escape(label)}"', svg, count=1)
    return re.sub(r"\s*\n\s*", " ", svg)


def _plain_ticks(axis, steps=(1, 2, 5)):
    """Label a logarithmic axis at round numbers, written out."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))


def _curves_plot(panel, axis, metric, title, names, main):
    """One codec's rate-quality curves, levels above and changes below; `panel` as `rate_points` has it.

    The vertical axes are made for the methods in `main`; another one may leave them.
    """
    figure = Figure(figsize=(5, 4.9), layout="constrained")  # 360 points wide, a phone's width in CSS pixels
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    for name in sorted(panel[axis], key=lambda name: name not in main):
        index = names.index(name)
        x, levels, changes = zip(*panel[axis][name], strict=True)
        look = {"color": _colour(index), "marker": _marker(index), "gid": f"series-{index}"}
        for plot, values in ((upper, levels), (lower, changes)):
            if name not in main:
                plot.set_ylim(plot.get_ylim())
            plot.plot(x, values, **look)
    upper.set_title(title)
    upper.set_ylabel(heading(metric))
    lower.set_ylabel("change")
    lower.set_xlabel(AXES[axis][1])
    lower.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    if axis != "qp":
        lower.set_xscale("log")
        _plain_ticks(lower.xaxis)
    else:
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure, f"{METRICS[metric].label} {AXES[axis][0]}, {title}: levels and changes of each method")


def _cost_plot(points, metric, names):
    """Mean change of each method over its time for a frame; `points` is method -> (ms, change)."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    times, changes = zip(*points.values(), strict=True)
    axes.set_xlim(min(*times, 20) / 1.8, max(*times, 40) * 3)
    span = max(max(changes), 0) - min(min(changes), 0) or 1
    axes.set_ylim(min(min(changes), 0) - 0.15 * span, max(max(changes), 0) + 0.15 * span)
    axes.axvline(1000 / 30, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    real_time = axes.annotate(
        "30 frames/s",
        (1000 / 30, 0),
        (3, 3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=MUTED,
    )
    for name, (time, change) in points.items():
        index = names.index(name)
        axes.plot(time, change, color=_colour(index), marker=_marker(index), markersize=7)
    low, high = axes.get_xlim()
    _plain_ticks(axes.xaxis, (1, 3) if high / low < 1000 else (1,))
    axes.set_xlabel("ms for a 1080p frame")
    axes.set_ylabel(f"change of {heading(metric)}")

    FigureCanvasAgg(figure)  # knows how large text is
    figure.draw_without_rendering()
    taken = [real_time.get_window_extent()]
    for name, (time, change) in points.items():
        text = axes.annotate(name, (time, change), (0, 0), textcoords="offset points")
        for offset, side, height in _label_places():
            text.set(position=offset, horizontalalignment=side, verticalalignment=height)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken) and axes.bbox.containsx(box.x1):
                break
        taken.append(text.get_window_extent())
    return _svg(figure, f"Mean change of {METRICS[metric].label} over the milliseconds that a 1080p frame takes")


def _label_places():
    """Places of a label around its point, in points, nearest first: (offset, horizontal, vertical alignment)."""
    for step in range(4):
        away = 8 + 12 * step
        yield (8, 0 if step == 0 else away), "left", "center"
        yield (8, -away), "left", "center"
        yield (0, away), "center", "bottom"
        yield (0, -away), "center", "top"
        yield (-8, 0 if step == 0 else away), "right", "center"


def _distribution_plot(changes, metric, index):
    """The changes of all units, sorted, a bar each."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    values = sorted(changes, key=lambda change: METRICS[metric].sign * change)
    colours = [WORSE if METRICS[metric].sign * value < 0 else _colour(index) for value in values]
    axes.bar(range(len(values)), values, width=1 if len(values) > 60 else 0.8, color=colours)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.set_ylabel(f"change of {heading(metric)}")
    axes.set_xlabel("buckets, sorted")
    return _svg(figure, f"Change of {METRICS[metric].label} in each of {len(values)} buckets, sorted")


# ----------------------------------------------------------------------------------------------------------------------
# The page


def write_report(path):
    """Write ``report.html`` beside a report.json.

    Returns:
        Path of the page: one file with everything inside, pictures as WebP.

    Raises:
        ReportError: the report is not whole (see `load_report`), or one of its pictures is missing or unreadable.
    """
    path = Path(path)
    report = load_report(path)
    with matplotlib.rc_context(PLOT_STYLE):
        page = render_page(report, path.parent)
    output = path.with_suffix(".html")
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def read_template(name):
    """A file of templates/ as text."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def render_page(report, folder):
    """The page of a report whose pictures lie in `folder`, as a string; errors as `write_report`."""
    sections = [
        ("summary", "Summary", _summary_section(report)),
        ("curves", "Rate and quality", _curves_section(report)),
        ("cost", "Quality and cost", _cost_section(report)),
        ("harm", "Do no harm", _harm_section(report)),
        ("conditions", "Category and condition", _conditions_section(report)),
        ("pictures", "Before and after", _pictures_section(report, folder)),
        ("worst", "Worst cases", _worst_section(report, folder)),
        ("made", "How this was made", _made_section(report)),
    ]
    sections = [section for section in sections if section[2]]
    return Template(read_template("report.html")).substitute(
        title=escape(f"Sharpening video calls: {report['name']}"),
        style=read_template("report.css"),
        script=read_template("report.js"),
        header=_header(report),
        contents="".join(f'<a href="#{key}">{title}</a> ' for key, title, _ in sections),
        sections="\n".join(
            f'<section id="{key}"><h2>{title}</h2>\n{content}\n</section>' for key, title, content in sections
        ),
    )


def _header(report):
    parts = []
    for protocol, (_, noun) in PROTOCOLS.items():
        records = of_protocol(report, protocol)
        if records:
            units = by_unit(records)
            frames = sum(len(methods["input"]["frames"]) for methods in units.values())
            kinds = len({condition for *_, condition in units})
            things = len({name for _, _, name, _ in units})
            parts.append(
                f"{count_of(things, noun)} under {count_of(kinds, 'condition')} ({count_of(len(units), 'bucket')}, "
                f"{count_of(frames, 'frame')})"
            )
    methods = [name for name in method_names(report) if name != "input"]
    lead = f"{count_of(len(methods), 'method')} on {' and '.join(parts)}, against the original if it is known."
    return (
        f'<p class="kicker">Benchmark of the real-time sharpener</p><h1>Sharpening video calls: '
        f"{escape(report['name'])}</h1><p class=lead>{escape(lead)} All figures of a method are changes against "
        f"<em>input</em>, the picture as it arrives.</p>{_tiles(report)}"
    )


def _tiles(report):
    """The student's main figures with their intervals."""
    protocol = next(protocol for protocol in PROTOCOLS if of_protocol(report, protocol))
    records = of_protocol(report, protocol)
    tiles = []
    for metric in measured(records, SUMMARY_METRICS[protocol])[:4]:
        changes = unit_changes(records, STUDENT, metric)
        interval = f"95 % interval {format_interval(metric, *bootstrap_interval(clusters(changes)))}"
        share = harm(records, STUDENT, metric) if metric in HARM_METRICS else None
        below = f"{format_share(share['share'])} of frames below the input" if share else ""
        value = format_change(metric, finite_mean(changes.values()))
        tiles.append((heading(metric), value, interval, below))
    time = next((m.get("ms_1080p") for m in report["methods"] if m["name"] == STUDENT), None)
    if time:
        engine = report["checkpoint"].get("engine") or ""
        tiles.append(("ms for a 1080p frame", format_milliseconds(time), f"{1000 / time:.0f} frames/s", engine))
    cells = "".join(
        f"<div><dt>{escape(label)}</dt><dd><b>{escape(value)}</b><span>{escape(first)}</span>"
        f"<span>{escape(second)}</span></dd></div>"
        for label, value, first, second in tiles
    )
    where = PROTOCOLS[protocol][0]
    return f'<h2 class="tiles-title">{STUDENT}, mean change: {where.lower()}</h2><dl class="tiles">{cells}</dl>'


def _table(caption, columns, groups):
    """A table in its own scrolling box.

    Args:
        caption: text.
        columns: headings, text; the first is that of the rows' names.
        groups: list of (title or None, rows); a row is a list of cells, HTML `<td>` but for the first, which is text.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    bodies = []
    for title, rows in groups:
        lines = [f'<tr><th scope="row">{escape(first)}</th>{"".join(cells)}</tr>' for first, *cells in rows]
        if title:
            span = f'<th scope="rowgroup" class="group"><span>{escape(title)}</span></th>'
            lines.insert(0, f'<tr class="group">{span}<td colspan="{len(columns) - 1}"></td></tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table><caption>'
        f"{escape(caption)}</caption><thead><tr>{head}</tr></thead>{''.join(bodies)}</table></div>"
    )


def _cell(text, *classes):
    names = " ".join(name for name in classes if name)
    return f'<td class="{names}">{escape(text)}</td>' if names else f"<td>{escape(text)}</td>"


def _change_cell(metric, value, best):
    """A change: the best is bold, what is worse than the input red."""
    return _cell(format_change(metric, value), "best" if best else "", "worse" if is_worse(metric, value) else "")


def _result_rows(report, records, metrics):
    """Rows of a summary table: the input's levels, then each method's changes and its time."""
    times = {method["name"]: method.get("ms_1080p") or None for method in report["methods"]}
    rows = {row["method"]: row for row in summarise(records, [], metrics)}
    others = [name for name in method_names(report) if name in rows and name != "input"]
    best = {metric: best_methods({name: rows[name]["change"][metric] for name in others}, metric) for metric in metrics}
    fastest = min((times[name] for name in others if times.get(name)), default=None)
    lines = [["input", *(_cell(format_level(m, rows["input"]["level"][m]), "level") for m in metrics), _cell("–")]]
    for name in others:
        changes = rows[name]["change"]
        cells = [_change_cell(metric, changes[metric], name in best[metric]) for metric in metrics]
        time = times.get(name)
        lines.append([name, *cells, _cell(format_milliseconds(time), "best" if time and time == fastest else "")])
    return lines


def _summary_section(report):
    parts = []
    for protocol, (name, noun) in PROTOCOLS.items():
        records = of_protocol(report, protocol)
        if not records:
            continue
        titles = (name, f"{name}, where all methods were measured")
        for title, part in zip(titles, comparable(records), strict=False):
            metrics = measured(part, SUMMARY_METRICS[protocol])
            units = by_unit(part)
            groups = [(None, _result_rows(report, part, metrics))]
            key = {"image": "category", "camera": "camera"}.get(protocol)
            if key and title == name:
                groups = []
                for value in dict.fromkeys(record[key] for record in part):
                    chosen = [record for record in part if record[key] == value]
                    buckets = count_of(len(by_unit(chosen)), "bucket")
                    groups.append((f"{value}, {buckets}", _result_rows(report, chosen, metrics)))
            things = len({name for _, _, name, _ in units})
            caption = f"{title}: mean change over {count_of(things, noun)} in {count_of(len(units), 'bucket')}"
            columns = ["method", *(heading(metric) for metric in metrics), "ms at 1080p"]
            parts.append(_table(caption, columns, groups))
    note = (
        "The row <em>input</em> shows levels, the others changes against it. Bold: best of its column, and better than "
        "the input. Red: worse than the input. Of flicker, less is better. Methods too slow to be measured everywhere "
        "are compared in tables of their own."
    )
    return f'{"".join(parts)}<p class="note">{note}</p>'


def _switch(choices, panels):
    """Panels of which one is shown, as selectors say.

    Args:
        choices: dict of key -> (label, dict of value -> text).
        panels: list of (dict of key -> value, HTML).
    """
    selects = "".join(
        f'<label>{escape(label)} <select data-key="{key}">'
        + "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in values.items())
        + "</select></label>"
        for key, (label, values) in choices.items()
    )
    first = {key: next(iter(values)) for key, (_, values) in choices.items()}
    parts = []
    for values, content in panels:
        data = " ".join(f'data-{key}="{escape(value)}"' for key, value in values.items())
        parts.append(f'<div class="panel" {data}{"" if values == first else " hidden"}>{content}</div>')
    return f'<div class="switch"><p class="controls">{selects}</p>{"".join(parts)}</div>'


def _curves_section(report):
    records = of_protocol(report, "call")
    names = method_names(report)
    metrics = measured(records, MAIN_METRICS)
    # More than six curves hide one another: the others can be switched on.
    main = ["input", STUDENT]
    main += [name for name in names if name not in main and name.startswith(f"{STUDENT} ")]
    main += [name for name in names if name not in main][: 6 - len(main)]
    panels, axes = [], {}
    for metric in metrics:
        plots = rate_points(records, metric)
        for axis, (text, _) in AXES.items():
            drawn = [
                f"<figure>{_curves_plot(panel, axis, metric, _codec_title(*key), names, main)}</figure>"
                for key, panel in plots.items()
                if axis in panel
            ]
            if drawn:
                axes[axis] = text
                panels.append(({"metric": metric, "axis": axis}, f'<div class="plots">{"".join(drawn)}</div>'))
    if not panels:
        return ""
    legend = "".join(
        f'<label style="--colour:var(--series-{index % SERIES})"><input type="checkbox" data-series="series-{index}"'
        f'{" checked" if name in main else ""}> <i aria-hidden="true">{MARKERS[_marker(index)]}</i> {escape(name)}'
        "</label>"
        for index, name in enumerate(names)
    )
    choices = {"metric": ("Metric", {m: METRICS[m].label for m in metrics}), "axis": ("Drawn", axes)}
    return (
        f'<fieldset class="legend"><legend>Methods</legend>{legend}</fieldset>{_switch(choices, panels)}'
        '<p class="note">Above levels, below the change against the input at the same point. Means over clips; of '
        "kbit/s the geometric mean of what the clips took. The axes are made for the methods shown at first.</p>"
    )


def _codec_title(codec, scale):
    return f"{codec}, scaled down by {scale:g}" if scale != 1 else f"{codec}, full size"


def _cost_section(report):
    protocol = next((name for name in ("camera", "call", "x4", "image") if of_protocol(report, name)), None)
    if protocol is None:
        return ""
    records = comparable(of_protocol(report, protocol))[-1]
    times = {method["name"]: method.get("ms_1080p") for method in report["methods"]}
    names = method_names(report)
    plots = []
    for metric in measured(records, ("vmaf_neg", "psnr_y")):
        points = {
            row["method"]: (times[row["method"]], row["change"][metric])
            for row in summarise(records, [], [metric])
            if times.get(row["method"]) and row["change"][metric] is not None and row["method"] != "input"
        }
        if points:
            plots.append(f"<figure>{_cost_plot(points, metric, names)}</figure>")
    if not plots:
        return ""
    return (
        f'<div class="plots wide">{"".join(plots)}</div><p class="note">Mean change over the '
        f"{count_of(len(by_unit(records)), 'bucket')} where all methods were measured, over the time for one 1920x1080 "
        "frame on the machine named below. Above the line is better than the input.</p>"
    )


def _harm_section(report):
    parts = []
    for protocol, (title, _) in PROTOCOLS.items():
        records = of_protocol(report, protocol)
        metrics = measured(records, HARM_METRICS)
        if not metrics:
            continue
        rows = []
        total = len(by_unit(records))
        for name in method_names(report):
            buckets = sum(record["method"] == name for record in records)
            if buckets and name != "input":
                label = name if buckets == total else f"{name} ({buckets} of {total} buckets)"
                rows.append([label, *(_harm_cell(harm(records, name, metric), metric) for metric in metrics)])
        columns = ["method", *(METRICS[metric].label for metric in metrics)]
        parts.append(_table(f"{title}: share of frames below the input, and the worst bucket", columns, [(None, rows)]))
        plots = []
        for metric in measured(records, MAIN_METRICS):
            changes = list(unit_changes(records, STUDENT, metric).values())
            if changes:
                below = sum(METRICS[metric].sign * change < 0 for change in changes)
                plot = _distribution_plot(changes, metric, method_names(report).index(STUDENT))
                caption = f"{METRICS[metric].label}: {below} of {count_of(len(changes), 'bucket')} below the input"
                plots.append(f"<figure>{plot}<figcaption>{escape(caption)}</figcaption></figure>")
        parts.append(f"<h3>{title}: {STUDENT}, bucket by bucket</h3>")
        parts.append(f'<div class="plots">{"".join(plots)}</div>')
    if not parts:
        return ""
    limits = ", ".join(
        f"{METRICS[metric].tolerance:g} {METRICS[metric].unit}".strip() + f" of {METRICS[metric].label}"
        for metric in measured(report["records"], HARM_METRICS)
    )
    return (
        f"{''.join(parts)}<p class=note>A frame is below the input when it lost more than {escape(limits)}. A bucket "
        "is one clip or picture under one condition (codec and rate).</p>"
    )


def _harm_cell(found, metric):
    if found is None:
        return _cell("–")
    where = "no bucket lost"
    if found["worst"]:
        (_, _, name, condition), change = found["worst"]
        # A condition is not broken over lines.
        where = f"{format_change(metric, change)} {name}, {condition.replace(' ', NO_BREAK)}"
    return f'<td class="harm">{format_share(found["share"])}<small>{escape(where)}</small></td>'


def _conditions_section(report):
    protocols = {protocol: title for protocol, (title, _) in PROTOCOLS.items() if of_protocol(report, protocol)}
    present = measured(report["records"], (*SUMMARY_METRICS["real"], *MAIN_METRICS, "jod"))
    panels = []
    for protocol in protocols:
        for metric in present:
            panels.append(({"protocol": protocol, "metric": metric}, _condition_tables(report, protocol, metric)))
    choices = {
        "protocol": ("Measured on", protocols),
        "metric": ("Metric", {metric: METRICS[metric].label for metric in present}),
    }
    return _switch(choices, panels)


def _condition_tables(report, protocol, metric):
    """Levels of the input and changes of the methods, for each category and each condition."""
    records = of_protocol(report, protocol)
    if not measured(records, [metric]):
        return f'<p class="note">{escape(METRICS[metric].label)} was not measured here.</p>'
    names = [name for name in method_names(report) if any(record["method"] == name for record in records)]
    tables = []
    for key in ("category", "condition"):
        rows = []
        for (value,), methods in by_group(records, [key], [metric]).items():
            changes = {name: methods[name]["change"][metric] for name in names if name in methods and name != "input"}
            best = best_methods(changes, metric)
            cells = [_cell(format_level(metric, methods["input"]["level"][metric]), "level")]
            cells += [_change_cell(metric, changes.get(name), name in best) for name in names if name != "input"]
            rows.append([value, *cells])
        caption = f"{PROTOCOLS[protocol][0]}: {heading(metric)} by {key}"
        tables.append(_table(caption, [key, *names], [(None, rows)]))
    return "".join(tables)


def _inline_picture(folder, file):
    """A picture file as a data URI (WebP) with its size: (uri, width, height)."""
    try:
        with Image.open(folder / file) as picture:
            picture = picture.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ReportError(
            f"cannot read the picture {folder / file} ({first_line(error)}): keep the pictures beside report.json, or "
            "run the benchmark again"
        ) from error
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", *picture.size


def _picture(folder, file, alt, attributes=""):
    uri, width, height = _inline_picture(folder, file)
    return (
        f'<img {attributes} alt="{escape(alt)}" width="{width}" height="{height}" style="--width:{width}" '
        f'draggable="false" loading="lazy" src="{uri}">'
    )


def _picture_order(report, files):
    return sorted(files, key=["truth", *method_names(report)].index)


def _frame_figures(units, crop, name):
    """PSNR and SSIM of the frame that a crop shows, for its label; empty for the truth."""
    record = units.get(tuple(crop[key] for key in UNIT), {}).get(name)
    if record is None:
        return ""
    figures = [(metric, frame_values(record, metric).get(crop["frame"])) for metric in ("psnr_y", "ssim_y")]
    return " / ".join(
        f"{format_level(metric, value)}{' dB' if METRICS[metric].unit else ''}"
        for metric, value in figures
        if value is not None
    )


ENLARGEMENTS = {
    "fit": "fitted to the page",
    "1": "pixel for pixel",
    "2": "2 times, pixels",
    "4": "4 times, pixels",
    "8": "8 times, pixels",
}


def _options(values, chosen):
    return "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
        for value, text in values.items()
    )


def _pictures_section(report, folder):
    crops = report["crops"]
    if not crops:
        return ""
    units = by_unit(report["records"])
    names = _picture_order(report, {name for crop in crops for name in crop["files"]})
    left, right = ("input" if "input" in names else names[0]), STUDENT
    categories, conditions = (list(dict.fromkeys(crop[key] for crop in crops)) for key in ("category", "condition"))
    selects = {
        "left": ("Left", {name: name for name in names}, left),
        "right": ("Right", {name: name for name in names}, right),
        "category": ("Category", {"": "all"} | {value: value for value in categories}, ""),
        "condition": ("Condition", {"": "all"} | {value: value for value in conditions}, ""),
        "zoom": ("Size", ENLARGEMENTS, "fit"),
    }
    controls = "".join(
        f'<label>{label} <select name="{key}">{_options(values, chosen)}</select></label>'
        for key, (label, values, chosen) in selects.items()
    )
    figures = "".join(_crop_figure(report, folder, units, crop, (left, right)) for crop in crops)
    return (
        f'<form id="view" class="controls">{controls}</form><div class="crops">{figures}</div>'
        '<p class="more"><button type="button" id="more" hidden>Show more</button> <span id="shown" role="status">'
        '</span></p><p class="note">Drag across a picture, or move the slider below it with mouse, finger or arrow '
        "keys. PSNR-Y and SSIM-Y are of the whole frame. The address in the browser keeps the choice made here. Stored "
        "as WebP of quality 90; the pictures without loss lie beside report.json.</p>"
    )


def _crop_figure(report, folder, units, crop, shown):
    where = f"{crop['name']}, {crop['condition']}"
    pictures = []
    for name in _picture_order(report, crop["files"]):
        attributes = (
            f'data-picture="{escape(name)}" data-figures="{escape(_frame_figures(units, crop, name))}"'
            f"{' class=left' if name == shown[0] else ''}{'' if name in shown else ' hidden'}"
        )
        pictures.append(_picture(folder, crop["files"][name], f"{name}: {where}", attributes))
    x, y, width, height = crop["box"]
    place = f"{crop['category']}, frame {crop['frame']}, {width}x{height} at {x}, {y}"
    return (
        f'<figure class="crop" data-category="{escape(crop["category"])}" data-condition="{escape(crop["condition"])}">'
        f'<div class="box" style="aspect-ratio:{width}/{height}" tabindex="0" role="group" '
        f'aria-label="{escape(where)}"><div class="layers">{"".join(pictures)}<i class="divider"></i></div></div>'
        f'<input type="range" min="0" max="100" value="50" aria-label="Divider between the two pictures of '
        f'{escape(where)}"><div class="names"><span></span><span></span></div>'
        f"<figcaption><b>{escape(where)}</b>{escape(place)}</figcaption></figure>"
    )


def _worst_section(report, folder):
    items = []
    for number, case in enumerate(report["worst"], 1):
        metric = case["metric"]
        pictures = []
        for name in ("input", case["method"], "truth"):
            if name in case["files"]:
                image = _picture(folder, case["files"][name], f"{name}: {case['name']}, {case['condition']}")
                width, height = case["box"][2:]
                pictures.append(
                    f'<div><span>{escape(name)}</span><div class="box" tabindex="0" role="group" '
                    f'aria-label="{escape(name)}" style="aspect-ratio:{width}/{height}">{image}</div></div>'
                )
        figures = f"{format_level(metric, case.get('input_value'))} → {format_level(metric, case.get('value'))}"
        text = f"{case['name']}, {case['condition']}"
        details = f"{case['category']}, frame {case['frame']}, {case['method']}: {heading(metric)} {figures}"
        items.append(
            f'<li><p><b>{number}. {escape(text)}</b> <span class="{"worse" * is_worse(metric, case["change"])}">'
            f"{escape(format_change(metric, case['change']))}</span><br><small>{escape(details)}</small></p>"
            f'<div class="triple" role="region" tabindex="0" aria-label="{escape(text)}">{"".join(pictures)}</div></li>'
        )
    if not items:
        return ""
    sizes = (
        f'<p class="controls"><label>Size <select id="worst-zoom">{_options(ENLARGEMENTS, "fit")}</select></label></p>'
    )
    return f'{sizes}<ol class="worst-cases">{"".join(items)}</ol>'


def _made_section(report):
    methods = [
        [
            method["name"],
            _cell(method.get("description") or "", "text"),
            _cell(format_milliseconds(method.get("ms_1080p") or None)),
        ]
        for method in report["methods"]
    ]
    run = {
        "date": report.get("date"),
        "commit": report.get("commit"),
        "took": f"{report['seconds'] / 60:,.0f} minutes" if report.get("seconds") else None,
    }
    checkpoint = {key: value for key, value in report["checkpoint"].items() if key != "meta"}
    groups = {"Run": run, "Machine": report["machine"], "Versions": report["versions"], "Checkpoint": checkpoint}
    facts = "".join(f"<div><h3>{title}</h3>{_facts(values)}</div>" for title, values in groups.items())
    training = json.dumps(report["checkpoint"].get("meta"), ensure_ascii=False, indent=1)
    command = shlex.join(str(word) for word in report["command"])
    return (
        f'<pre tabindex="0"><code>{escape(command)}</code></pre><div class="facts">{facts}</div>'
        "<details><summary>How the checkpoint was trained</summary>"
        f'<pre tabindex="0">{escape(training)}</pre></details>'
        f"{_table('The methods', ['method', 'what it is', 'ms at 1080p'], [(None, methods)])}"
        f"{read_template('report_notes.html')}"
    )


def _facts(values):
    """A definition list of what is known."""
    rows = []
    for key, value in values.items():
        if value is not None:
            label = key.replace("_gb", " (GB)").replace("_", " ")
            rows.append(f"<div><dt>{escape(label)}</dt><dd>{escape(str(value))}</dd></div>")
    return f"<dl>{''.join(rows)}</dl>"
