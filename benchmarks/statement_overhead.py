"""CPU time that a Core statement in an open transaction costs more, with ours and with an empty listener pair.

Run it with ``uv run python -m benchmarks.statement_overhead``. Bare SQLAlchemy, an engine with an empty pair of
before_cursor_execute and after_cursor_execute listeners, and a watched engine inside of a scope take turns, block by
block, in one process. SQLite in memory stands for the database, because a server's answer would be most of the time
and all of the noise. It is the harder case: its cursors do not know their number of rows, so these are counted one by
one. A second bare engine shows the noise. Ours is counted with
everything: recording, adding up, and the rules at the scope's end. Exits with 1 if ours is not below the pair.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from time import process_time_ns

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event, text

import sqla_watch

STATEMENTS = 500
BLOCKS = 120


def make_engine() -> Engine:
    return create_engine("sqlite://", poolclass=StaticPool)


def statements(connection: Connection) -> None:
    """Send one-row Core statements with one parameter, the same text each time."""
    query = text("SELECT :value AS value FROM one")
    for number in range(STATEMENTS):
        connection.execute(query, {"value": number}).scalar_one()


def watched(connection: Connection) -> None:
    with sqla_watch.scope("block"):
        statements(connection)


def measure(contestants: dict[str, tuple[Engine, Callable[[Connection], None]]]) -> dict[str, list[float]]:
    """Return microseconds of CPU time a statement for each contestant, one number a block."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    connections = {name: engine.connect() for name, (engine, _) in contestants.items()}
    for connection in connections.values():
        connection.execute(text("CREATE TABLE one (id INTEGER)"))
        connection.execute(text("INSERT INTO one VALUES (1)"))
        statements(connection)
    for _ in range(BLOCKS):
        for name, (_, work) in contestants.items():
            started = process_time_ns()
            work(connections[name])
            taken[name].append((process_time_ns() - started) / STATEMENTS / 1e3)
    for connection in connections.values():
        connection.close()
    return taken


def main() -> int:
    listening = make_engine()
    event.listen(listening, "before_cursor_execute", lambda *arguments: None)
    event.listen(listening, "after_cursor_execute", lambda *arguments: None)
    ours = make_engine()
    # A loop of statements in one long transaction is what this measures, and not what it is to find.
    never: dict[str, dict[str, str | float]] = {
        "query-in-loop": {"min_values": 10**9},
        "long-transaction": {"min_seconds": 10**9},
    }
    sqla_watch.install(ours, settings=sqla_watch.Settings(profile="test", rules=never))
    taken = measure(
        {
            "bare": (make_engine(), statements),
            "empty listener pair": (listening, statements),
            "sqla_watch in a scope": (ours, watched),
            "bare again (noise)": (make_engine(), statements),
        }
    )
    bare = taken["bare"]
    print(f"Python {sys.version.split()[0]}, {BLOCKS} blocks of {STATEMENTS} statements, CPU time\n")
    print("| contestant | µs a statement (median) | added µs (median of the differences in a turn) | quartiles |")
    print("|---|---|---|---|")
    added = {}
    for name, values in taken.items():
        differences = [value - base for value, base in zip(values, bare, strict=True)]
        low, added[name], high = statistics.quantiles(differences, n=4)
        print(f"| {name} | {statistics.median(values):.2f} | {added[name]:+.2f} | {low:+.2f} … {high:+.2f} |")
    ratio = added["sqla_watch in a scope"] / added["empty listener pair"]
    print(f"\nadded by sqla_watch / added by the empty pair: {ratio:.2f} (bar: below 1)")
    return 0 if ratio < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
