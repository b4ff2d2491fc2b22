"""SQL as it is shown: laid out by sqlparse, coloured by pygments, within bounds of time.

Both take milliseconds for a thousand characters, and sqlparse more than that for long lists. What is long, and what
comes late on a page with much of it, is shown as it was sent; nothing is ever shown with markup of its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sqlparse
from markupsafe import Markup, escape
from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters.html import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers.sql import PostgresLexer  # type: ignore[import-untyped]

__all__ = ["Highlighter"]

MOST_LAID_OUT = 3_000
"""Characters of a statement that is laid out."""
MOST_PARTS = 20
"""Semicolons of a statement that is laid out: each part of it costs by itself."""
PAGE_LAID_OUT = 15_000
"""Characters that are laid out on one page: about 200 ms."""
PAGE_COLOURED = 100_000
"""Characters that are coloured on one page: about 300 ms at worst."""

_formatter: Any = HtmlFormatter(nowrap=True)


class Highlighter:
    """Turns the statements of one page into markup, those first which are asked for first."""

    def __init__(self) -> None:
        self._laid_out = PAGE_LAID_OUT
        self._coloured = PAGE_COLOURED

    def __call__(self, sql: str) -> Markup:
        """Return a statement as markup that is safe."""
        length = len(sql)
        if length > self._coloured:
            return escape(sql)
        self._coloured -= length
        lay_out = length <= min(MOST_LAID_OUT, self._laid_out) and sql.count(";") <= MOST_PARTS
        if lay_out:
            self._laid_out -= length
        if length <= MOST_LAID_OUT:
            return _kept(sql, lay_out)
        return _coloured(sql)


@lru_cache(maxsize=512)
def _kept(sql: str, lay_out: bool) -> Markup:
    return _coloured(_laid_out(sql) if lay_out else sql)


def _laid_out(sql: str) -> str:
    try:
        return sqlparse.format(sql, reindent=True, indent_width=2, wrap_after=80).strip()
    except Exception:  # it refuses what is nested too deeply, and says so in exceptions of several kinds
        return sql


def _coloured(sql: str) -> Markup:
    try:
        lexer: Any = PostgresLexer(stripnl=False, ensurenl=False)
        # pygments escapes everything that is not a tag of its own.
        return Markup(highlight(sql, lexer, _formatter))
    except Exception:
        return escape(sql)
