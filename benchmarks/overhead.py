"""What sqla_watch and others cost a SQLAlchemy application: processor time by contestant and workload.

Run it with ``uv run --isolated --group bench python -m benchmarks.overhead``. Each contestant has a process of its own,
because some patch SQLAlchemy as a whole, and does a block of work when it is told to. Before and after each block of a
contestant's, bare SQLAlchemy does the same one; what counts is the difference to the mean of these two, of the
processor time of the whole process, user and system, with all of its threads. Of all turns the median and the quartiles
are shown. A second bare process is a contestant, too: what it "adds" is the noise. All processes are started anew some
times, because where code and objects of one happen to lie in memory makes it faster or slower by some per cent.

What is kept in memory, how long a scope takes to close and what the import takes is measured in fresh processes
(`benchmarks.footprint`); with ``--instructions`` valgrind counts instructions, which vary little and take long.
``--json`` writes everything. At the end stand the bars, each met or missed; the exit status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import create_engine

from benchmarks import bars, footprint
from benchmarks.contestants import AGAIN, BARE, CONTESTANTS, PRODUCTION, describe
from benchmarks.instructions import COMPARED, CannotCount, count
from benchmarks.measured import Measured, Results
from benchmarks.watchdog_cost import server_with_room
from benchmarks.workloads import SQLITE, WORKLOADS, describe_workload, driver_of, fill
from sqla_watch.demo.server import EmbeddedServer

TURNS = 16
QUICK_TURNS = 6
GENERATIONS = 8
"""How often all processes are started anew: what lies where in memory makes one faster or slower by up to 3 %."""
QUICK_GENERATIONS = 3
ROOT = Path(__file__).parents[1]


class Failed(Exception):
    """A contestant's process could not do something; the message is its own."""


class Process:
    """One contestant's process (`benchmarks.worker`)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=ROOT,
        )  # fmt: skip
        try:
            self._read()
        except Failed:
            self.close()
            raise

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process has ended"}
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def tell(self, *command: str) -> dict[str, Any]:
        """Have it do something, and return what it answers.

        Raises:
            Failed: It could not.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise Failed("its process has ended") from None
        return self._read()

    def run(self) -> tuple[float, float]:
        """Run a block; nanoseconds of processor and of elapsed time."""
        spent, elapsed = self.tell("run")["took"]
        return spent, elapsed

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def started(processes: dict[str, Process], workload: str, url: str, refused: dict[str, str]) -> Iterator[list[str]]:
    """Have everybody prepare a workload; those who cannot are left out, and said."""
    ready = []
    for name, process in processes.items():
        try:
            process.tell("start", workload, url)
            ready.append(name)
        except Failed as error:
            refused[f"{name}, {workload}"] = str(error)
    try:
        yield ready
    finally:
        for name in ready:
            try:
                processes[name].tell("stop")
            except Failed as error:
                refused[f"{name}, {workload}"] = str(error)


def measure(
    processes: dict[str, Process],
    workload: str,
    url: str,
    turns: int,
    measured: dict[str, Measured],
    refused: dict[str, str],
) -> None:
    """Measure one workload of all contestants, and add it to what was measured before."""
    units = WORKLOADS[workload].units * 1e3
    with started(processes, workload, url, refused) as names:
        if BARE not in names:
            raise Failed(f"bare SQLAlchemy cannot do {workload}: {refused.get(f'{BARE}, {workload}')}")
        others = [name for name in names if name != BARE]
        for turn in range(turns):
            before = processes[BARE].run()
            for place in range(len(others)):
                name = others[(place + turn) % len(others)]
                if f"{name}, {workload}" in refused:
                    continue
                try:
                    spent, elapsed = processes[name].run()
                except Failed as error:
                    refused[f"{name}, {workload}"] = str(error)
                    continue
                after = processes[BARE].run()
                bare, bare_elapsed = ((mine + theirs) / 2 for mine, theirs in zip(before, after, strict=True))
                each = measured.setdefault(name, Measured())
                each.spent.append(spent / units)
                each.elapsed.append(elapsed / units)
                each.bare.append(bare / units)
                each.added.append((spent - bare) / units)
                each.added_elapsed.append((elapsed - bare_elapsed) / units)
                before = after


def table(workload: str, measured: dict[str, Measured]) -> str:
    """Return the table of one workload."""
    unit = WORKLOADS[workload].unit
    lines = [f"### {describe_workload(workload)}: `{workload}`", ""]
    lines.append(f"| contestant | CPU µs a {unit} | added µs | quartiles | to bare | added elapsed µs |")
    lines.append("|---|---:|---:|---:|---:|---:|")
    every = [value for each in measured.values() for value in each.bare]
    lines.append(f"| {BARE} | {statistics.median(every):.2f} | | | 1.00 | |")
    for name, each in measured.items():
        low, high = each.quartiles
        lines.append(
            f"| {describe(name)} | {statistics.median(each.spent):.2f} | {each.median:+.2f} | {low:+.2f} … {high:+.2f} "
            f"| {each.ratio:.2f} | {statistics.median(each.added_elapsed):+.2f} |"
        )
    return "\n".join(lines) + "\n"


def overview(results: Results, names: list[str]) -> str:
    """Return what everybody adds to everything: a row for each contestant, a column for each workload."""
    lines = ["| added CPU µs | " + " | ".join(f"`{workload}`" for workload in results) + " |"]
    lines.append("|---|" + "---:|" * len(results))
    bare = [
        f"{statistics.median(value for each in measured.values() for value in each.bare):,.1f}"
        for measured in results.values()
    ]
    lines.append(f"| {BARE}, in all | " + " | ".join(bare) + " |")
    for name in names:
        cells = [
            f"{measured[name].median:+,.1f}" if name in measured else "\N{EN DASH}" for measured in results.values()
        ]
        lines.append(f"| {describe(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def count_all(names: list[str], workloads: list[str], refused: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return the instructions added to a unit, by workload and contestant; bare's are in all."""
    counted: dict[str, dict[str, float]] = {workload: {} for workload in workloads}

    def jobs(name: str) -> dict[tuple[str, str], float]:
        try:
            return count([(who, workload) for who in dict.fromkeys((BARE, name)) for workload in workloads])
        except CannotCount as error:
            refused[f"{name}, instructions"] = str(error)
            return {}

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for each in executor.map(jobs, names):
            for (who, workload), instructions in each.items():
                if who == BARE:
                    counted[workload].setdefault(BARE, instructions)
                else:
                    counted[workload][who] = instructions - each[BARE, workload]
    return counted


def instructions_table(counted: dict[str, dict[str, float]], names: list[str]) -> str:
    """Return the table of instructions."""
    lines = ["| added instructions | " + " | ".join(f"`{workload}`" for workload in counted) + " |"]
    lines.append("|---|" + "---:|" * len(counted))
    for name in names:
        cells = [f"{each[name]:,.0f}" if name in each else "\N{EN DASH}" for each in counted.values()]
        lines.append(f"| {f'{BARE}, in all' if name == BARE else describe(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--only", action="append", choices=(*WORKLOADS, "footprint"), metavar="WORKLOAD",
        help=f"may be given several times: {', '.join(WORKLOADS)}, footprint",
    )  # fmt: skip
    parser.add_argument(
        "--contestant", action="append", choices=CONTESTANTS, metavar="NAME",
        help=f"besides bare; may be given several times: {', '.join(CONTESTANTS)}",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a third of the turns")
    parser.add_argument("--instructions", action="store_true", help="count instructions, too; takes minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    given = parser.parse_args(arguments)
    turns = QUICK_TURNS if given.quick else TURNS
    generations = QUICK_GENERATIONS if given.quick else GENERATIONS
    names = [name for name in CONTESTANTS if name in (BARE, AGAIN) or name in (given.contestant or CONTESTANTS)]
    workloads = [name for name in WORKLOADS if name in (given.only or WORKLOADS)]

    print(
        f"Python {platform.python_version()}, SQLAlchemy {sqlalchemy.__version__}: processor time of the process, "
        "median of the differences to the bare blocks before and after each\n"
    )
    refused: dict[str, str] = {}
    results: Results = {}
    with ExitStack() as stack:
        server: EmbeddedServer | None = None
        if any(driver_of(workload) for workload in workloads):
            server = stack.enter_context(server_with_room(25 * len(names)))
            engine = create_engine(server.url())
            fill(engine)
            engine.dispose()
        results = {workload: {} for workload in workloads}
        for _ in range(generations if workloads else 0):
            with ExitStack() as generation:
                processes: dict[str, Process] = {}
                for name in names:
                    try:
                        processes[name] = Process(name)
                        generation.callback(processes[name].close)
                    except Failed as error:
                        refused[name] = str(error)
                for workload in workloads:
                    driver = driver_of(workload)
                    url = server.url(driver) if server is not None and driver else SQLITE
                    number = max(1, round(turns * WORKLOADS[workload].turns / generations))
                    measure(processes, workload, url, number, results[workload], refused)
        for workload in workloads:
            # In the order of the contestants, and not of who came first; who failed in between is not shown.
            results[workload] = {
                name: results[workload][name]
                for name in names
                if name in results[workload] and f"{name}, {workload}" not in refused
            }
            print(table(workload, results[workload]), flush=True)
    measured_names = [name for name in names if any(name in measured for measured in results.values())]
    print("## Overview\n")
    for server_or_not in (False, True):
        some = {workload: each for workload, each in results.items() if bool(driver_of(workload)) is server_or_not}
        if some:
            print(overview(some, measured_names))
    counted: dict[str, dict[str, float]] = {}
    if given.instructions:
        wanted = [workload for process in COMPARED for workload in process if workload in workloads]
        counted = count_all([name for name in names if name not in (BARE, AGAIN, *refused)], wanted, refused)
        print(instructions_table(counted, [name for name in names if name != AGAIN and name not in refused]))
    foot: footprint.Footprint | None = None
    if (given.only is None or "footprint" in given.only) and PRODUCTION in names:
        foot = footprint.measure(quick=given.quick)
        print(footprint.table(foot))
    judged = bars.judge(results, counted, foot)
    print(bars.table(judged))
    for who, why in refused.items():
        print(f"Not measured: {who}: {why}")
    if given.json:
        found = {
            "python": platform.python_version(),
            "sqlalchemy": sqlalchemy.__version__,
            "versions": {name: describe(name) for name in names},
            "workloads": {
                workload: {name: each.to_dict() for name, each in measured.items()}
                for workload, measured in results.items()
            },
            "instructions": counted,
            "footprint": None if foot is None else asdict(foot),
            "bars": [asdict(each) for each in judged],
            "refused": refused,
        }
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    missed = [each for each in judged if not each.met]
    print(f"\n{len(judged) - len(missed)} bars met, {len(missed)} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
