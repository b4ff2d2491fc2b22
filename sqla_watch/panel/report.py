"""The HTML report: the panel's pages in one file, which can be mailed or kept beside a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqla_watch.panel.entry import read_entry
from sqla_watch.panel.errors import PanelError, require_extra
from sqla_watch.panel.reading import MOST_NAME
from sqla_watch.reporters.text import cut, visible

__all__ = ["report_page"]


def report_page(scopes: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """Return a report as one HTML document that needs nothing else: no network, no server.

    Args:
        scopes: As `Scope.to_dict` makes them, or as `scopes` of a JSON report has them; perhaps each with `timeline`
            and `request`.
        title: What it is about.

    Raises:
        PanelError: Something in the scopes is missing or of a wrong kind, or the packages of the extra `panel` are
            not there.

    Example::

        Path("report.html").write_text(report_page([scope.to_dict()], title="Nightly export"), encoding="utf-8")
    """
    require_extra()
    if not isinstance(scopes, Sequence) or isinstance(scopes, str | bytes):
        raise PanelError(f"scopes are a list, not {type(scopes).__name__}")
    if not isinstance(title, str):
        raise PanelError(f"the title is a text, not {type(title).__name__}")
    from sqla_watch.panel.pages import report_html

    entries = [read_entry(scope, ("scopes", place)) for place, scope in enumerate(scopes)]
    return report_html(entries, visible(cut(title, MOST_NAME)))
