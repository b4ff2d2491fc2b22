"""Statements that no cache can serve are counted by line, over the whole process; of their values nothing is kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Integer, cast, func, insert, literal, select, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.types import TypeDecorator

import sqla_watch
from sqla_watch import Watch
from sqla_watch.probes import uncached
from tests.probes.application import DRIVERS, Application, entries
from tests.support import found, only

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
    pytest.mark.filterwarnings("ignore:.*will not make use of SQL compilation caching:sqlalchemy.exc.SAWarning"),
    pytest.mark.filterwarnings("ignore:.*will not produce a cache key:sqlalchemy.exc.SAWarning"),
]


class Double(ColumnElement[int]):
    """A construct that does not say whether it may be cached."""

    type = Integer()

    def __init__(self, inner: Any) -> None:
        self.inner = inner


@compiles(Double)
def _double(element: Double, compiler: Any, **options: Any) -> str:
    return f"2 * {compiler.process(element.inner, **options)}"


class Shifted(TypeDecorator[int]):
    """A type that does not say whether it may be cached."""

    impl = Integer


@pytest.fixture(params=DRIVERS)
def application(request: pytest.FixtureRequest, shop_url: str, tmp_path: Path) -> Iterator[Application]:
    application = Application(request.param, shop_url, tmp_path)
    application.fill()
    yield application
    application.clear()


def counts(scope: sqla_watch.Scope) -> list[tuple[str, int]]:
    return [(group.why, group.uncached) for group in scope.record.groups if group.why]


def test_each_kind_is_counted_on_every_driver(application: Application) -> None:
    seen: list[tuple[str, int]] = []

    def story(connection: Connection) -> list[Any]:
        answers: list[Any] = []
        with sqla_watch.scope("each kind") as scope:
            for n in range(3):
                rows = [{"id": 1000 + 2 * n, "name": "a"}, {"id": 1001 + 2 * n, "name": "b"}]
                answers.append(connection.execute(insert(entries).values(rows)).rowcount)
                answers.append(connection.scalars(select(Double(entries.c.id)).where(entries.c.id == n + 1)).all())
                answers.append(connection.scalars(select(cast(entries.c.id, Shifted)).where(entries.c.id == n)).all())
                answers.append(connection.scalars(text(f"SELECT name FROM entries WHERE id = {n + 1}")).all())
            seen.extend(sorted(counts(scope)))
        return answers

    without = application.run(story, watched=False)[0]
    application.fill()
    seen.clear()
    assert application.run(story)[0] == without
    assert seen == [("Double", 3), ("Shifted", 3), ("literals", 3), ("values", 3)]


@pytest.mark.usefixtures("watch")
def test_a_helper_that_sends_different_statements_has_sent_each_of_them_once(engine: Engine) -> None:
    def run(connection: Connection, statement: Any) -> list[Any]:
        return list(connection.scalars(statement))

    with sqla_watch.scope("helper") as scope, engine.connect() as connection:
        for table in ("customers", "orders", "products", "items", "rates"):
            run(connection, select(Double(literal(1))).select_from(text(table)))
    assert scope.statements == 5
    assert found(scope) == []


def test_what_the_driver_is_sent_plainly_is_counted_by_its_texts(application: Application) -> None:
    counted: list[Any] = []

    def story(connection: Connection) -> None:
        with sqla_watch.scope("driver") as scope:
            for number in (1, 2, 3, 1, 2, 3):
                connection.exec_driver_sql(f"SELECT name FROM entries WHERE id = {number}").all()
            counted.append(counts(scope))

    application.run(story)
    assert counted == [[("literals", 3)]]


@pytest.mark.usefixtures("watch")
def test_what_can_be_cached_is_not_counted(engine: Engine) -> None:
    plain = text("SELECT name FROM customers WHERE id = 7 AND country = 'DE'")
    with sqla_watch.scope("cached") as scope, engine.connect() as connection:
        for number in range(12):
            connection.execute(plain).all()
            connection.execute(text("SELECT name FROM customers WHERE id = 8 OR id = :id"), {"id": 1}).all()
            connection.execute(select(func.count()).where(text("1 = 1"))).all()
            connection.execute(select(literal(number)), execution_options={"compiled_cache": None}).all()
            connection.exec_driver_sql("SAVEPOINT a1")
            connection.exec_driver_sql(f"SET LOCAL work_mem = '{number + 1}MB'")
        assert counts(scope) == []


@pytest.mark.usefixtures("watch")
def test_requests_add_up(engine: Engine) -> None:
    """Each request sends one, and none of them could know that it is the tenth."""

    def handle(number: int) -> sqla_watch.Scope:
        with sqla_watch.scope("request", kind="request") as scope, engine.connect() as connection:
            connection.execute(text(f"SELECT name FROM customers WHERE id = {number}")).all()
        return scope

    scopes = [handle(number) for number in range(12)]
    assert [found(scope) for scope in scopes[:9]] == [[]] * 9
    assert [only(scope).rule for scope in scopes[9:]] == ["uncached-statement"] * 3
    assert [only(scope).evidence["compilations"] for scope in scopes[9:]] == [10, 11, 12]


def test_counts_end_with_the_last_watch(engine: Engine, watch: Watch) -> None:
    other = sqla_watch.install()
    with engine.connect() as connection:
        for number in range(3):
            connection.execute(text(f"SELECT name FROM customers WHERE id = {number}")).all()
            connection.execute(select(Double(literal(number))).select_from(text("rates"))).all()
    assert uncached._texts
    assert uncached._compiled
    watch.uninstall()
    assert uncached._texts
    other.uninstall()
    assert uncached._texts == {}
    assert uncached._compiled == {}


@pytest.mark.usefixtures("watch")
def test_neither_values_nor_texts_with_values_are_kept(engine: Engine) -> None:
    with engine.connect() as connection:
        for number in range(12):
            connection.execute(text(f"SELECT name FROM customers WHERE name = 'secret {number}'")).all()
    kept = [text for _, _, text in uncached._texts]
    assert kept == ["SELECT name FROM customers WHERE name = ?"]
    assert all(isinstance(each, int) for texts in uncached._texts.values() for each in texts)


@pytest.mark.usefixtures("watch")
def test_memory_is_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncached, "_MOST_TEXTS", 20)
    monkeypatch.setattr(uncached, "_MOST_LINES", 5)
    with sqla_watch.scope("many") as scope, engine.connect() as connection:
        for number in range(60):
            connection.execute(text(f"SELECT name FROM customers WHERE id = {number}")).all()
        for number in range(20):
            connection.execute(text(f"SELECT name AS name_{number} FROM customers WHERE id = 1")).all()
    assert len(uncached._texts) <= 5
    assert max(len(texts) for texts in uncached._texts.values()) <= 20
    assert scope.statements == 80


@pytest.mark.faults
def test_a_fault_is_said_once(
    engine: Engine, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sqla_watch.probes.dialect.count_uncached", lambda *arguments: 1 / 0)
    with caplog.at_level(logging.ERROR, "sqla_watch"), engine.connect() as connection:
        for number in range(1, 4):
            query = text(f"SELECT name FROM customers WHERE id = {number}")
            assert connection.scalar(query) == f"Customer {number}"
    assert [record.message for record in caplog.records] == [
        "sqla_watch: the probe dialect failed and is switched off; please report this"
    ]
