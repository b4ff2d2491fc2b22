"""A timeline has every statement, wait, transaction and gap of a scope at its time, as far as there is room."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, selectinload

import sqla_watch
from sqla_watch import Scope, Settings, SettingsError, Watch
from sqla_watch.demo.models import Customer, Order
from sqla_watch.timeline import SHORTEST_GAP, Timeline
from tests.conftest import url_for
from tests.support import connection_held_elsewhere, in_event_loop, line_of, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

SILENT = Settings(profile="test", timeline=100)


@pytest.fixture
def watch(engine: Engine) -> Watch:
    return sqla_watch.install(engine, settings=SILENT)


def entries(scope: Scope, *kinds: str) -> list[dict[str, Any]]:
    """The entries of some kinds, with text and line instead of their numbers."""
    timeline = scope.to_dict()["timeline"]
    found = []
    for entry in timeline["entries"]:
        if not kinds or entry["kind"] in kinds:
            line = entry["line"]
            place = None if line < 0 else (timeline["lines"][line]["file"], timeline["lines"][line]["line"])
            text = timeline["texts"][entry["text"]] if "text" in entry else None
            found.append({**entry, "line": place, "text": text})
    return found


@pytest.mark.usefixtures("watch")
def test_each_statement_has_its_text_line_rows_and_time(engine: Engine) -> None:
    with sqla_watch.scope("page") as scope, engine.connect() as connection:
        connection.execute(text("SELECT id FROM orders WHERE id < 4")).all()  # first
        for number in (1, 2):
            connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": number / 50})  # second
    first, second, third = entries(scope, "statement")
    assert first["text"] == "SELECT id FROM orders WHERE id < ?"
    assert (first["line"], first["rows"]) == ((__file__, line_of("first")), 3)
    assert second["text"] == third["text"] == "SELECT pg_sleep(%(seconds)s)"
    assert second["line"] == third["line"] == (__file__, line_of("second"))
    assert 0.02 <= second["seconds"] < 2
    assert 0.04 <= third["seconds"] < 2
    assert first["start"] + first["seconds"] <= second["start"]
    assert second["start"] + second["seconds"] <= third["start"]
    assert third["start"] + third["seconds"] <= scope.duration_seconds
    assert len({each["connection"] for each in (first, second, third)}) == 1
    assert len({each["transaction"] for each in (first, second, third)}) == 1
    assert len(scope.to_dict()["timeline"]["texts"]) == 2, "each text is there once"
    assert sum(each["seconds"] for each in (first, second, third)) == pytest.approx(scope.database_seconds, abs=1e-5)


@pytest.mark.usefixtures("watch")
def test_a_transaction_has_its_span_its_commit_and_its_outcome(engine: Engine) -> None:
    with sqla_watch.scope("page") as scope:
        with engine.begin() as connection:
            connection.execute(text("CREATE TEMPORARY TABLE kept (a integer) ON COMMIT DROP"))
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    committed, rolled_back = entries(scope, "transaction")
    assert (committed["outcome"], rolled_back["outcome"]) == ("commit", "rollback")
    assert committed["statements"] == 1
    commit, rollback = entries(scope, "commit")
    assert (commit["outcome"], rollback["outcome"]) == ("commit", "rollback")
    for span, end in ((committed, commit), (rolled_back, rollback)):
        assert end["start"] + end["seconds"] == pytest.approx(span["start"] + span["seconds"], abs=1e-5)
        assert span["transaction"] == end["transaction"]
    assert {each["transaction"] for each in entries(scope, "statement")} == {
        committed["transaction"],
        rolled_back["transaction"],
    }
    assert sum(each["seconds"] for each in (commit, rollback)) == pytest.approx(scope.commit_seconds, abs=1e-5)


@pytest.mark.usefixtures("watch")
def test_a_gap_is_where_the_code_was_meanwhile(engine: Engine) -> None:
    with sqla_watch.scope("page") as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        time.sleep(0.15)
        connection.execute(text("SELECT 2"))
    (gap,) = entries(scope, "gap")
    one, two = entries(scope, "statement")
    assert 0.15 <= gap["seconds"] < 3
    assert one["start"] + one["seconds"] <= gap["start"] + 1e-5
    assert gap["start"] + gap["seconds"] <= two["start"] + 1e-5
    assert gap["transaction"] == one["transaction"]


@pytest.mark.usefixtures("watch")
def test_short_gaps_are_not_drawn(engine: Engine) -> None:
    with sqla_watch.scope("page") as scope, engine.connect() as connection:
        for number in range(10):
            connection.execute(text("SELECT :number"), {"number": number})
    assert all(gap["seconds"] >= SHORTEST_GAP / 1e9 for gap in entries(scope, "gap"))


def test_a_wait_for_the_pool_is_there_at_its_time(shop_url: str) -> None:
    engine = create_engine(url_for(shop_url, "psycopg"), pool_size=1, max_overflow=0, pool_recycle=3600)
    sqla_watch.install(engine, settings=SILENT)
    with sqla_watch.scope("page") as scope, connection_held_elsewhere(engine, 0.1), Session(engine) as session:
        session.execute(text("SELECT 1"))  # waits
    engine.dispose()
    (wait,) = entries(scope, "wait")
    (statement,) = entries(scope, "statement")
    assert wait["line"] == (__file__, line_of("waits"))
    assert 0.02 < wait["seconds"] < 3
    assert wait["seconds"] == pytest.approx(scope.wait_seconds, abs=1e-5)
    assert wait["start"] + wait["seconds"] <= statement["start"] + 1e-5
    assert wait["connection"] == statement["connection"]


@pytest.mark.usefixtures("watch")
def test_a_connection_that_was_there_at_once_is_no_wait(engine: Engine) -> None:
    with sqla_watch.scope("page") as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert entries(scope, "wait") == []


@pytest.mark.usefixtures("watch")
def test_a_statement_that_fails_says_how(engine: Engine) -> None:
    with sqla_watch.scope("page") as scope, engine.connect() as connection, pytest.raises(DBAPIError):
        connection.execute(text("SELECT nothing FROM nowhere"))
    (statement,) = entries(scope, "statement")
    assert statement["error"] == "42P01"
    assert "error" not in entries(scope, "transaction")[0]


@pytest.mark.usefixtures("watch")
def test_loads_of_the_orm_say_what_they_are(engine: Engine) -> None:
    with sqla_watch.scope("page") as scope, Session(engine) as session:
        orders = session.scalars(select(Order).options(selectinload(Order.items)).order_by(Order.id).limit(2)).all()
        orders[0].customer.name
        session.get_one(Customer, orders[0].customer_id).notes
    assert [entry.get("load", "") for entry in entries(scope, "statement")] == [
        "", "eager load", "lazy load", "column load",
    ]  # fmt: skip


@pytest.mark.usefixtures("watch")
def test_rows_of_a_stream_and_their_fetching_count(engine: Engine) -> None:
    with sqla_watch.scope("export") as scope, engine.connect() as connection:
        slowly = text("SELECT pg_sleep(0.005) FROM generate_series(1, 8)")
        assert len(connection.execution_options(stream_results=True, max_row_buffer=2).execute(slowly).all()) == 8
    (statement,) = entries(scope, "statement")
    assert statement["rows"] == 8
    assert statement["seconds"] >= 0.04


@in_event_loop
async def test_what_runs_at_once_overlaps(shop_url: str) -> None:
    async with watched_async_engine(shop_url, rules={"pool-fanout": "ignore"}) as engine:
        sqla_watch.install(engine, settings=SILENT)
        async with engine.connect(), engine.connect():
            pass  # two are open now

        async def ask() -> None:
            async with AsyncSession(engine) as session:
                await session.execute(text("SELECT pg_sleep(0.1)"))

        with sqla_watch.scope("page") as scope:
            await asyncio.gather(ask(), ask())
    one, two = entries(scope, "statement")
    assert one["start"] <= two["start"] < one["start"] + one["seconds"]
    assert one["connection"] != two["connection"]


@pytest.mark.usefixtures("watch")
def test_entries_are_in_the_order_of_their_beginnings(engine: Engine) -> None:
    with sqla_watch.scope("page") as scope:
        threads = [threading.Thread(target=sqla_watch.carry(ask), args=(engine, 5)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    starts = [entry["start"] for entry in entries(scope)]
    assert starts == sorted(starts)
    assert len(entries(scope, "statement")) == 20
    assert len(entries(scope, "transaction")) == 4


def ask(engine: Engine, times: int) -> None:
    with engine.connect() as connection:
        for number in range(times):
            connection.execute(text("SELECT :number"), {"number": number})


def test_of_what_there_is_no_room_for_only_the_number_is_kept(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", timeline=10)
    with sqla_watch.scope("page") as scope:
        ask(engine, 25)
    timeline = scope.to_dict()["timeline"]
    assert len(entries(scope, "statement")) == 10
    assert timeline["left_out"] == 16  # and the transaction
    assert scope.statements == 25


def test_scopes_inside_of_it_are_in_it(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", timeline=12)
    with sqla_watch.scope("outer") as outer:
        ask(engine, 3)
        with sqla_watch.scope("inner") as inner:
            ask(engine, 5)
        ask(engine, 7)
    assert len(entries(inner, "statement")) == 5
    timeline = outer.to_dict()["timeline"]
    assert len(timeline["entries"]) - len(entries(outer, "commit")) == 12
    assert timeline["left_out"] == 18 - 12
    inside, around = entries(inner, "statement")[0], entries(outer, "statement")[3]
    assert inside["start"] + inner.started_at == pytest.approx(around["start"] + outer.started_at, abs=0.01)


def test_the_profile_of_development_has_room_and_the_others_have_none(engine: Engine) -> None:
    assert Settings().timeline_room == 5_000
    assert Settings(profile="test").timeline_room == Settings(profile="production").timeline_room == 0
    assert Settings(profile="production", timeline=7).timeline_room == 7
    with sqla_watch.scope("page", settings=Settings(profile="production")) as scope:
        ask(engine, 1)
    assert scope.timeline is None
    assert "timeline" not in scope.to_dict()
    with sqla_watch.scope("page", settings=Settings(timeline=0)) as scope:
        ask(engine, 1)
    assert "timeline" not in scope.to_dict()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("many", "Settings: timeline is 'many' (str), but must be a whole number"),
        (1.5, "Settings: timeline is 1.5 (float), but must be a whole number"),
        (True, "Settings: timeline is True (bool), but must be a whole number"),
        (-1, "Settings: timeline is -1, but must be from 0 to 1000000"),
        (1_000_001, "Settings: timeline is 1000001, but must be from 0 to 1000000"),
    ],
)
def test_what_its_room_cannot_be_is_said(given: Any, said: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings(timeline=given)
    assert str(raised.value) == said


def test_its_room_comes_from_the_file_and_the_environment_too(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text("[tool.sqla_watch]\ntimeline = 20\n")
    assert Settings.load(Settings(timeline=10), pyproject=path, environment={}).timeline == 20
    assert Settings.load(pyproject=path, environment={"SQLA_WATCH_TIMELINE": "30"}).timeline == 30
    for wrong, said in (("many", "must be a number"), ("1.5", "must be a whole number"), ("-1", "must be from 0")):
        with pytest.raises(SettingsError, match=f"environment variable SQLA_WATCH_TIMELINE: timeline is .*{said}"):
            Settings.load(pyproject=path, environment={"SQLA_WATCH_TIMELINE": wrong})


@pytest.mark.usefixtures("watch")
def test_no_value_of_the_application_is_in_it_and_it_can_be_written_as_json(engine: Engine) -> None:
    with sqla_watch.scope("page") as scope, engine.connect() as connection:
        connection.execute(text("SELECT 'secret in text' WHERE 'secret value' = :value"), {"value": "secret parameter"})
    assert "secret" not in json.dumps(scope.to_dict()).replace(__file__, "")


def test_an_empty_one_is_empty() -> None:
    timeline = Timeline(5)
    assert timeline.to_dict(0) == {"texts": [], "lines": [], "entries": [], "left_out": 0}
    assert len(timeline) == 0
