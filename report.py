"""What a benchmark found: one HTML page out of a report.json, tables for a README, and the comparison of two reports.

`write_report` turns ``results/NAME/report.json`` into ``report.html`` beside it: a single file with its pictures, plots
and script inside, which asks nothing of a network. `markdown_summary` gives the same figures as Markdown, and `compare`
says what became better and worse between two reports.

A *record* holds the figures of one method on one *unit*, a clip or picture under one condition. Averages are taken over
a unit's frames first and then over units, so that each unit counts once however long it is. A *change* is a method's
figure less that of the method ``input``, what arrives, on the same frame.

The PSNR of identical pictures is infinite (``null`` in the file). It is shown as ∞, and left out of means, those of
figures and those of changes; a mean of nothing else is ∞ itself.
"""

import base64
import io
import json
import math
import re
import shlex
import zlib
from collections import defaultdict
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image, UnidentifiedImageError

from metrics import bootstrap_interval
from utils import atomic_path, first_line

FORMAT = 1
STUDENT = "student"  # the method that the page is about
REQUIRED = {
    "name": str,
    "command": list,
    "machine": dict,
    "versions": dict,
    "checkpoint": dict,
    "methods": list,
    "records": list,
    "crops": list,
    "worst": list,
}
UNIT = ("protocol", "category", "name", "condition")


class ReportError(RuntimeError):
    """A report is missing, foreign or broken. The message says which and what to do."""


class Metric(NamedTuple):
    """How a metric is shown and judged.

    ``sign`` is 1 where more is better and -1 where less is; a change of up to ``tolerance`` counts as none where frames
    below the input's are counted (None: not counted there).
    """

    label: str
    unit: str
    digits: int
    sign: int
    tolerance: float | None


METRICS = {
    "psnr_y": Metric("PSNR-Y", "dB", 2, 1, 0.05),
    "ssim_y": Metric("SSIM-Y", "", 4, 1, 0.0005),
    "vmaf_neg": Metric("VMAF-NEG", "", 2, 1, 0.5),
    "vmaf": Metric("VMAF", "", 2, 1, 0.5),
    "ms_ssim": Metric("MS-SSIM", "", 4, 1, 0.0005),
    "psnr_rgb": Metric("PSNR-RGB", "dB", 2, 1, 0.05),
    "ssim_rgb": Metric("SSIM-RGB", "", 4, 1, 0.0005),
    "ssimulacra2": Metric("SSIMULACRA 2", "", 2, 1, 0.5),
    "ocr": Metric("words read", "", 3, 1, 0.005),
    "flicker_static": Metric("flicker, still", "", 3, -1, None),
    "flicker_moving": Metric("flicker, moving", "", 3, -1, None),
}
SUMMARY_METRICS = {
    "call": ("psnr_y", "ssim_y", "vmaf_neg", "vmaf", "ms_ssim", "flicker_static", "flicker_moving"),
    "image": ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "ms_ssim", "ssimulacra2", "ocr"),
}
HARM_METRICS = ("psnr_y", "ssim_y", "vmaf_neg", "vmaf", "ms_ssim", "ocr")
MAIN_METRICS = ("psnr_y", "ssim_y", "vmaf_neg")  # of the curves, the distribution and the table of conditions
NO_BREAK = "\N{NO-BREAK SPACE}"
PROTOCOLS = {"call": ("Calls", "clip"), "image": ("Pictures", "picture")}

# ----------------------------------------------------------------------------------------------------------------------
# Reading


def load_report(path):
    """Read a report.json and check that it is whole.

    Raises:
        ReportError: the file is missing, no JSON, not a report of this format, or contradicts itself.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(
            f"cannot read the report {path} ({first_line(error)}): give the report.json of a finished benchmark"
        ) from error
    except ValueError as error:  # no JSON, or no text at all
        raise ReportError(f"{path} is no JSON ({first_line(error)}): run the benchmark again") from error
    if not isinstance(report, dict) or "format" not in report or "records" not in report:
        raise ReportError(f"{path} is not a report of this benchmark: give the report.json that it has written")
    if report["format"] != FORMAT:
        raise ReportError(
            f"{path} has format {report['format']}, this program reads {FORMAT}: run the benchmark again or use the "
            "version that wrote it"
        )
    missing = [key for key, kind in REQUIRED.items() if not isinstance(report.get(key), kind)]
    if missing:
        raise ReportError(f"{path} is broken, {', '.join(missing)} missing: run the benchmark again")
    try:
        _check(report)
    except ReportError as error:
        raise ReportError(f"{path} is broken, {error}: run the benchmark again") from error
    return report


def _check(report):
    """Raise `ReportError` where a report contradicts itself."""
    if not report["records"]:
        raise ReportError("it has no records")
    crop = (*UNIT, "frame", "box", "files")
    places = {
        "methods": ("name",),
        "records": (*UNIT, "method", "frames", "metrics"),
        "crops": crop,
        "worst": (*crop, "method", "metric", "change"),
    }
    for place, keys in places.items():
        for index, entry in enumerate(report[place]):
            wanted = keys
            if place == "records" and isinstance(entry, dict) and entry.get("protocol") == "call":
                wanted = (*keys, "scale", "codec", "rate")
            missing = [key for key in wanted if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise ReportError(f"{place}[{index}] lacks {', '.join(missing)}")
    for name in ("input", STUDENT):
        if name not in [method["name"] for method in report["methods"]]:
            raise ReportError(f"the method {name} is not listed")
    for index, record in enumerate(report["records"]):
        for metric, values in record["metrics"].items():
            if len(values) not in (1, len(record["frames"])):
                raise ReportError(
                    f"records[{index}] has {len(values)} values of {metric} for {len(record['frames'])} frames"
                )
    for unit, methods in by_unit(report["records"]).items():
        if "input" not in methods:
            raise ReportError(f"{' / '.join(unit)} was not measured for the method input")


# ----------------------------------------------------------------------------------------------------------------------
# Averages


def by_unit(records):
    """Arrange records as unit (`UNIT`'s four values) -> method -> record, in the order in which they come.

    Raises:
        ReportError: a method occurs twice for a unit.
    """
    units = {}
    for record in records:
        methods = units.setdefault(tuple(record[key] for key in UNIT), {})
        if methods.setdefault(record["method"], record) is not record:
            raise ReportError(f"{' / '.join(record[key] for key in UNIT)} holds {record['method']} twice")
    return units


def frame_values(record, metric):
    """The figures of one record as frame index -> value, or None -> value where one stands for the whole clip.

    A PSNR of None is infinite; any other None, and NaN, was not measured and is left out.
    """
    values = record["metrics"].get(metric, [])
    frames = record["frames"] if len(values) == len(record["frames"]) else [None] * len(values)
    if metric.startswith("psnr"):
        values = [math.inf if value is None else value for value in values]
    return {frame: value for frame, value in zip(frames, values, strict=True) if value is not None and value == value}


def frame_changes(record, reference, metric):
    """Figures of `record` less those of `reference`, frame by frame, for the frames that both have.

    Where a PSNR is infinite a change is too, and NaN where both are.
    """
    values, before = frame_values(record, metric), frame_values(reference, metric)
    return [values[frame] - before[frame] for frame in values if frame in before]


def finite_mean(values):
    """The mean of what is finite, None where nothing is."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def level(values):
    """The mean of what is finite, infinite where only infinite values are, None of nothing."""
    values = [value for value in values if value is not None]
    return math.inf if values and not any(map(math.isfinite, values)) else finite_mean(values)


def measured(records, metrics):
    """Those of `metrics` that at least one record has."""
    present = {metric for record in records for metric in record["metrics"]}
    return [metric for metric in metrics if metric in present]


def summarise(records, keys, metrics):
    """Average the records that agree in `keys`, method by method: over the frames of a unit, then over units.

    Args:
        records: records with those of ``input`` among them.
        keys: names of entries of a record, e.g. ``["category"]``; empty for one group.
        metrics: names of metrics.

    Returns:
        List of dicts in the order of `records`: `keys`, ``method``, ``units`` (how many), ``level`` (metric -> mean,
        see `level`) and ``change`` (metric -> mean change against the input). Infinite PSNR is left out of both, None
        stands where nothing was measured.
    """
    groups = defaultdict(list)
    for methods in by_unit(records).values():
        for method, record in methods.items():
            groups[(*(record[key] for key in keys), method)].append((record, methods["input"]))
    rows = []
    for group, pairs in groups.items():
        levels, changes = {}, {}
        for metric in metrics:
            levels[metric] = level([level(list(frame_values(record, metric).values())) for record, _ in pairs])
            changes[metric] = finite_mean([finite_mean(frame_changes(*pair, metric)) for pair in pairs])
        identity = dict(zip((*keys, "method"), group, strict=True))
        rows.append({**identity, "units": len(pairs), "level": levels, "change": changes})
    return rows


def unit_changes(records, method, metric):
    """Mean change of a method against the input for each unit: unit -> change, without those where none is finite."""
    changes = {}
    for unit, methods in by_unit(records).items():
        if method in methods:
            change = finite_mean(frame_changes(methods[method], methods["input"], metric))
            if change is not None:
                changes[unit] = change
    return changes


def harm(records, method, metric):
    """How often a method is worse than its input, beyond the metric's tolerance, and where most.

    Args:
        metric: one of `HARM_METRICS`, where more is better.

    Returns:
        Dict with ``frames`` (how many were measured), ``share`` of them that are worse (an infinite PSNR that becomes
        finite counts), and ``worst``, the pair (unit, mean change) of the unit that lost most, None where none did.
        None where the metric was not measured.
    """
    changes = []
    for methods in by_unit(records).values():
        if method in methods:
            changes += frame_changes(methods[method], methods["input"], metric)
    if not changes:
        return None
    worst = min(unit_changes(records, method, metric).items(), key=lambda item: item[1], default=None)
    return {
        "frames": len(changes),
        "share": sum(change < -METRICS[metric].tolerance for change in changes) / len(changes),
        "worst": worst if worst and worst[1] < 0 else None,
    }


def clusters(changes):
    """Lists of the changes of units (see `unit_changes`) that belong to the same clip or picture.

    Conditions of one clip repeat each other, so that the interval of a mean is drawn over clips, not over units.
    """
    grouped = defaultdict(list)
    for (_, _, name, _), change in changes.items():
        grouped[name].append(change)
    return list(grouped.values())


def best_methods(changes, metric):
    """Of method -> change those whose change, as it is printed, is the best; none where no method beats the input."""
    scores = {
        method: METRICS[metric].sign * round(change, METRICS[metric].digits)
        for method, change in changes.items()
        if change is not None
    }
    top = max(scores.values(), default=0)
    return {method for method, score in scores.items() if score == top > 0}


def rate_points(records, metric):
    """Points of the rate-quality curves of protocol ``call``.

    Returns:
        (codec, scale) -> axis -> method -> list of (x, mean level, mean change), sorted. Axes: ``qp`` and ``kbps`` (the
        geometric mean of what the clips took) of constant-QP encodings, ``bitrate`` (likewise) of rate-controlled ones.
    """
    records = [record for record in records if record["protocol"] == "call"]
    kbps = defaultdict(list)
    for record in records:
        if record.get("kbps"):
            kbps[record["codec"], record["scale"], record["rate"]].append(record["kbps"])
    panels = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in summarise(records, ["codec", "scale", "rate"], [metric]):
        value, change = row["level"][metric], row["change"][metric]
        if value is None or not math.isfinite(value) or change is None:
            continue
        panel = panels[row["codec"], row["scale"]]
        quantiser = re.fullmatch(r"qp (\d+)", row["rate"])
        if quantiser:
            panel["qp"][row["method"]].append((int(quantiser[1]), value, change))
        rates = kbps[row["codec"], row["scale"], row["rate"]]
        if rates:
            axis = "kbps" if quantiser else "bitrate"
            panel[axis][row["method"]].append((math.exp(np.mean(np.log(rates))), value, change))
    for panel in panels.values():
        for axis in panel.values():
            for points in axis.values():
                points.sort()
    return panels


def _names(report):
    """Names of the methods in order of display; such as only records have come last."""
    listed = [method["name"] for method in report["methods"]]
    return listed + sorted({record["method"] for record in report["records"]} - set(listed))


def _of(report, protocol):
    return [record for record in report["records"] if record["protocol"] == protocol]


# ----------------------------------------------------------------------------------------------------------------------
# Figures as text


def format_level(metric, value):
    """A figure as it is printed: ``38.02``, ``∞``, or ``–`` where nothing was measured."""
    if value is None:
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{METRICS[metric].digits}f}"


def format_change(metric, value):
    """A change as it is printed, always with its sign: ``+0.18``, ``−0.05``, ``0.00``; ``–`` where there is none."""
    if value is None or math.isnan(value):
        return "–"
    rounded = round(value, METRICS[metric].digits)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else ""
    return f"{sign}{abs(rounded):.{METRICS[metric].digits}f}"


def format_milliseconds(value):
    """A time as it is printed: ``0.41``, ``58.2``, ``1,604``; ``–`` where it was not measured."""
    if value is None:
        return "–"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _interval(metric, low, high):
    return "–" if math.isnan(low) else f"{format_change(metric, low)} to {format_change(metric, high)}"


def _is_worse(metric, value):
    return value is not None and METRICS[metric].sign * round(value, METRICS[metric].digits) < 0


def _percent(share):
    return f"{100 * share:.1f} %"


def _count(number, noun):
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _heading(metric):
    return f"{METRICS[metric].label} ({METRICS[metric].unit})" if METRICS[metric].unit else METRICS[metric].label


def markdown_summary(report):
    """Markdown tables for a README: each method over all calls, and over the pictures of each category.

    The row ``input`` holds levels, the others changes against it; the best of a column is bold.
    """
    times = {method["name"]: method.get("ms_1080p") for method in report["methods"]}
    parts = []
    calls = _of(report, "call")
    if calls:
        metrics = measured(calls, SUMMARY_METRICS["call"])
        rows = {row["method"]: row for row in summarise(calls, [], metrics)}
        rows = {name: rows[name] for name in _names(report) if name in rows}
        lines = [["method", *(_heading(metric) for metric in metrics), "ms at 1080p"]]
        for name in rows:
            cells = [_markdown_cell(rows, name, metric) for metric in metrics]
            lines.append([name, *cells, format_milliseconds(times.get(name) or None)])
        clips = len({record["name"] for record in calls})
        parts.append(
            f"Calls ({_count(clips, 'clip')}, {_count(rows['input']['units'], 'encoding')}):\n\n{_markdown(lines)}"
        )
    images = _of(report, "image")
    if images:
        metrics = measured(images, ("psnr_y", "ssim_y"))
        by_category = defaultdict(dict)
        for row in summarise(images, ["category"], metrics):
            by_category[row["category"]][row["method"]] = row
        names = [name for name in _names(report) if any(name in rows for rows in by_category.values())]
        lines = [["category", *names]]
        for category, rows in by_category.items():
            cells = [" / ".join(_markdown_cell(rows, name, metric) for metric in metrics) for name in names]
            lines.append([category, *cells])
        pictures = len({record["name"] for record in images})
        what = " / ".join(_heading(metric) for metric in metrics)
        parts.append(f"Pictures ({_count(pictures, 'picture')}; {what}):\n\n{_markdown(lines)}")
    return "\n\n".join(parts) + "\n"


def _markdown_cell(rows, name, metric):
    if name not in rows:
        return "–"
    if name == "input":
        return format_level(metric, rows[name]["level"][metric])
    text = format_change(metric, rows[name]["change"][metric])
    best = best_methods({n: row["change"][metric] for n, row in rows.items() if n != "input"}, metric)
    return f"**{text}**" if name in best else text


def _markdown(lines):
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


# ----------------------------------------------------------------------------------------------------------------------
# Two reports


def compare(a, b):
    """What became better and what worse from report `a` to report `b`.

    Records are matched on protocol, category, name, condition and method, and their figures on the frame. Differences
    are averaged over frames, then over units; their 95 % interval is drawn over clips or pictures (see `clusters`).

    Args:
        a, b: reports as `load_report` gives them.

    Returns:
        Dict with

        * ``rows``: dicts of ``protocol``, ``method``, ``metric``, ``before``, ``after`` (levels of the matched units),
          ``difference``, ``low``, ``high`` (NaN with a single clip), ``units``, ``names`` (how many) and ``verdict``:
          ``better`` or ``worse`` where the interval excludes zero, ``same`` where no unit changed, else empty;
        * ``improved`` and ``worsened``: up to five dicts of ``unit``, ``method``, ``score`` and ``differences`` (metric
          -> difference). The score is the mean difference over the metrics that have a tolerance, in tolerances;
        * ``only_a`` and ``only_b``: (unit, method) without a match, of methods that both have;
        * ``missing_a`` and ``missing_b``: methods that the other report has;
        * ``input_differs``: how many matched units were not given the same input.
    """
    methods = [{record["method"] for record in report["records"]} for report in (a, b)]
    records_a, records_b = (
        {
            (unit, method): record
            for unit, group in by_unit(report["records"]).items()
            for method, record in group.items()
        }
        for report in (a, b)
    )
    matched = {key: (records_a[key], records_b[key]) for key in records_a if key in records_b}
    differences = defaultdict(dict)  # (unit, method) -> metric -> mean difference
    for key, (before, after) in matched.items():
        for metric in METRICS:
            difference = finite_mean(frame_changes(after, before, metric))
            if difference is not None:
                differences[key][metric] = difference
    scores = sorted(
        (
            {"unit": unit, "method": method, "score": _score(values), "differences": values}
            for (unit, method), values in differences.items()
            if method != "input"
        ),
        key=lambda bucket: bucket["score"],
    )
    common = methods[0] & methods[1]
    return {
        "rows": _difference_rows(matched, differences, [name for name in _names(a) if name in common]),
        "improved": [bucket for bucket in scores[::-1][:5] if bucket["score"] > 0],
        "worsened": [bucket for bucket in scores[:5] if bucket["score"] < 0],
        "only_a": [key for key in records_a if key not in records_b and key[1] in common],
        "only_b": [key for key in records_b if key not in records_a and key[1] in common],
        "missing_a": [name for name in _names(b) if name in methods[1] - methods[0]],
        "missing_b": [name for name in _names(a) if name in methods[0] - methods[1]],
        "input_differs": sum(any(values.values()) for (_, name), values in differences.items() if name == "input"),
    }


def _score(differences):
    """Mean difference in tolerances, over the metrics that have one; 0 without any."""
    known = [(METRICS[metric], value) for metric, value in differences.items() if METRICS[metric].tolerance]
    return float(np.mean([metric.sign * value / metric.tolerance for metric, value in known])) if known else 0.0


def _difference_rows(matched, differences, methods):
    groups = defaultdict(dict)
    for (unit, method), values in differences.items():
        for metric, value in values.items():
            groups[unit[0], method, metric][unit] = value
    rows = []
    for protocol in PROTOCOLS:
        for method in methods:
            for metric in METRICS:
                units = groups.get((protocol, method, metric))
                if not units:
                    continue
                pairs = [matched[unit, method] for unit in units]
                before, after = (
                    level([level(list(frame_values(pair[side], metric).values())) for pair in pairs]) for side in (0, 1)
                )
                grouped = clusters(units)
                low, high = bootstrap_interval(grouped)
                if not any(units.values()):
                    verdict = "same"
                elif low > 0 or high < 0:
                    verdict = "better" if METRICS[metric].sign * low > 0 else "worse"
                else:
                    verdict = ""
                rows.append(
                    {
                        "protocol": protocol,
                        "method": method,
                        "metric": metric,
                        "before": before,
                        "after": after,
                        "difference": finite_mean(units.values()),
                        "low": low,
                        "high": high,
                        "units": len(units),
                        "names": len(grouped),
                        "verdict": verdict,
                    }
                )
    return rows


def format_comparison(comparison, a, b):
    """The result of `compare` as text for a terminal: tables, the buckets that moved most, what had no match."""
    before, after = (f"{report['name']} ({report.get('date')}, commit {report.get('commit')})" for report in (a, b))
    parts = [f"before: {before}\nafter:  {after}"]
    columns = ["method", "metric", "before", "after", "difference", "95 % interval", "units", "names", "verdict"]
    for protocol in PROTOCOLS:
        lines, same, moved = [columns], defaultdict(list), set()
        for row in comparison["rows"]:
            if row["protocol"] != protocol:
                continue
            metric = row["metric"]
            if row["verdict"] == "same":
                same[row["method"]].append(metric)
                continue
            moved.add(row["method"])
            lines.append(
                [
                    row["method"],
                    metric,
                    format_level(metric, row["before"]),
                    format_level(metric, row["after"]),
                    format_change(metric, row["difference"]),
                    _interval(metric, row["low"], row["high"]),
                    str(row["units"]),
                    str(row["names"]),
                    f"{row['verdict']} *" if row["verdict"] else "",
                ]
            )
        if len(lines) > 1:
            parts.append(f"protocol {protocol}\n{_aligned(lines)}")
        if same:
            unchanged = [f"{name} ({', '.join(found)})" if name in moved else name for name, found in same.items()]
            parts.append(f"protocol {protocol}, the same in every unit: {', '.join(unchanged)}")
    if comparison["rows"]:
        parts.append(
            "* the interval, drawn over clips or pictures, excludes zero; of twenty rows where nothing changed about "
            "one does so by chance"
        )
    else:
        parts.append("no record of one report has a match in the other")
    for key, title in (("improved", "most improved"), ("worsened", "most worsened")):
        if comparison[key]:
            lines = [f"{title} (mean difference in tolerances)"]
            for bucket in comparison[key]:
                figures = ", ".join(
                    f"{metric} {format_change(metric, bucket['differences'][metric])}"
                    for metric in HARM_METRICS
                    if metric in bucket["differences"]
                )
                lines.append(f"  {bucket['score']:+6.1f}  {bucket['method']}: {' / '.join(bucket['unit'])}: {figures}")
            parts.append("\n".join(lines))
    if comparison["input_differs"]:
        parts.append(
            f"the input itself differs in {_count(comparison['input_differs'], 'unit')}: encoders, clips or metrics "
            "are not the same, so differences are not the methods' alone"
        )
    for key, title in (("missing_a", "only the report after has"), ("missing_b", "only the report before has")):
        if comparison[key]:
            parts.append(f"{title}: {', '.join(comparison[key])}")
    for key, title in (("only_a", "before"), ("only_b", "after")):
        if comparison[key]:
            lines = [f"{_count(len(comparison[key]), 'record')} only in the report {title}"]
            methods = defaultdict(list)
            for unit, method in comparison[key]:
                methods[unit].append(method)
            lines += [f"  {' / '.join(unit)}: {', '.join(names)}" for unit, names in methods.items()]
            parts.append("\n".join(lines))
    # Terminals of Windows cannot always print these signs.
    return "\n\n".join(parts).replace("−", "-").replace("∞", "inf").replace("–", "-") + "\n"


def _aligned(lines):
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = []
    for line in lines:
        cells = [
            cell.ljust(w) if i in (0, 1, 8) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        rows.append("  ".join(cells).rstrip())
    return "\n".join([rows[0], "-" * max(map(len, rows)), *rows[1:]])


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
    upper.set_ylabel(_heading(metric))
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
    axes.set_ylabel(f"change of {_heading(metric)}")

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
    axes.set_ylabel(f"change of {_heading(metric)}")
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
    return Template(PAGE).substitute(
        title=escape(f"Sharpening video calls: {report['name']}"),
        style=STYLE,
        script=SCRIPT,
        header=_header(report),
        contents="".join(f'<a href="#{key}">{title}</a> ' for key, title, _ in sections),
        sections="\n".join(
            f'<section id="{key}"><h2>{title}</h2>\n{content}\n</section>' for key, title, content in sections
        ),
    )


def _header(report):
    parts = []
    for protocol, (_, noun) in PROTOCOLS.items():
        records = _of(report, protocol)
        if records:
            units = by_unit(records)
            frames = sum(len(methods["input"]["frames"]) for methods in units.values())
            kinds = len({condition for *_, condition in units})
            things = len({name for _, _, name, _ in units})
            parts.append(
                f"{_count(things, noun)} under {_count(kinds, 'condition')} ({_count(len(units), 'bucket')}, "
                f"{_count(frames, 'frame')})"
            )
    methods = [name for name in _names(report) if name != "input"]
    lead = f"{_count(len(methods), 'method')} on {' and '.join(parts)}, measured against the original."
    return (
        f'<p class="kicker">Benchmark of the real-time sharpener</p><h1>Sharpening video calls: '
        f"{escape(report['name'])}</h1><p class=lead>{escape(lead)} All figures of a method are changes against "
        f"<em>input</em>, the picture as it arrives.</p>{_tiles(report)}"
    )


def _tiles(report):
    """The student's main figures with their intervals."""
    protocol = next(protocol for protocol in PROTOCOLS if _of(report, protocol))
    records = _of(report, protocol)
    tiles = []
    for metric in measured(records, MAIN_METRICS):
        changes = unit_changes(records, STUDENT, metric)
        interval = f"95 % interval {_interval(metric, *bootstrap_interval(clusters(changes)))}"
        share = harm(records, STUDENT, metric)
        below = f"{_percent(share['share'])} of frames below the input" if share else ""
        value = format_change(metric, finite_mean(changes.values()))
        tiles.append((_heading(metric), value, interval, below))
    time = next((m.get("ms_1080p") for m in report["methods"] if m["name"] == STUDENT), None)
    if time:
        engine = report["checkpoint"].get("engine") or ""
        tiles.append(("ms for a 1080p frame", format_milliseconds(time), f"{1000 / time:.0f} frames/s", engine))
    cells = "".join(
        f"<div><dt>{escape(label)}</dt><dd><b>{escape(value)}</b><span>{escape(first)}</span>"
        f"<span>{escape(second)}</span></dd></div>"
        for label, value, first, second in tiles
    )
    where = {"call": "all calls", "image": "all pictures"}[protocol]
    return f'<h2 class="tiles-title">{STUDENT}, mean change over {where}</h2><dl class="tiles">{cells}</dl>'


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
    return _cell(format_change(metric, value), "best" if best else "", "worse" if _is_worse(metric, value) else "")


def _result_rows(report, records, metrics):
    """Rows of a summary table: the input's levels, then each method's changes and its time."""
    times = {method["name"]: method.get("ms_1080p") or None for method in report["methods"]}
    rows = {row["method"]: row for row in summarise(records, [], metrics)}
    others = [name for name in _names(report) if name in rows and name != "input"]
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
    for protocol, (title, noun) in PROTOCOLS.items():
        records = _of(report, protocol)
        if not records:
            continue
        metrics = measured(records, SUMMARY_METRICS[protocol])
        columns = ["method", *(_heading(metric) for metric in metrics), "ms at 1080p"]
        units = by_unit(records)
        groups = [(None, _result_rows(report, records, metrics))]
        if protocol == "image":
            groups = []
            for category in dict.fromkeys(unit[1] for unit in units):
                chosen = [record for record in records if record["category"] == category]
                buckets = len([unit for unit in units if unit[1] == category])
                groups.append((f"{category}, {_count(buckets, 'bucket')}", _result_rows(report, chosen, metrics)))
        things = len({name for _, _, name, _ in units})
        caption = f"{title}: mean change over {_count(things, noun)} in {_count(len(units), 'bucket')}"
        parts.append(_table(caption, columns, groups))
    note = (
        "The row <em>input</em> shows levels, the others changes against it. Bold: best of its column, and better than "
        "the input. Red: worse than the input. Of flicker, less is better."
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
    records = _of(report, "call")
    names = _names(report)
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
    records = _of(report, "call") or _of(report, "image")
    times = {method["name"]: method.get("ms_1080p") for method in report["methods"]}
    names = _names(report)
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
    where = "calls" if _of(report, "call") else "pictures"
    return (
        f'<div class="plots wide">{"".join(plots)}</div><p class="note">Mean change over all {where}, over the time '
        "for one 1920x1080 frame on the machine named below. Above the line is better than the input.</p>"
    )


def _harm_section(report):
    parts = []
    for protocol, (title, _) in PROTOCOLS.items():
        records = _of(report, protocol)
        metrics = measured(records, HARM_METRICS)
        if not metrics:
            continue
        rows = []
        for name in _names(report):
            if name != "input" and any(record["method"] == name for record in records):
                rows.append([name, *(_harm_cell(harm(records, name, metric), metric) for metric in metrics)])
        columns = ["method", *(METRICS[metric].label for metric in metrics)]
        parts.append(_table(f"{title}: share of frames below the input, and the worst bucket", columns, [(None, rows)]))
        plots = []
        for metric in measured(records, MAIN_METRICS):
            changes = list(unit_changes(records, STUDENT, metric).values())
            if changes:
                below = sum(METRICS[metric].sign * change < 0 for change in changes)
                plot = _distribution_plot(changes, metric, _names(report).index(STUDENT))
                caption = f"{METRICS[metric].label}: {below} of {_count(len(changes), 'bucket')} below the input"
                plots.append(f"<figure>{plot}<figcaption>{escape(caption)}</figcaption></figure>")
        parts.append(f"<h3>{title}: {STUDENT}, bucket by bucket</h3>")
        parts.append(f'<div class="plots">{"".join(plots)}</div>')
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
    return f'<td class="harm">{_percent(found["share"])}<small>{escape(where)}</small></td>'


def _conditions_section(report):
    protocols = {protocol: title for protocol, (title, _) in PROTOCOLS.items() if _of(report, protocol)}
    present = measured(report["records"], MAIN_METRICS)
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
    records = _of(report, protocol)
    if not measured(records, [metric]):
        return f'<p class="note">{escape(METRICS[metric].label)} was not measured here.</p>'
    names = [name for name in _names(report) if any(record["method"] == name for record in records)]
    tables = []
    for key in ("category", "condition"):
        by_value = defaultdict(dict)
        for row in summarise(records, [key], [metric]):
            by_value[row[key]][row["method"]] = row
        rows = []
        for value, methods in by_value.items():
            changes = {name: methods[name]["change"][metric] for name in names if name in methods and name != "input"}
            best = best_methods(changes, metric)
            cells = [_cell(format_level(metric, methods["input"]["level"][metric]), "level")]
            cells += [_change_cell(metric, changes.get(name), name in best) for name in names if name != "input"]
            rows.append([value, *cells])
        caption = f"{PROTOCOLS[protocol][0]}: {_heading(metric)} by {key}"
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
    return sorted(files, key=["truth", *_names(report)].index)


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
        details = f"{case['category']}, frame {case['frame']}, {case['method']}: {_heading(metric)} {figures}"
        items.append(
            f'<li><p><b>{number}. {escape(text)}</b> <span class="{"worse" * _is_worse(metric, case["change"])}">'
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
    groups = {key.title(): report[key] for key in ("machine", "versions", "checkpoint")}
    facts = "".join(f"<div><h3>{title}</h3>{_facts(values)}</div>" for title, values in {"Run": run, **groups}.items())
    command = shlex.join(str(word) for word in report["command"])
    return (
        f'<pre tabindex="0"><code>{escape(command)}</code></pre><div class="facts">{facts}</div>'
        f"{_table('The methods', ['method', 'what it is', 'ms at 1080p'], [(None, methods)])}{NOTES}"
    )


def _facts(values):
    """A definition list of what is known; a dict or list in it is written as JSON."""
    rows = []
    for key, value in values.items():
        if value is not None and value != {}:
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
            label = key.replace("_gb", " (GB)").replace("_", " ")
            rows.append(f"<div><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>")
    return f"<dl>{''.join(rows)}</dl>"


# ----------------------------------------------------------------------------------------------------------------------
# Words, frame, style and script of the page

NOTES = """<h3>How to read it</h3>
<ul class="notes">
<li>A mean is taken over the frames of a bucket first, then over buckets: each counts once, however long its clip.
A bucket is one clip or picture under one condition.</li>
<li>A change is a method's figure less the input's on the same frame.</li>
<li>95 % intervals are bootstrapped over clips or pictures with all their conditions, which repeat one another.</li>
<li>PSNR of identical pictures is infinite, ∞. Frames where it occurs are left out of means of PSNR and of its changes;
a frame that was identical and is not any more counts as below the input.</li>
<li>PSNR-Y, SSIM-Y and MS-SSIM are of luma. VMAF rewards sharpening as such, VMAF-NEG leaves that reward out. Flicker is
the mean change from frame to frame of the error, in grey levels, apart for what stands still and what moves.</li>
</ul>"""

# The policy makes the browser refuse whatever is not inside the file.
PAGE = """<!DOCTYPE html>
<html lang="en" data-zoom="fit">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>$header</header>
<nav aria-label="Contents">$contents</nav>
<main>
$sections
</main>
<script>$script</script>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #16191d; --muted: #626a73; --rule: #dfe2e6; --field: #f5f6f8;
  --accent: #0b5cad; --worse: #b3261e;
  --series-0: #737b85; --series-1: #0b5cad; --series-2: #c2570c; --series-3: #15803d; --series-4: #7c3aed;
  --series-5: #be185d; --series-6: #8a6a00; --series-7: #0e7490; --series-8: #4d7c0f; --series-9: #6b4f3a; }
@media (prefers-color-scheme: dark) { :root { --paper: #121417; --ink: #e7e9ec; --muted: #9aa3ad; --rule: #2e3339;
  --field: #1b1e23; --accent: #74b3f2; --worse: #ff8a80;
  --series-0: #98a1ac; --series-1: #74b3f2; --series-2: #fb9a55; --series-3: #57cf84; --series-4: #b79cff;
  --series-5: #f483b6; --series-6: #e3bd3c; --series-7: #3fc7dc; --series-8: #a5d64c; --series-9: #cda88c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Helvetica, Arial, sans-serif; }
header, nav, main { max-width: 74rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 3rem; }
h1 { font-size: clamp(1.6rem, 4.5vw, 2.3rem); line-height: 1.2; letter-spacing: -.015em; font-weight: 650; margin: 0;
  overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; font-weight: 650; letter-spacing: -.005em; margin: 0 0 1.1rem; }
h3 { font-size: 1rem; font-weight: 650; margin: 2rem 0 .6rem; }
.kicker { margin: 0 0 .4rem; color: var(--muted); font-size: .9rem; }
.lead { max-width: 46rem; margin: .9rem 0 2rem; font-size: 1.06rem; }
section { border-top: 1px solid var(--rule); padding: 1.9rem 0 2.4rem; scroll-margin-top: 3rem; }
a { color: var(--accent); text-underline-offset: .2em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.note, figcaption, small, .names { color: var(--muted); font-size: .86rem; }
.note { max-width: 52rem; margin: .8rem 0 0; }
nav { position: sticky; top: 0; z-index: 5; background: var(--paper); overflow-x: auto; white-space: nowrap;
  padding-top: .6rem; padding-bottom: .6rem; font-size: .9rem; }
nav a { text-decoration: none; margin-right: 1.1rem; }
nav a:hover { text-decoration: underline; }

.tiles-title { font-size: .95rem; margin: 0 0 .6rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10.5rem), 1fr)); gap: 1px;
  margin: 0 0 1.6rem; background: var(--rule); border: 1px solid var(--rule); }
.tiles > div { background: var(--paper); padding: .8rem 1rem .9rem; }
.tiles dt { color: var(--muted); font-size: .86rem; }
.tiles dd { margin: 0; font-variant-numeric: tabular-nums; }
.tiles b { display: block; font-size: 1.75rem; font-weight: 600; letter-spacing: -.02em; line-height: 1.35; }
.tiles span { display: block; color: var(--muted); font-size: .8rem; line-height: 1.45; overflow-wrap: anywhere; }

.scroll { overflow-x: auto; margin: 0 0 1.6rem; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
caption { text-align: left; font-weight: 600; padding: 0 0 .5rem; position: sticky; left: 0; }
th, td { padding: .36rem .75rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th { font-weight: 500; }
tbody th, td { vertical-align: top; }
thead th { background: var(--paper); color: var(--muted); font-size: .84rem;
  border-bottom: 1px solid var(--muted); vertical-align: bottom; }
tr > :first-child { position: sticky; left: 0; text-align: left; background: var(--paper); padding-left: 0;
  z-index: 1; }
tr.group th { font-weight: 650; padding-top: 1.1rem; overflow: visible; }
tbody tr:hover td, tbody tr:hover th { background: var(--field); }
tbody tr.group:hover > * { background: none; }
.best { font-weight: 700; }
.worse { color: var(--worse); }
.level { color: var(--muted); }
.harm small { display: block; white-space: normal; width: 9.5rem; margin-left: auto; line-height: 1.35; }
.text { text-align: left; white-space: normal; min-width: 16rem; }
#made th:nth-child(2) { text-align: left; }

.controls { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; margin: 0 0 1.1rem; font-size: .9rem; }
.controls label { display: flex; align-items: center; gap: .45rem; color: var(--muted); max-width: 100%; }
select, button { font: inherit; color: var(--ink); background: var(--field); border: 1px solid var(--rule);
  border-radius: 4px; padding: .3rem .5rem; min-width: 0; max-width: 100%; }
button { padding: .4rem .9rem; cursor: pointer; }
.legend { border: 0; padding: 0; margin: 0 0 1rem; font-size: .9rem; display: flex; flex-wrap: wrap;
  gap: .3rem 1.1rem; }
.legend legend { float: left; color: var(--muted); padding: 0; }
.legend i { color: var(--colour); font-style: normal; }
.legend input, input[type=range] { accent-color: var(--accent); }
[hidden] { display: none !important; }
.plots { display: grid; gap: 1.4rem 1.8rem; margin-bottom: 1.6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.plots.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.plots figure { margin: 0; max-width: 34rem; }
.plots svg { display: block; width: 100%; height: auto; }
.plots svg * { stroke-linejoin: round; }

.crops { display: grid; gap: 1.8rem 1.6rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.crop { margin: 0; min-width: 0; }
.box { overflow: auto; background: var(--field); }
.box img { display: block; width: 100%; height: auto; user-select: none; -webkit-user-select: none; }
:root:not([data-zoom=fit]) .box img { width: calc(var(--width) * var(--zoom) * 1px); max-width: none;
  image-rendering: pixelated; }
.layers { position: relative; display: grid; width: 100%; cursor: ew-resize; touch-action: pan-y; --split: 50%; }
:root:not([data-zoom=fit]) .layers { width: max-content; touch-action: auto; }
.layers img { grid-area: 1 / 1; }
.layers img.left { z-index: 1; clip-path: inset(0 calc(100% - var(--split)) 0 0); }
.divider { position: absolute; z-index: 2; top: 0; bottom: 0; left: var(--split); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 0 1px #0006; pointer-events: none; }
.crop input { display: block; width: 100%; height: 1.75rem; margin: .15rem 0 0; }
.names { display: flex; justify-content: space-between; gap: 1rem; font-variant-numeric: tabular-nums; }
.names span:last-child { text-align: right; }
.names b { color: var(--ink); font-weight: 600; display: block; }
figcaption { margin-top: .35rem; overflow-wrap: anywhere; }
.crop figcaption b { display: block; color: var(--ink); font-weight: 500; }
.more { margin: 1.4rem 0 0; color: var(--muted); font-size: .9rem; }

.worst-cases { list-style: none; padding: 0; margin: 0; display: grid; gap: 1.8rem;
  grid-template-columns: minmax(0, 1fr); }
.worst-cases p { margin: 0 0 .5rem; overflow-wrap: anywhere; }
.triple { display: grid; grid-template-columns: repeat(3, minmax(9rem, 1fr)); gap: .6rem; overflow-x: auto;
  max-width: 62rem; }
.triple > div { min-width: 0; }
.triple span { font-size: .86rem; color: var(--muted); }

pre { overflow-x: auto; background: var(--field); border: 1px solid var(--rule); padding: .8rem 1rem;
  margin: 0 0 1.4rem; font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 0 2.5rem;
  margin: 0 0 2rem; font-size: .9rem; }
.facts h3 { margin: .8rem 0 .3rem; }
.facts dl { margin: 0; }
.facts dl > div { display: flex; gap: 1rem; padding: .3rem 0; border-top: 1px solid var(--rule); }
.facts dt { color: var(--muted); flex: 0 0 6.5rem; }
.facts dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.notes { max-width: 52rem; padding-left: 1.2rem; font-size: .9rem; }
.notes li { margin: .35rem 0; }
@media (max-width: 40rem) {
  caption { max-width: calc(100vw - 2.5rem); }
  tbody tr:not(.group) > th:first-child { max-width: 8.5rem; white-space: normal; overflow-wrap: anywhere; }
  .controls { display: grid; grid-template-columns: auto 1fr; align-items: center; }
  .controls label { display: contents; }
}
@media print { nav, .controls, .crop input { display: none; } .scroll { overflow: visible; } }
"""

SCRIPT = """
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Panels of which one is shown
for (const group of all(".switch")) {
  const selects = all("select", group);
  const update = () => {
    for (const panel of all(".panel", group))
      panel.hidden = selects.some((select) => panel.dataset[select.dataset.key] !== select.value);
  };
  group.addEventListener("change", update);
  update();
}

// Curves that can be hidden
for (const box of all("[data-series]")) {
  const update = () => {
    for (const curve of all("svg ." + box.dataset.series)) curve.style.display = box.checked ? "" : "none";
  };
  box.addEventListener("change", update);
  update();
}

// Before and after
const form = document.getElementById("view");
const crops = all(".crop");
const STEP = 12;
let limit = STEP;

function placeDivider(crop) {
  const box = crop.querySelector(".box"), layers = crop.querySelector(".layers"), range = crop.querySelector("input");
  const visible = Math.min(box.clientWidth, layers.offsetWidth); // an enlarged picture is divided where it is seen
  if (!visible) return;
  const split = 100 * (box.scrollLeft + visible * range.value / 100) / layers.offsetWidth;
  layers.style.setProperty("--split", split.toFixed(2) + "%");
  range.setAttribute("aria-valuetext", range.value + " % " + crop.dataset.left);
}

function choosePictures(crop) {
  const pictures = all("img", crop);
  const named = (name, other) => pictures.find((picture) => picture.dataset.picture === name) || other;
  const left = named(form.elements.left.value, pictures[0]);
  const right = named(form.elements.right.value, pictures[pictures.length - 1]);
  for (const picture of pictures) {
    picture.hidden = picture !== left && picture !== right;
    picture.classList.toggle("left", picture === left && left !== right);
  }
  crop.dataset.left = left.dataset.picture;
  all(".names span", crop).forEach((label, i) => {
    const picture = [left, right][i], name = document.createElement("b");
    name.textContent = picture.dataset.picture;
    label.replaceChildren(name, picture.dataset.figures);
  });
}

function setZoom(zoom) {
  document.documentElement.dataset.zoom = zoom;
  document.documentElement.style.setProperty("--zoom", zoom);
  for (const select of all("#view [name=zoom], #worst-zoom")) select.value = zoom;
  crops.forEach(placeDivider);
}

function updateCrops() {
  const { category, condition } = form.elements;
  const fitting = crops.filter((crop) =>
    (!category.value || crop.dataset.category === category.value) &&
    (!condition.value || crop.dataset.condition === condition.value));
  for (const crop of crops) crop.hidden = true;
  for (const crop of fitting.slice(0, limit)) {
    crop.hidden = false;
    choosePictures(crop);
    placeDivider(crop);
  }
  document.getElementById("more").hidden = fitting.length <= limit;
  document.getElementById("shown").textContent = fitting.length
    ? Math.min(limit, fitting.length) + " of " + fitting.length + " shown"
    : "No picture fits this choice.";
}

// The address keeps the choice: #left=truth&right=student&zoom=4&split=30
function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const [key, value] of wanted) {
    const select = form.elements[key];
    if (select && [...select.options].some((option) => option.value === value)) select.value = value;
  }
  if (wanted.has("split")) for (const crop of crops) crop.querySelector("input").value = wanted.get("split");
  setZoom(form.elements.zoom.value);
  updateCrops();
}

function writeAddress() {
  history.replaceState(null, "", "#" + new URLSearchParams(new FormData(form)));
}

if (form) {
  for (const crop of crops) {
    const box = crop.querySelector(".box"), layers = crop.querySelector(".layers"), range = crop.querySelector("input");
    range.addEventListener("input", () => placeDivider(crop));
    box.addEventListener("scroll", () => placeDivider(crop));
    const follow = (event) => {
      const visible = Math.min(box.clientWidth, layers.offsetWidth);
      range.value = 100 * (event.clientX - layers.getBoundingClientRect().left - box.scrollLeft) / visible;
      placeDivider(crop);
    };
    layers.addEventListener("pointerdown", (event) => {
      // A finger on an enlarged picture moves the picture; the slider is below.
      if (event.button || (event.pointerType === "touch" && document.documentElement.dataset.zoom !== "fit")) return;
      layers.setPointerCapture(event.pointerId);
      if (event.pointerType !== "touch") follow(event); // a finger may be about to scroll the page
    });
    for (const type of ["pointermove", "pointerup"]) layers.addEventListener(type, (event) => {
      if (layers.hasPointerCapture(event.pointerId)) follow(event);
    });
  }
  form.addEventListener("change", (event) => {
    limit = STEP;
    if (event.target.name === "zoom") setZoom(event.target.value);
    updateCrops();
    writeAddress();
  });
  document.getElementById("more").addEventListener("click", () => {
    limit += STEP;
    updateCrops();
  });
  addEventListener("resize", () => crops.forEach(placeDivider));
  addEventListener("hashchange", () => { if (location.hash.includes("=")) readAddress(); });
  readAddress();
}

// Worst cases: what is enlarged scrolls together
const worstZoom = document.getElementById("worst-zoom");
if (worstZoom) worstZoom.addEventListener("change", () => {
  if (!form) return setZoom(worstZoom.value);
  form.elements.zoom.value = worstZoom.value;
  form.elements.zoom.dispatchEvent(new Event("change", { bubbles: true }));
});
for (const triple of all(".triple")) {
  const boxes = all(".box", triple);
  for (const box of boxes) box.addEventListener("scroll", () => {
    for (const other of boxes) if (other !== box) {
      other.scrollLeft = box.scrollLeft;
      other.scrollTop = box.scrollTop;
    }
  });
}
"""
