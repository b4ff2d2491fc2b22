from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.activities import doing_of, is_database, is_debugger, main_activity, name_of
from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, seconds, short, where
from sqla_watch.facts import Activity, Transaction
from sqla_watch.findings import Finding, Location, RelatedLocation, Severity, SqlaWatchWarning


class IdleInTransactionWarning(SqlaWatchWarning):
    """A transaction sat idle while the code did something else."""


class IdleInTransaction(Rule):
    """A transaction that sat idle while the code did something else.

    ## What it sees
    The longest time between two statements of a transaction, or between the last one and its end; the lines around
    it; and what the thread or task that has the connection was doing meanwhile, as far as the watchdog has looked.

    ## Why it costs
    PostgreSQL waits, and holds for the waiting: row locks that others queue for, the snapshot that keeps VACUUM from
    cleaning up, and a connection that nobody else can use. A slow partner's server then stops the whole application.

    ## Example
    ```python
    with Session(engine) as session:
        order = session.get(Order, 1, with_for_update=True)
        time.sleep(0.8)  # asks the payment provider
        order.status = "paid"
        session.commit()
    ```

    ## Use instead
    ```python
    time.sleep(0.8)
    with Session(engine) as session:
        session.get(Order, 1, with_for_update=True).status = "paid"
        session.commit()
    ```

    ## Thresholds
    `min_seconds`: seconds of the longest time without a statement (development 0.5, test 0.5, production 1.0).

    ## How to silence it
    `with sqla_watch.ignore("idle-in-transaction", reason="…"):` around its end, or
    `# sqla-watch: ignore[idle-in-transaction]` on the line of the statement before.

    ## Limits
    Told when the transaction ends; until then `watch.snapshot()` shows it. What was done is known of threads and
    asyncio tasks, not of gevent's greenlets. Work in the driver itself (COPY) is not idle, nor is a debugger's stop,
    nor what was typed into a prompt. In autocommit there is no transaction; waiting for a connection of a pool is left
    to the rules about pools.
    """

    id = "idle-in-transaction"
    guide = (3,)
    warning = IdleInTransactionWarning
    reads = "longest gap"
    floor = ("min_seconds",)
    thresholds: ClassVar = {"min_seconds": Threshold(0.5, 0.5, 1.0, "seconds of the longest time without a statement")}

    _EXPLAINS = 0.5  # share of a transaction's time from which on this is all that there is to say of its length

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each pair of lines with such a time between them."""
        shortest = context["min_seconds"] * 1e9
        longest: dict[tuple[object, ...], Transaction] = {}
        counts: dict[tuple[object, ...], int] = {}
        explained: dict[tuple[object, ...], list[Transaction]] = {}
        for transaction in facts.transactions:
            if transaction.gap < shortest or _was_excused(transaction, facts):
                continue
            key: tuple[object, ...] = (transaction.gap_after, transaction.gap_before, transaction.ignores)
            counts[key] = counts.get(key, 0) + 1
            if key not in longest or transaction.gap > longest[key].gap:
                longest[key] = transaction
            if _idle(transaction) > (transaction.finished - transaction.started) * self._EXPLAINS:
                explained.setdefault(key, []).append(transaction)
        for key, transaction in longest.items():
            yield Found(self._finding(transaction, counts[key]), explained.get(key, ()), transaction.ignores)

    @staticmethod
    def _finding(transaction: Transaction, count: int) -> Finding:
        idle, length = _idle(transaction), transaction.finished - transaction.started
        before, after = where(transaction.gap_after), where(transaction.gap_before)
        activity = main_activity(transaction.meanwhile)
        meanwhile, what = where(activity.call_site), doing_of(activity)
        most = "" if transaction.gap > idle * 0.9 else f", the longest time {transaction.gap / 1e9:.1f} s"
        doing = ""
        if meanwhile is not None:
            doing = f"; meanwhile {what} at {short(meanwhile)}".replace("  ", " ")
        related = [
            RelatedLocation(role, place)
            for role, place in (
                (f"meanwhile {what}".strip(), meanwhile),
                ("next statement, or its end", after),
            )
            if place is not None and place != before
        ]
        return Finding(
            rule=IdleInTransaction.id,
            target=before.function if before else "transaction",
            severity=Severity.HIGH,
            message=(
                f"transaction idle for {idle / 1e9:.1f} s of {length / 1e9:.1f} s{most} "
                f"between {short(before)} and {'its end' if after is None else short(after)}{doing}"
            ),
            location=before,
            evidence={
                "idle_seconds": seconds(idle),
                "longest_gap_seconds": seconds(transaction.gap),
                "transaction_seconds": seconds(length),
                "database_seconds": seconds(transaction.database),
                "ending_seconds": seconds(transaction.ending),
                "statements": transaction.statements,
                "transactions": count,
                "wrote": transaction.wrote,
                "outcome": transaction.outcome,
                "meanwhile": what,
                "looks": len(transaction.meanwhile),
            },
            suggestion=_advice(transaction, name_of(activity), meanwhile),
            related=tuple(related),
            statements=transaction.statements,
            database_seconds=seconds(transaction.database + transaction.ending),
        )


def _idle(transaction: Transaction) -> int:
    """Return the nanoseconds in which neither a statement nor its end was running."""
    return max(0, transaction.finished - transaction.started - transaction.database - transaction.ending)


def _was_excused(transaction: Transaction, facts: Facts) -> bool:
    """Whether the database worked without SQLAlchemy, a person took the time, or it waited for another connection."""
    waited = sum(
        wait.nanoseconds
        for wait in facts.waits
        if wait.owner == transaction.owner and 0 <= wait.started - transaction.gap_started < transaction.gap
    )
    if waited * 2 > transaction.gap:
        return True
    site = transaction.gap_after
    if site is not None and site.code.co_filename.startswith("<"):  # typed into a prompt
        return True
    seen: tuple[Activity, ...] = transaction.meanwhile
    excused = sum(is_database(activity) or is_debugger(activity) for activity in seen)
    return excused * 2 > len(seen)


def _advice(transaction: Transaction, name: str, meanwhile: Location | None) -> str:
    what = f"Call {name} " if name else "Do that " if meanwhile is not None else "Do what needs no database "
    end = "commit" if transaction.outcome == "commit" else "end the session"
    before = " before the first statement," if transaction.wrote else " before the first statement, or"
    if transaction.wrote:
        return f"{what}{before.strip()} or {end} first and do it in between two transactions."
    return f"{what}{before.strip()} after the transaction: read what is needed, {end}, then do it."
