"""A first look at the facts of a scope that is about to close: most scopes are short, and have nothing for any rule.

To put a handful of statements in groups takes several times as long as to see that no rule could find anything in them,
because there are too few of everything. This counts how many there are at most of what the rules read, by the same
names as `Record.sizes`, and never too few; whatever is out of the ordinary is left to the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from sqla_watch.facts import Fact, Flush, Held, LoadKind, RowCounter, Statement, Transaction, Wait
from sqla_watch.record import WORTH_KEEPING, Totals

__all__ = ["FEW", "glance"]

FEW = 200
"""Facts up to which a first look pays: the more there are, the likelier there is something in them."""

_LAZY = LoadKind.LAZY
_COLUMN = LoadKind.COLUMN
_NEVER = float("inf")


def glance(facts: Iterable[Fact], floors: Mapping[str, float]) -> Totals | None:
    """Return the totals, if no rule can find anything in these facts; None if one might.

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
            kind = any_fact.__class__
            if kind is Transaction:
                transaction_fact = cast(Transaction, any_fact)
                if transaction_fact.error:
                    return None
                ending += transaction_fact.ending
                if transaction_fact.serial > 0:
                    commits += transaction_fact.outcome == "commit"
                    rollbacks += transaction_fact.outcome == "rollback"
                    longest = max(longest, transaction_fact.finished - transaction_fact.started)
                    gap = max(gap, transaction_fact.gap)
            elif kind is Wait:
                wait = cast(Wait, any_fact)
                if wait.nanoseconds or wait.inside is not None or wait.on_event_loop:
                    return None
                if wait.checkout:
                    checkouts += 1
            elif kind is Held:
                holding = cast(Held, any_fact)
                if not holding.returned or holding.idle > WORTH_KEEPING:
                    return None
                held += holding.finished - holding.started
                connecting += holding.connecting + holding.pinging
            elif kind is Flush:
                flushes += 1
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
            if counter.special:
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
    enough = floors.get
    if (
        (statements and statements >= enough("groups", _NEVER))
        or (times and max(times.values()) >= enough("statements of a group", _NEVER))
        or (most_rows and most_rows >= enough("rows of a statement", _NEVER))
        or (slowest and slowest >= enough("slowest statement", _NEVER))
        or (most_lazy and most_lazy >= enough("lazy loads", _NEVER))
        or (most_columns and most_columns >= enough("column loads", _NEVER))
        or (writes and writes >= enough("writes", _NEVER))
        or (flushes and flushes >= enough("flushes", _NEVER))
        or (longest and longest >= enough("longest transaction", _NEVER))
        or (gap and gap >= enough("longest gap", _NEVER))
    ):
        return None
    totals = Totals()
    totals.statements, totals.rows, totals.database, totals.ending = statements, all_rows, database, ending
    totals.commits, totals.rollbacks, totals.checkouts = commits, rollbacks, checkouts
    totals.held, totals.connecting = held, connecting
    for counter in counters:  # rows may be fetched after the scope has closed
        counter.record = totals
    return totals
