"""Statements that SQLAlchemy's cache cannot serve: how often each line sends one, and what makes it so.

Counted over the whole process, because a request may send such a statement once and there be thousands of requests.
"""

from __future__ import annotations

from types import CodeType
from typing import Any

from sqlalchemy.sql import visitors

from sqla_watch.facts import Extra
from sqla_watch.fingerprint import Fingerprint
from sqla_watch.probes.internals import NO_CACHE_KEY

__all__ = ["count_uncached", "forget"]

_MOST_LINES = 1_000
_MOST_TEXTS = 200
_texts: dict[tuple[CodeType | None, int, str], set[int]] = {}
_compiled: dict[tuple[CodeType | None, int, str, str], int] = {}


def count_uncached(
    extra: Extra | None, fingerprint: Fingerprint, context: Any, code: CodeType | None, instruction: int
) -> Extra | None:
    """Count a statement without a cache key, or with literals in its text; returns what is to be kept of it."""
    if not (fingerprint.reads or fingerprint.writes):
        return extra  # DDL, and commands that take no parameters
    if context.invoked_statement is not None and context.cache_hit is NO_CACHE_KEY:
        why = _culprit(context.invoked_statement)
        if not why:
            return extra  # a construct of SQLAlchemy's own, such as ON CONFLICT in 2.0
        line = (code, instruction, fingerprint.summary, why)
        if line not in _compiled and len(_compiled) >= _MOST_LINES:
            _compiled.clear()
        number = _compiled[line] = _compiled.get(line, 0) + 1
    else:
        key = (code, instruction, fingerprint.text)
        texts = _texts.get(key)
        if texts is None:
            if len(_texts) >= _MOST_LINES:
                _texts.clear()
            texts = _texts[key] = set()
        if len(texts) < _MOST_TEXTS:
            texts.add(fingerprint.literals)
        number, why = len(texts), "literals"
        if number < 2:
            return extra
    return (extra or Extra())._replace(uncached=number, why=why)


def _culprit(statement: Any) -> str:
    """Return what keeps a statement from having a cache key: `values` for a list of rows, else the name of a class.

    Empty where it is nothing of the application's own.
    """
    if getattr(statement, "_multi_values", None):
        return "values"
    for element in visitors.iterate(statement):
        for part in (element, getattr(element, "type", None)):
            kind = type(part)
            if part is None or kind.__module__.startswith("sqlalchemy."):
                continue
            if getattr(kind, "cache_ok", True) is not True or kind.__dict__.get("inherit_cache") is None:
                return kind.__qualname__.rpartition(".")[2]
    return ""


def forget() -> None:
    """Let go of all counts, when nothing is watched any more."""
    _texts.clear()
    _compiled.clear()
