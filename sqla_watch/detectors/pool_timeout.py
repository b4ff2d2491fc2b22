from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._pool import culprits, evidence_of, limit_of
from sqla_watch.detectors._rule import Context, Facts, Found, Rule, seconds, where
from sqla_watch.facts import HolderState, Wait
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class PoolTimeoutWarning(SqlaWatchWarning):
    """The pool's limit was reached, and code got no connection."""


class PoolTimeout(Rule):
    """The pool's limit reached: a request for a connection that was in vain.

    ## What it sees
    `QueuePool limit of size … overflow … reached`, at the line that asked; and who had the connections at that
    moment: the line, since when, working or idle in a transaction, and what their code was doing. The exception gets
    a note that says the same.

    ## Why it costs
    A request has waited for half a minute (`pool_timeout`), and failed. The others wait in the same queue.

    ## Example
    ```python
    forgotten = engine.connect()  # the pool has one connection, and nobody gives it back

    def handle():
        with engine.connect() as connection:
            return connection.scalars(select(Rate.country)).all()

    with ThreadPoolExecutor() as threads:
        threads.submit(handle)  # another request, which fails
    forgotten.close()
    ```

    ## Use instead
    ```python
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))

    def handle():
        with engine.connect() as connection:
            return connection.scalars(select(Rate.country)).all()

    with ThreadPoolExecutor() as threads:
        threads.submit(handle)
    ```

    ## Thresholds
    None: one is one too many.

    ## How to silence it
    `with sqla_watch.ignore("pool-timeout", reason="…"):` or `# sqla-watch: ignore[pool-timeout]`.

    ## Limits
    A request that was in vain because its own thread or task had the connection is `nested-checkout`'s.
    Connections that PostgreSQL itself, or PgBouncer, refuses are errors of the database and not of the pool.
    """

    id = "pool-timeout"
    guide = (17,)
    warning = PoolTimeoutWarning
    reads = "waits"
    thresholds: ClassVar = {}
    after = ("nested-checkout", "pool-fanout")

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each line that got none."""
        by_site: dict[object, list[Wait]] = {}
        for wait in facts.waits:
            if wait.timed_out and wait not in context.claimed:
                by_site.setdefault((wait.call_site, wait.ignores), []).append(wait)
        for waits in by_site.values():
            yield Found(self._finding(waits), waits, waits[0].ignores)

    @staticmethod
    def _finding(waits: list[Wait]) -> Finding:
        worst = max(waits, key=lambda wait: wait.nanoseconds)
        location = where(worst.call_site)
        related, who = culprits(worst)
        left = sum(holder.state is HolderState.LEFT for holder in worst.holders)
        idle = sum(holder.state is HolderState.IDLE_IN_TRANSACTION for holder in worst.holders)
        waiting = sum(holder.state is HolderState.WAITING for holder in worst.holders)
        working = sum(holder.state is HolderState.WORKING for holder in worst.holders)
        if left:
            advice = f"Return connections: {left} of them had been taken by functions that are over. Use with blocks."
        elif idle >= working and idle >= waiting:
            advice = "End transactions before slow work: most of those who had a connection did nothing with it."
        elif waiting > working:
            advice = (
                "Let nobody ask for a second connection while holding one: those who had the connections waited for "
                "another."
            )
        else:
            advice = (
                "Make the statements faster that had the connections, or let fewer run at once; only then a larger "
                f"pool: pool_size={worst.pool_size}, max_overflow={worst.max_overflow}."
            )
        return Finding(
            rule=PoolTimeout.id,
            target=location.function if location else "checkout",
            severity=Severity.HIGH,
            message=(
                f"waited {worst.nanoseconds / 1e9:.1f} s for a connection and got none: all {limit_of(worst)} of the "
                f"pool were taken{who}"
            ),
            location=location,
            evidence={
                "wait_seconds": seconds(worst.nanoseconds),
                "timeouts": len(waits),
                **evidence_of(worst),
            },
            suggestion=advice,
            related=related,
        )
