"""An application that runs the same story on any driver, watched or not, and what there is to know of its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, insert, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import sqla_watch
from sqla_watch import Scope, Settings

POSTGRESQL = ["psycopg", "psycopg2", "asyncpg", "psycopg async"]
SQLITE = ["sqlite", "aiosqlite"]
DRIVERS = POSTGRESQL + SQLITE

ROWS = 250
Story = Callable[[Connection], Any]


class Base(DeclarativeBase):
    """Base of the application's classes."""


class Entry(Base):
    __tablename__ = "entries"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")


entries = Entry.__table__


class Application:
    """It has a table of 250 entries. A story is a function of a `Connection`.

    With an asynchronous driver the story runs inside of `run_sync`, in an event loop of its own.
    """

    def __init__(self, driver: str, postgresql: str, folder: Path) -> None:
        self.asynchronous = driver in ("asyncpg", "psycopg async", "aiosqlite")
        self.fetches_at_once = driver in POSTGRESQL
        """Whether the driver has all rows of a plain result when the statement returns."""
        if driver in POSTGRESQL:
            self.url = make_url(postgresql).set(drivername=f"postgresql+{driver.removesuffix(' async')}")
        else:
            name = "aiosqlite" if self.asynchronous else "pysqlite"
            self.url = make_url(f"sqlite+{name}:///{folder / 'entries.db'}")

    def run(self, story: Story, *, watched: bool = True, **options: Any) -> tuple[Any, Scope]:
        """Run a story on a new engine; return what it returned, and the scope around it."""
        if self.asynchronous:
            return asyncio.run(self._run_in_loop(story, watched, options))
        engine = create_engine(self.url, **options)
        if watched:
            sqla_watch.install(engine, settings=Settings(profile="test"))
        try:
            with sqla_watch.scope("story") as scope, engine.connect() as connection:
                answer = story(connection)
        finally:
            engine.dispose()
        return answer, scope

    async def _run_in_loop(self, story: Story, watched: bool, options: dict[str, Any]) -> tuple[Any, Scope]:
        engine = create_async_engine(self.url, **options)
        if watched:
            sqla_watch.install(engine, settings=Settings(profile="test"))
        try:
            with sqla_watch.scope("story") as scope:
                async with engine.connect() as connection:
                    answer = await connection.run_sync(story)
        finally:
            await engine.dispose()
        return answer, scope

    def fill(self) -> None:
        """Make the table, and its rows."""

        def make(connection: Connection) -> None:
            Base.metadata.drop_all(connection)
            Base.metadata.create_all(connection)
            rows = [{"id": number, "name": f"entry {number}"} for number in range(1, ROWS + 1)]
            connection.execute(insert(entries), rows)
            connection.commit()

        self.run(make, watched=False)

    def clear(self) -> None:
        """Drop the table."""

        def drop(connection: Connection) -> None:
            Base.metadata.drop_all(connection)
            connection.commit()

        self.run(drop, watched=False)


def outcome(story: Callable[[], Any]) -> tuple[Any, ...]:
    """What a story returns, or all that the application can see of what it raises."""
    try:
        return ("returned", story())
    except BaseException as error:
        original = getattr(error, "orig", None)
        return (
            "raised",
            type(error),
            error.args,
            type(original),
            getattr(original, "args", None),
            getattr(original, "sqlstate", None) or getattr(original, "pgcode", None),
            type(error.__cause__),
            getattr(error, "connection_invalidated", None),
        )
