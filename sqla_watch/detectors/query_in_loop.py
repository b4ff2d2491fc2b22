from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about, is_query
from sqla_watch.facts import StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class QueryInLoopWarning(SqlaWatchWarning):
    """The same SELECT was sent again and again with different values."""


class QueryInLoop(Rule):
    """The same statement from the same line, again and again, with different values.

    ## What it sees
    A SELECT in a loop: `session.get` for each id of a list, a Core `execute` for each row of another result, a
    helper function that is called once per element. Counted are different values on one line (and the lines that
    call it) during one checkout of a connection; and also over many connections where a helper gets one of its own
    for each call to send this one statement.

    ## Why it costs
    Each is a round trip, and each is planned and executed for itself; one statement for all values gives
    PostgreSQL one plan, one pass over the index, and the application one wait.

    ## Example
    ```python
    for customer_id in customer_ids:
        session.get(Customer, customer_id)
    ```

    ## Use instead
    ```python
    customers = session.scalars(select(Customer).where(Customer.id.in_(customer_ids))).all()
    ```

    ## Thresholds
    `min_values`: different values (development 5, test 5, production 10).
    `min_seconds`: database seconds of all of them (production 0.05, else 0).

    ## How to silence it
    `with sqla_watch.ignore("query-in-loop", reason="…"):` around the loop, or
    `# sqla-watch: ignore[query-in-loop]` on its line.

    ## Limits
    A walk over pages (OFFSET), over ranges (`id > …`, BETWEEN), or over chunks of an IN list of 50 and more
    values is how large results are read, and silent: only its other values are compared. Statements that ran at
    the same time are not a loop. A transaction that writes, or sends more than one statement, is a unit of work of
    its own, and a whole program or test is no loop over connections. Statements without a table (calls
    of functions) cannot be asked at once.
    Relationship and column loads have rules of their own.
    """

    id = "query-in-loop"
    guide = (4,)
    warning = QueryInLoopWarning
    reads = "statements of a group"
    floor = ("min_values",)
    thresholds: ClassVar = {
        "min_values": Threshold(5, 5, 10, "different values"),
        "min_seconds": Threshold(0.0, 0.0, 0.05, "database seconds of all of them"),
    }
    after = ("n-plus-one",)

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and call path."""
        least = context["min_values"]
        for group in facts.groups:
            if group.count < least:  # most are: no more is asked of them
                continue
            if not is_query(group) or group.fingerprint.locks or not group.fingerprint.tables:
                continue
            values = len(group.values) + group.uncounted
            if values < least or group.overlapping:
                continue
            if group.nanoseconds < context["min_seconds"] * 1e9:
                continue
            yield Found(self._finding(group, values), (group,), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup, values: int) -> Finding:
        fingerprint = group.fingerprint
        table = fingerprint.tables[0]
        connections = f", over {group.checkouts} connections" if group.checkouts > 1 else ""
        return about(
            QueryInLoop,
            group,
            severity=Severity.HIGH,
            message=(
                f"the same SELECT on {table} was sent {group.count} times with {values} different values"
                f"{connections} ({group.rows} rows together)"
            ),
            evidence={
                "different_values": values,
                "connections": group.checkouts,
                "rows": group.rows,
            },
            suggestion=_suggestion(group, table),
        )


def _suggestion(group: StatementGroup, table: str) -> str:
    """Return how to ask once: with IN where one column is compared, else in words."""
    fingerprint = group.fingerprint
    if fingerprint.key_column and not fingerprint.limited:
        return (
            "Ask for all values at once, outside of the loop:\n"
            f"select(...).where({table}.c.{fingerprint.key_column}.in_(values))"
        )
    if fingerprint.limited:
        return (
            "Ask for all values at once, outside of the loop: its LIMIT is for each value, so take "
            "DISTINCT ON, row_number(), or a join with LATERAL."
        )
    return (
        "Ask for all values at once, outside of the loop: join what the loop runs over, or compare with a list by "
        "tuple_(...).in_(values)."
    )
