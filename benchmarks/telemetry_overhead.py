"""CPU time that a Core statement costs more when it is traced: ours, and what else traces SQLAlchemy.

Run it with ``uv run --isolated --group bench python -m benchmarks.telemetry_overhead``, and with
``--with 'sqlalchemy<2.1'`` for 2.0. Each contestant has a process of its own, because some patch SQLAlchemy as a whole;
the processes take turns, block by block. Each is set up as its documentation says, records everything, and exports in
batches to nobody; what is counted is the CPU time of the thread that sends the statements, from the beginning of the
span around them to its end, because some put work off until then. SQLite in memory stands for the database.

A block is 200 statements below one span: of `different` texts, so that nothing can be folded, or all `alike`. Only ours
has metrics of statements, so it is compared without, and shown with them. Exits with 1 if ours at the level `all`,
folding or not, is not below each of the others with both kinds of blocks.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import thread_time_ns
from typing import Any

from sqlalchemy import Connection, Engine, StaticPool, create_engine, text

from benchmarks import contestants
from benchmarks.contestants import providers

STATEMENTS = 200
BLOCKS = 60

Around = Callable[[], AbstractContextManager[Any]]


def make_engine() -> Engine:
    return create_engine("sqlite://", poolclass=StaticPool)


@contextmanager
def nothing() -> Iterator[None]:
    yield


def bare() -> tuple[Engine, Around]:
    return make_engine(), nothing


def watched() -> tuple[Engine, Around]:
    import sqla_watch

    engine = make_engine()
    sqla_watch.install(engine, settings=sqla_watch.Settings(profile="production"))
    return engine, nothing


def ours(*, sampled: bool = True, **telemetry: Any) -> Callable[[], tuple[Engine, Around]]:
    def make() -> tuple[Engine, Around]:
        import sqla_watch

        traces, metrics = providers(sampled=sampled)
        engine = make_engine()
        settings = sqla_watch.Settings(profile="production", telemetry=telemetry)
        sqla_watch.install(engine, settings=settings, tracer_provider=traces, meter_provider=metrics)
        tracer = traces.get_tracer("benchmark")
        return engine, lambda: tracer.start_as_current_span("block")

    return make


def peer(name: str) -> tuple[Callable[[], tuple[Engine, Around]], str]:
    """Return a contestant of `benchmarks.overhead`, set up as there, and the package whose version is shown."""

    def make() -> tuple[Engine, Around]:
        contestant = contestants.CONTESTANTS[name]()
        contestant.prepare()
        engine = make_engine()
        contestant.watch(engine)
        return engine, contestant.around

    return make, contestants.CONTESTANTS[name].distribution


CONTESTANTS: dict[str, tuple[Callable[[], tuple[Engine, Around]], str]] = {
    "bare SQLAlchemy": (bare, "sqlalchemy"),
    "sqla_watch, no telemetry": (watched, ""),
    "sqla_watch, spans": (ours(fold=False, metrics=False), ""),
    "sqla_watch, spans, folded": (ours(metrics=False), ""),
    "sqla_watch, spans and metrics": (ours(fold=False), ""),
    "sqla_watch, as it is by default": (ours(), ""),
    "sqla_watch, slow ones": (ours(statements="slow", metrics=False), ""),
    "sqla_watch, not sampled": (ours(sampled=False, metrics=False), ""),
    "opentelemetry-instrumentation-sqlalchemy": peer("opentelemetry-instrumentation-sqlalchemy"),
    "sentry-sdk": peer("sentry-sdk"),
    "ddtrace": peer("ddtrace"),
    "logfire": peer("logfire"),
}
OURS = ("sqla_watch, spans", "sqla_watch, spans, folded")
PEERS = [name for name, (_, package) in CONTESTANTS.items() if package and name != "bare SQLAlchemy"]


def different(connection: Connection) -> None:
    for query in QUERIES:
        connection.execute(query, {"value": 7}).scalar_one()


def alike(connection: Connection) -> None:
    query = QUERIES[0]
    for number in range(STATEMENTS):
        connection.execute(query, {"value": number}).scalar_one()


QUERIES = [text(f"SELECT :value AS value_{number} FROM one") for number in range(STATEMENTS)]


def contestant(name: str) -> None:
    """Run a block for each line of standard input, and write what it took, in microseconds a statement."""
    engine, around = CONTESTANTS[name][0]()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE one (id INTEGER)"))
        connection.execute(text("INSERT INTO one VALUES (1)"))
    print("ready", flush=True)
    for line in sys.stdin:
        work = different if line.strip() == "different" else alike
        started = thread_time_ns()
        with around(), engine.connect() as connection:
            work(connection)
        taken = thread_time_ns() - started  # with what was put off to the end of the connection and the request
        print(taken / STATEMENTS / 1e3, flush=True)


def measure() -> dict[str, dict[str, list[float]]]:
    """Return the times of each contestant that is here and works, by kind of block."""
    processes: dict[str, subprocess.Popen[str]] = {}
    for name in CONTESTANTS:
        command = [sys.executable, "-m", "benchmarks.telemetry_overhead", name]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        if process.stdout.readline().strip() == "ready":
            processes[name] = process
        else:
            process.wait()
    taken: dict[str, dict[str, list[float]]] = {name: {"different": [], "alike": []} for name in processes}
    for block in range(BLOCKS + 3):
        for name, process in processes.items():
            for kind in ("different", "alike"):
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{kind}\n")
                process.stdin.flush()
                microseconds = float(process.stdout.readline())
                if block >= 3:  # warm by then
                    taken[name][kind].append(microseconds)
    for process in processes.values():
        process.communicate()
    return taken


def main() -> int:
    taken = measure()
    bare_times = {kind: statistics.median(times) for kind, times in taken["bare SQLAlchemy"].items()}
    print(
        f"SQLAlchemy {importlib.metadata.version('sqlalchemy')}, Python {sys.version.split()[0]}, "
        f"{BLOCKS} blocks of {STATEMENTS} statements; microseconds of CPU time that a statement costs more\n"
    )
    print(f"{'':45}{'different':>12}{'alike':>12}")
    more: dict[str, dict[str, float]] = {}
    for name, times in taken.items():
        more[name] = {kind: statistics.median(each) - bare_times[kind] for kind, each in times.items()}
        package = CONTESTANTS[name][1]
        title = f"{name} {importlib.metadata.version(package)}" if package else name
        if name == "bare SQLAlchemy":
            print(f"{title:45}{bare_times['different']:>12.1f}{bare_times['alike']:>12.1f}")
        else:
            print(f"{title:45}{more[name]['different']:>+12.1f}{more[name]['alike']:>+12.1f}")
    for name in CONTESTANTS:
        if name not in taken:
            print(f"{name:45}{'not installed, or it does not work here':>40}")
    failed = [
        f"{mine} is not below {peer} with statements that are {kind}"
        for mine in OURS
        for peer in PEERS
        if peer in more
        for kind in more[mine]
        if more[mine][kind] >= more[peer][kind]
    ]
    print("\n".join(["", *failed]) if failed else "\nbelow each of the others")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        contestant(sys.argv[1])
    else:
        sys.exit(main())
