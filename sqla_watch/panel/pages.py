"""Pages of the panel and of the report: what was read goes in, HTML comes out, every text escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from sqla_watch.panel.entry import Entry
from sqla_watch.panel.highlighting import Highlighter
from sqla_watch.panel.store import Kept
from sqla_watch.panel.views import BLANK, ListRow, row_of, view_of
from sqla_watch.reporters.text import count, number

__all__ = ["asset", "list_page", "message_page", "news_row", "report_html", "request_page"]

MOST_MOMENTS_OF_REPORT = 50_000
"""Rows of all waterfalls of one report: about 20 MB."""

_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("sqla_watch.panel"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@lru_cache
def asset(name: str) -> str:
    """Return a file of ours: `panel.css` or `panel.js`."""
    return files("sqla_watch.panel").joinpath(name).read_text(encoding="utf-8")


def list_page(kept: Sequence[Kept], *, of: str, most: int) -> str:
    """Return the page with the list of the last requests.

    Args:
        kept: They, the newest first.
        of: The process which keeps them.
        most: How many are kept.
    """
    return _environment.get_template("list.html").render(
        **_frame("Requests · sqla_watch", "panel", base="", home="./"),
        rows=[news_row(each, of) for each in kept],
        blank=BLANK,
        most=number(most),
        live={"address": "requests.json", "after": kept[0].number if kept else 0, "of": of, "most": most},
    )


def news_row(kept: Kept, of: str) -> ListRow:
    """Return a request as a row of the list."""
    return row_of(kept.summary, href=_href(kept, of, ""), key=f"{of}-{kept.number}")


def request_page(entry: Entry, *, of: str, newer: Kept | None, older: Kept | None) -> str:
    """Return the page about one request, and the ways to its neighbours."""
    view = view_of(entry, Highlighter())
    return _environment.get_template("request.html").render(
        **_frame(f"{view['row'].method} {view['row'].name} · sqla_watch".strip(), "panel", base="../", home="../"),
        view=view,
        newer=newer and _href(newer, of, "../"),
        older=older and _href(older, of, "../"),
    )


def message_page(title: str, text: str) -> str:
    """Return a page in the place of a request's, which says something in a sentence."""
    return _environment.get_template("message.html").render(**_frame(title, "panel", base="../", home="../"), text=text)


def report_html(entries: Sequence[Entry], title: str) -> str:
    """Return a report in one file."""
    highlighter = Highlighter()
    drawn = _with_room(entries)
    views = [view_of(entry, highlighter, href=f"#scope-{place}") for place, entry in enumerate(drawn, 1)]
    style, script = asset("panel.css"), asset("panel.js")
    found = sum(bool(entry.summary.findings) for entry in entries)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    return _environment.get_template("report.html").render(
        **_frame(title, "report single" if len(views) == 1 else "report", base="", home="#overview", policy=policy),
        style=Markup(style),  # our own files, in which nothing of the application is
        script=Markup(script),
        views=views,
        rows=[view["row"] for view in views],
        with_status=any(entry.summary.request for entry in entries),
        facts=[count(len(entries), "scope"), f"{number(found)} with findings"] if entries else [],
    )


def _frame(title: str, body_class: str, *, base: str, home: str, policy: str = "") -> dict[str, Any]:
    return {"title": title, "body_class": body_class, "base": base, "home": home, "policy": policy}


def _href(kept: Kept, of: str, base: str) -> str:
    return f"{base}requests/{kept.number}?of={of}"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _with_room(entries: Sequence[Entry]) -> list[Entry]:
    """Return the scopes of a report, the last ones without their waterfall where there are too many rows."""
    room = MOST_MOMENTS_OF_REPORT
    kept = []
    for entry in entries:
        if entry.timeline is not None:
            room -= len(entry.timeline.moments)
            if room < 0:
                entry = replace(entry, timeline=None, timeline_left_out="the report would be too large")
        kept.append(entry)
    return kept
