"""The demo's database: an embedded PostgreSQL, or the one that the user names, with the shop in it and out again.

A user's own tables are not touched: if there are any of the shop's names, the demo refuses. Its own it knows again by
one more table, which is there as long as they are.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_plus

from sqlalchemy import URL, Column, DateTime, Engine, MetaData, NullPool, Table, create_engine, exc, func, inspect
from sqlalchemy.engine import make_url

from sqla_watch.cli.errors import WrongInput
from sqla_watch.demo.data import fill
from sqla_watch.demo.models import Base
from sqla_watch.demo.scenarios import Shop
from sqla_watch.demo.server import EmbeddedServer, ServerError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["DatabaseError", "first_line", "open_shop"]

_marker = Table("sqla_watch_demo", MetaData(), Column("made_at", DateTime, server_default=func.now()))
"""Says that the shop's tables are the demo's own, and may be dropped."""

_ASYNCIO_DRIVERS = {"postgresql": ("asyncpg", "psycopg"), "sqlite": ("aiosqlite",)}
"""Drivers for the asynchronous engine, the preferred one first."""
_USUAL_DRIVERS = {"asyncpg": "psycopg", "aiosqlite": "pysqlite"}
"""What takes their place where the URL of a synchronous engine is needed."""


class DatabaseError(WrongInput):
    """The demo cannot use a database; the message says why in one line, and has no password in it."""


@contextmanager
def open_shop(
    given: str | None, *, force: bool = False, say: Callable[[str], object] = lambda _: None
) -> Iterator[Shop]:
    """Give the shop's engines, its tables filled; they are dropped at the end, however that comes about.

    Args:
        given: URL of a database; an embedded PostgreSQL if None.
        force: Whether tables that are not the demo's own may be replaced.
        say: Told what takes a while.

    Raises:
        DatabaseError: There is no such database, it does not answer, or has such tables.
    """
    with ExitStack() as stack:
        url = _url(given, stack)
        engine = _engine(url)
        stack.callback(engine.dispose)
        # Drivers say in exceptions of many kinds what is wrong with a URL.
        with _told_in_one_line(url, exc.SQLAlchemyError, OSError, TypeError, ValueError):
            engine.connect().close()
        with _told_in_one_line(url, exc.SQLAlchemyError):
            _refuse_foreign_tables(engine, force)
            say("Filling a small shop: 1,000 customers, 10,000 orders, 40,000 items …")
            stack.callback(_drop, engine)
            _marker.create(engine, checkfirst=True)
            fill(engine)
        small_pool = create_engine(url, pool_size=2, max_overflow=0)
        stack.callback(small_pool.dispose)
        yield Shop(engine, small_pool, _async_engine(url))


def _url(given: str | None, stack: ExitStack) -> URL:
    if given is None:
        try:
            return make_url(stack.enter_context(EmbeddedServer()).url("psycopg"))
        except ServerError as error:
            raise DatabaseError(str(error)) from error
    try:
        url = make_url(given)
    except (exc.ArgumentError, ValueError) as error:
        raise DatabaseError(
            f"{_redacted(given)!r} is no database URL; one reads like postgresql+psycopg://user@host/database"
        ) from error
    backend = url.get_backend_name()
    if backend not in _ASYNCIO_DRIVERS:
        raise DatabaseError(f"the demo runs on PostgreSQL and SQLite, not on {backend!r}")
    _, _, driver = url.drivername.partition("+")
    if driver in _USUAL_DRIVERS:
        url = url.set(drivername=f"{backend}+{_USUAL_DRIVERS[driver]}")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        # In memory each connection would have a database of its own, or all share one and none waits.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sqla_watch_"))
        url = url.set(database=str(Path(folder) / "shop.db"))
    return url


def _engine(url: URL) -> Engine:
    try:
        return create_engine(url)
    except ModuleNotFoundError as error:
        raise DatabaseError(
            f"the driver {error.name} of {_shown(url)} is not installed; another one is named as in "
            "postgresql+psycopg://…"
        ) from error
    except (exc.SQLAlchemyError, TypeError, ValueError) as error:
        raise DatabaseError(f"cannot use {_shown(url)}: {first_line(error, url)}") from error


def _async_engine(url: URL) -> AsyncEngine | None:
    """Make the asynchronous engine, or return None where greenlet or every driver is missing."""
    backend = url.get_backend_name()
    for driver in _ASYNCIO_DRIVERS[backend]:
        if driver == "asyncpg" and not url.query.keys() <= {"host", "port"}:
            continue  # it does not know libpq's options, such as sslmode
        with suppress(ImportError):
            from sqlalchemy.ext.asyncio import create_async_engine

            # Without a pool no connection outlives the event loop it was opened in.
            return create_async_engine(url.set(drivername=f"{backend}+{driver}"), poolclass=NullPool)
    return None


def _refuse_foreign_tables(engine: Engine, force: bool) -> None:
    tables = inspect(engine)
    if force or tables.has_table(_marker.name):
        return
    taken = [name for name in Base.metadata.tables if tables.has_table(name)]
    if taken:
        raise DatabaseError(
            f"{_shown(engine.url)} has tables which the demo would replace: {', '.join(sorted(taken))}; name another "
            "database, or drop them with --force"
        )


def _drop(engine: Engine) -> None:
    with _told_in_one_line(engine.url, exc.SQLAlchemyError):
        Base.metadata.drop_all(engine)
        _marker.drop(engine, checkfirst=True)


@contextmanager
def _told_in_one_line(url: URL, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise DatabaseError(f"cannot use {_shown(url)}: {first_line(error, url)}") from error


def first_line(error: BaseException, url: URL | None = None) -> str:
    """Return what the driver said, in one line and without the URL's passwords."""
    cause = getattr(error, "orig", None) or error
    line = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
    for secret in _secrets(url) if url is not None else ():
        line = line.replace(secret, "***")
    return line


def _shown(url: URL) -> str:
    """Return a URL for people, without passwords."""
    hidden = dict.fromkeys(filter(_is_secret, url.query), "***")
    shown = url.update_query_dict(hidden).render_as_string(hide_password=True)
    return shown.replace(quote_plus("***"), "***")


def _secrets(url: URL) -> list[str]:
    behind_the_question_mark = [str(value) for key, value in url.query.items() if _is_secret(key)]
    return [secret for secret in (str(url.password or ""), *behind_the_question_mark) if secret]


def _is_secret(key: str) -> bool:
    """Whether a key behind a URL's question mark holds a password: `password`, `sslpassword`."""
    return "password" in key.lower()


def _redacted(text: str) -> str:
    """Return what is no URL without anything in it that may be a password."""
    return re.sub(r".*@", "***@", text.partition("?")[0], flags=re.DOTALL)
