"""Where bars are on the axis of time, what is in which row, and what is folded."""

from __future__ import annotations

from typing import Any

import pytest

from sqla_watch.panel.entry import read_entry
from sqla_watch.panel.waterfall import NARROWEST, Row, Waterfall, draw
from tests.panel.examples import commit_for_each_row, entry, line, many_statements, slow_order_list, statement, timeline

HERE = line("views.py", 1, "view")
THERE = line("views.py", 2, "view")


def drawn(example: dict[str, Any]) -> Waterfall:
    found = draw(read_entry(example, ("example",)))
    assert found is not None
    return found


def of(*entries: dict[str, Any], seconds: float = 1.0, texts: int = 3, **further: Any) -> Waterfall:
    named = [f"SELECT {number}" for number in range(texts)]
    return drawn(entry(duration_seconds=seconds, timeline=timeline(named, [HERE, THERE], entries, **further)))


def transaction(start: float, seconds: float, serial: int, **further: Any) -> dict[str, Any]:
    return {
        "kind": "transaction",
        "start": start,
        "seconds": seconds,
        "line": 0,
        "outcome": "commit",
        "statements": 1,
        "connection": 1,
        "transaction": serial,
        **further,
    }


def written(rows: tuple[Row, ...] | list[Row], depth: int = 0) -> list[str]:
    """Rows as a text each, indented."""
    lines = []
    for row in rows:
        name = f"text {row.text}" if row.text >= 0 else row.label
        lines.append(f"{'  ' * depth}{f'{row.count} x ' if row.count > 1 else ''}{name}")
        if not row.folded:
            lines += written(row.inner, depth + 1)
    return lines


def test_a_scope_without_a_timeline_has_no_waterfall() -> None:
    assert draw(read_entry(entry(), ("example",))) is None


def test_bars_are_where_their_times_are() -> None:
    fall = of(statement(0.1, 0.2, 0, 0, transaction=0), statement(0.5, 0.25, 1, 0, transaction=0), seconds=1.0)
    assert [(bar.x, bar.width) for row in fall.rows for bar in row.bars] == [(10.0, 20.0), (50.0, 25.0)]


def test_a_bar_is_never_too_narrow_to_be_seen_nor_beyond_the_end() -> None:
    fall = of(statement(0.0, 0.0, 0, 0, transaction=0), statement(1.0, 0.0, 1, 0, transaction=0), seconds=1.0)
    first, last = (row.bars[0] for row in fall.rows)
    assert (first.x, first.width) == (0.0, NARROWEST)
    assert (last.x, last.width) == (100 - NARROWEST, NARROWEST)


def test_what_begins_before_the_scope_or_ends_after_it_makes_the_axis_longer() -> None:
    fall = of(statement(-1.0, 1.0, 0, 0, transaction=0), statement(2.0, 1.0, 1, 0, transaction=0), seconds=1.0)
    assert [(bar.x, bar.width) for row in fall.rows for bar in row.bars] == [(0.0, 25.0), (75.0, 25.0)]
    assert ("0", 25.0) in [(tick.label, tick.x) for tick in fall.ticks]


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 0.00037, 0.0042, 0.099, 0.1, 0.358, 1.0, 7.3, 61.0, 86_400.0, 9e8])
def test_ticks_are_at_round_times_and_few(seconds: float) -> None:
    fall = of(statement(0.0, 0.0, 0, 0), seconds=seconds)
    assert 2 <= len(fall.ticks) <= 8
    assert (fall.ticks[0].x, fall.ticks[0].label) == (0.0, "0")
    distances = [after.x - before.x for before, after in zip(fall.ticks, fall.ticks[1:], strict=False)]
    assert max(distances) - min(distances) < 0.01
    assert len({tick.label for tick in fall.ticks}) == len(fall.ticks)


def test_ticks_say_what_they_are() -> None:
    fall = of(statement(0.0, 0.0, 0, 0), seconds=0.358)
    assert [(tick.label, tick.x) for tick in fall.ticks] == [
        ("0", 0.0),
        ("100 ms", 27.933),
        ("200 ms", 55.866),
        ("300 ms", 83.799),
    ]


def test_statements_are_in_their_transaction() -> None:
    fall = of(
        statement(0.1, 0.1, 0, 0, transaction=7),
        transaction(0.1, 0.4, 7),
        {"kind": "commit", "start": 0.4, "seconds": 0.1, "line": 0, "outcome": "commit", "transaction": 7},
        statement(0.6, 0.1, 1, 0, transaction=0),
    )
    assert written(fall.rows) == ["Transaction", "  text 0", "  COMMIT", "text 1"]
    whole, *parts = fall.rows[0].bars
    assert (whole.kind, whole.x, whole.width) == ("transaction", 10.0, 40.0)
    assert [(bar.kind, bar.x, bar.width) for bar in parts] == [("statement", 10.0, 10.0), ("commit", 40.0, 10.0)]


def test_a_transaction_whose_end_is_not_there_is_as_long_as_what_is_seen_of_it() -> None:
    fall = of(statement(0.2, 0.1, 0, 0, transaction=7), statement(0.5, 0.1, 1, 0, transaction=7))
    (row,) = fall.rows
    assert (row.label, row.notes) == ("Transaction", ["its end was not seen"])
    assert (row.bars[0].x, row.bars[0].width) == (20.0, 40.0)


def test_a_statement_again_from_the_same_line_in_the_same_transaction_is_folded() -> None:
    fall = of(
        *[statement(0.1 * number, 0.05, number % 2, 0, rows=3, transaction=7) for number in range(6)],
        statement(0.7, 0.05, 0, 1, transaction=7),
        statement(0.8, 0.05, 0, 0, transaction=8),
        transaction(0.0, 0.75, 7),
        transaction(0.8, 0.05, 8),
    )
    assert written(fall.rows) == ["Transaction", "  3 x text 0", "  3 x text 1", "  text 0", "Transaction", "  text 0"]
    folded = fall.rows[0].inner[0]
    assert (folded.rows, round(folded.seconds, 6), len(folded.inner)) == (9, 0.15, 3)
    assert [(bar.x, bar.width) for bar in folded.bars] == [(0.0, 5.0), (20.0, 5.0), (40.0, 5.0)]
    assert [row.bars[0].x for row in folded.inner] == [0.0, 20.0, 40.0]


def test_bars_that_touch_are_one() -> None:
    fall = of(*[statement(number * 0.0001, 0.0001, 0, 0) for number in range(5_000)])
    (row,) = fall.rows[0].inner
    assert row.count == 5_000
    (bar,) = row.bars
    assert bar.x == 0.0
    assert bar.width == pytest.approx(50, abs=0.3)


def test_transactions_that_are_alike_are_folded() -> None:
    fall = drawn(commit_for_each_row(500))
    assert written(fall.rows) == ["500 x Transaction"]
    (folded,) = fall.rows
    assert written(folded.inner[:1]) == ["Transaction", "  text 0", "  COMMIT"]
    assert len(folded.inner) == 500
    assert all(row.bars for row in folded.inner)


def test_two_transactions_that_are_alike_are_shown_both() -> None:
    assert written(drawn(commit_for_each_row(2)).rows) == ["Transaction", "  text 0", "  COMMIT"] * 2


def test_transactions_that_differ_are_not_folded() -> None:
    fall = of(
        *[transaction(number * 0.1, 0.1, number + 1) for number in range(4)],
        *[statement(number * 0.1, 0.05, number % 3, 0, transaction=number + 1) for number in range(4)],
    )
    assert [row.count for row in fall.rows] == [1, 1, 1, 1]


def test_a_wait_and_a_gap_say_what_they_are() -> None:
    fall = drawn(slow_order_list())
    assert written(fall.rows) == [
        "Wait for a connection",
        "Transaction",
        "  text 0",
        "  50 x text 1",
        "  Idle in transaction",
        "  text 2",
        "  text 3",
        "  ROLLBACK",
        "Transaction",
        "  2 x text 4",
        "  COMMIT",
    ]
    (gap,) = [row for row in fall.rows[1].inner if row.kind == "gap"]
    assert gap.notes == ["in requests.get"]
    assert fall.kinds == ("statement", "commit", "transaction", "gap", "wait")


def test_an_error_is_said_also_of_the_folded_row() -> None:
    fall = drawn(slow_order_list())
    folded = fall.rows[2].inner[0]
    assert folded.error == "40001"
    assert [row.error for row in folded.inner] == ["40001", ""]


def test_connections_are_told_apart_where_there_are_several() -> None:
    several = drawn(slow_order_list())
    assert [row.notes[-1] for row in several.rows] == ["connection 1", "connection 1", "connection 2"]
    assert "connection" not in str(drawn(commit_for_each_row(2)).rows[0].notes)


def test_different_statements_are_listed_those_first_that_took_longest() -> None:
    fall = drawn(slow_order_list())
    assert [used.number for used in fall.texts] == [1, 3, 2, 0, 4]
    first = fall.texts[0]
    assert (first.count, first.rows, [place.short for place in first.places]) == (50, 50, ["orders.html:12"])


def test_what_was_left_out_is_counted() -> None:
    assert of(statement(0.0, 0.1, 0, 0), left_out=7).left_out == 7
    assert drawn(many_statements(20_005, different=False)).left_out == 7  # with the transaction and its COMMIT


def test_numbers_that_make_no_sense_together_do_no_harm() -> None:
    twice = of(transaction(0.0, 0.1, 7), transaction(0.5, 0.1, 7), statement(0.9, 0.1, 0, 0, transaction=7))
    assert len(twice.rows) == 2
    far = of(statement(-1e9, 1e9, 0, 0), statement(1e9, 1e9, 1, 0), seconds=1e9)
    assert all(0 <= bar.x <= 100 and bar.x + bar.width <= 100.001 for row in far.rows for bar in row.bars)
