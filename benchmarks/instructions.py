"""Instructions that each unit of work takes, counted by valgrind's callgrind: they do not vary, as times do.

``uv run python -m benchmarks.instructions`` is the short form that continuous integration runs: what a few workloads
take more with sqla_watch on SQLite, against `benchmarks/instructions.json`. It exits with 1 where one has grown by more
than the margin, and names it; ``--update`` writes the table anew for the Python and SQLAlchemy it runs on, after
something has become faster, or slower for a reason. Where valgrind is not installed it says so, and that nothing was
compared.

Bare SQLAlchemy and the contestants do the same blocks of work one after the other in one process under valgrind, and
what lies between two marks is counted. What would make it vary is off: the hash seed is fixed, the bytecode is there,
the clock is one that counts its readings, and the watchdog's thread, which looks by the clock, is not started. Left out
is what CPython's cache of type attributes misses (`find_name_in_mro`): which names fall upon one place of it depends
on where they lie in memory, and moves a lazy load by up to 7 %. What is left moves by less than the margin when the
memory is laid out differently, and not at all when it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sqlalchemy

from benchmarks.contestants import BARE, DEVELOPMENT, OUTSIDE, PRODUCTION
from benchmarks.worker import COUNTED
from benchmarks.workloads import WORKLOADS

__all__ = ["CannotCount", "count"]

TABLE = Path(__file__).with_name("instructions.json")
MARGIN = 0.05
"""Share by which what is added may be more than in the table."""
NOISE = 0.001
"""Share of what a bare unit takes by which it may be more in any case: a statement that loads 100 objects takes 50
times what is added to it, and where they lie in memory moves that."""
LEAST = 400
"""Instructions by which it may be more in any case, about 15 bytecodes: without any scope 1,000 to 4,000 are added, and
the same code takes 250 more in one environment than in another with the same Python and SQLAlchemy."""
MARK = "getloadavg"
"""The C library's function that no application calls: `benchmarks.worker.mark` does."""
MISS = "find_name_in_mro"
ROOT = Path(__file__).parents[1]
FIRST = "core"
"""The workload whose bare statement tells one build of Python from another."""
LAYOUTS = 3
"""How often it is counted, each time with the memory laid out differently, for the median: without any scope no more
than a hundredth of a bare statement is added to it, and the layout moves that by a tenth."""
COMPARED = (
    {FIRST: (PRODUCTION, OUTSIDE), "empty": (PRODUCTION,)},
    {"lazy": (PRODUCTION, DEVELOPMENT), "objects": (PRODUCTION,)},
    {"transaction": (PRODUCTION,), "request-5": (PRODUCTION,)},
)
"""What continuous integration compares, by workload; each of the three in a process of its own. 100 lazy loads take too
little time for the profile `production` to tell of them; `development` does."""
_FUNCTION = re.compile(r"(c?fn)=\((\d+)\)(?: (.*))?")


class CannotCount(Exception):
    """Instructions cannot be counted here; the message says why."""


def count(jobs: Iterable[tuple[str, str]], seed: int = 0) -> dict[tuple[str, str], float]:
    """Return the instructions that a unit takes in each job, a contestant and a workload, of one process.

    Args:
        jobs: Contestants and workloads.
        seed: Of the hashes; with another one the memory is laid out differently.

    Raises:
        CannotCount: valgrind is not installed, or a contestant does not run under it.
    """
    wanted = list(jobs)
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CannotCount("valgrind is not installed (apt-get install valgrind)")
    work = [sys.executable, "-m", "benchmarks.worker", "count"]
    environment = {
        **os.environ, "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "", "SQLA_WATCH_WATCHDOG_SECONDS": "0",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        command = [
            valgrind, "--tool=callgrind", f"--dump-before={MARK}", f"--callgrind-out-file={folder}/out", *work,
            *(f"{contestant}:{workload}" for contestant, workload in wanted),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
        # Each part ends at a mark: one of what came before the job, one of the job.
        parts = [Path(f"{folder}/out.{number + 1}") for number in range(2 * len(wanted))]
        if done.returncode or not all(part.exists() for part in parts):
            lines = [line for line in done.stderr.splitlines() if line and not line.startswith("==")]
            raise CannotCount(lines[-1] if lines else "valgrind has counted nothing")
        counted = _without_cache_misses(parts)
    return {
        (contestant, workload): instructions / COUNTED / WORKLOADS[workload].units
        for (contestant, workload), instructions in zip(wanted, counted[1::2], strict=True)
    }


def _without_cache_misses(parts: list[Path]) -> list[int]:
    """Return the instructions of each part of callgrind's answer, without those below `MISS`.

    A function's name is written where its number comes first, in whatever part that is; after a line `calls=` comes one
    with what the called function took.
    """
    names: dict[str, str] = {}
    counted = []
    for part in parts:
        total = missed = 0
        caller = callee = ""
        called = False
        with part.open() as lines:
            for line in lines:
                if called:
                    called = False
                    if callee == MISS != caller:
                        missed += int(line.split()[1])
                elif line.startswith("calls="):
                    called = True
                elif (found := _FUNCTION.match(line)) is not None:
                    which, number, name = found.groups()
                    if name is not None:
                        names[number] = name.partition("'")[0]
                    if which == "cfn":
                        callee = names.get(number, "")
                    else:
                        caller = names.get(number, "")
                elif line.startswith("totals: "):
                    total = int(line.split()[1])
        counted.append(total - missed)
    return counted


def added() -> dict[str, float]:
    """Return what is added to a unit of each workload that is compared, and what it takes without."""
    subprocess.run(  # not counted: bytecode is written
        [sys.executable, "-m", "benchmarks.worker", "count", f"{PRODUCTION}:empty"],
        check=True, cwd=ROOT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
    )  # fmt: skip
    processes = [
        ([(who, workload) for workload, whose in process.items() for who in (BARE, *whose)], seed)
        for process in COMPARED
        for seed in range(LAYOUTS if FIRST in process else 1)
    ]
    found: dict[str, list[float]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for counted in executor.map(count, *zip(*processes, strict=True)):
            for (who, workload), instructions in counted.items():
                without = 0 if who == BARE else counted[BARE, workload]
                found.setdefault(f"{workload}: {who}", []).append(instructions - without)
    return {name: round(statistics.median(numbers)) for name, numbers in found.items()}


def version() -> str:
    """Return what a table is for: minor versions of Python and SQLAlchemy."""
    major, minor = sqlalchemy.__version__.split(".")[:2]
    return f"Python {sys.version_info[0]}.{sys.version_info[1]}, SQLAlchemy {major}.{minor}"


def exactly() -> str:
    """Return what a table was written on."""
    return f"{platform.python_version()} ({platform.python_compiler()}), SQLAlchemy {sqlalchemy.__version__}"


def compare(now: dict[str, float], table: dict[str, float]) -> list[str]:
    """Print what is added beside the table; return what has grown.

    A bare statement takes more or less in another build of Python or another patch release of SQLAlchemy; the table is
    taken in that proportion.
    """
    bare = f"{FIRST}: {BARE}"
    pace = now[bare] / table[bare]
    if abs(pace - 1) > 0.005:
        print(
            f"A bare Core statement takes {now[bare]:,} instructions and took {table[bare]:,}: another build or patch "
            f"release. The table is taken times {pace:.3f}.\n"
        )
    else:
        pace = 1.0
    print("| instructions added to a unit | now | in the table | more |")
    print("|---|---:|---:|---:|")
    grown = []
    for name, value in now.items():
        workload, _, who = name.partition(": ")
        if who == BARE:
            continue
        if name not in table:
            grown.append(f"{name}: it is not in the table")
            continue
        allowed = table[name] * pace
        share = (value - allowed) / abs(allowed) if allowed else 0.0
        print(f"| {name} | {value:+,} | {allowed:+,.0f} | {share:+.1%} |")
        if value - allowed > max(MARGIN * abs(allowed), NOISE * now[f"{workload}: {BARE}"], LEAST):
            grown.append(f"{name}: {value:+,} instructions instead of {allowed:+,.0f}, {share:+.1%}")
    return grown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--update", action="store_true", help="write the table for this Python and SQLAlchemy anew")
    update = parser.parse_args(arguments).update
    tables = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    if not update and version() not in tables:
        print(f"Nothing was compared: {TABLE.name} has nothing for {version()}. --update writes it.")
        return 0
    try:
        now = added()
    except CannotCount as error:
        print(f"Nothing was compared: {error}")
        return 1 if update else 0
    if update:
        tables[version()] = {"written on": exactly(), "added": now}
        TABLE.write_text(json.dumps(dict(sorted(tables.items())), indent=2) + "\n")
        print(
            f"{TABLE.name} has now for {version()}:", *(f"  {name}: {value:,}" for name, value in now.items()), sep="\n"
        )
        return 0
    print(f"{exactly()}; the table was written on {tables[version()]['written on']}\n")
    grown = compare(now, tables[version()]["added"])
    if grown:
        print(f"\nThe hot path has become slower by more than {MARGIN:.0%}:")
        print(*(f"  {each}" for each in grown), sep="\n")
        print("Make it faster; or, if it is worth it, say why and write the table anew:")
        print("  uv run python -m benchmarks.instructions --update")
        return 1
    print("\nnothing has become slower")
    return 0


if __name__ == "__main__":
    sys.exit(main())
