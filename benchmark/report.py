"""Tables of a benchmark's figures: averages, changes against the input, Markdown for a README, two reports compared.

A report is the file ``results/NAME/report.json`` that evaluate.py writes; page.py makes its HTML page. It holds a
*record* for each method on each *unit*, which is a clip or picture under one condition. `to_table` turns records into a
pandas table with a row for each unit, method, metric and frame. Its column ``level`` holds the figure, ``change`` the
figure minus that of the method ``input`` on the same frame.

Averages are taken over a unit's frames first and then over units, so that each unit counts once however long it is. The
PSNR of identical pictures is infinite (``null`` in the file). It is shown as ∞ and left out of means.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmark.conditions import DEFAULT_CONDITION
from benchmark.metrics import bootstrap_interval
from degradation import DataError
from utils import first_line

FORMAT = 1
STUDENT = "student"  # the method that the page is about
UNIT = ["protocol", "category", "name", "condition"]
ENCODING = ["scale", "codec", "rate", "kbps", "camera"]  # what clips have besides
WHOLE_CLIP = -1  # frame of a figure that stands for all frames


class Metric(NamedTuple):
    """How a metric is shown and judged.

    ``sign`` is 1 if more is better and -1 if less is. Of metrics for which more is better, a loss of up to
    ``tolerance`` does not count when frames that are worse than the input are counted; None: they are not counted.
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
TOLERANCES = {name: metric.tolerance for name, metric in METRICS.items() if metric.tolerance}
CLIP_METRICS = ("psnr_y", "ssim_y", "vmaf_neg", "vmaf", "jod", "ms_ssim", "flicker_static", "flicker_moving")
SUMMARY_METRICS = {
    "real": ("edges", "noise", "halo", "flicker"),
    "camera": CLIP_METRICS,
    "call": CLIP_METRICS,
    "x4": CLIP_METRICS,
    "image": ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "ms_ssim", "ocr"),
}
HARM_METRICS = ("psnr_y", "ssim_y", "vmaf_neg", "vmaf", "jod", "ms_ssim", "ocr")
PROTOCOLS = {  # name: (title, what is measured, what a unit is called)
    "real": ("Real clips as they are", "clip", "encoding"),
    "camera": ("Cameras", "clip", "encoding"),
    "call": ("Calls", "clip", "encoding"),
    "x4": ("Calls from a quarter of the lines", "clip", "encoding"),
    "image": ("Pictures", "picture", "degraded picture"),
}

# ----------------------------------------------------------------------------------------------------------------------
# Reading


def load_report(path):
    """Read a report.json; a DataError says that it cannot be read, is no report or has another format."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        if report["format"] != FORMAT:
            raise DataError(f"{path} has format {report['format']}, expected {FORMAT}: run the benchmark again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read the report {path} ({first_line(error)}): name a report.json") from error
    return report


def to_table(records):
    """Return a table of records: a row for each unit, method, metric and frame, in the records' order.

    Columns: `UNIT`, `ENCODING`, ``method``, ``metric``, ``frame``, ``level``, ``before`` (the input's) and ``change``.
    Figures that were not measured have no row. If PSNR is infinite, so is its change, and NaN if both are.
    """
    rows = []
    for record in records:
        identity = [record.get(key) for key in (*UNIT, *ENCODING, "method")]
        for metric, values in record["metrics"].items():
            frames = record["frames"] if len(values) == len(record["frames"]) else [WHOLE_CLIP]
            rows += [(*identity, metric, frame, value) for frame, value in zip(frames, values, strict=True)]
    table = pd.DataFrame(rows, columns=[*UNIT, *ENCODING, "method", "metric", "frame", "level"])
    is_infinite = table["metric"].str.startswith("psnr") & table["level"].isna()
    table["level"] = table["level"].astype(float).mask(is_infinite, math.inf)
    table = table.dropna(subset="level")
    frame = [*UNIT, "metric", "frame"]
    before = table.loc[table["method"] == "input", [*frame, "level"]].rename(columns={"level": "before"})
    table = table.merge(before, on=frame, how="left")
    table["change"] = table["level"] - table["before"]
    return table


def of_protocol(table, protocol):
    """The rows of a table that belong to a protocol."""
    return table[table["protocol"] == protocol]


def method_names(report):
    """Names of the methods in order of display."""
    return [method["name"] for method in report["methods"]]


def measured(table, metrics):
    """Those of `metrics` that a table holds."""
    present = set(table["metric"])
    return [metric for metric in metrics if metric in present]


# ----------------------------------------------------------------------------------------------------------------------
# Averages


def average(table, keys, columns=("level", "change")):
    """Average the rows that agree in `keys`, in order of appearance.

    Infinite figures are left out; only if there is nothing else a mean level is infinite.
    """
    groups = table.replace([math.inf, -math.inf], math.nan).groupby(list(keys), sort=False, dropna=False)
    means = groups[list(columns)].mean()
    if "level" in columns:
        highest = table.groupby(list(keys), sort=False, dropna=False)["level"].max()
        means["level"] = means["level"].fillna(highest)
    return means.reset_index()


def summarise(table, metrics):
    """Average over the frames of each unit, then over units.

    Returns:
        ``(levels, changes)``: tables with a row for each method and a column for each metric, NaN if not measured.
    """
    means = average(average(table, [*UNIT, "method", "metric"]), ["method", "metric"])
    wide = means.pivot(index="method", columns="metric", values=["level", "change"])
    return wide["level"].reindex(columns=metrics), wide["change"].reindex(columns=metrics)


def measured_everywhere(table):
    """The rows of those methods that were measured on all units of a table."""
    units = table[[*UNIT, "method"]].drop_duplicates()["method"].value_counts()
    return table[table["method"].isin(units.index[units == units["input"]])]


def comparable(table):
    """List the parts of a protocol's table in which all methods saw the same frames, so that their means compare.

    These are the methods that were measured on every unit, and, if that leaves a slow one out, all methods on the
    frames that they share.
    """
    if not len(table):
        return []
    everywhere = measured_everywhere(table)
    count = table["method"].nunique()
    if everywhere["method"].nunique() == count:
        return [everywhere]
    methods = table.groupby([*UNIT, "metric", "frame"])["method"].transform("nunique")
    return [part for part in (everywhere, table[methods == count]) if len(part)]


def unit_changes(table, method, metric):
    """Mean change of a method in each unit: a table with `UNIT` and ``change``."""
    chosen = table[(table["method"] == method) & (table["metric"] == metric)]
    return average(chosen, UNIT).dropna(subset="change")


def interval_over_names(table, column="change"):
    """95 % interval ``(low, high)`` of a column's mean, drawn over whole clips, whose conditions repeat one another."""
    return bootstrap_interval([values.to_numpy() for _, values in table.groupby("name", sort=False)[column]])


def share_below(table):
    """Share of frames worse than the input by more than the tolerance; a row for each method, a column for each metric.

    A PSNR that was infinite and is not any more counts as worse.
    """
    metrics = measured(table, HARM_METRICS)
    table = table[table["metric"].isin(metrics)]
    below = table["change"] < -table["metric"].map(TOLERANCES)
    return below.groupby([table["method"], table["metric"]]).mean().unstack()[metrics]


def rate_points(table):
    """Return the points of the rate-quality curves of protocol ``call``, sorted by ``x``.

    Returns:
        Table with ``codec``, ``scale``, ``metric``, ``axis``, ``method``, ``x``, ``level`` and ``change``, of methods
        that were measured on all clips there. Axes are ``qp`` and ``kbps`` (geometric mean over the clips) of encodings
        with a constant quantiser, and ``bitrate`` (likewise) of those with rate control.
    """
    encoding = ["codec", "scale", "rate"]
    calls = of_protocol(table, "call")
    calls = pd.concat([calls[:0], *(measured_everywhere(part) for _, part in calls.groupby(encoding, sort=False))])
    units = average(calls, [*UNIT, *encoding, "kbps", "method", "metric"])
    units["log_kbps"] = np.log(units["kbps"].astype(float))
    points = average(units, [*encoding, "method", "metric"], ["level", "change", "log_kbps"])
    points = points[np.isfinite(points["level"]) & points["change"].notna()]
    quantiser = points["rate"].str.extract(r"^qp (\d+)$")[0].astype(float)
    has_quantiser = quantiser.notna()
    by_rate = points.assign(axis=np.where(has_quantiser, "kbps", "bitrate"), x=np.exp(points["log_kbps"]))
    by_quantiser = points.assign(axis="qp", x=quantiser)[has_quantiser]
    return pd.concat([by_quantiser, by_rate]).sort_values("x", kind="stable")


# ----------------------------------------------------------------------------------------------------------------------
# Figures as text


def format_level(metric, value):
    """A figure as it is printed: ``38.02``, ``∞``, or ``–`` if it was not measured."""
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{METRICS[metric].digits}f}"


def format_change(metric, value):
    """A change as it is printed, with its sign: ``+0.18``, ``−0.05``, ``0.00``; ``–`` if it was not measured."""
    if math.isnan(value):
        return "–"
    rounded = round(value, METRICS[metric].digits)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else ""
    return f"{sign}{abs(rounded):.{METRICS[metric].digits}f}"


def format_milliseconds(value):
    """A time as it is printed: ``0.41``, ``58.2``, ``1,604``; ``–`` if it was not measured (0 or None)."""
    if not value:
        return "–"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def format_interval(metric, low, high):
    """An interval of changes as it is printed."""
    return "–" if math.isnan(low) else f"{format_change(metric, low)} to {format_change(metric, high)}"


def format_share(share):
    """A share as it is printed, in per cent."""
    return f"{100 * share:.1f} %"


def count_of(number, noun):
    """``1 clip``, ``12 clips``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def heading(metric):
    """A metric's name with its unit."""
    return f"{METRICS[metric].label} ({METRICS[metric].unit})" if METRICS[metric].unit else METRICS[metric].label


class Cell(NamedTuple):
    """A cell of a table; ``kind`` is ``"level"``, ``"best"``, ``"worse"`` or empty."""

    text: str
    kind: str = ""


class Table(NamedTuple):
    """A table to be shown: a row is a list of a name and a `Cell` for each other column."""

    caption: str
    columns: list
    rows: list


def best_methods(values, metric):
    """The methods of a Series whose value, as it is printed, is the best and better than 0; none if there is none."""
    scores = METRICS[metric].sign * values.dropna().map(lambda value: round(value, METRICS[metric].digits))
    return set(scores.index[(scores == scores.max()) & (scores > 0)])


def metric_cells(levels, changes, metric):
    """Return method -> `Cell`: the input's level and the others' changes, the best marked; see `summarise`."""
    best = best_methods(changes[metric].drop("input"), metric)
    cells = {"input": Cell(format_level(metric, levels.at["input", metric]), "level")}
    for name, value in changes[metric].drop("input").items():
        is_worse = METRICS[metric].sign * value < 0 and round(value, METRICS[metric].digits) != 0
        cells[name] = Cell(format_change(metric, value), "best" if name in best else "worse" if is_worse else "")
    return cells


def level_cells(levels, changes, metric):
    """Return method -> `Cell` with levels, of which the best is marked; arguments as for `metric_cells`."""
    best = best_methods(levels[metric], metric)
    return {name: Cell(format_level(metric, level), "best" * (name in best)) for name, level in levels[metric].items()}


def summary_tables(report, table):
    """Return a `Table` of each method's mean change for each protocol, of cameras for each kind.

    There is a second one if not all methods were measured everywhere, see `comparable`.
    """
    tables = []
    for protocol, (title, thing, unit) in PROTOCOLS.items():
        chosen = of_protocol(table, protocol)
        groups = {title: chosen}
        if protocol == "camera":
            groups = {f"{title}, {kind}": chosen[chosen["camera"] == kind] for kind in ("soft", "crisp")}
        for name, group in groups.items():
            names = (name, f"{name} where all methods were measured")
            for caption, part in zip(names, comparable(group), strict=False):
                things = count_of(part["name"].nunique(), thing)
                units = count_of(len(part[UNIT].drop_duplicates()), unit)
                tables.append(_summary_table(report, part, protocol, f"{caption} ({things}, {units})"))
    return tables


def _summary_table(report, table, protocol, caption):
    metrics = measured(table, SUMMARY_METRICS[protocol])
    means = summarise(table, metrics)
    cells = [metric_cells(*means, metric) for metric in metrics]
    rows = [
        [method["name"], *(column[method["name"]] for column in cells), Cell(format_milliseconds(method["ms_1080p"]))]
        for method in report["methods"]
        if method["name"] in set(table["method"])
    ]
    return Table(caption, ["method", *map(heading, metrics), "ms at 1080p"], rows)


def picture_tables(report, table):
    """Return two `Table` of PSNR and SSIM: levels in the default condition (one is promised), changes by condition."""
    pictures = of_protocol(table, "image")
    default = pictures[pictures["condition"] == DEFAULT_CONDITION]
    found = []
    for title, what, chosen, key, cells_of in (
        (f"Pictures under {DEFAULT_CONDITION}", "", default, "category", level_cells),
        ("Pictures by condition", "changes of ", pictures, "condition", metric_cells),
    ):
        if not len(chosen):
            continue
        chosen = measured_everywhere(chosen)
        metrics = measured(chosen, ("psnr_y", "ssim_y"))
        groups = {}
        for value, part in chosen.groupby(key, sort=False):
            means = summarise(part, metrics)
            groups[value] = [cells_of(*means, metric) for metric in metrics]
        rows = [
            [name, *(Cell(" / ".join(markdown_cell(cells[name]) for cells in group)) for group in groups.values())]
            for name in method_names(report)
            if name in set(chosen["method"])
        ]
        count = count_of(chosen["name"].nunique(), "picture")
        caption = f"{title} ({count}; {what}{' / '.join(map(heading, metrics))})"
        found.append(Table(caption, ["method", *groups], rows))
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Markdown


def markdown_summary(report):
    """Markdown tables for a README: each method over all clips, and over pictures."""
    table = to_table(report["records"])
    clips = summary_tables(report, table[table["protocol"] != "image"])
    return "\n\n".join(map(markdown_of, [*clips, *picture_tables(report, table)])) + "\n"


def markdown_of(table):
    """A `Table` with its caption in Markdown."""
    rows = [[name, *map(markdown_cell, cells)] for name, *cells in table.rows]
    return f"{table.caption}:\n\n{markdown_table([table.columns, *rows])}"


def markdown_cell(cell):
    """A `Cell` in Markdown: the best is bold."""
    return f"**{cell.text}**" if cell.kind == "best" else cell.text


def markdown_table(lines):
    """A table of lines of cells, the first being the header, in Markdown."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


# ----------------------------------------------------------------------------------------------------------------------
# Two reports


def compare(a, b):
    """Find what became better and what worse from report `a` to report `b`, see `load_report`.

    Figures are matched on unit, method, metric and frame. Differences are averaged over frames, then over units; their
    95 % interval is drawn over clips or pictures.

    Returns:
        Dict of tables:

        * ``rows``, one for each ``protocol``, ``method`` and ``metric``: ``before``, ``after`` (mean levels),
          ``difference``, ``low``, ``high`` (NaN with a single clip), ``units``, ``names`` (how many) and ``verdict``:
          ``better`` or ``worse`` if the interval excludes zero, ``same`` if no unit changed, else empty;
        * ``units``: `UNIT`, ``method`` and ``score``, the mean difference in tolerances over the metrics that have one,
          from the best to the worst;
        * ``unmatched``: `UNIT`, ``method`` and ``report`` (``before`` or ``after``), what only one of them has;
        * ``input``: the units that were not given the same input.
    """
    key = [*UNIT, "method", "metric", "frame"]
    both = [to_table(report["records"])[[*key, "level"]] for report in (a, b)]
    matched = both[0].merge(both[1], on=key, suffixes=("_a", "_b"))
    matched = matched.rename(columns={"level_a": "before", "level_b": "after"})
    matched["difference"] = matched["after"] - matched["before"]
    units = average(matched, [*UNIT, "method", "metric"], LEVELS).dropna(subset="difference")
    orders = {"protocol": list(PROTOCOLS), "method": method_names(a), "metric": list(METRICS)}
    sortable = units.assign(**{name: pd.Categorical(units[name], order) for name, order in orders.items()})
    rows = [
        dict(zip(orders, group, strict=True)) | _difference(group[-1], part)
        for group, part in sortable.groupby(list(orders), observed=True)
    ]
    units["score"] = units["difference"] / units["metric"].map(TOLERANCES)
    judged = units[units["method"] != "input"].dropna(subset="score")
    scores = average(judged, [*UNIT, "method"], ["score"])
    unmatched = pd.merge(*(table[[*UNIT, "method"]].drop_duplicates() for table in both), how="outer", indicator=True)
    unmatched = unmatched[unmatched["_merge"] != "both"]
    report = unmatched.pop("_merge").map({"left_only": "before", "right_only": "after"}).astype(object)
    changed = units[(units["method"] == "input") & (units["difference"] != 0)]
    return {
        "rows": pd.DataFrame(rows, columns=[*orders, *LEVELS, "low", "high", "units", "names", "verdict"]),
        "units": scores.sort_values("score", ascending=False, kind="stable"),
        "unmatched": unmatched.assign(report=report),
        "input": changed[UNIT].drop_duplicates(),
    }


LEVELS = ["before", "after", "difference"]


def _difference(metric, units):
    low, high = interval_over_names(units, "difference")
    verdict = ""
    if not units["difference"].any():
        verdict = "same"
    elif low > 0 or high < 0:
        verdict = "better" if METRICS[metric].sign * low > 0 else "worse"
    counts = {"units": len(units), "names": units["name"].nunique()}
    return {**units[LEVELS].mean(), "low": low, "high": high, **counts, "verdict": verdict}


def format_comparison(comparison, a, b):
    """The result of `compare` as text for a terminal: tables, the units that moved most, what has no match."""
    before, after = (f"{report['name']} ({report['date']}, commit {report['commit']})" for report in (a, b))
    parts = [f"before: {before}\nafter:  {after}"]
    for protocol, group in comparison["rows"].groupby("protocol", sort=False):
        changed = group[group["verdict"] != "same"]
        if len(changed):
            parts.append(f"protocol {protocol}\n{_format_differences(changed)}")
        same = [name for name in group["method"].unique() if name not in set(changed["method"])]
        if same:
            parts.append(f"protocol {protocol}, the same in every unit: {', '.join(same)}")
    parts.append(
        "* the interval, drawn over clips or pictures, excludes zero; of twenty rows in which nothing changed, about "
        "one does so by chance"
    )
    units = comparison["units"]
    improved, worsened = units[units["score"] > 0].head(5), units[units["score"] < 0].tail(5)[::-1]
    for title, moved in (("most improved", improved), ("most worsened", worsened)):
        if len(moved):
            lines = [f"  {row.score:+6.1f}  {row.method}: {_unit_name(row)}" for row in moved.itertuples()]
            parts.append("\n".join([f"{title} (mean difference in tolerances)", *lines]))
    if len(comparison["input"]):
        parts.append(
            f"the input itself differs in {count_of(len(comparison['input']), 'unit')}: encoders, clips or metrics are "
            "not the same, so differences are not the methods' alone"
        )
    for side, unmatched in comparison["unmatched"].groupby("report", sort=False):
        lines = [f"  {row.method}: {_unit_name(row)}" for row in unmatched.itertuples()]
        parts.append("\n".join([f"{count_of(len(lines), 'record')} only in the report {side}", *lines]))
    # Terminals of Windows cannot always print these signs.
    return "\n\n".join(parts).replace("−", "-").replace("∞", "inf").replace("–", "-") + "\n"


def _format_differences(rows):
    lines = [
        {
            "method": row.method,
            "metric": row.metric,
            "before": format_level(row.metric, row.before),
            "after": format_level(row.metric, row.after),
            "difference": format_change(row.metric, row.difference),
            "95 % interval": format_interval(row.metric, row.low, row.high),
            "units": row.units,
            "names": row.names,
            "verdict": f"{row.verdict} *" if row.verdict else "",
        }
        for row in rows.itertuples()
    ]
    return pd.DataFrame(lines).set_index(["method", "metric"]).to_string()


def _unit_name(row):
    return " / ".join(getattr(row, key) for key in UNIT)
