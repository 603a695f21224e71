"""Tables of a benchmark's figures: averages, changes against the input, Markdown, two reports compared.

A report, ``results/NAME/report.json``, holds a *record* for each method on each *unit*, a clip or picture under one
condition. Averages are taken over a unit's frames first and then over units, so that each unit counts once. The PSNR of
identical pictures is infinite and left out of means.
"""

import contextlib
import json
import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmark.conditions import DEFAULT_CONDITION
from benchmark.metrics import bootstrap_interval
from degradation import DataError
from utils import plural

STUDENT = "student"  # the method that a report is about
UNIT = ["protocol", "category", "name", "condition"]


class Metric(NamedTuple):
    """How a metric is shown and judged."""

    heading: str
    digits: int
    sign: int  # 1 if more is better, -1 if less is


METRICS = {
    "psnr_y": Metric("PSNR-Y (dB)", 2, 1),
    "ssim_y": Metric("SSIM-Y", 4, 1),
    "vmaf_neg": Metric("VMAF-NEG", 2, 1),
    "vmaf": Metric("VMAF", 2, 1),
    "jod": Metric("JOD", 2, 1),
    "ocr": Metric("words read", 3, 1),
    "edges": Metric("edges", 3, 1),
    "noise": Metric("noise", 3, -1),
    "halo": Metric("halo (codes)", 2, -1),
    "flicker": Metric("flicker (codes)", 3, -1),
    "flicker_static": Metric("flicker, still", 3, -1),
}
PROTOCOLS = {  # name: (title, name of a source, name of a unit)
    "real": ("Real clips as they are", "clip", "encoding"),
    "camera": ("Cameras", "clip", "encoding"),
    "call": ("Calls", "clip", "encoding"),
    "x4": ("Calls from a quarter of the lines", "clip", "encoding"),
    "image": ("Pictures", "picture", "degraded picture"),
    "360p": ("Calls of 360 lines at full size", "clip", "encoding"),
    "540p": ("Calls of 540 lines at full size", "clip", "encoding"),
    "720p": ("Calls of 720 lines at full size", "clip", "encoding"),
}


def load_report(path):
    """Read a report.json, or raise `DataError`."""
    report = None
    with contextlib.suppress(ValueError):
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(report, dict) or not {"records", "methods"} <= report.keys():
        raise DataError(f"{path} is no report: name a report.json")
    return report


def to_table(records):
    """Return a table of records: a row for each unit, method, metric and frame, in the records' order.

    Columns: `UNIT`, ``camera``, ``method``, ``metric``, ``frame``, ``level`` (the figure) and ``change`` against the
    method ``input`` on the same frame. The change of an infinite PSNR is infinite, or NaN if both are.
    """
    rows = []
    for record in records:
        identity = [record.get(key) for key in (*UNIT, "camera", "method")]
        for metric, values in record["metrics"].items():
            rows += [(*identity, metric, frame, value) for frame, value in enumerate(values)]
    table = pd.DataFrame(rows, columns=[*UNIT, "camera", "method", "metric", "frame", "level"])
    of_input = table["level"].where(table["method"] == "input")
    frame = [table[key] for key in (*UNIT, "metric", "frame")]
    return table.assign(change=table["level"] - of_input.groupby(frame).transform("max"))


def method_names(report):
    """Return the names of the methods in order of display."""
    return [method["name"] for method in report["methods"]]


def average(table, keys, columns=("level", "change")):
    """Average the rows that agree in `keys`, in order of appearance; infinite levels count only if all are."""
    groups = table.replace([math.inf, -math.inf], math.nan).groupby(list(keys), sort=False)
    means = groups[list(columns)].mean()
    if "level" in columns:
        means["level"] = means["level"].fillna(table.groupby(list(keys), sort=False)["level"].max())
    return means.reset_index()


def summarise(table):
    """Average over the frames of each unit, then over units.

    Returns ``(levels, changes)``: tables with a row for each method and a column for each metric, NaN if not measured.
    """
    means = average(average(table, [*UNIT, "method", "metric"]), ["method", "metric"])
    wide = means.pivot(index="method", columns="metric", values=["level", "change"])
    return wide["level"], wide["change"]


def format_level(metric, value):
    """Format a figure: ``38.02``, ``inf``, or ``–`` if it was not measured."""
    return "–" if math.isnan(value) else f"{value:.{METRICS[metric].digits}f}"


def format_change(metric, value):
    """Format a change: ``+0.18``, ``-0.05``, ``+0.00``, or ``–`` if it was not measured."""
    digits = METRICS[metric].digits
    return "–" if math.isnan(value) else f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0.0: no -0.00


def format_milliseconds(value):
    """Format a time: ``0.41``, ``58.2``, ``1,604``, or ``–`` for 0, if it was not measured."""
    if not value:
        return "–"
    digits = 2 - (value >= 10) - (value >= 100)
    return f"{value:,.{digits}f}"


def format_column(metric, levels, changes):
    """Format the input's level and the others' changes; the best change, if it is an improvement, is ``**bold**``."""
    rounded = METRICS[metric].sign * changes.drop("input").round(METRICS[metric].digits)
    best = rounded.index[(rounded == rounded.max()) & (rounded > 0)]
    texts = {name: format_change(metric, change) for name, change in changes.items()}
    texts |= {name: f"**{texts[name]}**" for name in best}
    return pd.Series(texts | {"input": format_level(metric, levels["input"])})


def summary_tables(report, table, key="camera"):
    """Return tables of each method's mean changes, by caption, for each protocol and value of the column `key`."""
    found = {}
    for (protocol, value), part in table.groupby(["protocol", key], sort=False, dropna=False):
        title, thing, unit = PROTOCOLS[protocol]
        levels, changes = summarise(part)
        columns = {METRICS[m].heading: format_column(m, levels[m], changes[m]) for m in METRICS if m in levels}
        times = {method["name"]: format_milliseconds(method["ms_1080p"]) for method in report["methods"]}
        rows = pd.DataFrame(columns | {"ms at 1080p": pd.Series(times)}).rename_axis("method")
        name = f"{title}, {value}" if pd.notna(value) else title
        things, units = plural(part["name"].nunique(), thing), plural(len(part[UNIT].drop_duplicates()), unit)
        found[f"{name} ({things}, {units})"] = rows.loc[[name for name in method_names(report) if name in levels.index]]
    return found


def promised_table(table):
    """Return a table of PSNR and SSIM by category under the default condition, for which SSIM is promised."""
    chosen = table[(table["protocol"] == "image") & (table["condition"] == DEFAULT_CONDITION)]
    psnr, ssim = (
        chosen[chosen["metric"] == metric]
        .pivot_table("level", "method", "category", sort=False)
        .map(lambda value, metric=metric: format_level(metric, value))
        for metric in ("psnr_y", "ssim_y")
    )
    return {f"Pictures under {DEFAULT_CONDITION}: PSNR-Y (dB) / SSIM-Y": psnr + " / " + ssim} if len(chosen) else {}


def markdown_summary(report):
    """Return Markdown tables of each method over all clips and pictures."""
    table = to_table(report["records"])
    tables = summary_tables(report, table) | promised_table(table)
    return "\n".join(f"{caption}:\n\n{markdown_table(rows)}" for caption, rows in tables.items())


def markdown_table(rows):
    """Format a pandas table with its index in Markdown."""
    lines = [[rows.index.name, *rows.columns], ["---"] * (1 + rows.shape[1]), *rows.reset_index().to_numpy()]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def compare(a, b):
    """Find what became better and what worse from report `a` to report `b`, see `load_report`.

    Returns:
        Table with a row for each ``protocol``, ``method`` and ``metric`` that both measured: ``before``, ``after``,
        ``difference`` (means over frames, then units), its 95 % interval ``low`` to ``high`` over clips or pictures
        (NaN for one), the numbers of ``units`` and of their ``names``, and a ``verdict``: ``better`` or ``worse`` if
        the interval excludes zero, ``same`` if no unit changed, else empty.
    """
    key = [*UNIT, "method", "metric", "frame"]
    before, after = (to_table(report["records"])[[*key, "level"]] for report in (a, b))
    matched = before.rename(columns={"level": "before"}).merge(after.rename(columns={"level": "after"}), on=key)
    matched["difference"] = matched["after"] - matched["before"]
    columns = ["before", "after", "difference"]
    units = average(matched, [*UNIT, "method", "metric"], columns).dropna(subset="difference")
    rows = []
    orders = {"protocol": list(PROTOCOLS), "method": method_names(a), "metric": list(METRICS)}
    sortable = units.assign(**{name: pd.Categorical(units[name], order) for name, order in orders.items()})
    for group, part in sortable.groupby(list(orders), observed=True):
        # Drawn over whole clips, because their conditions resemble each other.
        low, high = bootstrap_interval([clip.to_numpy() for _, clip in part.groupby("name")["difference"]])
        verdict = "" if part["difference"].any() else "same"
        if low > 0 or high < 0:
            verdict = "better" if METRICS[group[-1]].sign * low > 0 else "worse"
        rows.append([*group, *part[columns].mean(), low, high, len(part), part["name"].nunique(), verdict])
    return pd.DataFrame(rows, columns=[*orders, *columns, "low", "high", "units", "names", "verdict"])


def format_comparison(rows, a, b):
    """Format the result of `compare` for a terminal."""
    parts = [f"{side}: {r['name']} ({r['date']}, commit {r['commit']})" for side, r in (("before", a), ("after", b))]
    changed = rows[rows["verdict"] != "same"]
    formats = dict.fromkeys(("before", "after"), format_level)
    formats |= dict.fromkeys(("difference", "low", "high"), format_change)
    texts = {column: list(map(text, changed["metric"], changed[column])) for column, text in formats.items()}
    parts.append(changed.assign(**texts).to_string(index=False))
    parts.append(
        f"{plural(len(rows) - len(changed), 'figure')} the same in every unit. better, worse: the 95 % interval, drawn "
        "over clips or pictures, excludes zero; of twenty rows in which nothing changed, about one does so by chance."
    )
    if (changed["method"] == "input").any():
        parts.append("The input itself differs: encoders, clips or metrics are not the same.")
    return "\n\n".join(parts)
