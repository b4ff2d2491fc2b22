from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.activities import doing_of, is_database, is_debugger, main_activity
from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, seconds, short, where
from sqla_watch.facts import Held
from sqla_watch.findings import Finding, RelatedLocation, Severity, SqlaWatchWarning


class ConnectionHeldWarning(SqlaWatchWarning):
    """A connection was kept out of the pool without need, or never returned."""


class ConnectionHeld(Rule):
    """A connection kept out of the pool far longer than it worked, or never returned.

    ## What it sees
    Connections that were out while no transaction was open and no statement ran: taken before slow work, or kept
    after a commit, in a request, task or job, or while others had to wait. And connections that are still out a
    second after the end of the request, task or job in which they were taken, when the function that took them is over.

    ## Why it costs
    A pool has few connections. One that is held without need makes others wait; one that is never returned is lost,
    until the last one is, and nobody gets any.

    ## Example
    ```python
    with engine.connect() as connection:
        time.sleep(1.2)  # asks another server
        connection.execute(select(Rate.country))
    ```

    ## Use instead
    ```python
    time.sleep(1.2)
    with engine.connect() as connection:
        connection.execute(select(Rate.country))
    ```

    ## Thresholds
    `min_seconds`: seconds out of the pool without a transaction or a statement (development 1.0, test 1.0,
    production 2.0).
    `max_worked_percent`: percent of its time in which it worked, up to which it was held without need (20 in all).

    ## How to silence it
    `with sqla_watch.ignore("connection-held", reason="…"):` around its return, or
    `# sqla-watch: ignore[connection-held]` on the line that took it.

    ## Limits
    Idle time inside of a transaction is `idle-in-transaction`'s. A connection with LISTEN, an advisory lock or a
    temporary table is kept on purpose. A connection that was never returned is told by itself, a second late: what
    is around a request may still return it.
    """

    id = "connection-held"
    guide = (17, 3)
    warning = ConnectionHeldWarning
    reads = "holdings"
    thresholds: ClassVar = {
        "min_seconds": Threshold(1.0, 1.0, 2.0, "seconds out of the pool without a transaction or a statement"),
        "max_worked_percent": Threshold(20, 20, 20, "percent of its time in which it worked, at most"),
    }

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each line that took such a connection."""
        by_line: dict[tuple[object, ...], list[Held]] = {}
        for held in facts.holdings:
            if held.kept:
                continue
            if not held.returned or (self._is_idle(held, context) and (facts.in_unit or held.waits)):
                by_line.setdefault((held.call_site, held.returned, held.ignores), []).append(held)
        for all_held in by_line.values():
            longest = max(all_held, key=lambda held: held.idle)
            finding = self._held(longest, len(all_held)) if longest.returned else self._left(longest, len(all_held))
            yield Found(finding, all_held, longest.ignores)

    @staticmethod
    def _is_idle(held: Held, context: Context) -> bool:
        length = held.finished - held.started
        if held.idle < context["min_seconds"] * 1e9 or held.worked * 100 > length * context["max_worked_percent"]:
            return False
        excused = sum(is_database(activity) or is_debugger(activity) for activity in held.meanwhile)
        return excused * 2 <= len(held.meanwhile)

    @staticmethod
    def _held(held: Held, count: int) -> Finding:
        location = where(held.call_site)
        activity = main_activity(held.meanwhile)
        meanwhile, what = where(activity.call_site), doing_of(activity)
        doing = ""
        if meanwhile is not None:
            doing = f"; meanwhile {what} at {short(meanwhile)}".replace("  ", " ")
        return Finding(
            rule=ConnectionHeld.id,
            target=location.function if location else "checkout",
            severity=Severity.HIGH if held.waits else Severity.MEDIUM,
            message=(
                f"a connection was held for {(held.finished - held.started) / 1e9:.1f} s and worked for "
                f"{held.worked / 1e9:.1f} s{doing}"
            ),
            location=location,
            evidence=_numbers(held, count),
            suggestion=(
                "Take the connection when it is needed and return it at once: open the session, or engine.connect(), "
                "after what needs no database, and close it before."
            ),
            related=()
            if meanwhile is None or meanwhile == location
            else (RelatedLocation(f"meanwhile {what}".strip(), meanwhile),),
        )

    @staticmethod
    def _left(held: Held, count: int) -> Finding:
        location = where(held.call_site)
        return Finding(
            rule=ConnectionHeld.id,
            target=location.function if location else "checkout",
            severity=Severity.HIGH,
            message=(
                f"a connection was not returned: taken {(held.finished - held.started) / 1e9:.1f} s ago by a function "
                "that is over"
            ),
            location=location,
            evidence=_numbers(held, count),
            suggestion="Use with Session(engine) as session: or with engine.connect() as connection:, or close it.",
        )


def _numbers(held: Held, count: int) -> dict[str, int | float | str | bool]:
    return {
        "held_seconds": seconds(held.finished - held.started),
        "worked_seconds": seconds(held.worked),
        "in_transactions_seconds": seconds(held.in_transactions),
        "longest_idle_seconds": seconds(held.idle),
        "connections": count,
        "waits_meanwhile": held.waits,
        "returned": held.returned,
    }
