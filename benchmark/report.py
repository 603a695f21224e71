"""What a benchmark found: averages, changes against the input, tables for a README, the comparison of two reports.

A report is the file ``results/NAME/report.json`` that evaluate.py writes; page.py makes its HTML page.

A *record* holds the figures of one method on one *unit*, a clip or picture under one condition. Averages are taken over
a unit's frames first and then over units, so that each unit counts once however long it is. A *change* is a method's
figure less that of the method ``input``, what arrives, on the same frame.

The PSNR of identical pictures is infinite (``null`` in the file). It is shown as ∞, and left out of means, those of
figures and those of changes; a mean of nothing else is ∞ itself.
"""

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmark.conditions import DEFAULT_CONDITION
from benchmark.metrics import bootstrap_interval
from utils import first_line

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
MAX_BYTES = 1 << 26  # of a report.json; an hour's benchmark writes a few MiB
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
    "jod": Metric("JOD", "", 2, 1, 0.02),
    "ocr": Metric("words read", "", 3, 1, 0.005),
    "edges": Metric("edges", "", 3, 1, None),
    "noise": Metric("noise", "", 3, -1, None),
    "halo": Metric("halo", "codes", 2, -1, None),
    "flicker": Metric("flicker", "codes", 3, -1, None),
    "flicker_static": Metric("flicker, still", "", 3, -1, None),
    "flicker_moving": Metric("flicker, moving", "", 3, -1, None),
}
CLIP_METRICS = ("psnr_y", "ssim_y", "vmaf_neg", "vmaf", "jod", "ms_ssim", "flicker_static", "flicker_moving")
SUMMARY_METRICS = {
    "real": ("edges", "noise", "halo", "flicker"),
    "camera": CLIP_METRICS,
    "call": CLIP_METRICS,
    "x4": CLIP_METRICS,
    "image": ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "ms_ssim", "ocr"),
}
HARM_METRICS = ("psnr_y", "ssim_y", "vmaf_neg", "vmaf", "jod", "ms_ssim", "ocr")
MAIN_METRICS = ("psnr_y", "ssim_y", "vmaf_neg")  # of the curves, the distribution and the table of conditions
NO_BREAK = "\N{NO-BREAK SPACE}"
PROTOCOLS = {
    "real": ("Real clips as they are", "clip"),
    "camera": ("Cameras", "clip"),
    "call": ("Calls", "clip"),
    "x4": ("Calls from a quarter of the lines", "clip"),
    "image": ("Pictures", "picture"),
}

# ----------------------------------------------------------------------------------------------------------------------
# Reading


def load_report(path):
    """Read a report.json and check that it is whole.

    Raises:
        ReportError: the file is missing, no JSON, not a report of this format, or contradicts itself.
    """
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise ReportError(f"{path} is not a report of this benchmark: it has more than {MAX_BYTES >> 20} MiB")
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(
            f"cannot read the report {path} ({first_line(error)}): give the report.json of a finished benchmark"
        ) from error
    except (ValueError, RecursionError) as error:  # no JSON, or no text at all, or lists within lists without end
        raise ReportError(f"{path} is no JSON ({first_line(error)}): run the benchmark again") from error
    if not isinstance(report, dict) or "format" not in report or "records" not in report:
        raise ReportError(f"{path} is not a report of this benchmark: give the report.json that it has written")
    if report["format"] != FORMAT:
        raise ReportError(
            f"{path} has format {str(report['format'])[:20]}, this program reads {FORMAT}: run the benchmark again "
            "or use the version that wrote it"
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
            if place == "records" and isinstance(entry, dict) and entry.get("protocol") in ("camera", "call", "x4"):
                wanted = (*keys, "scale", "codec", "rate", *(["camera"] if entry["protocol"] == "camera" else []))
            missing = [key for key in wanted if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise ReportError(f"{place}[{index}] lacks {', '.join(missing)}")
            if strange := [key for key in wanted if not _fits(key, entry[key])]:
                raise ReportError(f"{place}[{index}] has something else than expected as {strange[0]}")
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


def _fits(key, value):
    """Whether what a report has under `key` is of the right kind; pictures lie in the report's own folder."""
    if key in (*UNIT, "method", "metric", "codec", "rate", "camera"):
        return isinstance(value, str)
    if key == "frames":
        return isinstance(value, list) and all(type(frame) is int for frame in value)
    if key == "metrics":
        return isinstance(value, dict) and all(
            isinstance(values, list) and all(_is_figure(figure) for figure in values) for values in value.values()
        )
    if key == "box":
        return isinstance(value, list) and len(value) == 4 and all(type(number) is int for number in value)
    if key == "files":
        return isinstance(value, dict) and all(isinstance(file, str) and _is_inside(file) for file in value.values())
    return _is_figure(value)  # frame, scale, change


def _is_inside(file):
    """Whether a name leads nowhere but into the folder that it is looked up in, on Windows too."""
    return not re.search(r"[:\0]", file) and not {"..", ""} & set(re.split(r"[/\\]", file))


def _is_figure(value):
    if isinstance(value, int):
        return type(value) is int and abs(value) < 2**63
    return value is None or isinstance(value, float)


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


def comparable(records):
    """Parts of the records of one protocol in which all methods saw the same frames, so that their means compare.

    A slow method may have been measured on a few units only, and on few frames of them.

    Returns:
        List of up to two lists of records: of the methods that were measured on every unit, and, where that leaves a
        method out, of all methods on the frames that they share.
    """
    if not records:
        return []
    units = by_unit(records)
    names = {record["method"] for record in records}
    everywhere = {name for name in names if all(name in methods for methods in units.values())}
    parts = [[record for record in records if record["method"] in everywhere]]
    if everywhere != names:
        shared = []
        for methods in units.values():
            frames = set.intersection(*(set(record["frames"]) for record in methods.values()))
            if len(methods) == len(names) and frames:
                shared += [_on_frames(record, frames) for record in methods.values()]
        parts += [shared] if shared else []
    return parts


def _on_frames(record, frames):
    """A record without its other frames; figures of a whole clip stay."""
    kept = [i for i, frame in enumerate(record["frames"]) if frame in frames]
    metrics = {
        metric: [values[i] for i in kept] if len(values) == len(record["frames"]) else values
        for metric, values in record["metrics"].items()
    }
    return {**record, "frames": [record["frames"][i] for i in kept], "metrics": metrics}


def by_group(records, keys, metrics):
    """Rows of `summarise` as tuple of the values of `keys` -> method -> row.

    Methods that were not measured on all units of a group are left out of it.
    """
    groups = defaultdict(dict)
    for row in summarise(records, keys, metrics):
        groups[tuple(row[key] for key in keys)][row["method"]] = row
    return {
        values: {name: row for name, row in rows.items() if row["units"] == rows["input"]["units"]}
        for values, rows in groups.items()
    }


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
        (codec, scale) -> axis -> method -> list of (x, mean level, mean change), sorted, of methods that were measured
        on all clips there. Axes: ``qp`` and ``kbps`` (the
        geometric mean of what the clips took) of constant-QP encodings, ``bitrate`` (likewise) of rate-controlled ones.
    """
    records = [record for record in records if record["protocol"] == "call"]
    kbps = defaultdict(list)
    for record in records:
        if record["method"] == "input" and record.get("kbps"):
            kbps[record["codec"], record["scale"], record["rate"]].append(record["kbps"])
    panels = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for (codec, scale, rate), rows in by_group(records, ["codec", "scale", "rate"], [metric]).items():
        panel, rates = panels[codec, scale], kbps[codec, scale, rate]
        quantiser = re.fullmatch(r"qp (\d+)", rate)
        for name, row in rows.items():
            point = row["level"][metric], row["change"][metric]
            if None in point or math.inf in point:
                continue
            if quantiser:
                panel["qp"][name].append((int(quantiser[1]), *point))
            if rates:
                axis = "kbps" if quantiser else "bitrate"
                panel[axis][name].append((math.exp(np.mean(np.log(rates))), *point))
    for panel in panels.values():
        for axis in panel.values():
            for points in axis.values():
                points.sort()
    return panels


def method_names(report):
    """Names of the methods in order of display; such as only records have come last."""
    listed = [method["name"] for method in report["methods"]]
    return listed + sorted({record["method"] for record in report["records"]} - set(listed))


def of_protocol(report, protocol):
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


def format_interval(metric, low, high):
    return "–" if math.isnan(low) else f"{format_change(metric, low)} to {format_change(metric, high)}"


def is_worse(metric, value):
    return value is not None and METRICS[metric].sign * round(value, METRICS[metric].digits) < 0


def format_share(share):
    return f"{100 * share:.1f} %"


def count_of(number, noun):
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def heading(metric):
    return f"{METRICS[metric].label} ({METRICS[metric].unit})" if METRICS[metric].unit else METRICS[metric].label


def markdown_summary(report):
    """Markdown tables for a README: each method over all calls, and over pictures.

    The row ``input`` holds levels, the others changes against it; the best of a column is bold. Of the pictures in
    the default condition, by category, all are levels: what is promised of them is one.
    """
    parts = []
    for protocol, (name, _) in PROTOCOLS.items():
        records = of_protocol(report, protocol)
        if not records or protocol == "image":
            continue
        groups = by_camera(records) if protocol == "camera" else {"": records}
        for group, chosen in groups.items():
            titles = (f"{name}{group}", f"{name}{group} where all methods were measured")
            for title, part in zip(titles, comparable(chosen), strict=False):
                parts.append(_clip_table(report, title, part, SUMMARY_METRICS[protocol]))
    pictures = of_protocol(report, "image")
    for key, chosen, cell in (
        ("category", [r for r in pictures if r["condition"] == DEFAULT_CONDITION], _level_cell),
        ("condition", pictures, _markdown_cell),
    ):
        for records in comparable(chosen)[:1]:
            metrics = measured(records, ("psnr_y", "ssim_y"))
            groups = by_group(records, [key], metrics)
            lines = [["method", *(name for (name,) in groups)]]
            for name in method_names(report):
                if all(name in rows for rows in groups.values()):
                    cells = (" / ".join(cell(rows, name, metric) for metric in metrics) for rows in groups.values())
                    lines.append([name, *cells])
            count = count_of(len({record["name"] for record in records}), "picture")
            what = " / ".join(heading(metric) for metric in metrics)
            if key == "category":
                parts.append(f"Pictures under {DEFAULT_CONDITION} ({count}; {what}):\n\n{markdown_table(lines)}")
            else:
                parts.append(f"Pictures by condition ({count}; changes of {what}):\n\n{markdown_table(lines)}")
    return "\n\n".join(parts) + "\n"


def by_camera(records):
    """Records of protocol ``camera`` as part of a title -> records: of soft and of crisp cameras."""
    kinds = {f", {kind}": [record for record in records if record["camera"] == kind] for kind in ("soft", "crisp")}
    return {kind: chosen for kind, chosen in kinds.items() if chosen}


def _clip_table(report, title, records, metrics):
    """Markdown table of each method over `records`, all of which have been measured with every method."""
    times = {method["name"]: method.get("ms_1080p") for method in report["methods"]}
    metrics = measured(records, metrics)
    rows = {row["method"]: row for row in summarise(records, [], metrics)}
    rows = {name: rows[name] for name in method_names(report) if name in rows}
    lines = [["method", *(heading(metric) for metric in metrics), "ms at 1080p"]]
    for name in rows:
        cells = [_markdown_cell(rows, name, metric) for metric in metrics]
        lines.append([name, *cells, format_milliseconds(times.get(name) or None)])
    clips = count_of(len({record["name"] for record in records}), "clip")
    return f"{title} ({clips}, {count_of(rows['input']['units'], 'encoding')}):\n\n{markdown_table(lines)}"


def _level_cell(rows, name, metric):
    text = format_level(metric, rows[name]["level"][metric])
    return f"**{text}**" if name in best_methods({n: row["level"][metric] for n, row in rows.items()}, metric) else text


def _markdown_cell(rows, name, metric):
    if name not in rows:
        return "–"
    if name == "input":
        return format_level(metric, rows[name]["level"][metric])
    text = format_change(metric, rows[name]["change"][metric])
    best = best_methods({n: row["change"][metric] for n, row in rows.items() if n != "input"}, metric)
    return f"**{text}**" if name in best else text


def markdown_table(lines):
    """A table of lines of cells, the first being the header, in Markdown."""
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
        "rows": _difference_rows(matched, differences, [name for name in method_names(a) if name in common]),
        "improved": [bucket for bucket in scores[::-1][:5] if bucket["score"] > 0],
        "worsened": [bucket for bucket in scores[:5] if bucket["score"] < 0],
        "only_a": [key for key in records_a if key not in records_b and key[1] in common],
        "only_b": [key for key in records_b if key not in records_a and key[1] in common],
        "missing_a": [name for name in method_names(b) if name in methods[1] - methods[0]],
        "missing_b": [name for name in method_names(a) if name in methods[0] - methods[1]],
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
                    format_interval(metric, row["low"], row["high"]),
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
            f"the input itself differs in {count_of(comparison['input_differs'], 'unit')}: encoders, clips or metrics "
            "are not the same, so differences are not the methods' alone"
        )
    for key, title in (("missing_a", "only the report after has"), ("missing_b", "only the report before has")):
        if comparison[key]:
            parts.append(f"{title}: {', '.join(comparison[key])}")
    for key, title in (("only_a", "before"), ("only_b", "after")):
        if comparison[key]:
            lines = [f"{count_of(len(comparison[key]), 'record')} only in the report {title}"]
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
