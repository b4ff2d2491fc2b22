"""Measured budgets: they only ratchet down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sqla_watch.pytest_plugin import measured
from sqla_watch.pytest_plugin.kept import GoneTests
from tests.pytest_plugin.made import outcome

LIST, SHOW = "tests/test_views.py::test_list", "tests/test_views.py::test_show"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "budgets.json")


def test_the_first_run_records(path: str) -> None:
    assert measured.read(path) == {}
    measured.write(path, {}, [outcome(SHOW, statements=0), outcome(LIST, statements=4)])
    assert measured.read(path) == {LIST: 4, SHOW: 0}
    assert list(measured.read(path)) == [LIST, SHOW]


@pytest.mark.parametrize(("now", "kept", "grown"), [(3, 3, {}), (4, 4, {}), (5, 4, {LIST: (4, 5)})])
def test_a_number_goes_down_and_never_up(path: str, now: int, kept: int, grown: dict[str, tuple[int, int]]) -> None:
    outcomes = [outcome(LIST, statements=now)]
    assert measured.grown({LIST: 4}, outcomes) == grown
    measured.write(path, {LIST: 4}, outcomes)
    assert measured.read(path) == {LIST: kept}


def test_a_test_that_sent_nothing_has_grown_when_it_sends_something() -> None:
    assert measured.grown({LIST: 0}, [outcome(LIST, statements=1)]) == {LIST: (0, 1)}


def test_a_new_test_has_not_grown() -> None:
    assert measured.grown({LIST: 4}, [outcome(SHOW, statements=100)]) == {}


def test_a_test_that_stopped_half_way_lowers_nothing(path: str) -> None:
    measured.write(path, {LIST: 4}, [outcome(LIST, statements=1, completed=False), outcome(SHOW, completed=False)])
    assert measured.read(path) == {LIST: 4}


def test_tests_that_were_not_run_stay_and_those_that_are_gone_go(path: str, tmp_path: Path) -> None:
    old = {LIST: 4, SHOW: 2, "tests/test_old.py::test_a": 1}
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_views.py").touch()
    measured.write(path, old, [outcome(LIST, statements=4)])
    assert measured.read(path) == old
    measured.write(path, old, [outcome(LIST, statements=4)], gone=GoneTests(tmp_path))
    assert measured.read(path) == {LIST: 4, SHOW: 2}


@pytest.mark.parametrize("number", [-1, 1.5, "4", None, True])
def test_what_is_no_number_of_statements_is_an_error(path: str, number: object) -> None:
    Path(path).write_text(json.dumps({"sqla_watch": "budgets", "version": 1, "statements": {LIST: number}}))
    with pytest.raises(pytest.UsageError, match=r"test_list.*but must have a number of statements"):
        measured.read(path)


def test_an_empty_file_that_somebody_has_made_is_filled(path: str) -> None:
    Path(path).touch()
    assert measured.read(path) == {}
