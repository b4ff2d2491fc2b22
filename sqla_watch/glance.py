"""A first look at the facts of a scope that is about to close: most scopes are short, and have nothing for any rule.

To put a handful of statements in groups takes several times as long as to see that no rule could find anything in them,
because there are too few of everything. This counts how many there are at most of what the rules read, by the same
names as `Record.sizes`, and never too few; whatever is out of the ordinary is left to the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqla_watch.facts import FINGERPRINT, LOAD, Fact, Flush, Held, LoadKind, RowCounter, Transaction, Wait
from sqla_watch.record import WORTH_KEEPING, Totals

__all__ = ["FEW", "glance"]

FEW = 200
"""Facts up to which a first look pays: the more there are, the likelier there is something in them."""

_LAZY = LoadKind.LAZY
_COLUMN = LoadKind.COLUMN
_enough = itemgetter(
    "groups", "rows of a statement", "slowest statement", "lazy loads", "column loads", "writes", "flushes",
    "longest transaction", "longest gap", "statements of a group",
)  # fmt: skip


def glance(facts: Sequence[Fact], floors: Mapping[str, float]) -> Totals | None:
    """Return the totals, if no rule can find anything in these facts; None if one might.

    Args:
        facts: All facts of a scope.
        floors: How much there has to be for any rule to find anything, by what the rules read (`Settings.floors`).
    """
    statements = all_rows = database = ending = commits = rollbacks = held = connecting = checkouts = 0
    most_rows = slowest = flushes = longest = gap = latest = last_checkout = 0
    loads = 0
    asked: list[tuple[str, int, int]] = []
    counters: list[RowCounter] = []
    fact: Any
    for fact in facts:
        if fact.__class__ is not tuple:
            kind = fact.__class__
            if kind is Transaction:
                if fact.error:
                    return None
                ending += fact.ending
                if fact.serial > 0:
                    commits += fact.outcome == "commit"
                    rollbacks += fact.outcome == "rollback"
                    length = fact.finished - fact.started
                    if length > longest:
                        longest = length
                    if fact.gap > gap:
                        gap = fact.gap
            elif kind is Wait:
                if fact.nanoseconds or fact.inside is not None or fact.on_event_loop:
                    return None
                if fact.checkout:
                    checkouts += 1
            elif kind is Held:
                if not fact.returned or fact.idle > WORTH_KEEPING:
                    return None
                held += fact.finished - fact.started
                connecting += fact.connecting + fact.pinging
            elif kind is Flush:
                flushes += 1
            else:
                return None
            continue
        (
            fingerprint, _, _, _, started, finished, rows, values, _, checkout, transaction, load, _, _, error, extra,
            _,
        ) = fact  # fmt: skip
        elapsed = finished - started
        if fingerprint.housekeeping:
            database += elapsed
            continue
        if error or fingerprint.star or (started < latest and checkout == last_checkout):
            return None
        latest, last_checkout = finished, checkout
        if extra is not None and not extra.is_ordinary:
            return None
        if rows.__class__ is not int:
            if not rows.over:
                if rows.special:
                    return None
                counters.append(rows)
            elapsed += rows.nanoseconds
            rows = rows.rows
        statements += 1
        all_rows += rows
        database += elapsed
        if rows > most_rows:
            most_rows = rows
        if elapsed > slowest:
            slowest = elapsed
        if load is not None:
            loads += 1
        elif fingerprint.asks:
            asked.append((fingerprint.text, values, transaction))
    groups, many_rows, slow, many_lazy, many_columns, many_writes, many_flushes, long, long_gap, many = _enough(floors)
    if (
        statements >= groups
        or most_rows >= many_rows
        or slowest >= slow
        or flushes >= many_flushes
        or longest >= long
        or gap >= long_gap
        or len({*asked}) < len(asked)
    ):
        return None
    if loads >= many_lazy or loads >= many_columns or statements >= many or statements >= many_writes:
        most, writes, lazy, columns = _most_alike(facts)
        if most >= many or writes >= many_writes or lazy >= many_lazy or columns >= many_columns:
            return None
    totals = Totals()
    totals.statements, totals.rows, totals.database, totals.ending = statements, all_rows, database, ending
    totals.commits, totals.rollbacks, totals.checkouts = commits, rollbacks, checkouts
    totals.held, totals.connecting = held, connecting
    for counter in counters:  # rows may be fetched after the scope has closed
        counter.record = totals
    return totals


def _most_alike(facts: Iterable[Fact]) -> tuple[int, int, int, int]:
    """Return how often the same statement was sent at most: any, a write, loads of a relationship, and of columns."""
    writes = columns = 0
    times: dict[str, int] = {}
    touched: dict[object, int] = {}
    fact: Any
    for fact in facts:
        if fact.__class__ is not tuple or fact[FINGERPRINT].housekeeping:
            continue
        fingerprint, load = fact[FINGERPRINT], fact[LOAD]
        times[fingerprint.text] = alike = times.get(fingerprint.text, 0) + 1
        if load is None:
            if fingerprint.writes and alike > writes:
                writes = alike
        elif load.kind is _LAZY:
            touched[load.relationship] = touched.get(load.relationship, 0) + 1
        elif load.kind is _COLUMN and alike > columns:
            columns = alike
    return max(times.values(), default=0), writes, max(touched.values(), default=0), columns
