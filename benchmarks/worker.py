"""The process of one contestant: does blocks of work when it is told to, and says what they took.

Started by `benchmarks.overhead`, which writes a line of JSON for each command and reads one for each answer; and by
`benchmarks.instructions` under valgrind, which counts what lies between two calls of `getloadavg`.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import sys
import threading
import time
from time import perf_counter_ns, process_time_ns
from typing import Any

from benchmarks.contestants import CONTESTANTS, Contestant
from benchmarks.workloads import SQLITE, WORKLOADS, Workload

WARM_UP = 3
"""Blocks before the first that counts: statement caches, and what the interpreter learns."""
COUNTED = 2
"""Blocks of which instructions are counted."""


def prepared(name: str, contestant: Contestant, url: str) -> Workload:
    """Return a workload that has been run a few times, with everything there is taken out of the garbage collector.

    So a collection costs what the block's own objects cost, and not what a contestant has imported.
    """
    workload = WORKLOADS[name](contestant, url)
    for _ in range(WARM_UP):
        workload.block()
    gc.collect()
    gc.freeze()
    return workload


def timed(workload: Workload) -> list[int]:
    """Do one block: nanoseconds of processor time of the whole process, and of the clock on the wall.

    One that is not counted comes first: the others have been at work meanwhile, and bare SQLAlchemy, which works more
    often than anybody, would find more of its own in the processor's cache.
    """
    workload.block()
    gc.collect()  # nobody pays for what others have left
    started, spent = perf_counter_ns(), process_time_ns()
    workload.block()
    spent, elapsed = process_time_ns() - spent, perf_counter_ns() - started
    return [spent, elapsed]


def serve(name: str) -> None:
    """Answer commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # what a contestant prints is no answer
    logging.basicConfig(stream=open(os.devnull, "w"))  # noqa: SIM115  # formatted, written, and thrown away
    # Servers of applications have threads. In a process without any the C library takes no locks: there the first
    # thread, whoever starts it, makes a fetch of 10,000 rows from SQLite slower by 6 %.
    threading.Thread(target=threading.Event().wait, daemon=True).start()

    def answer(said: Any) -> None:
        print(json.dumps(said), file=answers, flush=True)

    contestant = CONTESTANTS[name]()
    try:
        contestant.prepare()
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": name})
    os.dup2(silence, 2)
    workload: Workload | None = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command[0] == "start":
                workload = prepared(command[1], contestant, command[2])
                answer({"ready": command[1]})
            elif command[0] == "run":
                assert workload is not None
                answer({"took": timed(workload)})
            else:
                if workload is not None:
                    workload.close()
                workload = None
                gc.unfreeze()
                answer({"ready": ""})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


def mark() -> None:
    """Have callgrind write what it has counted; it looks for this name of the C library's."""
    os.getloadavg()


def count(jobs: list[str]) -> None:
    """Do each job, `contestant:workload`, between two marks.

    The clock goes on by 20 µs each time it is read: valgrind is slow, and how slow is another thing each time, so what
    is judged by time would be found in one run and not in the next. It is made in C, like the one it stands for.
    """
    time.perf_counter_ns = itertools.count(10**15, 20_000).__next__  # before anybody imports it by name
    logging.basicConfig(stream=open(os.devnull, "w"))  # noqa: SIM115
    contestants: dict[str, Contestant] = {}
    for job in jobs:
        name, _, workload_name = job.rpartition(":")
        if name not in contestants:
            contestants[name] = CONTESTANTS[name]()
            contestants[name].prepare()
        workload = prepared(workload_name, contestants[name], SQLITE)
        mark()
        for _ in range(COUNTED):
            workload.block()
        mark()
        workload.close()
        gc.unfreeze()


if __name__ == "__main__":
    if sys.argv[1] == "count":
        count(sys.argv[2:])
    else:
        serve(sys.argv[1])
