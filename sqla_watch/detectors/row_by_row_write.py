from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about
from sqla_watch.facts import StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class RowByRowWriteWarning(SqlaWatchWarning):
    """Many rows were written one by one."""


class RowByRowWrite(Rule):
    """Many rows written one by one, or object by object, where one statement would do.

    ## What it sees
    INSERTs, UPDATEs and DELETEs of different rows that one line sends one after the other; a COMMIT for each row;
    and what a flush makes of thousands of tracked objects: rows that were loaded only to be deleted, or to be set all
    to the same values. A single `executemany` of very many rows is told, too.

    ## Why it costs
    Each statement is a round trip, each COMMIT waits for the disk, and each tracked object is loaded, compared and
    kept in memory. PostgreSQL changes ten thousand rows with one statement in the time of a few round trips.

    ## Example
    ```python
    for number in range(12):
        session.execute(insert(Rate).values(country=f"{number:02}", percent=20))
    ```

    ## Use instead
    ```python
    session.execute(insert(Rate), [{"country": f"{number:02}", "percent": 20} for number in range(12)])
    ```

    ## Thresholds
    `min_rows`: rows written one by one, or commits of one row each (development 10, test 10, production 50).
    `min_alike`: objects that one flush sets to the same values (development 200, test 200, production 1000).
    `min_deleted`: objects that one flush deletes (development 1000, test 1000, production 5000).
    `min_batch`: parameter sets of one executemany (development 10000, test 10000, production 50000).
    `min_seconds`: database seconds of all of them (production 0.05, else 0).

    ## How to silence it
    `with sqla_watch.ignore("row-by-row-write", "orders", reason="…"):` or `# sqla-watch: ignore[row-by-row-write]`.

    ## Limits
    What SQLAlchemy makes of one flush (single INSERTs where the database cannot return keys in order, single UPDATEs
    for a version counter) is not the application's doing. The same row changed again and again is progress being
    told; a statement that changes many rows is a batch, and a savepoint for each row is how those that fail are
    survived. Commits with much other work between them (a mail for each row) are as they must be. A transaction that
    reads, or writes more than one row, is a unit of work of its own. In a whole program or
    test, commits count only where they are of one session or connection.
    """

    id = "row-by-row-write"
    guide = (11,)
    warning = RowByRowWriteWarning
    reads = "writes"
    floor = ("min_rows", "min_alike", "min_deleted", "min_batch")
    thresholds: ClassVar = {
        "min_rows": Threshold(10, 10, 50, "rows written one by one"),
        "min_alike": Threshold(200, 200, 1_000, "objects set to the same values by one flush"),
        "min_deleted": Threshold(1_000, 1_000, 5_000, "objects deleted by one flush"),
        "min_batch": Threshold(10_000, 10_000, 50_000, "parameter sets of one executemany"),
        "min_seconds": Threshold(0.0, 0.0, 0.05, "database seconds of all of them"),
    }
    after = ("flush-storm",)

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and line."""
        for group in facts.groups:
            fingerprint = group.fingerprint
            if not fingerprint.writes or not fingerprint.tables or fingerprint.rekeys or group in context.claimed:
                continue
            if group.nanoseconds < context["min_seconds"] * 1e9:
                continue
            finding = self._judge(group, context)
            if finding is not None:
                yield Found(finding, (group,), group.ignores)

    def _judge(self, group: StatementGroup, context: Context) -> Finding | None:
        operation = group.fingerprint.operation
        table = group.fingerprint.tables[0]
        if group.most_in_unit >= context["min_rows"]:
            return self._finding(
                group,
                "commit for each row",
                f"{operation} on {table} was committed row by row, {group.most_in_unit} times in a row",
                {"commits": group.most_in_unit},
                "Commit once for all, or for each chunk of some hundred rows:\n" + _bulk(operation, table),
            )
        rows = len(group.values) + group.uncounted
        one_by_one = not group.flushed and group.checkouts == 1 and group.changed <= group.count
        in_savepoints = 2 * group.savepoints >= group.count  # one for each row, to survive those that fail
        if one_by_one and not in_savepoints and min(rows, group.count) >= context["min_rows"]:
            return self._finding(
                group,
                "statement for each row",
                f"{operation} on {table} was sent {group.count} times for {rows} different rows",
                {"different_rows": rows},
                "Send them at once:\n" + _bulk(operation, table),
            )
        deleted = max(group.most_sets, group.most_in_flush)
        if operation == "DELETE" and group.flushed and deleted >= context["min_deleted"]:
            return self._finding(
                group,
                "objects loaded to be deleted",
                f"{deleted} objects of {table} were loaded and deleted one by one",
                {"objects": deleted},
                "Delete them where they are, without loading them:\n" + _bulk(operation, table),
            )
        alike = max(
            group.most_alike, group.most_in_flush if len(group.assigned) == 1 and 0 not in group.assigned else 0
        )
        if operation == "UPDATE" and group.flushed and alike >= context["min_alike"]:
            return self._finding(
                group,
                "objects loaded to be changed alike",
                f"{alike} objects of {table} were loaded and all set to the same values",
                {"objects": alike},
                "Change them where they are, without loading them:\n" + _bulk(operation, table),
            )
        if group.most_sets >= context["min_batch"]:
            return self._finding(
                group,
                "one huge executemany",
                f"one executemany wrote {group.most_sets} rows of {table}",
                {"parameter_sets": group.most_sets},
                "Write in chunks of a few thousand, each with its COMMIT, or send the rows by COPY:\n"
                f'with cursor.copy("COPY {table} (...) FROM STDIN") as copy: copy.write_row(...)',
            )
        return None

    @staticmethod
    def _finding(group: StatementGroup, cause: str, message: str, evidence: dict[str, int], suggestion: str) -> Finding:
        return about(
            RowByRowWrite,
            group,
            severity=Severity.HIGH if "each row" in cause else Severity.MEDIUM,
            message=message,
            evidence={"cause": cause, **evidence},
            suggestion=suggestion,
        )


def _bulk(operation: str, table: str) -> str:
    """Return the form of a write that does it for many rows."""
    if operation == "INSERT":
        return f"session.execute(insert({table}), [{{...}} for row in rows])"
    if operation == "DELETE":
        return f"session.execute(delete({table}).where({table}.c.id.in_(ids)))  # or the condition itself"
    if operation == "UPDATE":
        return (
            f"session.execute(update({table}).where({table}.c.id.in_(ids)).values(...))  # where values are alike\n"
            f"session.execute(update(Class), [{{'id': ..., ...}} for row in rows])  # where not"
        )
    return "one statement with a list of rows"
