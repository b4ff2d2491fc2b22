from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about
from sqla_watch.facts import StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class UnreadRowsWarning(SqlaWatchWarning):
    """Rows were fetched that nobody read."""


class UnreadRows(Rule):
    """Rows that the database sent and the application never looked at.

    ## What it sees
    The rows that came with a result, against those that were taken out of it before it was closed or dropped:
    `.first()` on a query without LIMIT, `.scalar()` of a long result, a loop that breaks off.

    ## Why it costs
    PostgreSQL has found, sorted and sent all of them, and the driver holds them in memory, when the application takes
    the first one. With the ORM an object was made of each besides.

    ## Example
    ```python
    newest = session.scalars(select(Order).order_by(Order.placed_at.desc())).first()
    ```

    ## Use instead
    ```python
    newest = session.scalars(select(Order).order_by(Order.placed_at.desc()).limit(1)).first()
    ```

    ## Thresholds
    `min_rows`: rows of one statement that were not read (development 90, test 90, production 1000).
    `min_share`: their share of the rows that were fetched (0.9 in all).

    ## How to silence it
    `with sqla_watch.ignore("unread-rows", reason="…"):` or `# sqla-watch: ignore[unread-rows]`.

    ## Limits
    Results of fewer than 100 rows are not followed, nor are statements that lock rows or read from functions. Nor are
    server-side cursors and SQLite, which fetch only what they are asked for (of SQLite the ORM asks for every row all
    the same). A loop over a result of the ORM that breaks off is not seen: the ORM itself has read every row by then.
    An exception that is handled before the connection is returned looks like the end of the loop; a result that is
    handed to a function, which reads some rows of it, looks like an exception where nobody else holds it.
    """

    id = "unread-rows"
    guide = (14,)
    warning = UnreadRowsWarning
    reads = "unread"
    thresholds: ClassVar = {
        "min_rows": Threshold(90, 90, 1_000, "rows that were not read"),
        "min_share": Threshold(0.9, 0.9, 0.9, "their share of the rows fetched"),
    }

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and line."""
        for group in facts.groups:
            unread = group.most_unread
            if not group.fingerprint.asks:
                continue  # sent for its locks, or for what its functions do
            if unread >= max(context["min_rows"], 1) and unread >= context["min_share"] * group.unread_of:
                yield Found(self._finding(group), (group,), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup) -> Finding:
        fetched, unread = group.unread_of, group.most_unread
        return about(
            UnreadRows,
            group,
            severity=Severity.MEDIUM,
            message=f"{fetched} rows were fetched, and {fetched - unread} read ({group.fingerprint.summary})",
            evidence={"rows_fetched": fetched, "rows_read": fetched - unread, "rows": group.rows},
            suggestion=(
                "Ask for what is read: add .limit(1) (with an ORDER BY), or select(...).exists(); break off "
                "a long result only where it is streamed:\n.execution_options(yield_per=500)"
            ),
        )
