from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._pool import culprits, evidence_of, limit_of
from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, seconds, where
from sqla_watch.facts import Wait
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class PoolWaitWarning(SqlaWatchWarning):
    """Code had to wait for a connection of the pool."""


class PoolWait(Rule):
    """Time spent waiting for a connection because the pool had none left.

    ## What it sees
    The time from asking the pool for a connection to getting one, without the time to open a new one. Who had the
    connections when the wait had become that long is named by the line at which its thread or task was, with what
    that was doing.

    ## Why it costs
    Nothing happens while waiting, and whoever waits usually holds something else. A pool that is too small, or
    connections that are held for too long, turn a small load into a queue.

    ## Example
    ```python
    def report(number):
        with engine.connect() as connection:  # the pool has one connection
            connection.execute(text("SELECT pg_sleep(0.15)"))

    with ThreadPoolExecutor(3) as executor:
        list(executor.map(report, range(3)))
    ```

    ## Use instead
    ```python
    def report(number):
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_sleep(0.15)"))

    with ThreadPoolExecutor(1) as executor:  # no more at once than the pool has
        list(executor.map(report, range(3)))
    ```

    ## Thresholds
    `min_seconds`: seconds of one wait (development 0.1, test 0.1, production 0.1).

    ## How to silence it
    `with sqla_watch.ignore("pool-wait", reason="…"):` or `# sqla-watch: ignore[pool-wait]`.

    ## Limits
    Pools without a limit (`NullPool`, `StaticPool`) never wait. PgBouncer's own queue is not seen.
    """

    id = "pool-wait"
    guide = (17,)
    warning = PoolWaitWarning
    reads = "waits"
    after = ("nested-checkout", "pool-timeout", "pool-fanout")
    thresholds: ClassVar = {"min_seconds": Threshold(0.1, 0.1, 0.1, "seconds of one wait")}

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each line that waited."""
        by_site: dict[object, list[Wait]] = {}
        for wait in facts.waits:
            if wait.nanoseconds >= context["min_seconds"] * 1e9 and wait not in context.claimed:
                by_site.setdefault((wait.call_site, wait.ignores), []).append(wait)
        for waits in by_site.values():
            yield Found(self._finding(waits), waits, waits[0].ignores)

    @staticmethod
    def _finding(waits: list[Wait]) -> Finding:
        longest = max(waits, key=lambda wait: wait.nanoseconds)
        location = where(longest.call_site)
        related, who = culprits(longest)
        return Finding(
            rule=PoolWait.id,
            target=location.function if location else "checkout",
            severity=Severity.HIGH,
            message=(
                f"waited {longest.nanoseconds / 1e9:.1f} s for a connection: all {limit_of(longest)} of the pool "
                f"were taken{who}"
            ),
            location=location,
            evidence={
                "wait_seconds": seconds(longest.nanoseconds),
                "total_wait_seconds": seconds(sum(wait.nanoseconds for wait in waits)),
                "waits": len(waits),
                **evidence_of(longest),
            },
            suggestion=(
                "Return connections sooner (end transactions before slow work), or let no more tasks ask at once than "
                f"the pool has: pool_size={longest.pool_size}, max_overflow={longest.max_overflow}."
            ),
            related=related,
        )
