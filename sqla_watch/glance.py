"""A first look at the facts of a scope that is about to close: most scopes are short, and have nothing for any rule.

To put a handful of statements in groups takes several times as long as to see that no rule could find anything in them,
because there are too few of everything. This counts how many there are at most of what the rules read, by the same
names as `Record.sizes`, and never too few; whatever is out of the ordinary is left to the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from sqla_watch.facts import Fact, Flush, Held, LoadKind, RowCounter, Statement, Transaction, Wait
from sqla_watch.record import WORTH_KEEPING, Record

__all__ = ["FEW", "glance"]

FEW = 200
"""Facts up to which a first look pays: the more there are, the likelier there is something in them."""

_LAZY = LoadKind.LAZY
_COLUMN = LoadKind.COLUMN


def glance(facts: Iterable[Fact], floors: Mapping[str, float]) -> Record | None:
    """Return a record of nothing but totals, if no rule can find anything in these facts; None if one might.

    Args:
        facts: All facts of a scope.
        floors: How much there has to be for any rule to find anything, by what the rules read (`Settings.floors`).
    """
    statements = all_rows = database = ending = commits = rollbacks = held = connecting = checkouts = 0
    most_rows = slowest = writes = most_lazy = most_columns = flushes = longest = gap = latest = last_checkout = 0
    times: dict[str, int] = {}
    touched: dict[object, int] = {}
    asked: set[tuple[str, int, int]] = set()
    counters: list[RowCounter] = []
    for any_fact in facts:
        if any_fact.__class__ is not tuple:
            if isinstance(any_fact, Transaction):
                if any_fact.error:
                    return None
                ending += any_fact.ending
                if any_fact.serial > 0:
                    commits += any_fact.outcome == "commit"
                    rollbacks += any_fact.outcome == "rollback"
                    longest = max(longest, any_fact.finished - any_fact.started)
                    gap = max(gap, any_fact.gap)
            elif isinstance(any_fact, Flush):
                flushes += 1
            elif isinstance(any_fact, Wait):
                if any_fact.nanoseconds or any_fact.inside is not None or any_fact.on_event_loop:
                    return None
                if any_fact.checkout:
                    checkouts += 1
            elif isinstance(any_fact, Held):
                if not any_fact.returned or any_fact.idle > WORTH_KEEPING:
                    return None
                held += any_fact.finished - any_fact.started
                connecting += any_fact.connecting + any_fact.pinging
            else:
                return None
            continue
        (
            fingerprint, _, _, _, started, finished, rows, values, _, checkout, transaction, load, _, _, error, extra,
        ) = cast(Statement, any_fact)  # fmt: skip
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
            counter = cast(RowCounter, rows)
            if counter.noted or counter.streamed:
                return None
            counters.append(counter)
            rows = counter.rows
            elapsed += counter.nanoseconds
        statements += 1
        all_rows += rows
        database += elapsed
        if rows > most_rows:
            most_rows = rows
        if elapsed > slowest:
            slowest = elapsed
        text = fingerprint.text
        times[text] = alike = times.get(text, 0) + 1
        if load is None:
            if fingerprint.asks:
                question = (text, values, transaction)
                if question in asked:
                    return None
                asked.add(question)
            elif fingerprint.writes and alike > writes:
                writes = alike
        elif load.kind is _LAZY:
            what: Any = load.relationship
            touched[what] = alike = touched.get(what, 0) + 1
            if alike > most_lazy:
                most_lazy = alike
        elif load.kind is _COLUMN and alike > most_columns:
            most_columns = alike
    for name, size in (
        ("groups", statements),
        ("statements of a group", max(times.values()) if times else 0),
        ("rows of a statement", most_rows),
        ("slowest statement", slowest),
        ("lazy loads", most_lazy),
        ("column loads", most_columns),
        ("writes", writes),
        ("flushes", flushes),
        ("longest transaction", longest),
        ("longest gap", gap),
    ):
        if size and name in floors and size >= floors[name]:
            return None
    record = Record()
    record.statements, record.rows, record.database, record.ending = statements, all_rows, database, ending
    record.commits, record.rollbacks, record.checkouts = commits, rollbacks, checkouts
    record.held, record.connecting = held, connecting
    for counter in counters:  # rows may be fetched after the scope has closed
        counter.record = record
    return record
