from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._pool import culprits, evidence_of, limit_of
from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, seconds, where
from sqla_watch.facts import Wait
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class PoolFanoutWarning(SqlaWatchWarning):
    """More tasks asked for a connection at once than the pool has."""


class PoolFanout(Rule):
    """More concurrent tasks than the pool can serve.

    ## What it sees
    asyncio tasks of one scope that wait for a connection at the same time and at the same line: `asyncio.gather` or
    a `TaskGroup` over more things than the pool has connections.

    ## Why it costs
    The tasks beyond the pool's limit gain nothing: they queue, hold what they hold already, and whatever else needs
    a connection queues behind them, until `pool_timeout` ends some of them.

    ## Example
    ```python
    async def total(number):
        async with AsyncSession(async_engine) as session:  # the pool has two connections
            await session.execute(text("SELECT pg_sleep(0.1)"))

    async def report():
        await asyncio.gather(*(total(number) for number in range(8)))

    asyncio.run(report())
    ```

    ## Use instead
    ```python
    limit = asyncio.Semaphore(2)  # as many as the pool has

    async def total(number):
        async with limit, AsyncSession(async_engine) as session:
            await session.execute(text("SELECT pg_sleep(0.1)"))

    async def report():
        await asyncio.gather(*(total(number) for number in range(8)))

    asyncio.run(report())
    ```

    ## Thresholds
    `min_tasks`: tasks that waited at the same moment (3 in all).
    `min_seconds`: seconds of the longest of their waits (development 0.1, test 0.1, production 0.1).

    ## How to silence it
    `with sqla_watch.ignore("pool-fanout", reason="…"):` or `# sqla-watch: ignore[pool-fanout]`.

    ## Limits
    Of one scope; without any scope each connection is one of its own. Threads are `pool-wait`'s.
    """

    id = "pool-fanout"
    guide = (18, 17)
    warning = PoolFanoutWarning
    reads = "waits"
    thresholds: ClassVar = {
        "min_tasks": Threshold(3, 3, 3, "tasks that waited at the same moment"),
        "min_seconds": Threshold(0.1, 0.1, 0.1, "seconds of the longest of their waits"),
    }
    after = ("nested-checkout",)

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each line at which so many tasks waited."""
        by_site: dict[tuple[object, ...], list[Wait]] = {}
        for wait in facts.waits:
            if wait.is_task and wait not in context.claimed:
                by_site.setdefault((wait.call_site, wait.ignores), []).append(wait)
        for waits in by_site.values():
            most = _most_at_once(waits)
            longest = max(waits, key=lambda wait: wait.nanoseconds)
            if most >= context["min_tasks"] and longest.nanoseconds >= context["min_seconds"] * 1e9:
                yield Found(self._finding(waits, longest, most), waits, longest.ignores)

    @staticmethod
    def _finding(waits: list[Wait], longest: Wait, most: int) -> Finding:
        location = where(longest.call_site)
        related, who = culprits(longest, without=location)
        limit = limit_of(longest)
        timeouts = sum(wait.timed_out for wait in waits)
        failed = f", {timeouts} of them in vain" if timeouts else ""
        return Finding(
            rule=PoolFanout.id,
            target=location.function if location else "checkout",
            severity=Severity.HIGH if timeouts else Severity.MEDIUM,
            message=(
                f"{limit + most} tasks asked for a connection at once, and the pool has {limit}: {most} waited, up to "
                f"{longest.nanoseconds / 1e9:.1f} s{failed}{who}"
            ),
            location=location,
            evidence={
                "tasks": limit + most,
                "waiting_at_once": most,
                "waits": len(waits),
                "wait_seconds": seconds(longest.nanoseconds),
                "total_wait_seconds": seconds(sum(wait.nanoseconds for wait in waits)),
                "timeouts": timeouts,
                **evidence_of(longest),
            },
            suggestion=(
                f"Let no more run at once than the pool can serve: asyncio.Semaphore({limit}) or less around what "
                "needs a connection, so that other requests find one, too."
            ),
            related=related,
        )


def _most_at_once(waits: list[Wait]) -> int:
    """Return how many of these waits, of different tasks, there were at the same moment, at most."""
    moments = sorted([(wait.started, 1) for wait in waits] + [(wait.started + wait.nanoseconds, -1) for wait in waits])
    most = now = 0
    for _, step in moments:
        now += step
        most = max(most, now)
    return min(most, len({wait.owner for wait in waits}))
