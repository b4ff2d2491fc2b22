"""Who has a connection: the thread or task that asked for it, and where that is now.

Any thread may ask where another is; nothing of it is touched, and no frame is kept.
"""

from __future__ import annotations

import sys
from asyncio import Task, _get_running_loop, current_task
from collections.abc import Callable, Iterator
from threading import get_ident, get_native_id
from time import clock_gettime_ns
from types import CodeType, FrameType
from typing import Any
from weakref import ref

from sqla_watch.callsite import USER, user_code

__all__ = ["Frames", "Owner", "inner_frames", "is_running", "user_codes"]

Frames = Callable[[], dict[int, FrameType]]
"""Gives the innermost frame of each thread by its identifier, as `sys._current_frames` does."""

_DEEPEST = 200
_NEAR = 12
"""Frames above the user's innermost one among which those are looked for that may have the connection in hands."""
_HAS_THREAD_CLOCKS = sys.platform == "linux"
"""Whether the number of a thread gives its clock, and a wrong number an error (man 2 clock_getcpuclockid, kernel)."""


class Owner:
    """The task, or else thread, that asked for a connection."""

    __slots__ = ("native_thread", "number", "task", "thread")

    def __init__(self) -> None:
        loop = _get_running_loop()
        task = None if loop is None else current_task(loop)
        self.thread = get_ident()
        self.task: ref[Task[Any]] | None = None if task is None else ref(task)
        # Identifiers of threads are given to later ones again; the operating system's numbers are not, for long.
        self.native_thread = get_native_id()
        self.number = self.native_thread if task is None else id(task)

    def stack(self, frames: Frames) -> list[FrameType]:
        """Return its frames, the innermost first: of its thread, or of the coroutines of its task."""
        if self.task is None:
            return list(_thread(frames().get(self.thread)))
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
                found.insert(0, frame)
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
        if running:  # on its thread, at this moment: what its coroutine has called is there
            return [*_thread(frames().get(self.thread)), *found]
        return found

    def processor_time(self) -> int:
        """Return the nanoseconds of a processor that its thread has used so far; 0 where that cannot be told."""
        if not _HAS_THREAD_CLOCKS:
            return 0
        try:
            return clock_gettime_ns(~self.native_thread << 3 | 6)
        except OSError:  # the thread is gone
            return 0


def is_running(codes: tuple[CodeType, ...], stack: list[FrameType]) -> bool:
    """Whether one of these functions is still somewhere on a stack; also if there are none to look for."""
    return not codes or any(frame.f_code in codes for frame in stack)


def user_codes(frame: FrameType | None, outside: CodeType | None = None) -> tuple[CodeType, ...]:
    """Return the user's functions from `frame` upwards, the innermost first, as far as they are near.

    They end at `outside`, the function around the unit of work.
    """
    codes: list[CodeType] = []
    kinds = user_code.kinds
    for _ in range(_NEAR):
        if frame is None or frame.f_code is outside:
            break
        if kinds.get(frame.f_code.co_filename) == USER:
            codes.append(frame.f_code)
        frame = frame.f_back
    return tuple(codes)


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
