"""engine-settings: how an engine was made, told once; what matters in production only is told there only."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

import sqla_watch
from sqla_watch import EngineSettingsWarning, Finding, Settings
from tests.conftest import url_for
from tests.support import found, in_event_loop, line_of, place

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

Make = Callable[..., Engine]


@pytest.fixture
def make(shop_url: str) -> Iterator[Make]:
    """Make a PostgreSQL engine with options."""
    made: list[Engine] = []

    def make(**options: Any) -> Engine:
        made.append(create_engine(url_for(shop_url, "psycopg"), **options))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()


def judge(engine: Any, profile: str = "test", **rules: Any) -> list[Finding]:
    """Install a watch, and return what the first scope finds."""
    sqla_watch.install(engine, settings=Settings(profile=profile, rules={"engine-settings": rules}))  # installs it
    with sqla_watch.scope("first") as scope:
        pass
    return scope.findings


def test_a_small_cache_is_found_where_the_watch_begins(make: Make) -> None:
    (finding,) = judge(make(query_cache_size=99))
    assert (finding.rule, finding.target, finding.severity) == ("engine-settings", "query_cache_size", "medium")
    assert place(finding) == (__file__, line_of("installs it"))
    assert finding.message == "an engine has query_cache_size=99: statements are compiled anew again and again"
    assert finding.evidence == {
        "setting": "query_cache_size",
        "value": "99",
        "dialect": "postgresql+psycopg",
        "pool": "QueuePool",
    }
    assert finding.suggestion.startswith("In create_engine(): leave it at its default of 500")
    assert finding.statements == 0
    assert judge(make(query_cache_size=100)) == []


def test_no_reset_is_found_unless_nothing_is_ever_open(make: Make) -> None:
    (finding,) = judge(make(pool_reset_on_return=None))
    assert (finding.target, finding.severity, finding.evidence["value"]) == ("pool_reset_on_return", "high", "None")
    assert "locks still open" in finding.message
    for options in (
        {"pool_reset_on_return": "rollback"},
        {"pool_reset_on_return": "commit"},
        {"pool_reset_on_return": None, "isolation_level": "AUTOCOMMIT"},
        {"pool_reset_on_return": None, "execution_options": {"isolation_level": "AUTOCOMMIT"}},
        {"pool_reset_on_return": None, "poolclass": NullPool},
    ):
        assert judge(make(**options)) == []


@pytest.mark.parametrize(
    ("options", "target", "value", "severity"),
    [
        ({"echo": True, "pool_pre_ping": True}, "echo", "True", "medium"),
        ({"echo": "debug", "pool_pre_ping": True}, "echo", "True", "medium"),
        ({}, "pool_pre_ping", "False", "low"),
        ({"max_overflow": -1, "pool_pre_ping": True}, "max_overflow", "-1", "medium"),
    ],
    ids=str,
)
def test_what_matters_in_production_is_told_there(
    make: Make, options: dict[str, Any], target: str, value: str, severity: str
) -> None:
    for profile in ("development", "test"):
        assert judge(make(**options), profile) == []
    (finding,) = judge(make(**options), "production")
    assert (finding.target, finding.evidence["value"], finding.severity) == (target, value, severity)
    assert judge(make(**options), "production", in_production=0) == []
    assert [each.target for each in judge(make(**options), "test", in_production=1)] == [target]


@pytest.mark.parametrize(
    "options",
    [
        {"pool_pre_ping": True},
        {"pool_recycle": 1800},
        {"poolclass": NullPool},
        {"poolclass": StaticPool},
        {"pool_pre_ping": True, "max_overflow": 0},
    ],
    ids=str,
)
def test_engines_for_production_are_silent(make: Make, options: dict[str, Any]) -> None:
    assert judge(make(**options), "production") == []


def test_several_mistakes_of_several_engines(make: Make) -> None:
    sqla_watch.install(make(query_cache_size=0, pool_reset_on_return=None))
    findings = judge(make(query_cache_size=10))
    assert [(each.target, each.evidence["value"]) for each in findings] == [
        ("pool_reset_on_return", "None"),
        ("query_cache_size", "0"),
        ("query_cache_size", "10"),
    ]


def test_it_is_told_once(make: Make) -> None:
    engine = make(query_cache_size=0)
    assert len(judge(engine)) == 1
    assert judge(engine) == []
    with sqla_watch.scope("later") as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert found(scope) == []


def test_the_first_connection_is_told_where_there_is_no_scope(make: Make) -> None:
    told: list[str] = []
    engine = make(query_cache_size=0)
    watch = sqla_watch.install(engine, settings=Settings(profile="test"))
    watch.reporters.append(lambda scope: told.extend(finding.rule for finding in scope.findings))
    for _ in range(2):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    assert told == ["engine-settings"]


@in_event_loop
async def test_asynchronous_engines_are_judged_as_well(shop_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        engine = create_async_engine(url_for(shop_url, driver), query_cache_size=0)
        (small,) = judge(engine)
        assert (small.target, small.evidence["pool"]) == ("query_cache_size", "AsyncAdaptedQueuePool")
        assert small.evidence["dialect"] == f"postgresql+{driver}"
        (ping,) = judge(create_async_engine(url_for(shop_url, driver)), "production")
        assert ping.target == "pool_pre_ping"


def test_sqlite_in_memory_has_no_connections_that_die() -> None:
    engine = create_engine("sqlite://")
    assert judge(engine, "test") == []
    assert judge(create_engine("sqlite://"), "production") == []


def test_it_can_be_ignored(make: Make) -> None:
    sqla_watch.install(make(query_cache_size=0), settings=Settings(profile="test"))  # sqla-watch: ignore
    with sqla_watch.scope("comment") as scope:
        pass
    assert found(scope) == []
    assert judge(make(query_cache_size=0), min_query_cache_size=0) == []
    assert judge(make(query_cache_size=0), action="ignore") == []


def test_the_warning_has_its_own_class_and_no_address(make: Make) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (finding,) = judge(make(query_cache_size=0))
    assert [each.category for each in caught] == [EngineSettingsWarning]
    assert "postgres@" not in finding.describe()


# The pools of all workers against the server, on request

LIMIT = text(
    "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    " - coalesce(current_setting('reserved_connections', true)::int, 0)"
)


def test_more_connections_than_the_server_has_are_found_when_one_asks(make: Make) -> None:
    engine = make(pool_size=10, max_overflow=20)
    watch = sqla_watch.install(engine, settings=Settings(profile="test"))
    with engine.connect() as connection:
        most = connection.scalar(LIMIT)
        connection.rollback()
        assert watch.check_server(connection, workers=most // 30) == []
        (finding,) = watch.check_server(connection, workers=most // 30 + 1)  # asks
        assert not connection.in_transaction()
    workers = most // 30 + 1
    assert finding.message == (
        f"an engine has pool_size=10, max_overflow=20: {workers} workers may open {30 * workers} connections, "
        f"the server has {most} for all"
    )
    assert (finding.evidence["workers"], finding.evidence["max_connections"]) == (workers, most)
    assert place(finding) == (__file__, line_of("asks"))
    assert finding.severity == "high"
    assert f"pool_size + max_overflow of {most // workers} or less" in finding.suggestion


def test_the_limit_of_a_role_is_one_too(make: Make) -> None:
    engine = make(pool_size=2, max_overflow=1)
    watch = sqla_watch.install(engine, settings=Settings(profile="test"))
    with engine.connect() as connection, connection.begin() as transaction:
        connection.execute(text("ALTER ROLE CURRENT_USER CONNECTION LIMIT 5"))
        (finding,) = watch.check_server(connection, workers=2)
        assert connection.in_transaction()
        transaction.rollback()
    assert finding.evidence["max_connections"] == 5


def test_a_pool_without_a_limit_never_fits(make: Make) -> None:
    engine = make(pool_size=2, max_overflow=-1)
    watch = sqla_watch.install(engine, settings=Settings(profile="test"))
    with engine.connect() as connection:
        (finding,) = watch.check_server(connection, workers=1)
    assert "1 workers may open any number of connections" in finding.message


def test_a_null_pool_has_no_size_to_judge(make: Make) -> None:
    engine = make(poolclass=NullPool)
    watch = sqla_watch.install(engine, settings=Settings(profile="test"))
    with engine.connect() as connection:
        assert watch.check_server(connection, workers=1000) == []


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@in_event_loop
async def test_async_the_server_is_asked_by_run_sync(shop_url: str, driver: str) -> None:
    engine = create_async_engine(url_for(shop_url, driver), pool_size=60, max_overflow=0)
    watch = sqla_watch.install(engine, settings=Settings(profile="test"))
    async with engine.connect() as connection:
        (finding,) = await connection.run_sync(watch.check_server, workers=60)
        with pytest.raises(TypeError, match=r"not AsyncConnection: await connection\.run_sync"):
            watch.check_server(connection, workers=60)  # type: ignore[arg-type]
    await engine.dispose()
    assert finding.evidence["workers"] == 60


def test_what_cannot_be_asked_says_why(make: Make) -> None:
    engine = make()
    watch = sqla_watch.install(engine, settings=Settings(profile="test"))
    with pytest.raises(TypeError, match=r"takes a Connection, not Engine: with engine\.connect"):
        watch.check_server(engine, workers=2)  # type: ignore[arg-type]
    with engine.connect() as connection:
        for workers in (0, -1, True, 2.5, "8"):
            with pytest.raises(sqla_watch.SettingsError, match=r"workers is .*whole number from 1 on"):
                watch.check_server(connection, workers=workers)  # type: ignore[arg-type]
    sqlite = create_engine("sqlite://")
    with sqlite.connect() as connection, pytest.raises(sqla_watch.SettingsError, match="must be to PostgreSQL"):
        watch.check_server(connection, workers=2)
    sqlite.dispose()
