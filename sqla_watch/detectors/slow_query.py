from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about, seconds
from sqla_watch.facts import StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class SlowQueryWarning(SqlaWatchWarning):
    """One statement took longer than it should."""


class SlowQuery(Rule):
    """One statement that took long by itself.

    ## What it sees
    The time of each statement in the driver: sending it, PostgreSQL's work, and the transfer of its rows.

    ## Why it costs
    Whoever waits for the statement waits that long, its connection and its locks are held meanwhile. Often the
    plan reads far more rows than the statement returns, because no index fits its filter and order.

    ## Example
    ```python
    session.execute(text("SELECT pg_sleep(0.6)"))
    ```

    ## Use instead
    ```python
    session.execute(text("SELECT 1"))
    ```

    ## Thresholds
    `min_seconds`: seconds of one statement (development 0.5, test 0.5, production 1.0).

    ## How to silence it
    `with sqla_watch.ignore("slow-query", reason="…"):` or `# sqla-watch: ignore[slow-query]`.

    ## Limits
    A statement can be slow because it waits for a lock, or because the machine is busy: the time is what the
    application saw. Of a streamed result the time of its fetches is counted, too. A statement that was cancelled is
    left to `database-error`.
    """

    id = "slow-query"
    guide = (8,)
    warning = SlowQueryWarning
    reads = "slowest statement"
    floor = ("min_seconds",)
    thresholds: ClassVar = {"min_seconds": Threshold(0.5, 0.5, 1.0, "seconds of one statement")}
    after = ("database-error",)

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and line."""
        shortest = context["min_seconds"] * 1e9
        for group in facts.groups:
            if group.slowest >= shortest and group not in context.claimed:
                yield Found(self._finding(group), (), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup) -> Finding:
        return about(
            SlowQuery,
            group,
            severity=Severity.MEDIUM,
            message=(
                f"a statement ({group.fingerprint.summary}) took {group.slowest / 1e9:.1f} s and returned "
                f"{group.most_rows} rows"
            ),
            evidence={
                "slowest_seconds": seconds(group.slowest),
                "rows": group.most_rows,
            },
            suggestion=(
                "Look at its plan with EXPLAIN (ANALYZE, BUFFERS): does an index serve its filter and its order, "
                "and does it return only what is needed?"
            ),
        )
