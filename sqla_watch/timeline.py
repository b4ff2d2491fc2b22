"""What a scope has seen, moment by moment: for those who draw a waterfall.

The record of a scope adds up; a timeline keeps the facts themselves, as many as there is room for. Scopes have one
where `Settings.timeline` gives it room.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from sqla_watch.activities import doing_of, main_activity
from sqla_watch.callsite import location_of
from sqla_watch.facts import CallSite, Fact, LoadKind, RowCounter, Statement, Transaction, Wait, site_of
from sqla_watch.findings import Location

__all__ = ["Timeline"]

SHORTEST_GAP = 10_000_000
"""Nanoseconds of a transaction without a statement from which on that is drawn."""

_LOADS = {LoadKind.QUERY: "", LoadKind.LAZY: "lazy load", LoadKind.COLUMN: "column load", LoadKind.EAGER: "eager load"}


class Timeline:
    """The statements, waits and transactions of a scope, in the order in which they ended.

    Args:
        most: How many it keeps; of those which come later only the number is known.
    """

    __slots__ = ("_facts", "left_out", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.left_out = 0
        self._facts: list[Fact] = []

    def __len__(self) -> int:
        return len(self._facts)

    def take(self, facts: Iterable[Fact]) -> None:
        """Keep facts."""
        for fact in facts:
            if (
                fact.__class__ is tuple
                or isinstance(fact, Transaction)
                or (isinstance(fact, Wait) and fact.nanoseconds)
            ):
                if len(self._facts) < self.most:
                    self._facts.append(fact)
                else:
                    self.left_out += 1

    def add(self, inner: Timeline) -> None:
        """Take over what a scope inside of this one has kept."""
        self.take(inner._facts)
        self.left_out += inner.left_out

    def to_dict(self, origin: int) -> dict[str, Any]:
        """Return it as the JSON report has it.

        Args:
            origin: The moment that counts as 0, nanoseconds of `time.perf_counter_ns`.

        Returns:
            `texts` and `lines`, each once; `entries` in the order of their beginnings, with `kind` (`statement`,
            `wait`, `transaction`, `commit`, `gap`), `start` and `seconds`, and numbers of a text and a line, -1 for
            none; `left_out`, how many there was no room for.
        """
        writer = _Writer(origin)
        for fact in self._facts:
            writer.write(fact)
        return {
            "texts": list(writer.texts),
            "lines": [_place(location) for location in writer.lines],
            "entries": sorted(writer.entries, key=lambda entry: (entry["start"], -entry["seconds"])),
            "left_out": self.left_out,
        }


def _place(location: Location) -> dict[str, str | int]:
    return {"file": location.file, "line": location.line, "function": location.function}


class _Writer:
    """Writes facts as entries; texts and lines, which are the same again and again, by number."""

    def __init__(self, origin: int) -> None:
        self._origin = origin
        self.texts: dict[str, int] = {}
        self.lines: dict[Location, int] = {}
        self.entries: list[dict[str, Any]] = []

    def write(self, fact: Fact) -> None:
        if fact.__class__ is tuple:
            self._statement(cast(Statement, fact))
        elif isinstance(fact, Transaction):
            self._transaction(fact)
        elif isinstance(fact, Wait):
            self._add("wait", fact.started, fact.nanoseconds, fact.call_site, connection=abs(fact.checkout))

    def _statement(self, fact: Statement) -> None:
        fingerprint, started, finished, rows, load, error = fact[0], fact[4], fact[5], fact[6], fact[11], fact[14]
        elapsed = finished - started
        if isinstance(rows, RowCounter):
            elapsed += rows.nanoseconds
            rows = rows.rows
        self._add(
            "statement",
            started,
            elapsed,
            site_of(fact),
            text=self.texts.setdefault(fingerprint.text, len(self.texts)),
            rows=rows,
            connection=abs(fact[9]),
            transaction=max(0, fact[10]),
            load="" if load is None else _LOADS[load.kind],
            error=error,
        )

    def _transaction(self, fact: Transaction) -> None:
        if fact.serial < 0:  # autocommit: there was none
            return
        common = {"connection": abs(fact.checkout), "transaction": fact.serial}
        self._add(
            "transaction",
            fact.started,
            fact.finished - fact.started,
            fact.first,
            outcome=fact.outcome,
            statements=fact.statements,
            error=fact.error,
            **common,
        )
        self._add("commit", fact.finished - fact.ending, fact.ending, fact.last, outcome=fact.outcome, **common)
        if fact.gap >= SHORTEST_GAP:
            activity = main_activity(fact.meanwhile)
            self._add(
                "gap",
                fact.gap_started,
                fact.gap,
                activity.call_site or fact.gap_after,
                doing=doing_of(activity),
                **common,
            )

    def _add(self, kind: str, started: int, nanoseconds: int, site: CallSite | None, **further: Any) -> None:
        location = location_of(site)
        self.entries.append(
            {
                "kind": kind,
                "start": round((started - self._origin) / 1e9, 6),
                "seconds": round(nanoseconds / 1e9, 6),
                "line": -1 if location is None else self.lines.setdefault(location, len(self.lines)),
                **{key: value for key, value in further.items() if value not in ("", None)},
            }
        )
