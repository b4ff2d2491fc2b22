"""Statements as spans: what they say, where they nest, and how many there are."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Sequence,
    Table,
    bindparam,
    create_engine,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch.demo.models import Customer, Order
from tests.conftest import url_for
from tests.opentelemetry.conftest import Backend, Install


def attributes_of(span: Any) -> dict[str, Any]:
    return dict(span.attributes)


def test_a_statement_is_a_span_of_the_conventions(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    with engine.connect() as connection:
        connection.execute(select(Customer.name).where(Customer.id == 7)).all()  # the line
    span = backend.one("SELECT customers")
    assert span.kind is SpanKind.CLIENT
    said = attributes_of(span)
    assert said["db.system.name"] == "postgresql"
    assert said["db.namespace"] == f"{engine.url.database}|public"
    assert said["db.query.summary"] == "SELECT customers"
    assert said["db.operation.name"] == "SELECT"
    assert said["db.collection.name"] == "customers"
    assert "customers.id = %(id_1)s" in said["db.query.text"]
    assert said["server.address"] == (engine.url.host or engine.url.query["host"])
    assert said["code.file.path"] == __file__
    assert "# the line" in Path(__file__).read_text().splitlines()[said["code.line.number"] - 1]
    assert said["code.function.name"].endswith("test_statements.test_a_statement_is_a_span_of_the_conventions")
    assert "db.response.returned_rows" not in said
    assert not [name for name in said if name.startswith("db.query.parameter")]


def test_values_in_a_text_become_question_marks(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    with engine.connect() as connection:
        connection.execute(text("SELECT name FROM customers WHERE name = 'secret' AND id = :id"), {"id": 424242})
        connection.exec_driver_sql("SELECT name FROM customers WHERE name = 'secret'")
        listed = select(Customer.id).where(Customer.id.in_(bindparam("ids", expanding=True, literal_execute=True)))
        connection.execute(listed, {"ids": [424242, 7]})
    assert len(backend.spans) == 3
    for span in backend.spans:
        assert "secret" not in str(attributes_of(span))
        assert "424242" not in str(attributes_of(span))
    # From text that somebody has written neither operation nor table is read.
    assert "db.operation.name" not in attributes_of(backend.spans[0])
    assert attributes_of(backend.spans[2])["db.operation.name"] == "SELECT"


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 'it''s secret' FROM rates",
        "SELECT E'it\\'s secret' FROM rates",
        "SELECT $$secret$$, $tag$secret$tag$ FROM rates",
        "SELECT U&'secret', N'secret', B'101' FROM rates",
        "SELECT 'a'\n'secret' FROM rates",
        "SELECT 'unfinished secret FROM rates",
        "SELECT -424242, 4.24242e5, .424242, 424242. FROM rates",
        "SELECT 1_424242, 0x424242, 0o424242, 0b1_0 FROM rates LIMIT 424242",
        "SELECT country FROM rates WHERE country IN ('secret', 'secret') OR percent = ANY('{424242}')",
        "ALTER USER nobody PASSWORD 'secret'",
        "SET application_name TO 'secret'",
        "SELECT 7 /* secret */ FROM rates -- secret",
    ],
)
def test_no_value_in_a_text_is_shown(engine: Engine, backend: Backend, install: Install, statement: str) -> None:
    install()
    with engine.connect() as connection:
        try:
            connection.exec_driver_sql(statement)
        except DBAPIError:
            pass
    (span,) = backend.spans
    for value in ("secret", "424242", "101", "1_0"):
        assert value not in str(attributes_of(span))
    assert "?" in attributes_of(span)["db.query.text"]


def test_the_engine_s_password_is_nowhere(shop_url: str, backend: Backend) -> None:
    url = make_url(url_for(shop_url, "psycopg")).set(password="hunter2")
    engine = create_engine(url, pool_recycle=3600)
    backend.install(engine, transactions=True, waits=True)
    with engine.connect() as connection:
        connection.execute(select(Customer.id)).all()
        connection.commit()
    assert len(backend.spans) == 3
    assert "hunter2" not in str([span.to_json() for span in backend.spans])
    assert "hunter2" not in str(backend.reader.get_metrics_data())
    engine.dispose()


def test_parameters_and_rows_are_told_where_somebody_asks(engine: Engine, backend: Backend, install: Install) -> None:
    install(parameters=True, rows=True)
    with engine.connect() as connection:
        connection.execute(select(Customer.name).where(Customer.id < 6)).all()
    said = attributes_of(backend.one("SELECT customers"))
    assert said["db.query.parameter.id_1"] == "6"
    assert said["db.response.returned_rows"] == 5


def test_a_failed_statement_says_its_state_and_no_message(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    with engine.connect() as connection:
        with pytest.raises(IntegrityError):
            connection.execute(insert(Customer).values(id=1, name="secret"))
        connection.rollback()
        with pytest.raises(ProgrammingError):
            connection.execute(text("SELECT nothing_of_this FROM customers"))
    empty, missing = backend.spans
    assert attributes_of(empty)["error.type"] == attributes_of(empty)["db.response.status_code"] == "23502"
    assert attributes_of(missing)["db.response.status_code"] == "42703"
    for span in backend.spans:
        assert span.status.status_code is StatusCode.ERROR
        assert not span.events
        assert not span.status.description


def test_a_statement_is_below_the_span_around_it_and_current_for_the_driver(
    engine: Engine, backend: Backend, install: Install
) -> None:
    install(fold=False)
    seen = []
    with backend.tracer.start_as_current_span("GET /customers") as request, engine.connect() as connection:
        cursor_class = type(connection.connection.cursor())

        class Looking(cursor_class):  # type: ignore[misc, valid-type]
            def execute(self, *arguments: Any, **options: Any) -> Any:
                seen.append(get_current_span())
                return super().execute(*arguments, **options)

        connection.connection.driver_connection.cursor_factory = Looking  # type: ignore[union-attr]
        connection.execute(select(Customer.id)).all()
        assert get_current_span() is request
    span = backend.one("SELECT customers")
    assert span.parent is not None
    assert span.parent.span_id == request.get_span_context().span_id
    assert [each.get_span_context().span_id for each in seen] == [span.context.span_id]


def test_a_hundred_lazy_loads_are_one_span_with_their_number(
    engine: Engine, backend: Backend, install: Install
) -> None:
    install(rows=True)
    with backend.tracer.start_as_current_span("GET /orders"), Session(engine) as session:
        for order in session.scalars(select(Order)):
            order.items  # loads
    (loads,) = backend.named("SELECT items")
    said = attributes_of(loads)
    assert said["sqla_watch.statements"] == 100
    assert said["db.response.returned_rows"] == 400
    assert 0 < said["sqla_watch.database_seconds"] <= (loads.end_time - loads.start_time) / 1e9
    assert len(backend.spans) < 10
    assert backend.counting.started == backend.counting.ended == len(backend.spans)
    assert sum(point.count for point in backend.points("db.client.operation.duration")) == 101


def test_without_folding_each_has_its_own(engine: Engine, backend: Backend, install: Install) -> None:
    install(fold=False)
    with backend.tracer.start_as_current_span("GET /orders"), Session(engine) as session:
        for order in session.scalars(select(Order)):
            order.items
    assert len(backend.named("SELECT items")) == 100


def test_two_requests_and_two_lines_are_not_folded(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    query = select(Customer.id).where(Customer.id == bindparam("id"))
    with engine.connect() as connection:
        for name in ("first", "second"):
            with backend.tracer.start_as_current_span(name):
                for number in range(3):
                    connection.execute(query, {"id": number})
                connection.execute(query, {"id": 1})
    counts = [attributes_of(span).get("sqla_watch.statements", 1) for span in backend.named("SELECT customers")]
    assert counts == [3, 1, 3, 1]


def test_one_that_fails_among_others_has_a_span_of_its_own(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    with backend.tracer.start_as_current_span("GET /") as request, engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        for number in (1, 2, 0, 4):
            try:
                connection.execute(text("SELECT 1 / :number FROM rates"), {"number": number})
            except DBAPIError:
                pass
    spans = backend.named("SELECT rates")
    assert [attributes_of(span).get("sqla_watch.statements", 1) for span in spans] == [3, 1]
    assert attributes_of(spans[1])["db.response.status_code"] == "22012"
    assert all(span.parent.span_id == request.get_span_context().span_id for span in spans if span.parent)


def test_at_level_slow_there_are_the_slow_and_the_failed(engine: Engine, backend: Backend, install: Install) -> None:
    install(statements="slow", slow_seconds=0.05)
    with backend.tracer.start_as_current_span("GET /") as request, engine.connect() as connection:
        connection.execute(select(Customer.id))
        connection.execute(text("SELECT pg_sleep(0.06) FROM rates LIMIT 1"))
        with pytest.raises(ProgrammingError):
            connection.execute(text("SELECT nothing FROM orders"))
    (_, slow, failed) = backend.spans
    assert (slow.name, failed.name) == ("SELECT rates", "SELECT orders")
    assert slow.end_time - slow.start_time >= 50e6
    assert slow.parent.span_id == request.get_span_context().span_id
    assert attributes_of(slow)["code.file.path"] == __file__


def test_at_level_none_there_are_metrics(engine: Engine, backend: Backend, install: Install) -> None:
    install(statements="none")
    with engine.connect() as connection:
        connection.execute(select(Customer.id))
    assert not backend.spans
    assert [point.count for point in backend.points("db.client.operation.duration")] == [1]


def test_a_batch_says_its_size(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    with engine.connect() as connection:
        update = text("UPDATE customers SET name = name WHERE id = :id")
        connection.execute(update, [{"id": number} for number in range(1, 6)])
        connection.execute(update, [{"id": 1}])
        connection.rollback()
    batch, single = backend.spans
    assert batch.name == "BATCH UPDATE customers"
    assert attributes_of(batch)["db.operation.batch.size"] == 5
    assert "db.operation.batch.size" not in attributes_of(single)


def test_a_stream_lasts_until_its_last_fetch(engine: Engine, backend: Backend, install: Install) -> None:
    install(rows=True, fold=False)
    with engine.connect() as connection:
        result = connection.execution_options(yield_per=10).execute(select(Order.id))
        for partition in result.partitions():
            connection.connection.dbapi_connection.info  # type: ignore[attr-defined]
            asyncio.run(asyncio.sleep(0.005))
            assert partition
    span = backend.one("SELECT orders")
    assert attributes_of(span)["db.response.returned_rows"] == 100
    assert span.end_time - span.start_time > 9 * 5e6
    assert [point.sum for point in backend.points("db.client.response.returned_rows")] == [100]


STREAMED = text("SELECT id, pg_sleep(0.001) FROM orders")
"""A server-side cursor, for which the server works while rows are fetched."""


@pytest.mark.parametrize("telemetry", [{}, {"fold": False}, {"statements": "none"}, {"statements": "slow"}])
@pytest.mark.parametrize("sampled", [True, False])
def test_the_duration_of_a_stream_is_that_of_its_fetches_too(
    engine: Engine, backend: Backend, install: Install, telemetry: dict[str, Any], sampled: bool
) -> None:
    install(**telemetry)
    tracer = backend.tracer if sampled else TracerProvider(sampler=ALWAYS_OFF).get_tracer("dropped")
    started = time.perf_counter()
    with tracer.start_as_current_span("GET /"), engine.connect() as connection:
        for _ in range(2):
            result = connection.execution_options(yield_per=10).execute(STREAMED)
            for _ in result.partitions(10):
                time.sleep(0.01)  # the application's own time
    elapsed = time.perf_counter() - started
    (duration,) = backend.points("db.client.operation.duration")
    assert duration.count == 2
    assert 0.2 <= duration.sum <= elapsed - 0.2
    (rows,) = backend.points("db.client.response.returned_rows")
    assert (rows.count, rows.sum) == (2, 200)
    assert backend.counting.started == backend.counting.ended
    if sampled and telemetry.get("statements", "all") == "all":
        (exemplar,) = duration.exemplars
        assert exemplar.span_id in {span.context.span_id for span in backend.named("SELECT orders")}


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_tasks_that_run_at_once_each_have_their_own_parent(shop_url: str, backend: Backend, driver: str) -> None:
    async def main() -> None:
        engine = create_async_engine(url_for(shop_url, driver))
        backend.install(engine)

        async def one(number: int) -> None:
            with backend.tracer.start_as_current_span(f"task {number}"):
                async with engine.connect() as connection:
                    for _ in range(3):
                        await connection.execute(
                            text("SELECT pg_sleep(0.002), :n FROM rates LIMIT 1"), {"n": str(number)}
                        )

        with backend.tracer.start_as_current_span("request"):
            await asyncio.gather(*(one(number) for number in range(4)))
        await engine.dispose()

    asyncio.run(main())
    tasks = {span.context.span_id: span for span in backend.spans if span.name.startswith("task")}
    statements = backend.named("SELECT rates")
    assert len(statements) == 4
    assert {span.parent.span_id for span in statements if span.parent} == set(tasks)
    assert len({span.context.trace_id for span in backend.spans}) == 1
    assert backend.counting.started == backend.counting.ended


def test_a_cancelled_statement_ends_its_span(shop_url: str, backend: Backend) -> None:
    async def main() -> None:
        engine = create_async_engine(url_for(shop_url, "asyncpg"))
        backend.install(engine)
        with pytest.raises(asyncio.TimeoutError):
            async with engine.connect() as connection:
                await asyncio.wait_for(connection.execute(text("SELECT pg_sleep(5) FROM rates")), 0.05)
        await engine.dispose()

    asyncio.run(main())
    assert attributes_of(backend.one("SELECT rates"))["error.type"] == "CancelledError"
    assert backend.counting.started == backend.counting.ended


def test_a_trace_that_is_not_sampled_has_no_spans(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    dropped = TracerProvider(sampler=ALWAYS_OFF).get_tracer("dropped")
    with dropped.start_as_current_span("GET /"), Session(engine) as session:
        for order in session.scalars(select(Order)):
            order.customer
    assert backend.counting.started == 0
    assert sum(point.count for point in backend.points("db.client.operation.duration")) == 21


def test_sqlite_too(backend: Backend) -> None:
    engine = create_engine("sqlite://")
    backend.install(engine, rows=True)
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE things (id INTEGER)"))
        connection.execute(text("INSERT INTO things VALUES (:id)"), [{"id": number} for number in range(3)])
        assert len(connection.execute(text("SELECT id FROM things")).all()) == 3
    assert [span.name for span in backend.spans] == ["CREATE", "BATCH INSERT things", "SELECT things"]
    assert attributes_of(backend.spans[-1])["db.response.returned_rows"] == 3
    assert attributes_of(backend.spans[-1])["db.system.name"] == "sqlite"


def test_uninstalled_the_dialect_is_as_it_was_and_nothing_stays_open(
    engine: Engine, backend: Backend, install: Install
) -> None:
    before = dict(vars(engine.dialect))
    watch = install()
    with engine.connect() as connection:
        connection.execute(select(Customer.id))
        assert backend.counting.ended == 0  # held for more of the same
        watch.uninstall()
        assert backend.counting.started == backend.counting.ended == 1
        connection.execute(select(Customer.id))
    assert backend.counting.started == 1
    assert {name for name in vars(engine.dialect) if name.startswith("do_")} == {
        name for name in before if name.startswith("do_")
    }


def test_the_same_rules_find_the_same_with_telemetry(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    with sqla_watch.scope("orders") as scope, engine.connect() as connection:
        for number in range(60):
            connection.execute(text(f"SELECT name FROM customers WHERE id = {number}"))
    assert "uncached-statement" in {finding.rule for finding in scope.findings}


def test_tables_are_made_and_dropped(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    metadata = MetaData()
    Table(
        "things", metadata, Column("id", Integer, Sequence("things_id"), primary_key=True, comment="of 'secret' kind")
    )
    metadata.create_all(engine)
    metadata.drop_all(engine)
    names = [span.name for span in backend.spans]
    assert [name for name in names if name.startswith(("CREATE", "DROP", "COMMENT"))] == [
        "CREATE",
        "CREATE",
        "COMMENT",
        "DROP",
        "DROP",
    ]
    assert "secret" not in str([attributes_of(span) for span in backend.spans])
    with engine.connect() as connection:
        connection.execute(select(Customer.id)).all()
    assert backend.named("SELECT customers")


def test_a_statement_without_parameters(engine: Engine, backend: Backend, install: Install) -> None:
    install(comments=True, application="shop")
    with engine.connect().execution_options(no_parameters=True) as connection:
        assert connection.exec_driver_sql("SELECT '100%' FROM rates LIMIT 1").scalar() == "100%"
    assert backend.one("SELECT rates").end_time


def test_a_commit_that_fails_says_so(engine: Engine, backend: Backend, install: Install) -> None:
    install(transactions=True)
    with engine.connect() as connection:
        connection.execute(text("CREATE TEMP TABLE ones (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        connection.execute(text("INSERT INTO ones VALUES (1), (1)"))
        with pytest.raises(IntegrityError):
            connection.commit()
    commit, transaction = backend.one("COMMIT"), backend.one("sqla_watch.transaction")
    assert attributes_of(commit)["error.type"] == attributes_of(transaction)["error.type"] == "23505"
    assert commit.status.status_code is transaction.status.status_code is StatusCode.ERROR
    assert attributes_of(transaction)["sqla_watch.transaction.outcome"] == "rollback"
    assert backend.counting.started == backend.counting.ended


@pytest.mark.faults
@pytest.mark.parametrize("broken", ["begin", "finish"])
def test_a_fault_of_ours_is_said_once_and_ends_the_telemetry(
    engine: Engine, backend: Backend, install: Install, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError

    install()
    monkeypatch.setattr(f"sqla_watch.integrations.opentelemetry.statements.{broken}", fail)
    with backend.tracer.start_as_current_span("GET /") as request:
        with engine.connect() as connection:
            for _ in range(3):
                assert len(connection.execute(select(Customer.id)).all()) == 20
        assert get_current_span() is request
    assert backend.counting.started == backend.counting.ended
