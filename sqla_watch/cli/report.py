"""`sqla-watch report`: a page made of a JSON report that an earlier run has written."""

from __future__ import annotations

import os

import click

from sqla_watch.panel import report_page
from sqla_watch.reporters import files, json

__all__ = ["HTML", "report"]

HTML = "HTML report"
"""What it is called in a message."""


@click.command()
@click.argument("json_path", metavar="JSON_REPORT")
@click.option("--html", "html_path", metavar="FILE", required=True, help="Where the page goes.")
def report(json_path: str, html_path: str) -> int:
    """Make one self-contained HTML page of a JSON_REPORT, as `sqla-watch run --json` writes it."""
    files.check(html_path, HTML)
    document = json.read(json_path)
    program = document.get("program")
    name = program.get("name") if isinstance(program, dict) else None
    title = name if isinstance(name, str) and name else os.path.basename(json_path)
    files.write(report_page(document["scopes"], title=title).encode("utf-8", "replace"), html_path, HTML)
    return 0
