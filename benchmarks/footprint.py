"""What sqla_watch keeps in memory, how long a scope takes to close, and what its import takes.

Each is measured in a fresh process that this module starts of itself. Memory is what Python has allocated
(`tracemalloc`), not the size of the process: exact to the byte, and the same on every machine.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import process_time_ns
from typing import Any

__all__ = ["CASES", "Footprint", "Kept", "measure", "table"]

ROOT = Path(__file__).parents[1]
STATEMENTS = 100_000
QUICK_STATEMENTS = 20_000
FEW = 5_000
IMPORTS = 15
CLOSINGS = 5
UNWANTED = ("opentelemetry", "rich", "jinja2", "pytest")
"""What the import must not bring along."""

ROUNDS = 15.0
"""Seconds in which the watchdog, which has a budget, gets through a long list of returned connections."""

CASES = {
    "bare": "no sqla_watch",
    "outside": "out of any scope, no implicit ones, one connection",
    "implicit": "out of any scope, each with a connection and an implicit one of its own; 15 s later",
    "scope": "in one scope, production",
    "scope-development": "in one scope, development",
    "scope-texts": "in one scope, production, 400 different texts",
}
"""Situations in which memory is measured."""


@dataclass(frozen=True)
class Kept:
    """Bytes that are allocated more than before."""

    statements: int
    open: int
    """While the scope is open (or the connection is out)."""
    after: int
    """When all is closed."""


@dataclass(frozen=True)
class Footprint:
    """What was measured."""

    memory: dict[str, Kept]
    """By case."""
    few: int
    many: int
    """Statements of a scope that is closed."""
    close_few: float
    """Milliseconds of processor time, the median."""
    close_many: float
    import_alone: float
    """Milliseconds of processor time that `import sqla_watch` takes after `import sqlalchemy`, the median."""
    import_install: float
    """The same with the name `sqla_watch.install`, for which the package imports what it needs."""
    import_and_install: float
    """The same with an engine under watch: all modules that a watch needs are there."""
    import_elapsed: float
    """Milliseconds of elapsed time of the last."""
    unwanted: list[str]
    """Modules of others that were imported with it."""


def kept(case: str, statements: int) -> Kept:
    """Send statements and see what is allocated; in this process."""
    from sqlalchemy import QueuePool, create_engine, text

    import sqla_watch

    logging.basicConfig(stream=open(os.devnull, "w"))  # noqa: SIM115
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0)
    if case != "bare":
        profile = "development" if case == "scope-development" else "production"
        settings = sqla_watch.Settings(profile=profile, implicit_scopes=case != "outside")
        sqla_watch.install(engine, settings=settings)
    texts = [text(f"SELECT :value AS value_{number}") for number in range(400 if case == "scope-texts" else 1)]

    def send(number: int, before_closing: Callable[[], Any]) -> None:
        with ExitStack() as stack:
            if case.startswith("scope"):
                stack.enter_context(sqla_watch.scope("block"))
            if case == "implicit":
                for value in range(number):
                    with engine.connect() as connection:
                        connection.execute(texts[0], {"value": value}).scalar_one()
            else:
                connection = stack.enter_context(engine.connect())
                for value in range(number):
                    connection.execute(texts[value % len(texts)], {"value": value}).scalar_one()
            before_closing()

    def allocated() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    # One connection or a few thousand are on the watchdog's list.
    pause = ROUNDS if case == "implicit" else 0.0
    tracemalloc.start()
    send(statements, gc.collect)  # caches are filled, and what there is to be found has been found and told once
    time.sleep(pause)
    sizes = []
    before = allocated()
    send(statements, lambda: sizes.append(allocated()))
    at_once = sizes[0] - before
    time.sleep(pause)
    return Kept(statements, at_once, allocated() - before)


def closing(few: int, many: int) -> list[list[float]]:
    """Return milliseconds of processor time that closing a scope takes, of few and of many statements."""
    from sqlalchemy import QueuePool, create_engine, text

    import sqla_watch

    logging.basicConfig(stream=open(os.devnull, "w"))  # noqa: SIM115
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0)
    sqla_watch.install(engine, settings=sqla_watch.Settings(profile="production"))
    query = text("SELECT :value AS value")
    taken: list[list[float]] = [[], []]
    with engine.connect() as connection:
        for _ in range(CLOSINGS + 1):
            for place, number in enumerate((few, many)):
                opened = sqla_watch.scope("block")
                opened.__enter__()
                for value in range(number):
                    connection.execute(query, {"value": value}).scalar_one()
                started = process_time_ns()
                opened.__exit__(None, None, None)
                taken[place].append((process_time_ns() - started) / 1e6)
    return [times[1:] for times in taken]


IMPORT = """
import json, sys, time
import sqlalchemy
started, spent = time.perf_counter_ns(), time.process_time_ns()
import sqla_watch
alone = time.process_time_ns() - spent
sqla_watch.install
install = time.process_time_ns() - spent
engine = sqlalchemy.create_engine("sqlite://")
made = time.process_time_ns(), time.perf_counter_ns()
sqla_watch.install(engine)
watched = install + time.process_time_ns() - made[0]
elapsed = time.perf_counter_ns() - started
print(json.dumps([[alone / 1e6, install / 1e6, watched / 1e6, elapsed / 1e6], [*sys.modules]]))
"""
"""Making an engine imports SQLite's dialect: that is SQLAlchemy's."""


def _child(*command: str) -> Any:
    """Run this Python on something that writes JSON; bytecode is written and used, as in an installation."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def measure(*, quick: bool = False) -> Footprint:
    """Measure all of it."""
    statements = QUICK_STATEMENTS if quick else STATEMENTS
    with ThreadPoolExecutor(os.cpu_count()) as executor:  # no time is measured yet
        answers = executor.map(lambda case: _child("-m", "benchmarks.footprint", "kept", case, str(statements)), CASES)
        memory = {case: Kept(*answer) for case, answer in zip(CASES, answers, strict=True)}
    few, many = _child("-m", "benchmarks.footprint", "closing", str(FEW), str(statements))
    _child("-c", IMPORT)  # not counted: bytecode is written
    imports = [_child("-c", IMPORT) for _ in range(IMPORTS)]
    alone, install, watched, elapsed = (
        statistics.median(times) for times in zip(*(each[0] for each in imports), strict=True)
    )
    modules = imports[0][1]
    return Footprint(
        memory=memory,
        few=FEW,
        many=statements,
        close_few=statistics.median(few),
        close_many=statistics.median(many),
        import_alone=alone,
        import_install=install,
        import_and_install=watched,
        import_elapsed=elapsed,
        unwanted=[name for name in UNWANTED if name in modules],
    )


def table(found: Footprint) -> str:
    """Return all of it as Markdown."""
    lines = ["| statements | how | MB before all is closed | bytes kept after |", "|---:|---|---:|---:|"]
    for case, each in found.memory.items():
        lines.append(f"| {each.statements:,} | {CASES[case]} | {each.open / 1e6:.3f} | {each.after:+,} |")
    lines += ["", "| closing a scope of | CPU ms |", "|---:|---:|"]
    lines += [f"| {found.few:,} | {found.close_few:.3f} |", f"| {found.many:,} | {found.close_many:.3f} |"]
    lines += ["", "| after `import sqlalchemy` | CPU ms |", "|---|---:|"]
    lines += [
        f"| `import sqla_watch` | {found.import_alone:.1f} |",
        f"| `sqla_watch.install`, with what it imports | {found.import_install:.1f} |",
        f"| and an engine under watch | {found.import_and_install:.1f} |",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "kept":
        answer = kept(sys.argv[2], int(sys.argv[3]))
        print(json.dumps([answer.statements, answer.open, answer.after]))
    else:
        print(json.dumps(closing(int(sys.argv[2]), int(sys.argv[3]))))
