"""The bars: what sqla_watch promises to cost at most, as code, and whether it does.

A bar is judged for both profiles, and on PostgreSQL as on SQLite, wherever it was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.contestants import AGAIN, DEVELOPMENT, OUTSIDE, PAIR, PRODUCTION, UNSAMPLED
from benchmarks.footprint import Footprint
from benchmarks.measured import Results

__all__ = ["MOST_ADDED", "Verdict", "judge", "table"]

WATCHED = (PRODUCTION, DEVELOPMENT)
MOST_ADDED = {
    "objects": (6.0, 1),
    "lazy": (6.0, 1),
    "empty": (6.0, 1),
    "request-5": (10.0, 5),
    "request-50": (6.0, 50),
}
"""Microseconds of processor time that may be added at most, and to how many statements (or scopes) of a unit."""
MOST_OF_PAIR = (
    ("core", WATCHED, 1.0),
    ("core", (OUTSIDE, UNSAMPLED), 0.1),
    ("transaction", WATCHED, 0.5),
)
"""The share of what the empty listener pair adds that is added at most."""
MOST_INSTRUCTIONS = 18_000
MOST_KEPT = 0.1
"""Bytes for each statement that count as nothing: 10 kB of 100,000, where a single number each would be 3 MB."""
MOST_OPEN = 10_000_000
MOST_CLOSING = 20.0
MOST_IMPORT = 25.0


@dataclass(frozen=True)
class Verdict:
    """One bar, with the figure that was measured."""

    workload: str
    contestant: str
    bar: str
    figure: str
    met: bool


def judge(results: Results, instructions: dict[str, dict[str, float]], footprint: Footprint | None) -> list[Verdict]:
    """Judge whatever was measured."""
    return [
        *_of_time(results),
        *_of_instructions(instructions),
        *(() if footprint is None else _of_footprint(footprint)),
    ]


def _of_time(results: Results) -> Iterator[Verdict]:
    for name, contestants, share in MOST_OF_PAIR:
        for workload in (name, f"pg-{name}"):
            measured = results.get(workload, {})
            if PAIR not in measured:
                continue
            pair = measured[PAIR].median
            for who in contestants:
                if who in measured:
                    added = measured[who].median
                    bar = f"below {share:.0%} of the empty pair's {pair:+.2f} µs"
                    yield Verdict(workload, who, bar, f"{added:+.2f} µs, {added / pair:.0%}", added < share * pair)
    for name, (most, divided) in MOST_ADDED.items():
        for workload in (name, f"pg-{name}"):
            for who in WATCHED:
                each = results.get(workload, {}).get(who)
                if each is not None:
                    added = each.median / divided
                    bar = f"at most {most:.0f} µs a {'scope' if name == 'empty' else 'statement'}"
                    if name == "lazy":
                        bar += ", found and told" if who == DEVELOPMENT else ", too quick to be told of"
                    yield Verdict(workload, who, bar, f"{added:+.2f} µs", added <= most)
    for workload in ("fetch", "pg-fetch"):
        measured = results.get(workload, {})
        if AGAIN not in measured:
            continue
        noise = max(map(abs, measured[AGAIN].quartiles))
        for who in WATCHED:
            if who in measured:
                added = measured[who].median
                bar = f"within the noise, the A/A quartiles' ±{noise:.0f} µs"
                yield Verdict(workload, who, bar, f"{added:+.0f} µs", added <= noise)


def _of_instructions(instructions: dict[str, dict[str, float]]) -> Iterator[Verdict]:
    for who in WATCHED:
        added = instructions.get("core", {}).get(who)
        if added is not None:
            bar = f"below +{MOST_INSTRUCTIONS:,} instructions"
            yield Verdict("core", who, bar, f"{added:+,.0f}", added < MOST_INSTRUCTIONS)


def _of_footprint(found: Footprint) -> Iterator[Verdict]:
    bare = found.memory["bare"].after
    for case, kept in found.memory.items():
        if case == "bare":
            continue
        if case.startswith("scope"):
            bar = f"at most {MOST_OPEN / 1e6:.0f} MB while open"
            yield Verdict("memory", case, bar, f"{kept.open / 1e6:.2f} MB", kept.open <= MOST_OPEN)
        after = kept.after - bare
        least = MOST_KEPT * kept.statements
        bar = f"nothing kept of {kept.statements:,} statements (below {least:,.0f} bytes)"
        yield Verdict("memory", case, bar, f"{after:+,} bytes", after < least)
    growth = found.close_many / found.close_few
    # The bar is for 20 times as many statements; a quick run has fewer of them.
    most = MOST_CLOSING * found.many / found.few / 20
    bar = f"{found.many:,} close in at most {most:.0f} times the time of {found.few:,}"
    yield Verdict("closing", PRODUCTION, bar, f"{growth:.1f} times, {found.close_many:.2f} ms", growth <= most)
    for what, taken in (
        ("import sqla_watch", found.import_alone),
        ("sqla_watch.install", found.import_install),
    ):
        yield Verdict("import", what, f"at most {MOST_IMPORT:.0f} ms", f"{taken:.1f} ms", taken <= MOST_IMPORT)
    yield Verdict(
        "import",
        "sqla_watch.install(engine)",
        "neither opentelemetry, rich, jinja2 nor pytest",
        ", ".join(found.unwanted) or "none",
        not found.unwanted,
    )


def table(verdicts: list[Verdict]) -> str:
    """Return the bars as Markdown."""
    lines = ["| workload | contestant | bar | measured | |", "|---|---|---|---:|---|"]
    for each in verdicts:
        verdict = "met" if each.met else "**missed**"
        lines.append(f"| `{each.workload}` | {each.contestant} | {each.bar} | {each.figure} | {verdict} |")
    return "\n".join(lines) + "\n"
