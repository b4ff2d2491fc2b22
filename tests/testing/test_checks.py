"""The checks for any test runner: what a block sends and what is found in it; no pytest plugin is there."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import SettingsError
from sqla_watch.demo.models import Order
from sqla_watch.testing import (
    CheckFailed,
    assert_max_queries,
    assert_no,
    assert_no_findings,
    assert_num_queries,
)
from sqla_watch.testing.watching import release_engines
from tests.conftest import url_for

pytestmark = pytest.mark.filterwarnings("error::sqla_watch.SqlaWatchWarning")


@pytest.fixture(autouse=True)
def _unwatched() -> Iterator[None]:
    yield
    release_engines()


def names(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return [order.customer.name for order in session.scalars(select(Order).limit(10))]


def count(engine: Engine, times: int = 1) -> None:
    with engine.connect() as connection:
        for number in range(times):
            connection.execute(text("SELECT name FROM customers WHERE id = :id"), {"id": number}).all()


@pytest.mark.parametrize(
    ("check", "fails"),
    [
        (assert_max_queries(3), False),
        (assert_max_queries(2), True),
        (assert_max_queries(4), False),
        (assert_num_queries(3), False),
        (assert_num_queries(2), True),
        (assert_num_queries(4), True),
        (assert_max_queries(0), True),
    ],
)
def test_statements_are_counted(engine: Engine, check: Any, fails: bool) -> None:
    if fails:
        with pytest.raises(CheckFailed), check:
            count(engine, 3)
    else:
        with check as scope:
            count(engine, 3)
        assert scope.statements == 3
        assert [line.count for line in scope.queries_for("customers")] == [3]


def test_what_a_failure_says(engine: Engine) -> None:
    with pytest.raises(AssertionError) as raised, assert_max_queries(2):
        names(engine)
    failure = raised.value
    assert isinstance(failure, CheckFailed)
    first, *lines = str(failure).splitlines()
    sent = failure.over["max_statements"]
    assert first == f"assert_max_queries(2): {sent} statements were sent"
    assert lines[1] == f"{sent} statements, by line:"
    assert "tests/testing/test_checks.py:" in lines[2]
    assert "in names" in lines[2]
    assert "SELECT customers.id" in lines[3]
    assert any("[n-plus-one]" in line for line in lines)
    assert any(".options(joinedload(Order.customer))" in line for line in lines)


def test_no_value_of_a_statement_is_shown(engine: Engine) -> None:
    with (
        pytest.raises(CheckFailed) as raised,
        assert_max_queries(0),
        engine.connect() as connection,
    ):
        connection.execute(text("SELECT name FROM customers WHERE name = :name"), {"name": "s3cret"})
        connection.execute(text("SELECT name FROM customers WHERE name = 's3cret'"))
    assert "s3cret" not in str(raised.value)


def test_rules_that_must_find_nothing(engine: Engine) -> None:
    with pytest.raises(CheckFailed, match=r"assert_no\('n-plus-one'\): found") as raised, assert_no("n-plus-one"):
        names(engine)
    assert [finding["rule"] for finding in raised.value.findings] == ["n-plus-one"]
    with pytest.raises(CheckFailed), assert_no("slow-query", "n-plus-one"):
        names(engine)
    with pytest.raises(CheckFailed), assert_no("n-plus-one:Order.*"):
        names(engine)
    with assert_no("query-in-loop"), assert_no("n-plus-one:Order.items"):
        names(engine)
    with assert_no("n-plus-one"):
        count(engine)


def test_no_findings_at_all(engine: Engine) -> None:
    with pytest.raises(CheckFailed), assert_no_findings():
        names(engine)
    with pytest.raises(CheckFailed), assert_no_findings(allow=["n-plus-one:Order.items"]):
        names(engine)
    with assert_no_findings(allow=["n-plus-one:Order.customer"]):
        names(engine)
    with assert_no_findings():
        count(engine)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: assert_max_queries(-1), "assert_max_queries() takes a number of statements, 0 or more, not -1"),
        (lambda: assert_num_queries("3"), "assert_num_queries() takes a number of statements, 0 or more, not '3'"),  # type: ignore[arg-type]
        (lambda: assert_max_queries(True), "assert_max_queries() takes a number of statements, 0 or more, not True"),
        (lambda: assert_no(), 'assert_no() takes ids of rules, as in assert_no("n-plus-one")'),
        (lambda: assert_no("n-plus-on"), "assert_no(): unknown rule 'n-plus-on'; did you mean 'n-plus-one'?"),
        (lambda: assert_no(7), "assert_no(): 7 is no string, as 'n-plus-one:Order.customer'"),  # type: ignore[arg-type]
        (lambda: assert_no_findings(allow="n-plus-one"), "assert_no_findings(): allow is 'n-plus-one', but must be a"),
    ],
)
def test_what_cannot_be_checked_is_said(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(SettingsError) as raised:
        make()
    assert said in str(raised.value)


def test_the_blocks_own_exception_wins(engine: Engine) -> None:
    with pytest.raises(LookupError), assert_max_queries(0):
        count(engine)
        raise LookupError


def test_functions_are_decorated(engine: Engine) -> None:
    @assert_max_queries(2)
    def work(times: int) -> str:
        """What it does."""
        count(engine, times)
        return "done"

    assert work(2) == "done"
    assert work.__name__ == "work"
    with pytest.raises(CheckFailed):
        work(3)
    assert work(1) == "done"


def test_coroutine_functions_are_decorated(shop_url: str) -> None:
    async def ask(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    @assert_max_queries(2)
    async def work(engine: AsyncEngine, times: int) -> int:
        await asyncio.gather(*[ask(engine) for _ in range(times)])
        return times

    async def main() -> None:
        engine = create_async_engine(url_for(shop_url, "asyncpg"))
        try:
            assert await work(engine, 2) == 2
            with pytest.raises(CheckFailed, match="3 statements were sent"):
                await work(engine, 3)
            with pytest.raises(CheckFailed, match="3 statements were sent"), assert_num_queries(2):
                await asyncio.gather(ask(engine), ask(engine), ask(engine))
        finally:
            await engine.dispose()

    asyncio.run(main())


def test_calls_of_one_function_that_overlap_are_checked_apart(shop_url: str) -> None:
    @assert_num_queries(1)
    async def work(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await asyncio.sleep(0.01)
            await connection.execute(text("SELECT 1"))

    async def main() -> None:
        engine = create_async_engine(url_for(shop_url, "asyncpg"))
        try:
            await asyncio.gather(*[work(engine) for _ in range(4)])
        finally:
            await engine.dispose()

    asyncio.run(main())


def test_generators_are_refused(engine: Engine) -> None:
    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"cannot decorate the generator function .*rows"):
        assert_max_queries(1)(rows)
    with pytest.raises(TypeError, match="decorates a function, not 3"):
        assert_max_queries(1)(3)  # type: ignore[type-var]


def test_checks_within_checks(engine: Engine) -> None:
    with assert_num_queries(6) as outer:
        with assert_num_queries(2):
            count(engine, 2)
        with assert_num_queries(3):
            count(engine, 3)
        count(engine)
    assert sum(line.count for line in outer.lines) == 6
    with pytest.raises(CheckFailed, match=r"assert_no\("), assert_no("n-plus-one"), assert_max_queries(100):
        names(engine)


def test_threads_in_the_block_count(engine: Engine) -> None:
    with assert_num_queries(4):
        thread = threading.Thread(target=count, args=(engine, 3))
        thread.start()
        thread.join()
        count(engine)


def test_scopes_in_the_block_report_nothing_themselves(engine: Engine) -> None:
    with (  # warnings are errors here
        pytest.raises(CheckFailed),
        assert_no("n-plus-one"),
        sqla_watch.scope("outer"),
        sqla_watch.scope("inner"),
    ):
        names(engine)


def test_without_an_engine_nothing_was_checked() -> None:
    program = """
from sqla_watch.testing import *
import sqla_watch.testing as t
for check in (t.assert_max_queries(1), t.assert_no("n-plus-one"), t.assert_no_findings()):
    try:
        with check:
            pass
    except t.CheckFailed as failure:
        print(failure)
with t.assert_max_queries(0), t.assert_num_queries(0):
    pass
import sys
assert "pytest" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        f"{check}: there was no SQLAlchemy engine in this process, so nothing was checked"
        for check in ("assert_max_queries(1)", "assert_no('n-plus-one')", "assert_no_findings()")
    ]


def test_a_runner_that_is_not_pytest() -> None:
    program = """
import unittest
from sqlalchemy import create_engine, text
from sqla_watch.testing import assert_max_queries, assert_num_queries

class TestIt(unittest.TestCase):
    @assert_max_queries(1)
    def test_over(self):
        with create_engine("sqlite://").connect() as connection:
            connection.execute(text("SELECT 1"))
            connection.execute(text("SELECT 1"))

    def test_within(self):
        with assert_num_queries(1), create_engine("sqlite://").connect() as connection:
            connection.execute(text("SELECT 1"))

unittest.main()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "FAILED (failures=1)" in result.stderr
    assert "CheckFailed: assert_max_queries(1): 2 statements were sent" in result.stderr


def test_an_engine_made_in_the_block_is_watched() -> None:
    with assert_num_queries(1):
        engine = create_engine("sqlite://")
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        engine.dispose()


def test_the_applications_own_watch_stays_as_it_is(engine: Engine) -> None:
    settings = sqla_watch.Settings(profile="production")
    with sqla_watch.install(settings=settings) as watch:
        loaded = watch.settings
        with assert_num_queries(1):
            count(engine)
        assert watch.settings is loaded
        assert watch.installed
