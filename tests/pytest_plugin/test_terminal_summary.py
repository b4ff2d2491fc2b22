"""The summary at the end of a run: the worst tests first, then each finding once."""

from __future__ import annotations

import io
from typing import Any

import pytest
from _pytest.terminal import TerminalReporter

from sqla_watch.pytest_plugin import summary
from tests.pytest_plugin.made import N_PLUS_ONE, finding, outcome

CALM = {"statements": 2, "rows": 2, "database_seconds": 0.001}


class AsciiFile(io.StringIO):
    encoding = "ascii"


@pytest.fixture
def told(pytestconfig: pytest.Config) -> Any:
    """What is told of outcomes, line by line."""

    def tell(*outcomes: Any, file: io.StringIO | None = None, **options: Any) -> list[str]:
        file = file or io.StringIO()
        summary.write(TerminalReporter(pytestconfig, file), outcomes, **options)
        return file.getvalue().splitlines()

    return tell


def test_a_run_without_the_database_says_nothing(told: Any) -> None:
    assert told() == []
    assert told(outcome(statements=0, rows=0)) == []


def test_the_totals_come_first(told: Any) -> None:
    lines = told(outcome("t.py::a"), outcome("t.py::b", **CALM), outcome("t.py::c", statements=0))
    assert lines[0].strip("= ") == "sqla_watch"
    assert lines[1] == "2 tests with the database, 23 statements, 26 ms in it, fixtures: 6 statements, 8.0 ms"


def test_the_worst_tests_are_first_with_what_they_used_of_their_budgets(told: Any) -> None:
    lines = told(
        outcome("t.py::calm", **CALM),
        outcome("t.py::busy", statements=1_500),
        outcome("t.py::failing", finding(), **CALM),
        outcome("t.py::over", budget={"max_statements": 1, "max_rows": 100}, over={"max_statements": 2}, **CALM),
        outcome("t.py::within", budget={"max_statements": 4.0, "max_database_seconds": 0.1}, **CALM),
        outcome("t.py::none", budget={"max_statements": 0}, over={"max_statements": 2}, **CALM),
    )
    start = next(number for number, line in enumerate(lines) if line.endswith("  test"))
    table = [line.split() for line in lines[start + 1 : start + 7]]
    assert [row[-1] for row in table] == [
        "t.py::none", "t.py::over", "t.py::failing", "t.py::busy", "t.py::calm", "t.py::within",
    ]  # fmt: skip
    assert table[3][0] == "1,500"
    assert "2     over 0 statements" in lines[start + 1]
    assert "2  200% of 1 statements" in lines[start + 2]
    assert "2   50% of 4 statements" in lines[start + 6]


def test_only_some_tests_are_listed_but_all_that_fail(told: Any) -> None:
    lines = told(*[outcome(f"t.py::calm_{number}", **CALM) for number in range(30)])
    assert sum("t.py::calm" in line for line in lines) == summary.MOST_TESTS
    assert "… and 20 tests more" in lines
    lines = told(
        *[outcome(f"t.py::over_{number}", over={"max_rows": 9}, budget={"max_rows": 1}) for number in range(30)]
    )
    assert sum("t.py::over" in line for line in lines) == 30


def test_a_finding_is_told_once_with_its_repair_and_its_tests(told: Any) -> None:
    lines = told(*[outcome(f"t.py::test_{number}", finding()) for number in range(5)])
    start = lines.index(
        "high, not allowed: n-plus-one at shop/views.py:12 in list_customers (100 statements, 100 ms, in 5 tests)"
    )
    assert lines[start + 1 :] == [
        "  Customer.orders was loaded lazily for 20 Customer objects, one by one",
        "    Add to the query at views.py:10:",
        "    .options(selectinload(Customer.orders))",
        "  in t.py::test_0",
        "  in t.py::test_1",
        "  in t.py::test_2",
        "  and 2 tests more",
    ]


def test_findings_that_fail_come_first_and_then_the_severe_ones(told: Any) -> None:
    lines = told(
        outcome("t.py::a", finding("slow-query", severity="low"), finding("pool-wait", severity="medium")),
        outcome("t.py::b", finding("large-in-list"), failing=()),
        outcome("t.py::c", finding("query-in-loop")),
    )
    assert [line.partition(" at ")[0] for line in lines if " at shop/views.py:12 in " in line] == [
        "high, not allowed: query-in-loop", "high: large-in-list", "medium: pool-wait", "low: slow-query",
    ]  # fmt: skip


def test_many_findings_are_counted(told: Any) -> None:
    lines = told(outcome("t.py::a", *[finding(target=f"A.b{number}") for number in range(50)]))
    assert sum(" at shop/views.py:12 in " in line for line in lines) == summary.MOST_FINDINGS
    assert "… and 30 findings more; --sqla-watch-json has them all." in lines


def test_what_the_baseline_knows_is_only_counted(told: Any) -> None:
    lines = told(outcome("t.py::a", finding(), finding("query-in-loop")), known={N_PLUS_ONE})
    assert [line.partition(" at ")[0] for line in lines if " at shop/views.py:12 in " in line] == [
        "high, not allowed: query-in-loop"
    ]
    assert "1 finding more is in the baseline." in lines


def test_what_the_baseline_no_longer_needs_and_what_has_grown(told: Any) -> None:
    lines = told(unused=[N_PLUS_ONE, "pool-wait|shop|||"], grown={"t.py::a": (4, 1_200)})
    assert (
        lines[-1] == "  pool-wait shop"
        or lines[-2] == "  n-plus-one Customer.orders at shop/views.py in list_customers"
    )
    assert "  n-plus-one Customer.orders at shop/views.py in list_customers" in lines
    assert "  t.py::a: 1,200, before 4" in lines
    assert "2 in the baseline no longer occur (--sqla-watch-update-baseline takes them out):" in lines


def test_no_text_hides_or_obeys(told: Any) -> None:
    evil = "\x1b[2J\r::set-output name=x::y\n::error::z\n##[command]rm\t\u202e"
    lines = told(
        outcome("t.py::" + evil, finding(function=evil, target=evil, message=evil, suggestion=evil)),
        unused=[f"a|{evil}|{evil}|{evil}"],
        grown={evil: (1, 2)},
    )
    for line in lines:
        assert line.isprintable()
        assert not line.lstrip().startswith("::")
        assert "##[" not in line


def test_a_terminal_without_the_characters_gets_them_written_out(told: Any) -> None:
    lines = told(*[outcome(f"t.py::ä{number}") for number in range(12)], file=AsciiFile())
    assert any("t.py::\\xe4" in line for line in lines)
    assert "\n".join(lines).isascii()
