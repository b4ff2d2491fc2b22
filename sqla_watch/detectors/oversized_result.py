from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about
from sqla_watch.facts import LoadKind, StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class OversizedResultWarning(SqlaWatchWarning):
    """One statement returned more rows than a request should need."""


class OversizedResult(Rule):
    """One statement that returned a very large number of rows at once.

    ## What it sees
    The rows which a single SELECT, or a RETURNING, brought to the application in one piece, and whether the
    statement had a LIMIT.

    ## Why it costs
    PostgreSQL reads and sends them, the driver keeps them all in memory, and SQLAlchemy makes an object of each,
    before the first one is used. The number grows with the table.

    ## Example
    ```python
    items = session.scalars(select(Item)).all()
    ```

    ## Use instead
    ```python
    for item in session.scalars(select(Item).execution_options(yield_per=500)):
        ...
    ```

    ## Thresholds
    `min_rows`: rows of one statement (development 5000, test 5000, production 10000).

    ## How to silence it
    `with sqla_watch.ignore("oversized-result", reason="…"):` or `# sqla-watch: ignore[oversized-result]`.

    ## Limits
    Results that are streamed (`yield_per`, `stream_results`) hold few rows at a time and are silent. Rows that an
    eager load of the same query brings in chunks are not added up. A result that was hardly read is `unread-rows`.
    """

    id = "oversized-result"
    guide = (14,)
    warning = OversizedResultWarning
    reads = "rows of a statement"
    floor = ("min_rows",)
    thresholds: ClassVar = {"min_rows": Threshold(5_000, 5_000, 10_000, "rows of one statement")}
    after = ("unread-rows",)

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and line."""
        least = context["min_rows"]
        for group in facts.groups:
            if group.most_rows < least or group in context.claimed:
                continue
            if not group.streamed and group.kind is not LoadKind.EAGER:
                yield Found(self._finding(group), (group,), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup) -> Finding:
        limited = group.fingerprint.limited
        advice = (
            "Lower its LIMIT, or stream"
            if limited
            else "Ask for the rows you need: filter, add .limit(...) with an ORDER BY, or stream"
        )
        return about(
            OversizedResult,
            group,
            severity=Severity.MEDIUM,
            message=(
                f"one statement ({group.fingerprint.summary}) returned {group.most_rows} rows "
                f"{'in spite of its LIMIT' if limited else 'and has no LIMIT'}"
            ),
            evidence={
                "rows": group.most_rows,
                "has_limit": limited,
            },
            suggestion=f"{advice} the result in pieces:\n.execution_options(yield_per=500)",
        )
