"""The HTML page of a report: the tables of report.py and pictures from crops/; it needs no network."""

import json
import re
import shlex
from pathlib import Path

import jinja2

from benchmark import report as tables
from utils import write_text


def write_report(report, folder):
    """Write report.json and report.html to the folder of a report."""
    write_text(folder / "report.json", json.dumps(report))
    write_text(folder / "report.html", render_page(report))


def render_page(report):
    """Return the page of a report."""
    table = tables.to_table(report["records"])
    return load_template("report.html", as_html=_as_html).render(
        report=report,
        names=tables.method_names(report),
        student=tables.STUDENT,
        summary=tables.summary_tables(report, table) | tables.promised_table(table),
        details=tables.summary_tables(report, table, "category")
        | tables.summary_tables(report, table[table["protocol"] == "image"], "condition"),
        command=shlex.join(report["command"]),
        milliseconds=tables.format_milliseconds,
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


def _as_html(rows):
    """Return a table of report.py as HTML, with Markdown's bold."""
    html = rows.rename_axis(columns=rows.index.name).rename_axis(None).to_html(border=0)  # escaped
    return re.sub(r"<td>\*\*(.*?)\*\*</td>", r"<td><b>\1</b></td>", html)
