"""Everything that a run has seen, in bounded room: closed scopes flow in, what a report tells flows out.

The same finding from many scopes is kept once, with sums. Of the scopes the ones most worth a look are kept, the
others are counted.
"""

from __future__ import annotations

import gc
import heapq
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from math import inf
from typing import Any

from sqla_watch.findings import Finding
from sqla_watch.reporters.terminal import Told, cost_seconds, worst_first
from sqla_watch.scopes import Scope, current

__all__ = ["CommandScope", "Summary", "Totals", "entered", "open_scopes"]

MOST_SCOPES = 1_000
"""Scopes that are kept; about 2 kB each, and 1 kB for each of their findings."""
MOST_FINDINGS = 2_000
"""Different findings that are kept; about 2 kB each."""
MOST_MOMENTS = 50_000
"""Statements, waits and transactions that are kept one by one, in all scopes together; about 300 bytes each."""
MOST_FINDINGS_OF_SCOPE = 100
"""Findings of one kept scope that are kept with it."""


class CommandScope(Scope):
    """The scope of a whole run: takes the numbers of the scopes inside of it, but not their findings.

    They are told by the scopes which found them. A server that runs for days would keep them all otherwise.
    """

    __slots__ = ()

    def add_inner(self, inner: Scope, findings: list[Finding]) -> None:
        """Take over the totals of a scope inside this one."""
        super().add_inner(inner, [])


@contextmanager
def entered(scope: Scope) -> Iterator[Scope]:
    """Open a scope for a block and close it without telling anybody: its findings are for a report."""
    token = current.set(scope)
    try:
        yield scope
    finally:
        current.reset(token)
        scope.close()


def open_scopes() -> list[Scope]:
    """Return the scopes that are still open in this process, innermost first.

    Such is the implicit scope of a connection that was never returned to its pool.
    """
    found = [each for each in gc.get_objects() if issubclass(type(each), Scope) and not each.closed]
    return sorted(found, key=lambda scope: -scope.started)


@dataclass(slots=True)
class Totals:
    """The numbers of a whole run, each statement counted once. Times are seconds."""

    scopes: int = 0
    statements: int = 0
    rows: int = 0
    errors: int = 0
    database_seconds: float = 0.0
    commit_seconds: float = 0.0
    wait_seconds: float = 0.0
    held_seconds: float = 0.0
    connect_seconds: float = 0.0
    connections: int = 0
    transactions: int = 0
    dropped: int = 0

    def add(self, scope: Scope) -> None:
        """Add the numbers of a scope that is in no other."""
        for name in self.__slots__:
            if name == "dropped":
                self.dropped += scope.totals.dropped
            elif name != "scopes":
                setattr(self, name, getattr(self, name) + getattr(scope, name))

    def to_dict(self) -> dict[str, int | float]:
        """Return the numbers as the JSON report has them."""
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(slots=True)
class _Merged:
    """One finding and those alike, added up."""

    finding: Finding
    scopes: int = 0
    statements: int = 0
    database_seconds: float = 0.0
    seconds: float = 0.0

    def add(self, finding: Finding) -> None:
        self.statements += finding.statements
        self.database_seconds += finding.database_seconds
        self.seconds += cost_seconds(finding)
        if cost_seconds(finding) > cost_seconds(self.finding):
            self.finding = finding

    def told(self) -> Told:
        return Told(self.finding, self.scopes, self.statements, self.database_seconds, self.seconds)


class Summary:
    """Adds up closed scopes, from any thread. `add` is what a watch's `reporters` take."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.findings_left_out = 0
        # A connection may come back to its pool, and close a scope, while the garbage collector runs in here.
        self._lock = threading.RLock()
        self._merged: dict[tuple[str, ...], _Merged] = {}
        self._inner: dict[Scope, set[int]] = {}
        self._kept: list[tuple[tuple[float, float], int, dict[str, Any]]] = []
        self._order = count()
        self._room = MOST_MOMENTS

    def add(self, scope: Scope) -> None:
        """Take a scope that was closed."""
        with self._lock:
            own = self._own_findings(scope)
            self._merge(own)
            self._keep(scope, len(own))
            self.totals.scopes += 1
            if scope.parent is None or scope.parent.closed:
                self.totals.add(scope)

    @property
    def findings(self) -> list[Told]:
        """What was found, the same only once, worst first."""
        with self._lock:
            return worst_first([merged.told() for merged in self._merged.values()])

    @property
    def scopes(self) -> list[dict[str, Any]]:
        """The scopes that were kept, as `Scope.to_dict` has them, in the order in which they were opened."""
        with self._lock:
            return [scope for _, _, scope in sorted(self._kept, key=lambda kept: kept[2]["started_at"])]

    @property
    def scopes_left_out(self) -> int:
        """How many scopes there was no room for."""
        return self.totals.scopes - len(self._kept)

    def _own_findings(self, scope: Scope) -> list[Finding]:
        """Return what was found in a scope itself: those inside of it have told theirs already."""
        findings = scope.findings
        told = self._inner.pop(scope, set())
        parent = scope.parent
        if findings and parent is not None and not parent.closed and not isinstance(parent, CommandScope):
            # The parent holds these very objects until it is closed, so that their ids stay theirs.
            self._inner.setdefault(parent, set()).update(id(finding) for finding in findings)
        return [finding for finding in findings if id(finding) not in told]

    def _merge(self, findings: list[Finding]) -> None:
        """Add findings to those alike; one scope may have the same several times."""
        here: dict[tuple[str, ...], _Merged] = {}
        for finding in findings:
            merged = self._merged.get(finding.key)
            if merged is None:
                if len(self._merged) >= MOST_FINDINGS:
                    self.findings_left_out += 1
                    continue
                merged = self._merged[finding.key] = _Merged(finding)
            merged.add(finding)
            here[finding.key] = merged
        for merged in here.values():
            merged.scopes += 1

    def _keep(self, scope: Scope, findings: int) -> None:
        """Keep a scope if it is among those with the most findings or, of these, the longest."""
        weight = (inf if isinstance(scope, CommandScope) else findings, scope.duration_seconds)
        if len(self._kept) < MOST_SCOPES:
            heapq.heappush(self._kept, (weight, next(self._order), self._trimmed(scope)))
        elif weight > self._kept[0][0]:
            *_, gone = heapq.heapreplace(self._kept, (weight, next(self._order), self._trimmed(scope)))
            self._room += _moments(gone)

    def _trimmed(self, scope: Scope) -> dict[str, Any]:
        """Return a scope's report, cut to what there is room for."""
        report = scope.to_dict()
        del report["findings"][MOST_FINDINGS_OF_SCOPE:]
        moments = _moments(report)
        if moments > self._room:
            del report["timeline"]
        else:
            self._room -= moments
        return report


def _moments(report: dict[str, Any]) -> int:
    """Return how many statements, waits and transactions a scope's report has one by one."""
    return len(report["timeline"]["entries"]) if "timeline" in report else 0
