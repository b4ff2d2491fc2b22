"""uncached-statement: statements that no cache can serve, with the cause; parameters and cached ones are silent."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Integer, cast, column, func, insert, literal, select, text, values
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.types import TypeDecorator

import sqla_watch
from sqla_watch import Settings, UncachedStatementWarning, Watch
from sqla_watch.demo.models import Customer, Order, Rate
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
    pytest.mark.filterwarnings("ignore:.*will not make use of SQL compilation caching:sqlalchemy.exc.SAWarning"),
    pytest.mark.filterwarnings("ignore:.*will not produce a cache key:sqlalchemy.exc.SAWarning"),
]


class Twice(ColumnElement[int]):
    type = Integer()

    def __init__(self, inner: Any) -> None:
        self.inner = inner


@compiles(Twice)
def _twice(element: Twice, compiler: Any, **options: Any) -> str:
    return f"2 * {compiler.process(element.inner, **options)}"


class Cents(TypeDecorator[int]):
    impl = Integer


class CentsCached(TypeDecorator[int]):
    impl = Integer
    cache_ok = True


def test_values_pasted_into_the_text_are_found_and_a_parameter_repairs_it(engine: Engine) -> None:
    with sqla_watch.scope("pasted") as scope, engine.connect() as connection:
        for number in range(1, 13):
            connection.execute(text(f"UPDATE orders SET status = 'x' WHERE id = -{number}"))  # pasted
    finding = next(each for each in scope.findings if each.rule == "uncached-statement")
    assert (finding.target, finding.severity) == ("UPDATE orders", "medium")
    assert place(finding) == (__file__, line_of("pasted"))
    assert finding.message == "12 different texts of UPDATE orders were sent: values are pasted into the SQL"
    assert finding.evidence["cause"] == "pasted-in literals"
    assert finding.evidence["compilations"] == 12
    assert finding.statement == "UPDATE orders SET status = ? WHERE id = -?"
    assert ':value"), {"value": value}' in finding.suggestion
    query = text("SELECT name FROM customers WHERE id = ANY(:ids)")
    with sqla_watch.scope("parameter") as scope, engine.connect() as connection:
        for number in range(1, 13):
            connection.execute(query, {"ids": list(range(number, number + 60))}).all()
    assert found(scope) == []


@pytest.mark.parametrize(("texts", "is_found"), [(9, False), (10, True)])
def test_it_begins_with_ten_different_texts(engine: Engine, texts: int, is_found: bool) -> None:
    with sqla_watch.scope("texts") as scope, engine.connect() as connection:
        for number in range(30):
            connection.execute(text(f"SELECT name FROM customers WHERE id = {number % texts}")).all()
    assert (("uncached-statement", "SELECT customers") in found(scope)) == is_found


def rows(number: int) -> Any:
    return insert(Rate).values([{"country": f"{10 * number + each:02}", "percent": 1} for each in range(2)])


@pytest.mark.parametrize(
    ("make", "target", "cause", "said"),
    [
        (rows, "INSERT rates", "values([list])", "session.execute(insert(rates), rows)"),
        (lambda n: select(Twice(Order.id)).where(Order.id == n), "SELECT orders", "Twice", "inherit_cache = True"),
        (lambda n: select(Twice(Order.id)).join(Order.customer).where(Order.id == n), "SELECT orders", "Twice", ""),
        (lambda n: select(cast(Order.id, Cents)).where(Order.id == n), "SELECT orders", "Cents", "cache_ok = True"),
    ],
)
def test_what_has_no_cache_key_is_found(
    engine: Engine, make: Callable[[int], Any], target: str, cause: str, said: str
) -> None:
    for sent, expected in ((4, 0), (5, 1)):
        sqla_watch.uninstall()
        sqla_watch.install(engine, settings=Settings(profile="test", rules={"query-in-loop": "ignore"}))
        with sqla_watch.scope("no key") as scope, Session(engine) as session:
            for number in range(sent):
                session.execute(make(number))  # compiled anew
            session.rollback()
        assert len(scope.findings) == expected
    finding = only(scope)
    assert place(finding) == (__file__, line_of("compiled anew"))
    assert finding.target.startswith(target)
    assert finding.evidence["compilations"] == 5
    assert cause in str(finding.evidence["cause"])
    assert f"{target} was compiled 5 times" in finding.message or "customers was compiled 5 times" in finding.message
    assert said in finding.suggestion


@pytest.mark.parametrize(
    ("rules", "compilations", "is_found"), [({}, 49, False), ({}, 50, True), ({"min_compilations": 7}, 7, True)]
)
def test_production_waits_for_fifty(
    watch: Watch, engine: Engine, rules: dict[str, int], compilations: int, is_found: bool
) -> None:
    watch.settings = Settings(profile="production", rules={"uncached-statement": rules})
    with sqla_watch.scope("production") as scope, engine.connect() as connection:
        for _ in range(compilations):
            connection.execute(select(Twice(Order.id)).select_from(Order).limit(1)).all()
    assert (("uncached-statement", "SELECT orders") in found(scope)) == is_found


def test_what_a_cache_can_serve_is_silent(engine: Engine) -> None:
    pairs = values(column("n", Integer), name="pairs")
    with sqla_watch.scope("cached") as scope, Session(engine) as session:
        for number in range(12):
            session.execute(insert(Rate), [{"country": f"{number:02}", "percent": 1}])
            session.execute(select(Order.id).where(Order.id.in_(range(number + 60)))).all()
            session.execute(select(cast(Order.id, CentsCached)).limit(1).where(Order.status == "new")).all()
            session.execute(select(literal(number)).select_from(Rate).limit(1)).all()
            session.execute(text("SELECT name FROM customers WHERE country = 'DE' LIMIT 1")).all()
            session.execute(select(pairs.data([(n,) for n in range(number + 1)]).c.n)).all()
            session.execute(
                select(func.count()).select_from(Customer), execution_options={"compiled_cache": None}
            ).all()
        session.rollback()
    assert "uncached-statement" not in [rule for rule, _ in found(scope)]


def test_pages_ranges_and_settings_in_the_text_are_pasted_too(engine: Engine) -> None:
    with sqla_watch.scope("ranges") as scope, engine.connect() as connection:
        for number in range(12):
            connection.exec_driver_sql(f"SELECT id FROM items WHERE id > {number * 30} ORDER BY id LIMIT 30").all()
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {60_000 + number}")
    assert found(scope) == [("uncached-statement", "SELECT items")]


def test_two_lines_are_two_mistakes_and_one_line_is_one(engine: Engine) -> None:
    def ask(connection: Connection, number: int) -> None:
        connection.execute(select(Twice(Order.id)).select_from(Order).limit(number)).all()

    with sqla_watch.scope("lines") as scope, engine.connect() as connection:
        for number in range(1, 8):
            ask(connection, number)
            ask(connection, number)
            connection.execute(select(Twice(Order.customer_id)).select_from(Order).limit(1)).all()
    told = [finding for finding in scope.findings if finding.rule == "uncached-statement"]
    assert sorted(int(finding.evidence["compilations"]) for finding in told) == [7, 14]


def test_it_can_be_ignored(engine: Engine) -> None:
    with sqla_watch.scope("ignored") as scope, engine.connect() as connection:
        for _ in range(12):
            with sqla_watch.ignore("uncached-statement", "SELECT orders", reason="a migration"):
                connection.execute(select(Twice(Order.id)).select_from(Order).limit(1)).all()
            connection.execute(
                select(Twice(Order.id)).select_from(Order).limit(1)
            ).all()  # sqla-watch: ignore[uncached-statement]
    assert "uncached-statement" not in [rule for rule, _ in found(scope)]


@in_event_loop
async def test_async_it_is_found(shop_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        async with watched_async_engine(shop_url, driver) as engine:
            with sqla_watch.scope("async") as scope:
                async with AsyncSession(engine) as session:
                    for number in range(5):
                        await session.execute(rows(number))  # awaits it anew
                    await session.rollback()
        assert found(scope) == [("uncached-statement", "INSERT rates")]
        assert place(only(scope)) == (__file__, line_of("awaits it anew"))


def test_the_warning_has_its_own_class(engine: Engine) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sqla_watch.scope("warned"), Session(engine) as session:
            for number in range(5):
                session.execute(rows(number))
            session.rollback()
    assert [each.category for each in caught] == [UncachedStatementWarning]
