"""Whole runs of pytest, through the command line: what is told, written and kept, with and without pytest-xdist."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(__file__).parent / "sarif-schema-2.1.0.json").read_bytes())

SHOP = """
from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

class Base(DeclarativeBase):
    pass

class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    orders: Mapped[list["Order"]] = relationship()

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))

engine = create_engine("sqlite:///shop.sqlite")

def list_customers(session, number):
    'FOLDER'
    numbers = []
    for customer in session.scalars(select(Customer).order_by(Customer.id).limit(number)):
        numbers.append(len(customer.orders))
    return numbers

def show_customer(session, number):
    'FOLDER'
    return session.get(Customer, number)
"""

CONFTEST = """
import pytest
import shop

@pytest.fixture
def session():
    with shop.Session(shop.engine) as session:
        yield session
"""

TESTS = """
import pytest
import shop

@pytest.mark.parametrize("number", [3, 4])
def test_list(session, number):
    assert shop.list_customers(session, number) == [0] * number

def test_show(session):
    assert shop.show_customer(session, 1).name == "one"
"""

OTHER_TESTS = """
import shop

def test_other(session):
    shop.show_customer(session, 2)

def test_nothing():
    pass
"""


class Project:
    """A shop with tests, in a folder of its own, and pytest's command line for it."""

    def __init__(self, pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
        self._pytester = pytester
        self._options = options
        self.path = pytester.path
        # Code of two files that is alike in all but the file is one and the same to Python.
        self.write("shop.py", SHOP.replace("FOLDER", str(pytester.path)))
        self.write("conftest.py", CONFTEST)
        self.write("tests/test_shop.py", TESTS)
        self.write("tests/test_other.py", OTHER_TESTS)
        self.write("pytest.ini", "[pytest]\npythonpath = .\n")
        with sqlite3.connect(pytester.path / "shop.sqlite") as database:
            database.executescript(
                "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT);"
                "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER);"
                "INSERT INTO customers VALUES (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four');"
            )
        database.close()

    def write(self, name: str, content: str) -> None:
        """Write a file of it."""
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content, encoding="utf-8")

    def replace(self, name: str, old: str, new: str) -> None:
        """Change a file of it."""
        content = (self.path / name).read_text()
        assert old in content
        self.write(name, content.replace(old, new))

    def read(self, name: str) -> Any:
        """Read a JSON file of it."""
        return json.loads((self.path / name).read_bytes())

    def run(self, *options: str) -> pytest.RunResult:
        """Run its tests, in this process where no other is asked for."""
        arguments = ("-p", "sqla_watch.pytest_plugin", "-p", "no:cacheprovider", *self._options, *options)
        if not self._options:
            return self._pytester.runpytest_inprocess(*arguments)
        return self._pytester.run(sys.executable, "-m", "pytest", "-p", "xdist", *arguments, timeout=120)


@pytest.fixture
def project(request: pytest.FixtureRequest, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # ours may be installed or not
    for name in ("GITHUB_ACTIONS", "GITHUB_WORKSPACE", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    return Project(pytester, getattr(request, "param", ()))


LIST_3, LIST_4 = "tests/test_shop.py::test_list[3]", "tests/test_shop.py::test_list[4]"
SHOW = "tests/test_shop.py::test_show"
OTHER, NOTHING = "tests/test_other.py::test_other", "tests/test_other.py::test_nothing"
KNOWN = "n-plus-one|Customer.orders|shop.py|list_customers"


def failed(result: pytest.RunResult) -> int:
    """How many tests failed."""
    return int(result.parseoutcomes().get("failed", 0))


class TestBaseline:
    def test_what_a_code_base_has_already_fails_no_test_and_what_is_new_does(self, project: Project) -> None:
        assert failed(project.run("--sqla-watch=fail")) == 2
        result = project.run("--sqla-watch=fail", "--sqla-watch-baseline=known.json", "--sqla-watch-update-baseline")
        assert (result.ret, failed(result)) == (0, 0)
        assert project.read("known.json")["findings"] == {KNOWN: [LIST_3, LIST_4]}
        result = project.run("--sqla-watch=fail", "--sqla-watch-baseline=known.json")
        assert result.ret == 0
        result.stdout.fnmatch_lines(["1 finding more is in the baseline."])
        project.replace("shop.py", "def list_customers", "# a line more\ndef list_customers")
        assert project.run("--sqla-watch=fail", "--sqla-watch-baseline=known.json").ret == 0
        project.replace("shop.py", "list_customers", "all_customers")
        project.replace("tests/test_shop.py", "list_customers", "all_customers")
        result = project.run("--sqla-watch=fail", "--sqla-watch-baseline=known.json")
        assert failed(result) == 2

    def test_a_run_of_some_tests_says_nothing_of_the_others(self, project: Project) -> None:
        baseline = ("--sqla-watch=fail", "--sqla-watch-baseline=known.json", "--sqla-watch-unused-baseline=fail")
        project.run(*baseline, "--sqla-watch-update-baseline")
        for some in (["tests/test_other.py"], ["-k", "show"], [SHOW], [LIST_3]):
            assert project.run(*baseline, *some).ret == 0, some
            assert project.run(*baseline, *some, "--sqla-watch-update-baseline").ret == 0, some
            assert project.read("known.json")["findings"] == {KNOWN: [LIST_3, LIST_4]}, some

    def test_what_no_longer_occurs_is_told_and_can_fail(self, project: Project) -> None:
        baseline = ("--sqla-watch=fail", "--sqla-watch-baseline=known.json")
        project.run(*baseline, "--sqla-watch-update-baseline")
        project.replace("tests/test_shop.py", "shop.list_customers(session, number)", "[0] * number")
        result = project.run(*baseline)
        assert result.ret == 0
        result.stdout.fnmatch_lines(["1 in the baseline no longer occur*", "  n-plus-one Customer.orders at shop.py *"])
        result = project.run(*baseline, "--sqla-watch-unused-baseline=fail")
        assert (result.ret, failed(result)) == (1, 0)
        assert project.run(*baseline, "--sqla-watch-update-baseline").ret == 0
        assert project.read("known.json")["findings"] == {}

    def test_a_test_that_is_gone_leaves_nothing_behind(self, project: Project) -> None:
        baseline = ("--sqla-watch=fail", "--sqla-watch-baseline=known.json")
        project.run(*baseline, "--sqla-watch-update-baseline")
        project.replace("tests/test_shop.py", "def test_list", "def no_test")
        project.run(*baseline, "--sqla-watch-update-baseline", "-k", "show")
        assert project.read("known.json")["findings"] == {}

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (None, "there is no baseline"),
            ("{", "is no JSON"),
            ('{"sqla_watch": "baseline", "version": 9}', "version 9"),
        ],
    )
    def test_a_file_that_is_none_stops_the_run_before_it_begins(
        self, project: Project, content: str | None, said: str
    ) -> None:
        if content is not None:
            project.write("known.json", content)
        result = project.run("--sqla-watch=fail", "--sqla-watch-baseline=known.json")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert said in str(result.stderr)
        assert "passed" not in str(result.stdout)


class TestMeasuredBudgets:
    def test_they_only_ratchet_down(self, project: Project) -> None:
        budgets = ("--sqla-watch-budgets=budgets.json", "--sqla-watch-fail-on=none")
        assert project.run(*budgets).ret == 0
        recorded = {LIST_3: 4, LIST_4: 5, SHOW: 1, OTHER: 1, NOTHING: 0}
        assert project.read("budgets.json")["statements"] == recorded
        project.replace(
            "shop.py",
            "return session.get(Customer, number)",
            "session.get(Order, 1); return session.get(Customer, number)",
        )
        result = project.run(*budgets)
        assert failed(result) == 2
        result.stdout.fnmatch_lines([f"  {SHOW}: 2, before 1"])
        assert project.read("budgets.json")["statements"] == recorded
        project.replace("shop.py", "session.get(Order, 1); ", "")
        project.replace("shop.py", "select(Customer)", "select(Customer).where(Customer.id < 3)")
        project.replace("tests/test_shop.py", "[0] * number", "[0, 0]")
        assert project.run(*budgets).ret == 0
        assert project.read("budgets.json")["statements"] == {**recorded, LIST_3: 3, LIST_4: 3}

    def test_renamed_and_deleted_tests_go_and_others_stay(self, project: Project) -> None:
        budgets = ("--sqla-watch-budgets=budgets.json", "--sqla-watch-fail-on=none")
        project.run(*budgets)
        project.replace("tests/test_other.py", "def test_other", "def test_renamed")
        assert project.run(*budgets, "tests/test_other.py").ret == 0
        renamed = "tests/test_other.py::test_renamed"
        assert project.read("budgets.json")["statements"] == {LIST_3: 4, LIST_4: 5, SHOW: 1, renamed: 1, NOTHING: 0}
        (project.path / "tests" / "test_other.py").unlink()
        assert project.run(*budgets, "-k", "show").ret == 0
        assert project.read("budgets.json")["statements"] == {LIST_3: 4, LIST_4: 5, SHOW: 1}

    def test_a_test_that_failed_by_itself_lowers_nothing(self, project: Project) -> None:
        budgets = ("--sqla-watch-budgets=budgets.json", "--sqla-watch-fail-on=none")
        project.run(*budgets)
        project.replace("shop.py", "return numbers", "raise RuntimeError")
        project.replace("shop.py", "return session.get(", "import pytest; pytest.skip()\n    return session.get(")
        result = project.run(*budgets)
        assert failed(result) == 2
        assert project.read("budgets.json")["statements"] == {LIST_3: 4, LIST_4: 5, SHOW: 1, OTHER: 1, NOTHING: 0}


class TestSnapshots:
    def test_they_are_written_compared_and_written_anew(self, project: Project) -> None:
        project.write(
            "tests/test_shop.py",
            "import shop\n\ndef test_list(session, sqla_watch):\n    shop.list_customers(session, 3)\n"
            "    sqla_watch.assert_matches_snapshot()\n    shop.show_customer(session, 4)\n"
            "    sqla_watch.assert_matches_snapshot()\n",
        )
        result = project.run()
        assert failed(result) == 1
        result.stdout.fnmatch_lines(["*SnapshotMismatch: there is no snapshot *--sqla-watch-update-snapshots*"])
        assert project.run("--sqla-watch-update-snapshots").ret == 0
        folder = project.path / "tests" / "__snapshots__" / "test_shop"
        assert sorted(os.listdir(folder)) == ["test_list-2.sql", "test_list.sql"]
        assert (folder / "test_list.sql").read_text() == (
            "-- sqla_watch snapshot, version 1\n\nSELECT customers.id, customers.name\nFROM customers\n"
            "ORDER BY customers.id\nLIMIT ?\nOFFSET ?;\n\n-- 3 times\nSELECT orders.id, orders.customer_id\n"
            "FROM orders\nWHERE ? = orders.customer_id;\n"
        )
        assert project.run().ret == 0
        project.replace("tests/test_shop.py", "list_customers(session, 3)", "list_customers(session, 4)")
        result = project.run()
        assert failed(result) == 1
        result.stdout.fnmatch_lines(["*-*-- 3 times", "*+*-- 4 times"])
        assert "difflib" not in str(result.stdout)


class TestReports:
    def test_all_of_one_run(self, project: Project) -> None:
        reports = ("--sqla-watch-json=r.json", "--sqla-watch-html=r.html", "--sqla-watch-sarif=r.sarif")
        result = project.run("--sqla-watch=warn", *reports, "--junit-xml=junit.xml")
        assert result.ret == 0
        result.stdout.fnmatch_lines(
            [
                "* sqla_watch *",
                "4 tests with the database, 11 statements, *",
                "statements  rows  database  findings  test",
                "         5     4  *  1  tests/test_shop.py::test_list?4?",
                "         4     3  *  1  tests/test_shop.py::test_list?3?",
                "high, not allowed: n-plus-one at shop.py:25 in list_customers (7 statements, *, in 2 tests)",
                "    .options(selectinload(Customer.orders))",
                "  in tests/test_shop.py::test_list?3?",
            ]
        )
        report = project.read("r.json")
        assert [test["nodeid"] for test in report["tests"]] == sorted([LIST_3, LIST_4, SHOW, OTHER, NOTHING])
        assert [scope["name"] for scope in report["scopes"]][:2] == [LIST_4, LIST_3]
        assert [found["tests"] for found in report["findings"]] == [[LIST_3, LIST_4]]
        page = (project.path / "r.html").read_text(encoding="utf-8")
        assert LIST_3 in page
        sarif = project.read("r.sarif")
        Draft4Validator(SCHEMA).validate(sarif)
        (found,) = sarif["runs"][0]["results"]
        assert found["locations"][0]["physicalLocation"]["artifactLocation"] == {
            "uri": "shop.py",
            "uriBaseId": "%SRCROOT%",
        }
        cases = {
            case.get("name"): {each.get("name"): each.get("value") for each in case.iter("property")}
            for case in ElementTree.parse(project.path / "junit.xml").iter("testcase")
        }
        assert cases["test_list[4]"]["sqla_watch.statements"] == "5"
        assert cases["test_list[4]"]["sqla_watch.finding"] == "n-plus-one Customer.orders"
        assert cases["test_nothing"] == {}

    def test_a_known_finding_is_suppressed_and_not_annotated(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        result = project.run("--sqla-watch=warn")
        assert re.search(r"^::error file=shop\.py,line=25,title=sqla_watch%3A n-plus-one::", str(result.stdout), re.M)
        project.run("--sqla-watch-baseline=known.json", "--sqla-watch-update-baseline")
        result = project.run(
            "--sqla-watch-baseline=known.json", "--sqla-watch-sarif=r.sarif", "--sqla-watch-json=r.json"
        )
        assert "::error" not in str(result.stdout)
        (found,) = project.read("r.sarif")["runs"][0]["results"]
        assert [each["kind"] for each in found["suppressions"]] == ["external"]
        assert [found["known"] for found in project.read("r.json")["findings"]] == [True]

    def test_a_hostile_name_of_a_test_injects_no_command(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        project.write(
            "tests/test_shop.py",
            "import pytest, shop\n\n"
            "@pytest.mark.parametrize('number', [3], ids=['x\\n::set-output name=a::b%0A,line=9'])\n"
            "@pytest.mark.sqla_watch(max_queries=1)\ndef test_list(session, number):\n"
            "    shop.list_customers(session, number)\n",
        )
        lines = project.run("--sqla-watch=fail").outlines
        commands = [line for line in lines if line.lstrip().startswith("::")]
        assert len(commands) == 2
        assert all(
            re.match(r"::error file=(shop|tests/test_shop)\.py,line=\d+,title=sqla_watch%3A ", line)
            for line in commands
        )

    @pytest.mark.parametrize("project", [("-n", "2")], indirect=True)
    def test_with_xdist_the_same_is_told_written_and_kept(self, project: Project) -> None:
        project.write(
            "tests/test_snapshot.py",
            "import shop\n\ndef test_snapshot(session, sqla_watch):\n    shop.show_customer(session, 4)\n"
            "    sqla_watch.assert_matches_snapshot()\n",
        )
        kept = ("--sqla-watch-baseline=known.json", "--sqla-watch-budgets=budgets.json")
        reports = ("--sqla-watch-json=r.json", "--sqla-watch-html=r.html", "--sqla-watch-sarif=r.sarif")
        result = project.run(
            *kept, *reports, "--junit-xml=junit.xml", "--sqla-watch-update-baseline", "--sqla-watch-update-snapshots"
        )
        assert result.ret == 0
        snapshot = "tests/test_snapshot.py::test_snapshot"
        assert project.read("known.json")["findings"] == {KNOWN: [LIST_3, LIST_4]}
        assert project.read("budgets.json")["statements"] == {
            NOTHING: 0, OTHER: 1, LIST_3: 4, LIST_4: 5, SHOW: 1, snapshot: 1,
        }  # fmt: skip
        assert len(project.read("r.json")["scopes"]) == 6
        assert len(project.read("r.sarif")["runs"][0]["results"]) == 1
        assert LIST_3 in (project.path / "r.html").read_text(encoding="utf-8")
        assert "sqla_watch.statements" in (project.path / "junit.xml").read_text()
        assert (project.path / "tests" / "__snapshots__" / "test_snapshot" / "test_snapshot.sql").exists()
        assert str(result.stdout).count(" sqla_watch =") == 1
        before = {each.name: each.read_bytes() for each in project.path.iterdir() if each.name.endswith("s.json")}
        project.replace("tests/test_shop.py", 'show_customer(session, 1).name == "one"', "list_customers(session, 2)")
        result = project.run(*kept, "--sqla-watch-unused-baseline=fail")
        assert failed(result) == 1
        result.stdout.fnmatch_lines([f"  {SHOW}: 3, before 1"])
        assert {name: (project.path / name).read_bytes() for name in before} == before

    @pytest.mark.parametrize("option", ["json", "html", "sarif", "budgets", "baseline"])
    def test_a_folder_that_is_not_there_stops_the_run_before_it_begins(self, project: Project, option: str) -> None:
        result = project.run(f"--sqla-watch-{option}=nowhere/file")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "nowhere" in str(result.stderr)
        assert "passed" not in str(result.stdout)

    def test_a_run_without_findings_has_reports_that_say_so(self, project: Project) -> None:
        reports = ("--sqla-watch-json=r.json", "--sqla-watch-html=r.html", "--sqla-watch-sarif=r.sarif")
        assert project.run("-k", "nothing", *reports).ret == 0
        assert project.read("r.json")["findings"] == []
        assert project.read("r.sarif")["runs"][0]["results"] == []
        assert (project.path / "r.html").exists()
