"""The Session's door: flushes, and how sessions end.

SQLAlchemy's own session events are used, on the Session class, because they see as much as a wrapper would and cost
nothing between flushes. Only `close` is wrapped: no event tells what a session still held. `Flush` and `SessionUse`
facts flow out. An application that does not import the ORM has none of this.
"""

from __future__ import annotations

import functools
import sys
import threading
from contextvars import ContextVar
from itertools import count
from time import perf_counter_ns as clock
from types import CodeType, FrameType
from typing import Any
from weakref import ref

from sqlalchemy import event

from sqla_watch import registry
from sqla_watch.callsite import DATABASE, USER, call_site, user_code
from sqla_watch.facts import Flush, FlushCause, SessionEvent, SessionUse, site_of
from sqla_watch.ignores import active
from sqla_watch.probes.checkout import Checkout, tell
from sqla_watch.probes.door import Door, Probe
from sqla_watch.probes.internals import RECORD_KEY
from sqla_watch.probes.transaction import leaving
from sqla_watch.scopes import UNSAMPLED, Scope, current

__all__ = ["flushing", "session_door"]

MANY_OBJECTS = 1_000
"""Objects in an identity map from which on it is worth a fact."""

_next_flush = count(1).__next__


class OpenFlush:
    """A flush that runs; the statements in it add themselves."""

    __slots__ = (
        "_session", "before", "key", "objects", "scope", "serial", "started", "statements", "transaction",
    )  # fmt: skip

    def __init__(self, session: Any, objects: int) -> None:
        self.serial = _next_flush()
        before = flushing.get()
        self.before: OpenFlush | None = before if before is not None and before.runs else None
        """The flush in which this one runs: a listener of the application's may flush another session."""
        self._session = ref(session)
        self.key: int = session.hash_key
        self.objects = objects
        self.statements = 0
        self.transaction = 0
        """Serial number of the transaction that its statements are in."""
        self.scope: Scope | None = None
        """Where its statements are recorded."""
        self.started = clock()

    @property
    def runs(self) -> bool:
        """Whether it is still going on: one that failed has told nobody."""
        session = self._session()
        return session is not None and getattr(session, "_flushing", True)


flushing: ContextVar[OpenFlush | None] = ContextVar("sqla_watch_flush", default=None)
"""The flush that runs here, or the last one."""


class _SessionDoor(Probe):
    """The listeners on the Session class, and the wrapper of its `close`; on while anything is watched."""

    def __init__(self) -> None:
        super().__init__("of sessions")
        self.listening = False
        self._lock = threading.Lock()
        self._doors: list[Door] = []
        self._codes: dict[CodeType, FlushCause] = {}
        self._files: set[str] = set()
        """Where these codes are: to hash a code takes ten times as long as to look up its file."""
        self._listening: list[tuple[str, Any]] = []

    def start(self) -> None:
        """Begin to listen, if the application has imported the ORM. May be repeated, and by several threads."""
        if len(self._doors) == 2:
            return
        try:
            with self._lock:
                self._open()
                self._open_async()
        except Exception:
            self.fault()

    def _open(self) -> None:
        module: Any = sys.modules.get("sqlalchemy.orm.session")
        if self.listening or not registry.watches or not hasattr(module, "sessionmaker"):
            return
        self.listening = True
        self.open = True
        session_class = module.Session
        transaction = getattr(module, "SessionTransaction", None)
        for owner, method, cause in (
            (session_class, "_autoflush", FlushCause.AUTOFLUSH),
            (transaction, "_take_snapshot", FlushCause.SAVEPOINT),
            (transaction, "_prepare_impl", FlushCause.COMMIT),
        ):
            code = getattr(getattr(owner, method, None), "__code__", None)
            if code is not None:
                self._codes[code] = cause
                self._files.add(code.co_filename)
        self._listening = [
            ("before_flush", self._before_flush),
            ("after_flush", self._after_flush),
            ("after_commit", self._after_commit),
        ]
        for name, listener in self._listening:
            event.listen(session_class, name, listener)
        self._doors = [Door("session", session_class)]
        self._doors[0].wrap("close", _close)

    def _open_async(self) -> None:
        asynchronous: Any = sys.modules.get("sqlalchemy.ext.asyncio.session")
        if self.listening and len(self._doors) == 1 and hasattr(asynchronous, "async_sessionmaker"):
            door = Door("asynchronous session", asynchronous.AsyncSession)
            door.wrap("close", _close_async)
            door.wrap("__aexit__", _leave_async)
            self._doors.append(door)

    def stop(self) -> None:
        """Stop listening."""
        if not self.listening:
            return
        self.listening = False
        session_class = sys.modules["sqlalchemy.orm.session"].Session
        for name, listener in self._listening:
            event.remove(session_class, name, listener)
        self._listening = []
        for door in self._doors:
            door.close()
        self._doors = []

    def _before_flush(self, session: Any, context: Any, instances: Any) -> None:
        if not self.open:
            return
        try:
            objects = len(session._new) + len(session._deleted) + len(session.identity_map._modified)
            flushing.set(OpenFlush(session, objects))
        except Exception:
            self.fault()

    def _after_flush(self, session: Any, context: Any) -> None:
        flush = flushing.get()
        if not self.open or flush is None or flush.key != session.hash_key:
            return
        try:
            flushing.set(flush.before)
            if flush.statements and flush.scope is not None:
                # Not this frame, which would keep itself and all below alive; nor the two of the event's dispatch.
                cause, frame = self._cause(sys._getframe(2))
                fact = Flush(
                    flush.serial, flush.key, cause, call_site(frame), flush.statements, flush.objects, flush.started,
                    clock(), active.get(), flush.transaction,
                )  # fmt: skip
                flush.scope.pending.append(fact)
        except Exception:
            self.fault()

    def _after_commit(self, session: Any) -> None:
        if not self.open:
            return
        try:
            objects = len(session.identity_map)
            if objects >= MANY_OBJECTS:
                _tell(SessionUse(SessionEvent.HELD, call_site(sys._getframe()), active.get(), objects), session)
        except Exception:
            self.fault()

    def _cause(self, frame: FrameType | None) -> tuple[FlushCause, FrameType | None]:
        """Return what made the session flush, told by the frames between the flush and the user's code; and the last
        of them that was looked at."""
        kinds, codes, files = user_code.kinds, self._codes, self._files
        for _ in range(30):
            if frame is None:
                break
            code = frame.f_code
            filename = code.co_filename
            if filename in files:
                cause = codes.get(code)
                if cause is FlushCause.COMMIT and getattr(frame.f_locals.get("self"), "nested", False):
                    cause = FlushCause.SAVEPOINT
                if cause is not None:
                    return cause, frame
            elif (kinds[filename] if filename in kinds else user_code.kind(filename)) != DATABASE:
                break
            frame = frame.f_back
        return FlushCause.EXPLICIT, frame


session_door = _SessionDoor()


def _look(door: Door, session: Any, frame: FrameType) -> None:
    if door.open and current.get() is not UNSAMPLED:
        try:
            _before_close(session, frame)
        except Exception:
            door.fault()


def _close(door: Door, original: Any) -> Any:
    @functools.wraps(original)
    def close(self: Any, *arguments: Any, **options: Any) -> Any:
        _look(door, self, sys._getframe())
        return original(self, *arguments, **options)

    return close


def _close_async(door: Door, original: Any) -> Any:
    # What closes an AsyncSession in the end runs in a greenlet, and behind `async with` even in another task: from
    # there neither the line nor an exception on its way can be seen.
    @functools.wraps(original)
    async def close(self: Any, *arguments: Any, **options: Any) -> Any:
        if leaving.get() is None:
            _look(door, self.sync_session, sys._getframe())
        return await original(self, *arguments, **options)

    return close


def _leave_async(door: Door, original: Any) -> Any:
    @functools.wraps(original)
    async def __aexit__(self: Any, *arguments: Any, **options: Any) -> Any:
        _look(door, self.sync_session, sys._getframe())
        token = leaving.set((call_site(sys._getframe()),))
        try:
            return await original(self, *arguments, **options)
        finally:
            leaving.reset(token)

    return __aexit__


def _before_close(session: Any, frame: FrameType) -> None:
    """Look at what a session still holds before it lets go of it."""
    objects = len(known := session.identity_map)
    if objects >= MANY_OBJECTS:
        _tell(SessionUse(SessionEvent.HELD, call_site(frame), active.get(), objects), session)
    checkout = _checkout_of(session)
    opened = None if checkout is None else checkout.transaction
    if opened is not None:
        opened.add_up()
    # In autocommit nothing is lost, and what goes into a temporary table is meant to go.
    written = 0 if opened is None or opened.serial < 0 or opened.temporary else opened.writes
    modified = known._modified
    if not (session._new or session._deleted or modified or written):
        return
    # What an exception, a framework's cleaning up, or the holder of an outer transaction throws away is meant to go.
    if sys.exc_info()[0] is not None or not _closed_by_user(frame) or hasattr(session.bind, "get_transaction"):
        return
    changed = sum(session.is_modified(each) for each in session.dirty) if modified else 0
    if not (session._new or session._deleted or changed or written):
        return
    use = SessionUse(
        SessionEvent.UNSAVED,
        call_site(frame),
        active.get(),
        objects,
        len(session._new),
        changed,
        len(session._deleted),
        written,
        None if opened is None or opened.last_write is None else site_of(opened.last_write),
    )
    _tell(use, session)


def _closed_by_user(frame: FrameType | None) -> bool:
    """Whether the user's own code closes the session: not a framework, and not the registry of `scoped_session`."""
    while frame is not None:
        kind = user_code.kind(frame.f_code.co_filename)
        if kind != DATABASE:
            return kind == USER
        if frame.f_code.co_name == "remove":
            return False
        frame = frame.f_back
    return False


def _checkout_of(session: Any) -> Checkout | None:
    """Return the checkout of a session's connection, if it has one out."""
    transaction = session.get_transaction()
    if transaction is None:
        return None
    for each in getattr(transaction, "_connections", ()):
        fairy = getattr(each, "_dbapi_connection", None)
        record = getattr(fairy, "_connection_record", None)
        if record is not None:
            found: Checkout | None = record.__dict__.get(RECORD_KEY)
            return found
    return None


def _tell(use: SessionUse, session: Any) -> None:
    tell(use, _checkout_of(session), name="session")
