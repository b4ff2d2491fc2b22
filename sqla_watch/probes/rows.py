"""Rows: their number where the cursor does not know it (SQLite's, server-side ones), and what becomes of many.

The fetch strategy of one result is replaced by one that does the same and counts; the rows are not touched.
"""

from __future__ import annotations

import collections
import sys
from opcode import opname
from operator import itemgetter
from time import perf_counter_ns as clock
from types import CodeType
from typing import Any

from sqlalchemy.engine import cursor as _cursor

from sqla_watch.callsite import DATABASE, user_code
from sqla_watch.facts import RowCounter
from sqla_watch.fingerprint import Fingerprint
from sqla_watch.probes.door import Probe
from sqla_watch.probes.internals import DEFAULT_FETCH

MANY_ROWS = 100
"""Rows from which on it is worth following what becomes of them."""


following = Probe("of rows")
"""Whether what becomes of many rows is followed."""


def _count_parents(key: tuple[int, ...], rows: Any) -> int:
    """Count the distinct objects of the queried class in rows that a joined collection may have multiplied.

    12 ns a row for a key of one column, next to some microseconds for an object.
    """
    return len(set(map(itemgetter(*key), rows)))


def _note_parents(counter: RowCounter, key: tuple[int, ...], rows: Any) -> None:
    if following.open:
        try:
            counter.count_parents(_count_parents(key, rows))
        except TypeError:  # keys that cannot be hashed: no count is better
            return
        except Exception:
            following.fault()


class CountingFetch(RowCounter, _cursor.CursorFetchStrategy):
    """Fetches from the cursor as the default strategy does; counter and strategy in one object, for speed."""

    __slots__ = ()

    # ruff: noqa: D102 - documented by SQLAlchemy's own class
    def fetchone(self, result: Any, dbapi_cursor: Any, hard_close: bool = False) -> Any:
        # The strategy's own three lines, not a call of them: this runs for each row of `.one()` and `.first()`.
        try:
            row = dbapi_cursor.fetchone()
            if row is None:
                result._soft_close(hard=hard_close)
                self.over = True
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
        self.fetched_at = clock()
        self.add(len(rows), self.fetched_at - started)
        return rows

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        started = clock()
        try:
            rows = dbapi_cursor.fetchall()
            result._soft_close()
        except BaseException as error:
            self.handle_exception(result, dbapi_cursor, error)
        self.fetched_at = clock()
        if self.group is None:
            self.rows += len(rows)
            self.nanoseconds += self.fetched_at - started
        else:
            self.add(len(rows), self.fetched_at - started)
        self.over = True
        if self.key and rows and self.rows == len(rows):
            _note_parents(self, self.key, rows)
        return rows

    def yield_per(self, result: Any, dbapi_cursor: Any, num: int) -> None:
        self.stream()
        result.cursor_strategy = _CountingBuffer(
            _CountingCursor(dbapi_cursor, self, None),
            {"max_row_buffer": num},
            growth_factor=0,
            initial_buffer=collections.deque(),
            counter=self,
        )


class FollowingFetch(_cursor.CursorFetchStrategy):
    """Fetches as the default strategy does, from a driver that has all rows already, and sees how many are read.

    Its counter is an object of its own: the statement's fact keeps that, and not the strategy, which has to notice
    when its result is dropped.
    """

    def __init__(self, counter: RowCounter, key: tuple[int, ...], checkout: Any, code: CodeType | None) -> None:
        self.counter = counter
        self.key = key
        self.checkout = checkout
        """The checkout of its connection (`Checkout`)."""
        self.code = code
        """The code that asked for the rows."""
        self.read = 0
        self.one_by_one = 0
        self.ended = False

    def fetchone(self, result: Any, dbapi_cursor: Any, hard_close: bool = False) -> Any:
        try:
            row = dbapi_cursor.fetchone()
            if row is None:
                self.ended = True
                result._soft_close(hard=hard_close)
            else:
                self.read += 1
                self.one_by_one += 1
        except BaseException as error:
            self.handle_exception(result, dbapi_cursor, error)
        return row

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        try:
            rows = dbapi_cursor.fetchmany() if size is None else dbapi_cursor.fetchmany(size)
            self.read += len(rows)  # before the result closes itself
            if not rows:
                self.ended = True
                result._soft_close()
        except BaseException as error:
            self.handle_exception(result, dbapi_cursor, error)
        return rows

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        first = not self.read
        try:
            rows = dbapi_cursor.fetchall()
            self.read += len(rows)
            result._soft_close()
        except BaseException as error:
            self.handle_exception(result, dbapi_cursor, error)
        if self.key and rows and first:
            _note_parents(self.counter, self.key, rows)
        return rows

    def yield_per(self, result: Any, dbapi_cursor: Any, num: int) -> None:
        self.counter.stream()  # in pieces, as far as the application goes
        self.ended = True
        super().yield_per(result, dbapi_cursor, num)

    def soft_close(self, result: Any, dbapi_cursor: Any) -> None:
        super().soft_close(result, dbapi_cursor)
        if self.read == self.counter.rows:  # all given to the ORM, which may yet be asked for the first one only
            result.cursor_strategy = _AfterAll(self)
        else:
            self._left()

    def hard_close(self, result: Any, dbapi_cursor: Any) -> None:
        super().hard_close(result, dbapi_cursor)
        self._left(closed=True)

    def _left(self, *, closed: bool = False) -> None:
        """Tell that the result was left with rows unread."""
        if self.ended or not following.open:
            return
        self.ended = True
        try:
            if not closed or _asked_for() not in _FOR_THE_ONLY_ONE:
                self.counter.leave(self.counter.rows - self.read)
        except Exception:
            following.fault()

    def __del__(self) -> None:
        # A result that is dropped half-read closes nothing. What an exception has broken off is nobody's mistake.
        if not self.ended and self.read < self.counter.rows:
            try:
                if not self.checkout.failed and not _unwinding(self.code, in_loop=self.one_by_one > 1):
                    self._left()
            except Exception:
                following.fault()


class _AfterAll(_cursor.NoCursorDQLFetchStrategy):
    """Stands in for a result that has been fetched whole; the ORM closes it at once when only one object was wanted."""

    __slots__ = ("strategy",)

    def __init__(self, strategy: FollowingFetch) -> None:
        self.strategy = strategy

    def hard_close(self, result: Any, dbapi_cursor: Any) -> None:
        strategy = self.strategy
        if not strategy.ended and following.open:
            try:
                if _asked_for() in _FOR_ONE:
                    strategy.ended = True
                    strategy.counter.leave(strategy.counter.rows - 1)
            except Exception:
                following.fault()
        super().hard_close(result, dbapi_cursor)


_FOR_ONE = frozenset({"first", "scalar"})
_FOR_THE_ONLY_ONE = frozenset({"one", "one_or_none", "scalar_one", "scalar_one_or_none"})
"""Methods that take the first row, and those that raise where there are more."""


def _asked_for() -> str:
    """Return the method of a result that closes it, told by a frame of SQLAlchemy's; empty for none of those above."""
    frame: Any = sys._getframe(2)
    found = ""
    while frame is not None and user_code.kind(frame.f_code.co_filename) == DATABASE:
        if frame.f_code.co_name in _FOR_ONE or frame.f_code.co_name in _FOR_THE_ONLY_ONE:
            found = frame.f_code.co_name
        frame = frame.f_back
    return found


_DROPPING = ("POP_", "STORE_", "DELETE_", "END_", "RETURN_", "JUMP_", "SWAP", "LOAD_", "FOR_ITER", "COPY")
"""Beginnings of the names of instructions that may let go of a result without an exception."""


def _unwinding(code: CodeType | None, *, in_loop: bool) -> bool:
    """Whether a result is dropped from the stack of the code that asked for it, because an exception leaves a loop.

    A call, too, may let go of a result on which a method was called: then it was not the subject of a loop.
    """
    try:
        frame = sys._getframe(2)
    except ValueError:
        return False
    if frame.f_code is not code:
        return False
    instruction = opname[frame.f_code.co_code[frame.f_lasti]]
    return instruction.startswith(("RAISE", "RERAISE")) or (in_loop and not instruction.startswith(_DROPPING))


def follow(context: Any, fingerprint: Fingerprint, rows: int, checkout: Any, code: CodeType | None) -> int | RowCounter:
    """Follow many rows that the driver has already: how many are read, how many parents there are among them."""
    if context.cursor_fetch_strategy is not DEFAULT_FETCH or not following.open:
        return rows
    counter = RowCounter()
    counter.rows = rows
    key = () if fingerprint.shape is None else fingerprint.shape.key
    context.cursor_fetch_strategy = FollowingFetch(counter, key, checkout, code)
    return counter


class _CountingCursor:
    """A cursor's fetch methods, counted; stands in for it where a buffer is first filled."""

    __slots__ = ("_checkout", "_counter", "_cursor", "failure")

    def __init__(self, cursor: Any, counter: RowCounter, checkout: Any) -> None:
        self._cursor = cursor
        self._counter = counter
        self._checkout = checkout
        """The checkout of its connection (`Checkout`), None where rows come without asking the server."""
        self.failure: BaseException | None = None
        """The driver's error."""

    def fetchmany(self, size: int) -> Any:
        started = clock()
        try:
            rows = self._cursor.fetchmany(size)
        except BaseException as error:
            self.failure = error
            raise
        self._fetched(len(rows), started)
        return rows

    def fetchall(self) -> Any:
        started = clock()
        rows = self._cursor.fetchall()
        self._fetched(len(rows), started)
        return rows

    def _fetched(self, rows: int, started: int) -> None:
        finished = self._counter.fetched_at = clock()
        self._counter.add(rows, finished - started)
        checkout = self._checkout
        if checkout is not None and checkout.transaction is not None:
            try:
                checkout.transaction.fetched(started, finished)
            except Exception:
                self._checkout = None
                following.fault()


class _CountingBuffer(_cursor.BufferedRowCursorFetchStrategy):
    """Buffers rows as SQLAlchemy's strategy for server-side cursors does, through a counting cursor."""

    __slots__ = ("checkout", "counter")

    def __init__(
        self,
        dbapi_cursor: Any,
        execution_options: Any,
        *,
        counter: RowCounter,
        checkout: Any = None,
        **arguments: Any,
    ) -> None:
        self.counter = counter
        self.checkout = checkout
        super().__init__(dbapi_cursor, execution_options, **arguments)

    def _buffer_rows(self, result: Any, dbapi_cursor: Any) -> None:
        super()._buffer_rows(result, self._counted(dbapi_cursor))

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        return super().fetchmany(result, self._counted(dbapi_cursor), size)

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        return super().fetchall(result, self._counted(dbapi_cursor))

    def _counted(self, cursor: Any) -> Any:
        if isinstance(cursor, _CountingCursor):  # the strategy's own fetchmany() calls its fetchall()
            return cursor
        return _CountingCursor(cursor, self.counter, self.checkout)


def count_stream(context: Any, cursor: Any, checkout: Any) -> tuple[int | RowCounter, BaseException | None]:
    """Have a counter follow the rows of a streamed result, whose first ones are fetched here, as SQLAlchemy would.

    Returns:
        The counter, 0 where somebody else fetches in a way of their own; and the error of the first rows, if they have
        one, which is the statement's.
    """
    if context.cursor_fetch_strategy is not DEFAULT_FETCH:
        return 0, None
    counter = RowCounter()
    counter.stream()
    counting = _CountingCursor(cursor, counter, None)
    try:
        context.cursor_fetch_strategy = _CountingBuffer(
            counting, context.execution_options, counter=counter, checkout=checkout
        )
    except BaseException:
        if counting.failure is None:
            raise
        return 0, counting.failure
    counter.nanoseconds = 0  # the first rows come with the statement, and are part of its time
    return counter, None
