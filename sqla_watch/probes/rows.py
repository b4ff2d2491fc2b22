"""Counting the rows of cursors which do not know their number: SQLite's, and server-side ones.

The fetch strategy of one result is replaced by one that does the same and counts; the rows are not touched.
"""

from __future__ import annotations

import collections
from time import perf_counter_ns as clock
from typing import Any

from sqlalchemy.engine import cursor as _cursor

from sqla_watch.facts import RowCounter
from sqla_watch.probes.internals import DEFAULT_FETCH


class CountingFetch(RowCounter, _cursor.CursorFetchStrategy):
    """Fetches from the cursor as the default strategy does; counter and strategy in one object, for speed."""

    # ruff: noqa: D102 - documented by SQLAlchemy's own class
    def fetchone(self, result: Any, dbapi_cursor: Any, hard_close: bool = False) -> Any:
        # The strategy's own three lines, not a call of them: this runs for each row of `.one()` and `.first()`.
        try:
            row = dbapi_cursor.fetchone()
            if row is None:
                result._soft_close(hard=hard_close)
            elif self.group is None:
                self.rows += 1
            else:
                self.add(1, 0)
        except BaseException as error:
            self.handle_exception(result, dbapi_cursor, error)
        return row

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        started = clock()
        rows = super().fetchmany(result, dbapi_cursor, size)
        self.add(len(rows), clock() - started)
        return rows

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        started = clock()
        rows = super().fetchall(result, dbapi_cursor)
        self.add(len(rows), clock() - started)
        return rows

    def yield_per(self, result: Any, dbapi_cursor: Any, num: int) -> None:
        self.streamed = True
        result.cursor_strategy = _CountingBuffer(
            _CountingCursor(dbapi_cursor, self),
            {"max_row_buffer": num},
            growth_factor=0,
            initial_buffer=collections.deque(),
            counter=self,
        )


class _CountingCursor:
    """A cursor's fetch methods, counted; stands in for it where a buffer is first filled."""

    __slots__ = ("_counter", "_cursor")

    def __init__(self, cursor: Any, counter: RowCounter) -> None:
        self._cursor = cursor
        self._counter = counter

    def fetchmany(self, size: int) -> Any:
        started = clock()
        rows = self._cursor.fetchmany(size)
        self._counter.add(len(rows), clock() - started)
        return rows

    def fetchall(self) -> Any:
        started = clock()
        rows = self._cursor.fetchall()
        self._counter.add(len(rows), clock() - started)
        return rows


class _CountingBuffer(_cursor.BufferedRowCursorFetchStrategy):
    """Buffers rows as SQLAlchemy's strategy for server-side cursors does, through a counting cursor."""

    __slots__ = ("counter",)

    def __init__(self, dbapi_cursor: Any, execution_options: Any, *, counter: RowCounter, **arguments: Any) -> None:
        self.counter = counter
        super().__init__(dbapi_cursor, execution_options, **arguments)

    def _buffer_rows(self, result: Any, dbapi_cursor: Any) -> None:
        super()._buffer_rows(result, self._counted(dbapi_cursor))

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        return super().fetchmany(result, self._counted(dbapi_cursor), size)

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        return super().fetchall(result, self._counted(dbapi_cursor))

    def _counted(self, cursor: Any) -> Any:
        return _CountingCursor(cursor, self.counter)


def count_stream(context: Any, cursor: Any) -> int | RowCounter:
    """Have a counter follow the rows of a streamed result; 0 where somebody else fetches in a way of their own.

    A result that is not streamed gets a `CountingFetch`, which the hot path does itself.
    """
    if context.cursor_fetch_strategy is not DEFAULT_FETCH:
        return 0
    options = context.execution_options
    if not (context._is_server_side or options.get("stream_results", False)):
        strategy = context.cursor_fetch_strategy = CountingFetch()
        return strategy
    counter = RowCounter()
    counter.streamed = True
    context.cursor_fetch_strategy = _CountingBuffer(_CountingCursor(cursor, counter), options, counter=counter)
    return counter
