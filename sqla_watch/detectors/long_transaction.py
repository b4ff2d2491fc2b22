from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, seconds, where
from sqla_watch.facts import Transaction
from sqla_watch.findings import Finding, RelatedLocation, Severity, SqlaWatchWarning


class LongTransactionWarning(SqlaWatchWarning):
    """A transaction was kept open for long."""


class LongTransaction(Rule):
    """A transaction that was kept open for too long.

    ## What it sees
    The time from a transaction's first statement to the end of its COMMIT or ROLLBACK, split into time in the
    database, time of the COMMIT, and time in which the transaction sat idle while the code did something else.

    ## Why it costs
    An open transaction keeps its connection, its locks and its snapshot: others wait for the rows it changed,
    and VACUUM cannot remove what it could still see.

    ## Example
    ```python
    with Session(engine) as session:
        for number in range(1, 7):
            session.execute(text("SELECT pg_sleep(0.2)"))  # a report for each of six customers
        session.commit()
    ```

    ## Use instead
    ```python
    for number in range(1, 7):
        with Session(engine) as session:
            session.execute(text("SELECT pg_sleep(0.2)"))
            session.commit()
    ```

    ## Thresholds
    `min_seconds`: seconds from the first statement to the end (development 1.0, test 1.0, production 2.0).

    ## How to silence it
    `with sqla_watch.ignore("long-transaction", reason="…"):` around its end, or
    `# sqla-watch: ignore[long-transaction]` on the line of its first statement.

    ## Limits
    In autocommit there is no transaction. One that is long only because one statement is slow is left to
    `slow-query`; one that sat idle most of the time because of something else, to `idle-in-transaction`. A
    transaction is counted where it ends.
    """

    id = "long-transaction"
    guide = (3,)
    warning = LongTransactionWarning
    reads = "longest transaction"
    floor = ("min_seconds",)
    thresholds: ClassVar = {"min_seconds": Threshold(1.0, 1.0, 2.0, "seconds from the first statement to the end")}
    after = ("slow-query", "idle-in-transaction")

    _ONE_STATEMENT = 0.8  # share of the time from which on one slow statement explains the whole

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each line on which such a transaction began."""
        shortest = context["min_seconds"] * 1e9
        longest: dict[tuple[object, ...], Transaction] = {}
        counts: dict[tuple[object, ...], int] = {}
        for transaction in facts.transactions:
            length = transaction.finished - transaction.started
            if length < shortest or transaction.slowest > length * self._ONE_STATEMENT:
                continue
            if transaction in context.claimed:
                continue
            key: tuple[object, ...] = (transaction.first, transaction.last, transaction.ignores)
            counts[key] = counts.get(key, 0) + 1
            before = longest.get(key)
            if before is None or length > before.finished - before.started:
                longest[key] = transaction
        for key, transaction in longest.items():
            yield Found(self._finding(transaction, counts[key]), (transaction,), transaction.ignores)

    @staticmethod
    def _finding(transaction: Transaction, count: int) -> Finding:
        length = transaction.finished - transaction.started
        idle = max(0, length - transaction.database - transaction.ending)
        last = where(transaction.last)
        first = where(transaction.first)
        related = (RelatedLocation("last statement", last),) if last is not None and last != first else ()
        advice = "Commit in smaller pieces, or ask for less: it spent its time in the database."
        if idle > length // 2:
            advice = (
                "Do what needs no database before the transaction or after its commit: it sat idle for most of its time"
            )
            before, after = where(transaction.gap_after), where(transaction.gap_before)
            if before is not None and after is not None and 2 * transaction.gap > idle:
                advice += f", {transaction.gap / 1e9:.1f} s of it between {before} and {after}"
            advice += "."
        return Finding(
            rule=LongTransaction.id,
            target=first.function if first else "transaction",
            severity=Severity.HIGH if idle > length // 2 else Severity.MEDIUM,
            message=(
                f"a transaction stayed open for {length / 1e9:.1f} s, idle for {idle / 1e9:.1f} s of it "
                f"(ended by {transaction.outcome})"
            ),
            location=first,
            evidence={
                "transaction_seconds": seconds(length),
                "database_seconds": seconds(transaction.database),
                "ending_seconds": seconds(transaction.ending),
                "idle_seconds": seconds(idle),
                "longest_gap_seconds": seconds(transaction.gap),
                "statements": transaction.statements,
                "transactions": count,
                "outcome": transaction.outcome,
            },
            suggestion=advice,
            related=related,
            statements=transaction.statements,
            database_seconds=seconds(transaction.database + transaction.ending),
        )
