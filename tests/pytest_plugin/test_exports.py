"""The reports that go to files, of tests that were really run; and the properties of JUnit's XML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch.demo.models import Customer
from sqla_watch.pytest_plugin import exports
from sqla_watch.pytest_plugin.outcome import Outcome
from sqla_watch.reporters import json as json_report
from tests.pytest_plugin.made import N_PLUS_ONE, finding, outcome

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.NPlusOneWarning")  # it is what the reports are of


@pytest.fixture
def real(engine: Engine, watch: sqla_watch.Watch) -> Outcome:
    """What came of a test with an N+1 in it."""
    settings = sqla_watch.Settings(profile="test", timeline=100)
    with sqla_watch.scope("a test", kind="test", settings=settings) as scope, Session(engine) as session:
        for customer in session.scalars(select(Customer).order_by(Customer.id).limit(3)):
            assert customer.orders is not None
    findings = [each.to_dict() | {"file": "tests/test_exports.py"} for each in scope.findings]
    made = outcome("tests/test_exports.py::test_orders", *findings, statements=scope.statements, rows=scope.rows)
    return made._replace(scope=scope.to_dict())


def test_the_json_report_is_one_that_is_read_like_any_other(tmp_path: Path, real: Outcome) -> None:
    file = str(tmp_path / "report.json")
    exports.json([real, outcome("t.py::later", statements=1, rows=0)], file)
    report = json_report.read(file)
    (scope,) = report["scopes"]
    assert (scope["name"], scope["kind"], scope["statements"]) == ("tests/test_exports.py::test_orders", "test", 4)
    assert [each["nodeid"] for each in report["tests"]] == ["t.py::later", "tests/test_exports.py::test_orders"]
    assert "scope" not in report["tests"][1]
    assert report["totals"]["tests"] == 2
    assert report["totals"]["statements"] == 5
    assert report["scopes_left_out"] == 0
    (found,) = report["findings"]
    assert (found["rule"], found["target"]) == ("n-plus-one", "Customer.orders")
    assert found["tests"] == ["tests/test_exports.py::test_orders"]
    assert (found["failing"], found["known"]) == (True, False)


def test_the_same_finding_of_several_tests_is_one_with_sums(tmp_path: Path) -> None:
    file = str(tmp_path / "report.json")
    exports.json([outcome("t.py::b", finding()), outcome("t.py::a", finding(line=99))], file, known={N_PLUS_ONE})
    (found,) = json_report.read(file)["findings"]
    assert found["identity"] == N_PLUS_ONE
    assert (found["statements"], found["database_seconds"], found["known"]) == (40, 0.04, True)
    assert found["tests"] == ["t.py::a", "t.py::b"]


def test_the_json_report_says_the_same_of_the_same_tests_in_any_order(tmp_path: Path) -> None:
    outcomes = [outcome("t.py::b", finding()), outcome("t.py::a", finding(), finding("query-in-loop"))]
    written = []
    for order in (outcomes, outcomes[::-1]):
        exports.json(order, str(tmp_path / "report.json"))
        report = json.loads((tmp_path / "report.json").read_bytes())
        del report["generated_at"]
        written.append(report)
    assert written[0] == written[1]


def test_only_the_worst_of_many_tests_are_there_moment_by_moment(
    tmp_path: Path, real: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "MOST_SCOPES", 1)
    other = real._replace(nodeid="t.py::worse", statements=9)
    exports.json([real, other], str(tmp_path / "report.json"))
    report = json_report.read(str(tmp_path / "report.json"))
    assert [scope["name"] for scope in report["scopes"]] == ["t.py::worse"]
    assert report["scopes_left_out"] == 1
    assert len(report["tests"]) == 2


def test_the_html_report_has_each_test_as_a_scope(tmp_path: Path, real: Outcome) -> None:
    file = tmp_path / "report.html"
    exports.html([real, outcome("t.py::without")], str(file), title="shop")
    page = file.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "tests/test_exports.py::test_orders" in page
    assert "selectinload(Customer.orders)" in page
    assert "t.py::without" not in page


def test_the_html_report_shows_the_worst_tests_and_none_without_the_database(
    tmp_path: Path, real: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "MOST_PAGES", 2)
    others = [real._replace(nodeid=f"t.py::number_{number}", statements=number) for number in range(4)]
    nothing = real._replace(nodeid="t.py::nothing", statements=0, findings=(), failing=())
    exports.html([nothing, *others], str(tmp_path / "report.html"), title="shop")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [number for number in range(4) if f"t.py::number_{number}" in page] == [2, 3]
    assert "t.py::nothing" not in page
    assert "shop: 2 of 4 tests" in page


@pytest.mark.parametrize("option", ["--sqla-watch-json", "--sqla-watch-html", "--sqla-watch-sarif"])
def test_a_report_that_cannot_be_written_is_told_before_the_run(tmp_path: Path, option: str) -> None:
    for path, said in (
        (str(tmp_path / "nowhere" / "report"), "No such file or directory"),
        (str(tmp_path), "is a directory"),
        ("", "is empty, but must name a file"),
    ):
        with pytest.raises(pytest.UsageError) as raised:
            exports.check(path, option)
        assert option in str(raised.value)
        assert said in str(raised.value)
    exports.check(str(tmp_path / "report"), option)
    assert list(tmp_path.iterdir()) == []


class TestJUnit:
    def test_a_test_has_its_numbers(self) -> None:
        properties = exports.junit_properties(
            outcome(
                "t.py::a", finding(), finding(line=99), budget={"max_statements": 10.0, "max_database_seconds": 0.5}
            )
        )
        assert properties == [
            ("sqla_watch.statements", "21"),
            ("sqla_watch.rows", "120"),
            ("sqla_watch.database_seconds", "0.025000"),
            ("sqla_watch.transactions", "1"),
            ("sqla_watch.setup_statements", "3"),
            ("sqla_watch.findings", "2"),
            ("sqla_watch.budget.max_database_seconds", "0.5"),
            ("sqla_watch.budget.max_statements", "10"),
            ("sqla_watch.finding", "n-plus-one Customer.orders"),
        ]

    def test_a_test_without_the_database_has_none(self) -> None:
        calm: dict[str, Any] = {"statements": 0, "rows": 0}
        assert exports.junit_properties(outcome(**calm)) == []
        assert exports.junit_properties(outcome(budget={"max_statements": 1.0}, **calm)) != []
