"""The baseline: findings that are known do not fail tests; a run of some tests says nothing of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sqla_watch.pytest_plugin import baseline
from sqla_watch.pytest_plugin.kept import GoneTests
from tests.pytest_plugin.made import N_PLUS_ONE, finding, outcome

LIST, SHOW, ADMIN = "tests/test_views.py::test_list", "tests/test_views.py::test_show", "tests/test_admin.py::test_list"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "baseline.json")


def entries(path: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(Path(path).read_text())["findings"]
    return found


def test_what_fails_tests_now_is_known_later(path: str) -> None:
    baseline.write(path, [outcome(SHOW, finding()), outcome(LIST, finding())])
    known = baseline.read(path)
    assert known.knows(N_PLUS_ONE)
    assert not known.knows("n-plus-one|Customer.orders|shop/views.py|show_customer")
    assert entries(path) == {N_PLUS_ONE: [LIST, SHOW]}


def test_lines_may_move(path: str) -> None:
    baseline.write(path, [outcome(LIST, finding(line=12))])
    before = Path(path).read_bytes()
    baseline.write(path, [outcome(LIST, finding(line=99))])
    assert Path(path).read_bytes() == before


def test_what_fails_no_test_is_not_kept(path: str) -> None:
    baseline.write(path, [outcome(LIST, finding("slow-query", severity="medium"))])
    assert entries(path) == {}


def test_what_is_known_already_stays_while_it_occurs(path: str) -> None:
    baseline.write(path, [outcome(LIST, finding())])
    baseline.write(path, [outcome(LIST, finding(), failing=())])  # as it is known it lets nothing fail
    assert entries(path) == {N_PLUS_ONE: [LIST]}


def test_the_file_is_sorted_and_stable_whatever_the_order_of_the_tests(path: str) -> None:
    outcomes = [
        outcome(LIST, finding(), finding(target="Order.items")),
        outcome(ADMIN, finding(target="Order.items"), finding(rule="query-in-loop")),
    ]
    baseline.write(path, outcomes)
    first = Path(path).read_text()
    Path(path).unlink()
    baseline.write(path, reversed(outcomes))
    assert Path(path).read_text() == first
    assert list(entries(path)) == sorted(entries(path))


class TestNoLongerOccurring:
    def test_said_when_its_test_ran_without_it(self, path: str) -> None:
        baseline.write(path, [outcome(LIST, finding())])
        known = baseline.read(path)
        assert known.unused([outcome(LIST)]) == [N_PLUS_ONE]
        assert known.unused([outcome(LIST, finding())]) == []

    def test_not_said_of_tests_that_were_not_run(self, path: str) -> None:
        baseline.write(path, [outcome(LIST, finding()), outcome(SHOW, finding())])
        known = baseline.read(path)
        assert known.unused([]) == []
        assert known.unused([outcome(ADMIN)]) == []
        assert known.unused([outcome(LIST)]) == []  # it may still be in the other
        assert known.unused([outcome(LIST), outcome(SHOW)]) == [N_PLUS_ONE]

    def test_not_said_of_a_test_that_stopped_half_way(self, path: str) -> None:
        baseline.write(path, [outcome(LIST, finding())])
        assert baseline.read(path).unused([outcome(LIST, completed=False)]) == []

    def test_not_said_where_another_test_has_it_now(self, path: str) -> None:
        baseline.write(path, [outcome(LIST, finding())])
        assert baseline.read(path).unused([outcome(LIST), outcome(ADMIN, finding())]) == []

    def test_said_of_tests_that_are_gone(self, path: str, tmp_path: Path) -> None:
        baseline.write(path, [outcome(LIST, finding())])
        assert baseline.read(path).unused([outcome(ADMIN)], gone=GoneTests(tmp_path)) == [N_PLUS_ONE]


class TestUpdating:
    def test_a_run_of_some_tests_drops_nothing_of_the_others(self, path: str) -> None:
        baseline.write(path, [outcome(LIST, finding()), outcome(ADMIN, finding(target="Order.items"))])
        baseline.write(path, [outcome(ADMIN, finding(target="Order.customer"))])
        assert entries(path) == {
            N_PLUS_ONE: [LIST],
            "n-plus-one|Order.customer|shop/views.py|list_customers": [ADMIN],
        }

    def test_a_test_that_stopped_half_way_drops_nothing(self, path: str) -> None:
        baseline.write(path, [outcome(LIST, finding())])
        baseline.write(path, [outcome(LIST, completed=False)])
        assert entries(path) == {N_PLUS_ONE: [LIST]}

    def test_what_no_longer_occurs_goes(self, path: str) -> None:
        baseline.write(path, [outcome(LIST, finding()), outcome(SHOW, finding())])
        baseline.write(path, [outcome(SHOW)])
        assert entries(path) == {N_PLUS_ONE: [LIST]}
        baseline.write(path, [outcome(LIST)])
        assert entries(path) == {}

    def test_tests_that_are_gone_go(self, path: str, tmp_path: Path) -> None:
        baseline.write(path, [outcome(LIST, finding()), outcome(ADMIN, finding())])
        (tmp_path / "tests").mkdir()
        (tmp_path / "tests" / "test_views.py").touch()
        baseline.write(path, [], gone=GoneTests(tmp_path))
        assert entries(path) == {N_PLUS_ONE: [LIST]}


def test_without_a_file_there_is_nothing_to_compare_with(path: str) -> None:
    with pytest.raises(pytest.UsageError, match=r"there is no baseline .*; make it by .*--sqla-watch-update-baseline"):
        baseline.read(path)
    assert not baseline.read(path, update=True).knows(N_PLUS_ONE)
    assert not Path(path).exists()


@pytest.mark.parametrize(
    "content", [{"n-plus-one": [LIST]}, {N_PLUS_ONE: []}, {N_PLUS_ONE: LIST}, {N_PLUS_ONE: [1]}, {N_PLUS_ONE: None}]
)
def test_an_entry_that_is_none_is_an_error(path: str, content: object) -> None:
    Path(path).write_text(json.dumps({"sqla_watch": "baseline", "version": 1, "findings": content}))
    with pytest.raises(pytest.UsageError, match="but must have the tests of a finding"):
        baseline.read(path)
