"""Together with others: enriched spans of drivers' instrumentations, SQL comments, settings, what is never imported."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Settings, SettingsError, Telemetry
from sqla_watch.demo.models import Customer, Order
from sqla_watch.integrations.asgi import SqlaWatchMiddleware
from tests.conftest import url_for
from tests.opentelemetry.conftest import Backend, Install


@pytest.fixture
def instrumented(shop_url: str, backend: Backend) -> Any:
    """An engine whose driver has OpenTelemetry's own instrumentation."""
    instrumentor = PsycopgInstrumentor()
    instrumentor.instrument(tracer_provider=backend.traces, skip_dep_check=True)
    engine = create_engine(url_for(shop_url, "psycopg"), pool_recycle=3600)
    yield engine
    engine.dispose()
    instrumentor.uninstrument()


def test_spans_of_the_driver_nest_below_ours(instrumented: Engine, backend: Backend) -> None:
    backend.install(instrumented)
    with backend.tracer.start_as_current_span("GET /"), instrumented.connect() as connection:
        backend.exporter.clear()
        connection.execute(select(Customer.id)).all()
    ours = backend.one("SELECT customers")
    (theirs,) = [span for span in backend.spans if span.name == "SELECT"]
    assert theirs.parent.span_id == ours.context.span_id  # type: ignore[union-attr]


def test_spans_of_the_driver_are_enriched(instrumented: Engine, backend: Backend) -> None:
    backend.install(instrumented, enrich=True)
    with backend.tracer.start_as_current_span("GET /") as request, instrumented.connect() as connection:
        backend.exporter.clear()
        connection.execute(select(Customer.id)).all()
    assert not backend.named("SELECT customers")
    span = backend.one("SELECT")
    assert span.parent.span_id == request.get_span_context().span_id  # type: ignore[union-attr]
    said = dict(span.attributes or {})
    assert said["db.query.summary"] == "SELECT customers"
    assert said["db.collection.name"] == "customers"
    assert said["code.file.path"] == __file__
    sqla_watch.uninstall()
    with instrumented.connect() as connection:
        connection.execute(select(Order.id)).all()
    assert "db.query.summary" not in dict(backend.named("SELECT")[-1].attributes or {})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_with_the_instrumentations_of_fastapi_and_the_driver_there_is_one_tree(
    shop_url: str, backend: Backend, asynchronous: bool
) -> None:
    driver = PsycopgInstrumentor()
    driver.instrument(tracer_provider=backend.traces, skip_dep_check=True)
    app = FastAPI()
    app.add_middleware(SqlaWatchMiddleware)
    url = url_for(shop_url, "psycopg")
    query = text("SELECT pg_sleep(0.005), name FROM customers WHERE id = :id")
    engine: Any
    if asynchronous:
        engine = create_async_engine(url, pool_recycle=3600)

        async def customer(number: int) -> Any:
            async with engine.connect() as connection:
                return (await connection.execute(query, {"id": number})).one().name

        @app.get("/customers")
        async def customers() -> Any:
            return await asyncio.gather(*(customer(number) for number in (1, 2, 3)))
    else:
        engine = create_engine(url, pool_recycle=3600)

        @app.get("/customers")
        def customers_one_by_one() -> Any:
            with engine.connect() as connection:
                return [connection.execute(query, {"id": number}).one().name for number in (1, 2, 3)]

    backend.install(engine, fold=False)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=backend.traces, meter_provider=backend.metrics)

    async def ask() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
            answers = await asyncio.gather(*(client.get("/customers") for _ in range(3)))
        if asynchronous:
            await engine.dispose()
        return [answer.status_code for answer in answers]

    try:
        assert asyncio.run(ask()) == [200, 200, 200]
    finally:
        driver.uninstrument()
    requests = {span.context.span_id: span for span in backend.named("GET /customers")}
    ours = {span.context.span_id: span for span in backend.named("SELECT customers")}
    theirs = [span for span in backend.named("SELECT") if span.parent and span.parent.span_id in ours]
    assert len(requests) == 3
    assert len({span.context.trace_id for span in requests.values()}) == 3
    assert len(ours) == len(theirs) == 9
    below = Counter(span.parent.span_id for span in ours.values() if span.parent)
    assert below == dict.fromkeys(requests, 3)
    assert {span.parent.span_id for span in theirs if span.parent} == set(ours)
    for span in theirs:
        assert span.parent is not None
        above = ours[span.parent.span_id]
        assert above.start_time <= span.start_time <= span.end_time <= above.end_time
        assert above.context.trace_id == span.context.trace_id
    assert backend.counting.started == backend.counting.ended


def sent(connection: Any) -> str:
    """What the server has got."""
    return str(connection.execute(text("SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()")).scalar_one())


def test_a_comment_has_no_trace_where_the_driver_prepares(engine: Engine, backend: Backend, install: Install) -> None:
    install(comments=True, application="the shop's; 100%*/")
    with sqla_watch.scope("GET /orders/{id}", kind="request"), engine.connect() as connection:
        statement = sent(connection)
        for number in range(12):
            connection.execute(select(Customer.id).where(Customer.id == number))
        prepared = connection.execute(text("SELECT statement FROM pg_prepared_statements")).scalars().all()
    assert statement.endswith(" /*application='the shop_s_ 100__/',route='GET /orders/{id}'*/")
    assert len([each for each in prepared if "customers" in each]) == 1


def test_a_comment_has_the_trace_where_nothing_is_prepared(shop_url: str, backend: Backend) -> None:
    engine = create_engine(url_for(shop_url, "psycopg"), connect_args={"prepare_threshold": None}, pool_recycle=3600)
    backend.install(engine, comments=True)
    with backend.tracer.start_as_current_span("GET /"), engine.connect() as connection:
        statement = sent(connection)
    (span,) = [each for each in backend.spans if each.name.startswith("SELECT")]
    identity = span.context
    assert statement.endswith(
        f" /*traceparent='00-{identity.trace_id:032x}-{identity.span_id:016x}-{identity.trace_flags:02x}'*/"
    )
    engine.dispose()


@pytest.mark.parametrize(
    "name",
    [
        "GET /orders*/; DROP TABLE customers; /*",
        "GET /'; SELECT pg_sleep(9) --",
        "GET /\n/**/ %s %(name)s $1 :name ? \x00 \\",
        "GET /ünïcödé" + "x" * 1_000,
    ],
)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_nothing_breaks_out_of_a_comment(shop_url: str, backend: Backend, driver: str, name: str) -> None:
    """Route and application may have anything in them that somebody outside has sent."""
    url = url_for(shop_url, driver)

    async def ask_in_a_loop() -> str:
        engine = create_async_engine(url, pool_recycle=3600)
        backend.install(engine, comments=True, application=name)
        async with engine.connect() as connection:
            statement = await connection.run_sync(sent)
        await engine.dispose()
        return statement

    with sqla_watch.scope(name, kind="request"):
        if driver == "asyncpg":
            statement = asyncio.run(ask_in_a_loop())
        else:
            engine = create_engine(url, pool_recycle=3600)
            backend.install(engine, comments=True, application=name)
            with engine.connect() as connection:
                statement = sent(connection)
            engine.dispose()
    text, opening, comment = statement.partition(" /*")
    assert text == "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    assert opening
    assert comment.endswith("'*/")
    assert re.fullmatch(r"(?:\w+='[A-Za-z0-9_.~/{}: -]{1,200}',?)+", comment[:-2])


def test_comments_are_the_same_in_a_trace_that_is_not_sampled(engine: Engine, backend: Backend) -> None:
    """Else each statement would be prepared twice."""
    backend.install(engine, comments=True, metrics=False, application="shop")
    dropped = TracerProvider(sampler=ALWAYS_OFF).get_tracer("dropped")
    with dropped.start_as_current_span("GET /"), engine.connect() as connection:
        assert sent(connection).endswith("/*application='shop'*/")
    assert not backend.spans


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_comments_change_no_answer(shop_url: str, backend: Backend, driver: str) -> None:
    engine = create_engine(url_for(shop_url, driver), pool_recycle=3600)
    backend.install(engine, "production", comments=True, application="shop")
    with sqla_watch.scope("percent % of", kind="request"), Session(engine) as session:
        assert session.scalar(text("SELECT '100%' || :name"), {"name": "x"}) == "100%x"
        assert session.connection().exec_driver_sql("SELECT 7 -- of nothing").scalar() == 7
        assert session.connection().exec_driver_sql("SELECT %(n)s", {"n": 8}).scalar() == 8
        session.add_all([Customer(name="new", email=f"{n}@x") for n in range(3)] if hasattr(Customer, "email") else [])
        session.rollback()
    engine.dispose()


def test_settings_say_what_is_told(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.sqla_watch.telemetry]\nstatements = "slow"\nfold = false\n')
    environment = {"SQLA_WATCH_TELEMETRY_SLOW_SECONDS": "0.5", "SQLA_WATCH_TELEMETRY_FOLD": "true"}
    merged = Settings.load(Settings(telemetry={"waits": True}), pyproject=project, environment=environment)
    assert merged.telemetry == Telemetry(statements="slow", slow_seconds=0.5, waits=True)
    assert Settings.load(merged, pyproject=project, environment={"SQLA_WATCH_TELEMETRY": "false"}).telemetry is False
    assert Settings().telemetry is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"statement": "all"}, "did you mean 'statements'"),
        ({"statements": "some"}, "must be one of all, slow, none"),
        ({"fold": 1}, "must be true or false"),
        ({"slow_seconds": -1}, "must be seconds"),
        ("yes", "must be true, false, or a table"),
    ],
)
def test_a_wrong_setting_is_named(value: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=f"Settings: telemetry: .*{message}"):
        Settings(telemetry=value)


def test_nothing_of_it_is_imported_unless_it_is_asked_for() -> None:
    program = (
        "import sys, sqla_watch; from sqlalchemy import create_engine, text\n"
        "engine = create_engine('sqlite://'); sqla_watch.install(engine)\n"
        "engine.connect().execute(text('SELECT 1'))\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"


def test_without_the_extra_it_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqla_watch.installation, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'sqla-watch\[otel\]'"):
        sqla_watch.install(engine, settings=Settings(telemetry=True))
    assert not sqla_watch.installation.registry.watches
