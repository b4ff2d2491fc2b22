from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, is_query, seconds, where
from sqla_watch.facts import StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class QueryInLoopWarning(SqlaWatchWarning):
    """The same SELECT was sent again and again with different values."""


class QueryInLoop(Rule):
    """The same statement from the same line, again and again, with different values.

    ## What it sees
    A SELECT in a loop: `session.get` for each id of a list, a Core `execute` for each row of another result, a
    helper function that is called once per element. Counted are different values on one line (and the lines that
    call it) during one checkout of a connection.

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
    the same time are not a loop. Statements without a table (calls of functions) cannot be asked at once.
    Relationship and column loads have rules of their own.
    """

    id = "query-in-loop"
    guide = (4,)
    warning = QueryInLoopWarning
    thresholds: ClassVar = {
        "min_values": Threshold(5, 5, 10, "different values"),
        "min_seconds": Threshold(0.0, 0.0, 0.05, "database seconds of all of them"),
    }
    after = ("n-plus-one",)

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and call path."""
        for group in facts.groups:
            if not is_query(group) or group.fingerprint.locks or not group.fingerprint.tables:
                continue
            values = len(group.values) + group.uncounted
            if values < context["min_values"] or group.overlapping > group.count // 2:
                continue
            if group.nanoseconds < context["min_seconds"] * 1e9:
                continue
            yield Found(self._finding(group, values), (group,), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup, values: int) -> Finding:
        fingerprint = group.fingerprint
        table = fingerprint.tables[0] if fingerprint.tables else "the table"
        return Finding(
            rule=QueryInLoop.id,
            target=fingerprint.summary,
            severity=Severity.HIGH,
            message=(
                f"the same SELECT on {table} was sent {group.count} times with {values} different values "
                f"({group.rows} rows together)"
            ),
            location=where(group.call_site),
            evidence={
                "statements": group.count,
                "different_values": values,
                "rows": group.rows,
                "database_seconds": seconds(group.nanoseconds),
            },
            suggestion=(
                "Ask for all values at once, outside of the loop:\n"
                f"select(...).where({_column(fingerprint.text, table)}.in_(values))"
            ),
            statement=fingerprint.text,
            statements=group.count,
            database_seconds=seconds(group.nanoseconds),
        )


def _column(text: str, table: str) -> str:
    """Return the column after WHERE as `table.c.column`, for the suggestion."""
    _, found, condition = text.partition(" WHERE ")
    words = condition.split()
    if not found or len(words) < 2 or words[1] != "=":
        return f"{table}.c.column"
    return f"{table}.c.{words[0].rpartition('.')[2].strip(chr(34))}"
