"""A real PostgreSQL for every test, and a watch that is gone after it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import Engine, create_engine, make_url

import sqla_watch
from sqla_watch.demo.data import fill
from sqla_watch.demo.server import EmbeddedServer, ServerError
from sqla_watch.ignores import registry as ignores
from sqla_watch.reporters.logging import pace
from sqla_watch.scopes import current
from sqla_watch.telemetry import provider_is_set

CUSTOMERS, ORDERS, ITEMS = 20, 100, 400


def pytest_configure(config: pytest.Config) -> None:
    # Not in pyproject.toml: pytest would import the package for it before coverage is there.
    config.addinivalue_line("filterwarnings", "default::sqla_watch.SqlaWatchWarning")
    config.addinivalue_line("markers", "faults: something of ours is broken on purpose, and said in the log")


def pytest_report_header() -> str:
    return f"SQLAlchemy {sqlalchemy.__version__}, psycopg {psycopg.__version__}"


@contextlib.contextmanager
def _database() -> Iterator[str]:
    """Give the URL of a PostgreSQL: the one that is named, else a container's, else the embedded server's."""
    named = os.environ.get("SQLA_WATCH_TEST_DATABASE_URL")
    if named:
        yield named
        return
    if _docker_answers():
        from testcontainers.postgres import PostgresContainer

        with PostgresContainer("postgres:18-alpine", driver="psycopg") as container:
            yield container.get_connection_url()
        return
    try:
        with EmbeddedServer() as server:
            yield server.url()
    except ServerError as error:
        pytest.exit(
            f"the tests need a PostgreSQL: {error}. Or set SQLA_WATCH_TEST_DATABASE_URL, "
            "or start one with docker compose up -d postgres",
            returncode=3,
        )


def _docker_answers() -> bool:
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        return False  # asked in vain, docker's client leaves a socket open
    try:
        import docker

        client = docker.from_env(timeout=3)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except Exception:
        return False


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    with _database() as url:
        yield url


@pytest.fixture(scope="session")
def shop_url(database_url: str) -> str:
    """The URL of a database with the shop in it: 20 customers, 100 orders, 400 items."""
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    fill(engine, customers=CUSTOMERS, orders=ORDERS, items=ITEMS)
    engine.dispose()
    return database_url


@pytest.fixture(scope="module")
def server_that_prepares() -> Iterator[str]:
    """The URL of a PostgreSQL which allows prepared transactions; by default none does."""
    with EmbeddedServer() as server:
        engine = create_engine(server.url(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("ALTER SYSTEM SET max_prepared_transactions = 10")
        engine.dispose()
        server._server.stop()
        server._server.start()
        yield server.url()


def url_for(url: str, driver: str) -> str:
    """Return the URL for another driver."""
    return make_url(url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


@pytest.fixture
def engine(shop_url: str) -> Iterator[Engine]:
    """An engine on the shop, with psycopg, not watched yet."""
    engine = create_engine(url_for(shop_url, "psycopg"), pool_recycle=3600)  # as a production engine should
    yield engine
    engine.dispose()


@pytest.fixture
def watch(engine: Engine) -> sqla_watch.Watch:
    """The watched engine of `engine`, with the settings of the test profile."""
    return sqla_watch.install(engine, settings=sqla_watch.Settings(profile="test"))


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave nothing installed, remembered or open behind a test; a rule or probe that failed looks silent otherwise."""
    faults: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: faults.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sqla_watch")
    logger.addHandler(handler)
    for name in list(os.environ):
        if name.startswith("SQLA_WATCH_") and not name.startswith("SQLA_WATCH_TEST_"):
            monkeypatch.delenv(name)
    assert not provider_is_set(), "a test has left a global provider of OpenTelemetry behind, which all others tell"
    yield
    logger.removeHandler(handler)
    sqla_watch.uninstall()
    ignores.clear()
    pace.clear()
    current.set(None)
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            vars(module).pop("__warningregistry__", None)
    assert not faults or request.node.get_closest_marker("faults"), faults
