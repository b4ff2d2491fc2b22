"""Annotations of GitHub Actions: nothing that comes from the application can begin a command of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sqla_watch.pytest_plugin.github import MOST, annotations
from tests.pytest_plugin.made import N_PLUS_ONE, finding, outcome

HOSTILE = "\r\n::set-output name=a::b\n::stop-commands::x\u2028\x85\x0b\x0c##[error]%0A,line=1,title=z::y\x1b[31m"
COMMAND = re.compile(r"::(error|warning|notice) file=([^:,]*),line=(\d+),title=([^:,]*)::(.*)")


def read(line: str) -> tuple[str, ...]:
    """Read a command as GitHub's runner does."""
    match = COMMAND.fullmatch(line)
    assert match is not None, line
    level, *properties, message = match.groups()
    for escape, meant in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        properties = [each.replace(escape, meant) for each in properties]
        message = message.replace(escape, meant) if escape not in ("%3A", "%2C") else message
    return (level, *properties, message)


@pytest.fixture(autouse=True)
def _no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)


def test_a_finding_is_at_the_line_that_causes_it() -> None:
    (line,) = annotations(
        [outcome("tests/test_a.py::test_a", finding()), outcome("tests/test_a.py::test_b", finding())]
    )
    assert read(line) == (
        "error",
        "shop/views.py",
        "12",
        "sqla_watch: n-plus-one",
        "Customer.orders was loaded lazily for 20 Customer objects, one by one\nAdd to the query at views.py:10:\n"
        ".options(selectinload(Customer.orders))\nin tests/test_a.py::test_a and 1 other test",
    )


def test_what_fails_is_an_error_and_the_rest_as_severe_as_it_is() -> None:
    lines = annotations([
        outcome("t.py::a", finding("slow-query", severity="low"), finding("pool-wait", severity="medium")),
        outcome("t.py::b", finding(), failing=()),
        outcome("t.py::c", finding("query-in-loop")),
    ])  # fmt: skip
    assert [(read(line)[0], read(line)[3].rpartition(" ")[2]) for line in lines] == [
        ("error", "query-in-loop"), ("warning", "n-plus-one"), ("warning", "pool-wait"), ("notice", "slow-query")
    ]  # fmt: skip


def test_a_test_over_its_budget_is_annotated_where_it_is() -> None:
    over = outcome("tests/test_a.py::test_a", budget={"max_statements": 5.0}, over={"max_statements": 21.0})
    assert read(*annotations([over])) == (
        "error",
        "tests/test_a.py",
        "7",
        "sqla_watch: over budget",
        "tests/test_a.py::test_a: 21 statements, and the budget is 5",
    )


def test_a_finding_without_a_line_is_at_its_test() -> None:
    (line,) = annotations([outcome("tests/test_a.py::test_a", finding(location=None, file=""))])
    assert read(line)[1:3] == ("tests/test_a.py", "7")


def test_what_the_baseline_knows_is_left_out() -> None:
    assert annotations([outcome("t.py::a", finding())], known={N_PLUS_ONE}) == []


def test_no_more_of_one_level_than_github_shows() -> None:
    outcomes = [
        outcome(
            f"t.py::test_{number}", finding(target=f"A.b{number}"), finding("slow-query", f"Q{number}", severity="low")
        )
        for number in range(30)
    ]
    levels = [read(line)[0] for line in annotations(outcomes)]
    assert (levels.count("error"), levels.count("notice")) == (MOST, MOST)


@pytest.mark.parametrize("place", ["nodeid", "message", "suggestion", "file", "rule", "budget"])
def test_no_text_injects_a_command(place: str) -> None:
    found = finding(**{place: HOSTILE}) if place in ("file", "rule") else finding()
    if place in ("message", "suggestion"):
        found[place] = HOSTILE
    hostile = outcome("t.py::a" + HOSTILE if place == "nodeid" else "t.py::a", found)
    if place == "budget":
        hostile = outcome(
            "t.py::" + HOSTILE, budget={"max_rows": 1.0}, over={"max_rows": 2.0}, file="t,line=99:" + HOSTILE
        )
    (line,) = annotations([hostile])
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    level, file, number, title, message = read(line)
    assert level == "error"
    assert number in ("12", "7")
    assert "set-output" in f"{file}{title}{message}"


def test_files_are_relative_to_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outcomes = [outcome("t.py::a", finding(), over={"max_rows": 2.0}, budget={"max_rows": 1.0})]
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert {read(line)[1] for line in annotations(outcomes, rootdir=tmp_path / "services" / "shop")} == {
        "services/shop/t.py",
        "services/shop/shop/views.py",
    }
    assert {read(line)[1] for line in annotations(outcomes, rootdir=tmp_path)} == {"t.py", "shop/views.py"}
    assert {read(line)[1] for line in annotations(outcomes, rootdir=tmp_path.parent)} == {"t.py", "shop/views.py"}
