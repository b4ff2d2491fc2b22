"""Which flow of control runs here: an asyncio task, or else a thread."""

from __future__ import annotations

from asyncio import Task, _get_running_loop, current_task
from threading import get_native_id
from typing import Any

__all__ = ["current_flow"]


def current_flow() -> tuple[int, Task[Any] | None]:
    """Return a number of the running task, or else thread; and the task.

    Python's identifiers of threads are given to later ones again; the operating system's numbers are not, for long.
    """
    loop = _get_running_loop()
    task = None if loop is None else current_task(loop)
    return (get_native_id() if task is None else id(task)), task
