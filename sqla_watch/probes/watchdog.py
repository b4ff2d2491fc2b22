"""The watchdog: a thread that looks at connections which are out for long, and at those who wait for one.

What is to be looked at puts itself on a list, which costs the application nothing more; the rest is done here. The
thread sleeps without an end while nothing is out. It has a budget of processor time, which it may save up a little:
in the long run it takes less than a thousandth of a processor, whatever is open.
"""

from __future__ import annotations

import heapq
import os
import threading
from _thread import LockType, allocate_lock
from itertools import count
from time import perf_counter_ns as clock
from time import thread_time_ns
from types import FrameType
from typing import Protocol

from sqla_watch.probes.door import Probe
from sqla_watch.probes.owner import Frames, current_frames

__all__ = ["Watchdog", "watchdog"]

SHARE = 1_600
"""Of a processor's time, the part that it takes in the long run at most: one in so many."""
_AT_ONCE = 6_000_000
"""Nanoseconds of a processor that it may take at once, after a time in which it took less than its share."""
_FOR_FIRST_LOOKS = 4_000_000
"""What of this only the first look at something may take: a second look tells little that is new."""
_WORTH_A_ROUND = 1_000_000
_WORTH_A_THREAD = 3_000
"""Nanoseconds of a processor, and for each thread of the process, that are to be there again after all was used up:
to wake, and to take the stacks of all threads at once, is worth it for many looks."""
_LOOKS_BETWEEN = 8
"""Looks after which it is seen what they have taken."""
_SHORTEST_PAUSE = 1_000_000
_LONGEST_PAUSE = 5_000_000_000
_LONGEST_REST = 1_000_000_000
_LINGER = 1_000_000_000
"""Nanoseconds without anything to look at, after which it falls asleep until it is called."""
_PATIENCE = 5
"""Seconds for which the end of the thread is waited for; a reporter of the application's may be running in it."""
_PATIENCE_OF_A_FORK = 1
_MOST_ARRIVALS = 10_000
"""What is kept to be looked at, should the thread not be running."""


class Watched(Protocol):
    """What the watchdog looks at."""

    open: bool
    """Whether there is anything to look at yet."""

    def look(self, now: int, frames: Frames) -> int:
        """Look; return when to look again, 0 for never."""


class Watchdog(Probe):
    """The thread, and what it looks at."""

    def __init__(self) -> None:
        super().__init__("watchdog")
        self.interval = 0
        """Nanoseconds between two rounds; 0 while it is off."""
        self.idle = 0
        """Nanoseconds without a statement from which on it is looked at what the owner of a connection does."""
        self.wait = 0
        """Nanoseconds of waiting for a connection from which on it is looked at who has them."""
        self.stacks = 0
        """How often it has taken the stacks of all threads."""
        self.is_short = False
        """Whether there is no time for what has been looked at already."""
        self._starting = threading.RLock()  # a garbage collection within may give a connection back, or take one
        self._forget()

    def _forget(self) -> None:
        """Let go of the thread, which ends when it sees that the bell is not its own any more."""
        self._thread: threading.Thread | None = None
        self._resting: LockType | None = None
        """The bell of the thread that has ended before a fork, and hands over what it had to look at."""
        self._arrivals: dict[Watched, None] = {}
        """In their order; what is over before the thread wakes goes at once: most is."""
        self._asleep = True
        self._bell = allocate_lock()
        self._bell.acquire()

    def _rest(self) -> None:
        """End the thread before the process is forked: Python warns of that where there are threads, and is right to.

        What it had still to look at is kept for the next one, which begins when there is something new: only then,
        because Python counts the threads when all that is told of the fork have been told.
        """
        with self._starting:
            thread, bell = self._thread, self._bell
            if thread is None or thread is threading.current_thread():
                return
            arrivals = self._arrivals
            self._forget()
            self._arrivals = arrivals
            self._resting = bell
        if bell.locked():
            bell.release()
        thread.join(_PATIENCE_OF_A_FORK)

    def _begin_anew(self) -> None:
        """In a process that was forked off there is no thread, and whoever had the lock is not there."""
        self._starting = threading.RLock()
        self._forget()

    def configure(self, interval_seconds: float, idle_seconds: float, wait_seconds: float) -> None:
        """Set how often it looks, and from when on at a connection without a statement, and at a wait for one."""
        self.interval = round(interval_seconds * 1e9) if self.open else 0
        self.idle, self.wait = round(idle_seconds * 1e9), round(wait_seconds * 1e9)

    def watch(self, item: Watched, *, soon: bool = False) -> None:
        """Have something looked at, `soon` where that cannot wait until the thread wakes by itself.

        Costs 0.1 µs, unless the thread has to be woken.
        """
        if not self.interval:
            return
        arrivals = self._arrivals
        arrivals[item] = None
        if self._asleep:
            self._wake()
        elif soon:
            self._ring()
        elif len(arrivals) > _MOST_ARRIVALS:  # the thread does not run: it was not given the processor, or is gone
            for dropped in list(arrivals)[: _MOST_ARRIVALS // 2]:
                arrivals.pop(dropped, None)

    def leave(self, item: Watched) -> None:
        """It is over: if nobody has looked yet, nobody needs to."""
        self._arrivals.pop(item, None)

    def stop(self) -> None:
        """End the thread, and wait for its end; it starts again when there is something to look at."""
        with self._starting:
            thread, bell = self._thread, self._bell
            self.interval = 0
            self.open = True
            self._forget()
        if bell.locked():
            bell.release()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)

    @property
    def running(self) -> bool:
        """Whether there is a thread."""
        return self._thread is not None and self._thread.is_alive()

    def _wake(self) -> None:
        with self._starting:
            if not self.interval:  # stopped meanwhile
                return
            if self._thread is not None:
                self._asleep = False
                self._ring()
                return
            self._asleep = False
            thread = threading.Thread(target=self._run, args=(self._bell,), name="sqla_watch watchdog", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no threads any more at the interpreter's end, or none allowed
                self.interval = 0
                return
            self._thread = thread

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:  # has been rung already
            pass

    def _run(self, bell: LockType) -> None:
        try:
            self._rounds(bell)
        except Exception:
            self.interval = 0
            self._arrivals.clear()
            self.fault()

    def _rounds(self, bell: LockType) -> None:
        numbers = count()
        heap: list[tuple[int, int, Watched]] = []
        frames = _FramesOnce(self)
        budget = _Budget()
        quiet_since = clock()
        while self._bell is bell:  # it is replaced by stop(), and by a fork
            now = clock()
            arrivals = self._arrivals
            taken = arrivals.copy()
            for item in taken:
                arrivals.pop(item, None)
                if item.open:
                    heapq.heappush(heap, (0, next(numbers), item))
            del taken
            looks = needed = 0
            while heap and heap[0][0] <= now:
                item = heapq.heappop(heap)[2]
                again = item.look(now, frames) if item.open else 0
                if again:
                    heapq.heappush(heap, (max(again, now + 1), next(numbers), item))
                looks += 1
                if looks % _LOOKS_BETWEEN == 0:
                    left = budget.spend()
                    self.is_short = left < _FOR_FIRST_LOOKS
                    if left <= 0:
                        needed = _WORTH_A_ROUND + threading.active_count() * _WORTH_A_THREAD
                        break
            while heap and not heap[0][2].open:
                heapq.heappop(heap)
            item = None  # type: ignore[assignment] # is kept by nobody while this sleeps
            frames.known = None
            if heap or self._arrivals:
                quiet_since = now
            elif now - quiet_since > _LINGER:
                self._asleep = True
                if not self._arrivals:
                    bell.acquire()
                with self._starting:
                    if self._bell is not bell:
                        return  # asleep it has nothing to hand over
                    self._asleep = False
                quiet_since = clock()
                continue
            self.is_short = budget.spend() < _FOR_FIRST_LOOKS
            # What comes to be out in between is not due before `idle`; who waits rings. To wake is what costs most.
            pause = max(self.interval, min(self.idle, _LONGEST_REST))
            if heap:
                pause = min(pause, max(heap[0][0] - now, _SHORTEST_PAUSE))
            bell.acquire(timeout=max(pause, budget.pause(needed)) / 1e9)
        if self._resting is bell:
            self._arrivals.update((item, None) for _, _, item in heap if item.open)


class _Budget:
    """The processor time that the thread may take: so much at once, and its share of the time that goes by."""

    def __init__(self) -> None:
        self._left = float(_AT_ONCE)
        self._now = clock()
        self._used = thread_time_ns()

    def spend(self) -> float:
        """Count what was used since the last time; return the nanoseconds that are left."""
        now, used = clock(), thread_time_ns()
        earned = (now - self._now) / SHARE
        self._left = min(self._left + earned, _AT_ONCE) - (used - self._used)
        self._now, self._used = now, used
        return self._left

    def pause(self, needed: int) -> int:
        """Return the nanoseconds after which so many are left again."""
        return min(_LONGEST_PAUSE, max(0, round((needed - self._left) * SHARE)))


class _FramesOnce:
    """The frames of all threads, taken once a round, and only if somebody asks."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.known: dict[int, FrameType] | None = None
        self._watchdog = watchdog

    def __call__(self) -> dict[int, FrameType]:
        if self.known is None:
            self.known = current_frames()
            self._watchdog.stacks += 1
        return self.known


watchdog = Watchdog()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=watchdog._rest, after_in_child=watchdog._begin_anew)
