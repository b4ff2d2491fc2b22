"""What the stories share: reading what a scope found, naming a line of a story, running one in an event loop."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import sqla_watch
from sqla_watch import Finding, Scope, Settings


def line_of(marker: str) -> int:
    """The number of the line in the calling file that ends with a comment."""
    lines = Path(sys._getframe(1).f_code.co_filename).read_text().splitlines()
    (found,) = [number for number, line in enumerate(lines, 1) if line.rstrip().endswith(f"# {marker}")]
    return found


def found(scope: Scope) -> list[tuple[str, str]]:
    """Rule and target of each finding."""
    return sorted((finding.rule, finding.target) for finding in scope.findings)


def only(scope: Scope) -> Finding:
    """The one finding of a scope."""
    (finding,) = scope.findings
    return finding


def place(finding: Finding) -> tuple[str, int]:
    """File and line of a finding."""
    assert finding.location is not None
    return finding.location.file, finding.location.line


def in_event_loop(story: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test of a coroutine function: it runs in an event loop of its own."""

    @functools.wraps(story)
    def test(*arguments: Any, **fixtures: Any) -> None:
        asyncio.run(story(*arguments, **fixtures))

    return test


@asynccontextmanager
async def watched_async_engine(
    url: str, driver: str = "asyncpg", *, rules: Any = None, **options: Any
) -> AsyncIterator[AsyncEngine]:
    """An AsyncEngine that is watched with the test profile's settings, and disposed of in its own loop."""
    engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"), **options)
    sqla_watch.install(engine, settings=Settings(profile="test", rules=rules or {}))
    try:
        yield engine
    finally:
        await engine.dispose()


@contextmanager
def connection_held_elsewhere(engine: Engine, seconds: float) -> Iterator[None]:
    """Another thread has a connection out when the block begins, and returns it after `seconds`."""
    taken = threading.Event()

    def hold() -> None:
        with engine.connect():
            taken.set()
            threading.Event().wait(seconds)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    try:
        yield
    finally:
        holder.join()
