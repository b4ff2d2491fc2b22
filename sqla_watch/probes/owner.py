"""Who has a connection: the thread or task that asked for it, and where that is now.

Any thread may ask where another is; nothing of it is touched, and no frame is kept.
"""

from __future__ import annotations

import gc
import os
import sys
from asyncio import Task, _get_running_loop, current_task
from collections.abc import Callable, Iterable, Iterator
from threading import RLock, current_thread, get_ident, get_native_id, local
from time import clock_gettime_ns
from types import CodeType, FrameType
from typing import Any
from weakref import ref

from sqla_watch.callsite import USER, user_code

__all__ = ["Frames", "Owner", "current_frames", "inner_frames", "is_running", "is_worker", "near_codes", "user_codes"]

Frames = Callable[[], dict[int, FrameType]]
"""Gives the innermost frame of each thread by its identifier, as `sys._current_frames` does."""


class _NoCollection:
    """A block in which no garbage collection begins.

    Before Python 3.12 one may begin wherever an object is made, also in the middle of following a stack. What it
    collects may let another thread run, whose frames are then gone, or wait for a lock that this one has
    (https://github.com/python/cpython/issues/106883). Since then it waits for the end of an instruction.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._inside = 0
        self._collects = False

    def begin_anew(self) -> None:
        """In a process that was forked off nobody is inside."""
        if self._inside and self._collects:
            gc.enable()
        self._lock = RLock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._collects = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._collects:
                gc.enable()


_no_collection = _NoCollection()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_no_collection.begin_anew)


def current_frames() -> dict[int, FrameType]:
    """Return the innermost frame of each thread by its identifier."""
    with _no_collection:
        return sys._current_frames()


_DEEPEST = 2_000
"""Frames of a stack that are looked at."""
_NEAR = range(12)
"""Frames above the user's innermost one among which those are looked for that may have the connection in hands."""
_HAS_THREAD_CLOCKS = sys.platform == "linux"
"""Whether the number of a thread gives its clock, and a wrong number an error (man 2 clock_getcpuclockid, kernel)."""


class _Thread:
    """What is known of a thread; lives as long as it."""

    __slots__ = ("__weakref__", "identifier", "is_worker", "native")

    def __init__(self) -> None:
        self.identifier, self.native = get_ident(), get_native_id()
        self.is_worker = current_thread().name.startswith(_WORKERS)


class _OfThread(local):
    """What is known of the thread that asks; made when it asks for the first time."""

    def __init__(self) -> None:
        self.known = _Thread()
        self.owner = Owner(self.known, None)


_WORKERS = ("asyncio_", "ThreadPoolExecutor-", "AnyIO worker thread")
"""How the threads of those pools of workers are called on which event loops put what would keep them waiting."""


def _begin_anew() -> None:
    """In a process that was forked off its one thread has another number."""
    global _of_thread
    _of_thread = _OfThread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def is_worker() -> bool:
    """Whether this thread is one of a pool of workers: a loop that runs there is its own, and keeps nobody waiting."""
    return _of_thread.known.is_worker


class Owner:
    """The task, or else thread, that asked for a connection."""

    __slots__ = ("_life", "native_thread", "number", "task", "thread")

    def __init__(self, thread: _Thread, task: Task[Any] | None) -> None:
        self.number = thread.native if task is None else id(task)
        """As `current_flow` has it."""
        self.task: ref[Task[Any]] | None = None if task is None else ref(task)
        self.thread, self.native_thread = thread.identifier, thread.native
        self._life = ref(thread)

    @staticmethod
    def here() -> Owner:
        """Return the task that runs here, or else the thread."""
        loop = _get_running_loop()
        if loop is None:
            return _of_thread.owner
        task = current_task(loop)
        return _of_thread.owner if task is None else Owner(_of_thread.known, task)

    @property
    def has_thread(self) -> bool:
        """Whether it has its thread now: a task that waits for something has not."""
        if self.task is None:
            return True
        task = self.task()
        return task is not None and bool(getattr(task.get_coro(), "cr_running", False))

    def stack(self, frames: Frames) -> list[FrameType]:
        """Return its frames, the innermost first: of its thread, or of the coroutines of its task."""
        with _no_collection:
            return self._stack(frames)

    def _stack(self, frames: Frames) -> list[FrameType]:
        if self.task is None:
            return self._of_thread(frames)
        task = self.task()
        if task is None or task.done():
            return []
        found: list[FrameType] = []
        awaited: Any = task.get_coro()
        running = False
        while awaited is not None and len(found) < _DEEPEST:
            frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
            running = getattr(awaited, "cr_running", False) or getattr(awaited, "gi_running", False)
            if frame is not None:
                found.append(frame)
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
        found.reverse()
        if running:  # on its thread, at this moment: what its coroutine has called is there
            return [*self._of_thread(frames), *found]
        return found

    def _of_thread(self, frames: Frames) -> list[FrameType]:
        """Return the frames of its thread; none if that is over, and another one has its identifier now."""
        return [] if self._life() is None else list(_thread(frames().get(self.thread)))

    def processor_time(self) -> int:
        """Return the nanoseconds of a processor that its thread has used so far; 0 where that cannot be told."""
        if not _HAS_THREAD_CLOCKS:
            return 0
        try:
            return clock_gettime_ns(~self.native_thread << 3 | 6)
        except OSError:  # the thread is gone
            return 0


_of_thread = _OfThread()


def is_running(codes: tuple[CodeType, ...], stack: list[FrameType]) -> bool:
    """Whether one of these functions is still somewhere on a stack; also where that cannot be told."""
    return not codes or len(stack) >= _DEEPEST or any(frame.f_code in codes for frame in stack)


def near_codes(frame: FrameType | None) -> list[CodeType]:
    """Return the functions from `frame` upwards, the innermost first, as far as they are near (hot path).

    Whose they are is left to `user_codes`, when somebody asks: mostly the connection is back before.
    """
    codes: list[CodeType] = []
    for _ in _NEAR:
        if frame is None:
            break
        codes.append(frame.f_code)
        frame = frame.f_back
    return codes


def user_codes(codes: Iterable[CodeType]) -> tuple[CodeType, ...]:
    """Return those of these functions that are the user's."""
    return tuple(code for code in codes if user_code.kind(code.co_filename) == USER)


def _thread(frame: FrameType | None) -> Iterator[FrameType]:
    number = 0
    while frame is not None and number < _DEEPEST:
        yield frame
        frame = frame.f_back
        number += 1


def inner_frames(stack: list[FrameType]) -> Iterator[FrameType]:
    """Yield the frames that the user's innermost line has called, the innermost first."""
    for frame in stack:
        if user_code.kind(frame.f_code.co_filename) == USER:
            return
        yield frame
