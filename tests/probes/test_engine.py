"""An engine's configuration, read when its watch begins: what was given to create_engine, and nothing of its URL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

import sqla_watch
from sqla_watch import registry
from sqla_watch.facts import EngineConfiguration
from sqla_watch.probes.engine import describe_engine
from tests.conftest import url_for

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")


@pytest.fixture
def url(shop_url: str) -> str:
    return url_for(shop_url, "psycopg")


@pytest.fixture
def made() -> Iterator[list[Engine]]:
    engines: list[Engine] = []
    yield engines
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"pool": "QueuePool", "pool_size": 5, "max_overflow": 10, "pre_ping": False, "recycle_seconds": -1.0}),
        ({}, {"reset_on_return": True, "echo": False, "isolation_level": "", "query_cache_size": 500}),
        ({"pool_size": 2, "max_overflow": -1}, {"pool_size": 2, "max_overflow": -1}),
        ({"pool_pre_ping": True, "pool_recycle": 1800}, {"pre_ping": True, "recycle_seconds": 1800.0}),
        ({"pool_reset_on_return": None}, {"reset_on_return": False}),
        ({"pool_reset_on_return": "commit"}, {"reset_on_return": True}),
        ({"echo": True}, {"echo": True}),
        ({"echo": "debug"}, {"echo": True}),
        ({"query_cache_size": 0}, {"query_cache_size": 0}),
        ({"query_cache_size": 50}, {"query_cache_size": 50}),
        ({"isolation_level": "AUTOCOMMIT"}, {"isolation_level": "AUTOCOMMIT"}),
        ({"execution_options": {"isolation_level": "AUTOCOMMIT"}}, {"isolation_level": "AUTOCOMMIT"}),
        ({"poolclass": NullPool}, {"pool": "NullPool", "pool_size": 0, "max_overflow": 0}),
        ({"poolclass": StaticPool}, {"pool": "StaticPool", "pool_size": 0}),
    ],
    ids=str,
)
def test_what_create_engine_was_given_is_known(
    url: str, made: list[Engine], options: dict[str, Any], expected: dict[str, Any]
) -> None:
    engine = create_engine(url, **options)
    made.append(engine)
    for watched in (False, True):
        if watched:
            sqla_watch.install(engine)
        configuration = describe_engine(engine, None)
        assert {name: getattr(configuration, name) for name in expected} == expected
        assert configuration.dialect == "postgresql+psycopg"


def test_other_databases_and_asynchronous_engines(shop_url: str, made: list[Engine]) -> None:
    sqlite = create_engine("sqlite://")
    made.append(sqlite)
    assert describe_engine(sqlite, None)[:2] == ("sqlite+pysqlite", "SingletonThreadPool")
    asynchronous = create_async_engine(url_for(shop_url, "asyncpg"), pool_pre_ping=True)
    sqla_watch.install(asynchronous)
    (configuration,) = registry.take_news()
    assert configuration[:3] == ("postgresql+asyncpg", "AsyncAdaptedQueuePool", 5)
    assert configuration.pre_ping
    asyncio.run(asynchronous.dispose())


def test_each_engine_is_told_of_once_to_the_first_scope(url: str, made: list[Engine]) -> None:
    first, second = create_engine(url, pool_size=3), create_engine(url, pool_size=4)
    made += [first, second]

    def told(scope: sqla_watch.Scope) -> list[int]:
        """Of others that tests have left behind, we want to know nothing."""
        return sorted(each.pool_size for each in scope.record.engines if each.pool_size in (3, 4))

    watch = sqla_watch.install(first)
    sqla_watch.install(second)
    sqla_watch.install(first)
    sqla_watch.install()
    with sqla_watch.scope("first") as scope:
        assert told(scope) == [3, 4]
    with sqla_watch.scope("second") as scope:
        assert told(scope) == []
    watch.uninstall()
    sqla_watch.uninstall()
    sqla_watch.install(first)
    with sqla_watch.scope("another watch") as scope:
        assert told(scope) == [3]


def test_nothing_is_left_to_tell_after_the_last_watch(url: str, made: list[Engine]) -> None:
    made.append(create_engine(url))
    sqla_watch.install(made[0]).uninstall()
    with sqla_watch.scope("nobody watches") as scope:
        assert scope.record.engines == []


def test_an_engine_that_is_made_later_is_told_of(url: str, made: list[Engine]) -> None:
    sqla_watch.install()
    registry.take_news()
    with sqla_watch.scope("at once") as scope:
        made.append(create_engine(url, pool_size=3))
        with made[0].connect() as connection:
            connection.execute(text("SELECT 1"))
        assert [each.pool_size for each in scope.record.engines] == [3]


def test_neither_engine_nor_address_is_kept(url: str) -> None:
    engine = create_engine("postgresql+psycopg://shop:secret@db.example.org/accounts")
    sqla_watch.install(engine)
    (configuration,) = registry.take_news()
    assert isinstance(configuration, EngineConfiguration)
    said = repr(configuration._replace(call_site=None))
    assert not any(word in said for word in ("shop", "secret", "example", "accounts"))
