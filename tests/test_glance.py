"""The first look at a scope never overlooks what the rules would find, and counts as the record does."""

from __future__ import annotations

from types import CodeType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqla_watch.detectors import RULES, judge
from sqla_watch.facts import (
    CallSite,
    Extra,
    Fact,
    Flush,
    FlushCause,
    Held,
    Load,
    LoadKind,
    Relationship,
    RowCounter,
    Statement,
    Transaction,
    Wait,
)
from sqla_watch.fingerprint import Fingerprints
from sqla_watch.glance import glance
from sqla_watch.record import TOTALS, Record
from sqla_watch.settings import Settings

TEXTS = (
    "SELECT orders.id, orders.total FROM orders WHERE orders.id = %(id)s",
    "SELECT customers.id FROM customers WHERE customers.id IN (%(id_1)s, %(id_2)s) ORDER BY customers.id",
    "SELECT * FROM orders WHERE id = %(id)s",
    "SELECT name FROM rates ORDER BY name LIMIT %(limit)s",
    "INSERT INTO rates (country) VALUES (%(country)s)",
    "UPDATE rates SET percent = %(percent)s WHERE country = %(country)s",
    "DELETE FROM rates WHERE country = %(country)s",
    "SAVEPOINT a",
    "ROLLBACK TO SAVEPOINT a",
)
CODES: tuple[CodeType, ...] = ((lambda: 1).__code__, (lambda: 2).__code__)
RELATIONSHIPS = (
    Relationship("Order", "customer", "Customer", False, ()),
    Relationship("Customer", "orders", "Order", True, ()),
)
HERE = CallSite(CODES[0], 2)
LONG = 3_000_000_000
fingerprints = Fingerprints()


@st.composite
def facts(draw: st.DrawFn) -> list[Fact]:
    """What one connection of one session may have done in a scope, more or less."""
    told: list[Any] = []
    now = draw(st.integers(1, 10**6))
    serial = 1
    # What there is enough of for a rule is mostly the same again and again.
    bursts = draw(st.lists(st.tuples(st.sampled_from("sslltfwh"), st.sampled_from((1, 1, 2, 3, 6, 14))), max_size=5))
    for kind in (kind for kind, times in bursts for _ in range(times)):
        elapsed = draw(st.sampled_from((20_000, 20_000, 20_000, 20_000, 80_000_000, LONG)))
        started, now = now, now + elapsed
        if kind == "s":
            told.append(draw(statements(started, now, serial)))
            if draw(st.integers(0, 8)) == 0:
                now = started  # the next one begins while this one runs
        elif kind == "f":
            cause = draw(st.sampled_from((FlushCause.EXPLICIT, FlushCause.EXPLICIT, *FlushCause)))
            told.append(Flush(1, 5, cause, None, 1, draw(st.integers(1, 40)), started, now, (), serial))
        elif kind == "l":
            load = draw(loads())
            text = fingerprints.of(TEXTS[0])
            parent, above, runid = (
                draw(st.integers(1, 40)),
                draw(st.sampled_from((0, 1, 1, 1))),
                draw(st.integers(1, 40)),
            )
            told.append((text, CODES[0], 4, 2, started, now, 1, 3, parent, 1, serial, load, runid, (), "", None, above))
        elif kind == "t":
            outcome = draw(st.sampled_from(("commit", "rollback", "prepare")))
            error = draw(st.sampled_from(("", "", "", "40001")))
            told.append(
                Transaction(
                    serial, 1, draw(st.booleans()), started - LONG, now, outcome, 1, elapsed, 1_000, elapsed,
                    HERE, HERE, (), error, HERE, gap=draw(st.sampled_from((0, LONG))), gap_started=started,
                    gap_after=HERE, gap_before=HERE,
                )
            )  # fmt: skip
            serial += 1
        elif kind == "w":
            waited = draw(st.sampled_from((0, 0, 0, LONG)))
            told.append(Wait(started, waited, False, None, 5, 10, (), 1, draw(st.sampled_from((False, False, True)))))
        else:
            idle = draw(st.sampled_from((0, 0, LONG)))
            returned = draw(st.sampled_from((True, True, False)))
            told.append(Held(1, started, now, returned, 5, 5, 3, 2, idle, (), None, 0, False, ()))
        now += draw(st.integers(0, 1_000))
    return told


@st.composite
def statements(draw: st.DrawFn, started: int, finished: int, transaction: int) -> Statement:
    fingerprint = fingerprints.of(draw(st.sampled_from((TEXTS[0], TEXTS[0], TEXTS[4], *TEXTS))))
    value = draw(st.integers(1, 20))
    rows: Any = draw(st.sampled_from((0, 1, 1, 3, 20_000, "counter")))
    if rows == "counter":
        rows = RowCounter()
        rows.add(draw(st.sampled_from((1, 7))), 1_000)
        rows.streamed = draw(st.sampled_from((False, False, True)))
        if draw(st.integers(0, 5)) == 0:
            rows.leave(500)
    extra = draw(
        st.sampled_from(
            (None, None, None, None, Extra(flush=1, session=5, changed=1), Extra(listed=5_000), Extra(skipped=90_000),
             Extra(sets=20_000), Extra(changed=7), Extra(savepoint=3), Extra(uncached=40, why="literals"))
        )
    )  # fmt: skip
    error = draw(st.sampled_from(("", "", "", "", "", "23505")))
    return (
        fingerprint, draw(st.sampled_from(CODES)), draw(st.sampled_from((2, 4))), 0, started, finished, rows, value,
        value, draw(st.sampled_from((1, 1, 1, 2))), transaction, None,
        draw(st.integers(0, 9)), (), error, extra, 0,
    )  # fmt: skip


@st.composite
def loads(draw: st.DrawFn) -> Load:
    kind = draw(st.sampled_from((LoadKind.LAZY, LoadKind.COLUMN, LoadKind.EAGER)))
    relationship = None if kind is LoadKind.COLUMN else draw(st.sampled_from(RELATIONSHIPS))
    columns = ("Order.notes",) if kind is LoadKind.COLUMN else ()
    cause = "deferred" if kind is LoadKind.COLUMN else ""
    return Load(kind, relationship, 5, columns, cause)


@settings(max_examples=1_500, deadline=None)
@given(facts(), st.sampled_from(("development", "test", "production")))
def test_where_a_first_look_sees_nothing_the_rules_find_nothing(told: list[Fact], profile: str) -> None:
    by = Settings(profile=profile)
    seen = glance(told, by.floors)
    if seen is None:
        return
    record = Record()
    record.take(told)
    assert judge(record, by) == []
    assert [getattr(seen, name) for name in TOTALS] == [getattr(record, name) for name in TOTALS]


def test_an_ordinary_scope_is_seen_at_once() -> None:
    """What the property above says of few would be true of a first look that always leaves it to the record."""
    one, other = fingerprints.of(TEXTS[0]), fingerprints.of(TEXTS[4])
    lazy = Load(LoadKind.LAZY, RELATIONSHIPS[0], 5, ())
    told: list[Fact] = [
        (one, CODES[0], 2, 0, 0, 9, 1, 5, 5, 1, 1, None, 1, (), "", None, 0),
        (other, CODES[0], 2, 0, 10, 19, 0, 6, 6, 1, 1, None, 0, (), "", Extra(flush=1, session=5, changed=1), 0),
        (one, CODES[1], 2, 0, 20, 29, 1, 5, 1, 1, 1, lazy, 2, (), "", None, 1),
        Transaction(1, 1, True, 0, 40, "commit", 3, 27, 10, 9, None, None, ()),
        Wait(0, 0, False, None, 5, 10, (), 1),
        Held(1, 0, 50, True, 27, 40, 0, 0, 5, (), None, 0, False, ()),
    ]  # fmt: skip
    seen = glance(told, Settings(profile="development").floors)
    assert seen is not None
    assert (seen.statements, seen.rows, seen.commits, seen.checkouts) == (3, 2, 1, 1)


def test_rows_fetched_after_the_scope_has_closed_are_counted() -> None:
    counter = RowCounter()
    told: list[Fact] = [
        (fingerprints.of(TEXTS[0]), CODES[0], 2, 0, 0, 9, counter, 5, 5, 1, 1, None, 0, (), "", None, 0)
    ]
    seen = glance(told, Settings(profile="development").floors)
    assert seen is not None
    counter.add(7, 1_000)
    assert (seen.rows, seen.database) == (7, 1_009)


def sent(
    number: int,
    text: str = TEXTS[0],
    *,
    value: int | None = None,
    load: Load | None = None,
    rows: Any = 1,
    elapsed: int = 1_000,
    error: str = "",
    extra: Extra | None = None,
) -> Statement:
    """One of many statements, one after the other."""
    started = 10_000 * number
    value = number if value is None else value
    fingerprint = fingerprints.of(text)
    return (
        fingerprint, CODES[0], 2, 0, started, started + elapsed, rows, value, value, 1, 1, load, number + 100, (),
        error, extra, 0 if load is None else 1,
    )  # fmt: skip


def ended(**further: Any) -> Transaction:
    return Transaction(1, 1, True, 0, further.pop("lasted", 10), "commit", 9, 5, 5, 5, HERE, HERE, (), **further)


LAZILY = Load(LoadKind.LAZY, RELATIONSHIPS[0], 5, ())
BY_COLUMN = Load(LoadKind.COLUMN, None, 5, ("Order.notes",), "deferred")


NOTED = RowCounter()
NOTED.add(9_000, 1_000)
NOTED.leave(9_000)
SOMETHING: dict[str, list[Fact]] = {
    "n-plus-one": [sent(each, load=LAZILY) for each in range(2)],
    "column-load-loop": [sent(each, load=BY_COLUMN) for each in range(5)],
    "query-in-loop": [sent(each) for each in range(5)],
    "repeated-query": [sent(each, value=7) for each in range(3)],
    "row-by-row-write": [sent(each, TEXTS[4]) for each in range(10)],
    "flush-storm": [
        *(sent(each, TEXTS[4], value=1, extra=Extra(flush=each, session=5, changed=1)) for each in range(10)),
        *(Flush(each, 5, FlushCause.EXPLICIT, HERE, 1, 1, each, each + 1, (), 1) for each in range(10)),
    ],
    "select-star": [sent(0, TEXTS[2])],
    "oversized-result": [sent(0, rows=20_000)],
    "slow-query": [sent(0, elapsed=LONG)],
    "unread-rows": [sent(0, rows=NOTED)],
    "database-error": [sent(0), ended(error="40001", failed_at=HERE)],
    "long-transaction": [sent(0), ended(lasted=100 * LONG)],
    "idle-in-transaction": [
        sent(0),
        ended(lasted=LONG, gap=LONG, gap_started=9, gap_after=HERE, gap_before=HERE),
    ],
    "session-scope": [sent(0, elapsed=50_000), sent(1)],
}


@pytest.mark.parametrize("rule", SOMETHING)
def test_what_a_rule_finds_is_left_to_the_record(rule: str) -> None:
    by = Settings(profile="development", rules={each: "warn" if each == rule else "ignore" for each in RULES})
    record = Record()
    record.take(SOMETHING[rule])
    assert [finding.rule for finding in judge(record, by)] == [rule]
    assert glance(SOMETHING[rule], by.floors) is None
