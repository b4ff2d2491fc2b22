"""A first look at the facts of a scope that is about to close: most scopes are short, and have nothing for any rule.

To put a handful of statements in groups takes several times as long as to see that no rule could find anything in them,
because there are too few of everything. This counts how many there are at most of what the rules read, by the same
names as `Record.sizes`, and never too few; whatever is out of the ordinary is left to the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter, gt, itemgetter, sub
from typing import Any

from sqla_watch.facts import (
    CHECKOUT,
    FINGERPRINT,
    FINISHED,
    LOAD,
    STARTED,
    TRANSACTION,
    VALUES,
    Fact,
    Flush,
    Held,
    LoadKind,
    RowCounter,
    Statement,
    Transaction,
    Wait,
)
from sqla_watch.record import WORTH_KEEPING, Totals

__all__ = ["FEW", "glance"]

FEW = 200
"""Facts up to which a first look pays: the more there are, the likelier there is something in them."""

_enough = itemgetter("flushes", "longest transaction", "longest gap")
_enough_statements = itemgetter(
    "groups",
    "rows of a statement",
    "slowest statement",
    "lazy loads",
    "column loads",
    "writes",
    "statements of a group",
)
_text = attrgetter("text")
_keeps_house = attrgetter("housekeeping")
_selects_star = attrgetter("star")


def glance(facts: Iterable[Fact], floors: Mapping[str, float]) -> Totals | None:
    """Return the totals, if no rule can find anything in these facts; None if one might.

    Args:
        facts: All facts of a scope.
        floors: How much there has to be for any rule to find anything, by what the rules read (`Settings.floors`).
    """
    ending = commits = rollbacks = held = connecting = checkouts = flushes = longest = gap = 0
    sent: list[Statement] = []
    fact: Any
    for fact in facts:
        kind = fact.__class__
        if kind is tuple:
            sent.append(fact)
        elif kind is Transaction:
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
    many_flushes, long, long_gap = _enough(floors)
    if flushes >= many_flushes or longest >= long or gap >= long_gap:
        return None
    totals = Totals()
    if sent and not _are_ordinary(sent, floors, totals):
        return None
    totals.ending, totals.commits, totals.rollbacks, totals.checkouts = ending, commits, rollbacks, checkouts
    totals.held, totals.connecting = held, connecting
    return totals


def _are_ordinary(facts: list[Statement], floors: Mapping[str, float], totals: Totals) -> bool:
    """Return whether no rule can find anything in these statements, and add them to `totals`."""
    (
        fingerprints, _, _, _, starts, ends, rows, values, _, _, transactions, loads, _, _, errors, extras, _,
    ) = zip(*facts, strict=True)  # fmt: skip
    elapsed = [*map(sub, ends, starts)]
    if any(map(_keeps_house, fingerprints)):
        rest = [fact for fact in facts if not fact[FINGERPRINT].housekeeping]
        if rest and not _are_ordinary(rest, floors, totals):
            return False
        totals.database += sum(fact[FINISHED] - fact[STARTED] for fact in facts if fact[FINGERPRINT].housekeeping)
        return True
    if any(errors) or any(map(_selects_star, fingerprints)):
        return False
    if any(map(gt, ends, starts[1:])) and any(
        other[STARTED] < one[FINISHED] and one[CHECKOUT] == other[CHECKOUT] for one, other in pairwise(facts)
    ):
        return False
    if any(extras) and not all(extra is None or extra.is_ordinary for extra in extras):
        return False
    numbers: Sequence[int] = rows
    open_counters: list[RowCounter] = []
    if {*map(type, rows)} != {int}:
        numbers = []
        for place, counter in enumerate(rows):
            if counter.__class__ is int:
                numbers.append(counter)
            elif counter.special:
                return False
            else:
                numbers.append(counter.rows)
                elapsed[place] += counter.nanoseconds
                if not counter.over:
                    open_counters.append(counter)
    groups, many_rows, slow, many_lazy, many_columns, many_writes, many = _enough_statements(floors)
    count = len(facts)
    if count >= groups or max(numbers) >= many_rows or max(elapsed) >= slow:
        return False
    texts = [*map(_text, fingerprints)]
    if len({*zip(texts, values, transactions, strict=True)}) < count and _asks_again(facts):
        return False
    most_alike = count - len({*texts}) + 1
    if most_alike >= min(many, many_columns, many_writes):
        times = Counter(texts)
        if max(times.values()) >= many:
            return False
        for fingerprint, load in zip(fingerprints, loads, strict=True):
            alike = times[fingerprint.text]
            if alike >= many_writes and load is None and fingerprint.writes and not fingerprint.asks:
                return False
            if alike >= many_columns and load is not None and load.kind is LoadKind.COLUMN:
                return False
    if count >= many_lazy and any(loads):
        touched = Counter(load.relationship for load in loads if load is not None and load.kind is LoadKind.LAZY)
        if touched and max(touched.values()) >= many_lazy:
            return False
    totals.statements, totals.rows, totals.database = count, sum(numbers), sum(elapsed)
    for counter in open_counters:  # rows may be fetched after the scope has closed
        counter.record = totals
    return True


def _asks_again(facts: list[Statement]) -> bool:
    """Whether one transaction asked the same more than once."""
    asked = [
        (fact[FINGERPRINT].text, fact[VALUES], fact[TRANSACTION])
        for fact in facts
        if fact[LOAD] is None and fact[FINGERPRINT].asks
    ]
    return len({*asked}) < len(asked)
