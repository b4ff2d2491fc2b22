from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about, seconds, where
from sqla_watch.facts import SessionEvent, SessionUse, StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class LargeIdentityMapWarning(SqlaWatchWarning):
    """A session held thousands of objects."""


class LargeIdentityMap(Rule):
    """A session that holds thousands of objects.

    ## What it sees
    The number of objects in a session's identity map when it commits and when it is closed. An object is there as
    long as the application has a reference to it.

    ## Why it costs
    Each object is a kilobyte or more with its state; every commit expires all of them, every flush looks through
    those that were touched, and the garbage collector visits all again and again.

    ## Example
    ```python
    items = []
    for first in range(1, 401, 100):
        items += session.scalars(select(Item).where(Item.id >= first, Item.id < first + 100))
    session.close()
    ```

    ## Use instead
    ```python
    for first in range(1, 401, 100):
        for item in session.scalars(select(Item).where(Item.id >= first, Item.id < first + 100)):
            ...
    session.close()
    ```

    ## Thresholds
    `min_objects`: objects in one session (development 5000, test 5000, production 10000).

    ## How to silence it
    `with sqla_watch.ignore("large-identity-map", reason="…"):`.

    ## Limits
    Fewer than 1,000 objects are never told. A session that neither commits nor is closed is not looked at. Where one
    statement brought most of the objects, `oversized-result` names it, and this rule keeps silent.
    """

    id = "large-identity-map"
    guide = (7,)
    warning = LargeIdentityMapWarning
    reads = "sessions"
    thresholds: ClassVar = {"min_objects": Threshold(5_000, 5_000, 10_000, "objects in one session")}
    after = ("oversized-result",)

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for the fullest session."""
        for use in facts.sessions:
            if use.event is not SessionEvent.HELD or use.objects < context["min_objects"]:
                continue
            loads = [group for group in facts.groups if group.fingerprint.entities]
            largest = max(loads, key=lambda group: group.rows, default=None)
            if any(group in context.claimed and 2 * group.most_rows >= use.objects for group in loads):
                continue
            yield Found(self._finding(use, largest), (), use.ignores if largest is None else largest.ignores)

    @staticmethod
    def _finding(use: SessionUse, largest: StatementGroup | None) -> Finding:
        message = f"a session held {use.objects} objects"
        shape = None if largest is None else largest.fingerprint.shape
        owner = "Class" if shape is None else shape.owner
        suggestion = (
            "Let go of what is done: keep values instead of objects, read in pieces\n"
            f".execution_options(yield_per=500)\nor select the columns that are needed: select({owner}.id, {owner}....)"
        )
        if largest is None:
            return Finding(
                rule=LargeIdentityMap.id,
                target="Session",
                severity=Severity.MEDIUM,
                message=message,
                location=where(use.call_site),
                evidence={"objects": use.objects},
                suggestion=suggestion,
            )
        return about(
            LargeIdentityMap,
            largest,
            target="Session",
            severity=Severity.MEDIUM,
            message=f"{message}, most of them from {largest.count} statements here",
            evidence={"objects": use.objects, "rows": largest.rows, "seconds": seconds(largest.nanoseconds)},
            suggestion=suggestion,
        )
