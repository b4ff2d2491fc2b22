from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, seconds, where
from sqla_watch.facts import StatementGroup, Transaction
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class DatabaseErrorWarning(SqlaWatchWarning):
    """PostgreSQL gave up a statement for reasons of concurrency or time."""


class _State(NamedTuple):
    name: str
    severity: Severity
    advice: str


# https://www.postgresql.org/docs/current/errcodes-appendix.html
_STATES = {
    "40P01": _State(
        "deadlock",
        Severity.HIGH,
        "Take locks in the same order everywhere, for example by sorting the rows by key before changing them, and "
        "keep the transaction short.",
    ),
    "40001": _State(
        "serialization failure",
        Severity.MEDIUM,
        "Run the whole transaction again: at this isolation level that is the caller's part.",
    ),
    "55P03": _State(
        "lock not available",
        Severity.MEDIUM,
        "Somebody else held the lock longer than lock_timeout, or NOWAIT did not wait: shorten the transaction that "
        "holds it, or take what is free with SKIP LOCKED.",
    ),
    "57014": _State(
        "statement cancelled",
        Severity.MEDIUM,
        "It ran longer than statement_timeout, or somebody cancelled it: look at its plan with EXPLAIN.",
    ),
    "25P03": _State(
        "idle-in-transaction time-out",
        Severity.HIGH,
        "The transaction sat idle longer than idle_in_transaction_session_timeout: do slow work outside of it.",
    ),
    "53300": _State(
        "too many connections",
        Severity.HIGH,
        "pool_size and max_overflow times the number of processes exceed the server's max_connections.",
    ),
}


class DatabaseError(Rule):
    """A deadlock, a serialization failure, or a time-out, by SQLSTATE and line.

    ## What it sees
    Statements and COMMITs that failed with a SQLSTATE which tells of concurrency or time: deadlocks (40P01),
    serialization failures (40001), locks that were not to be had (55P03), cancelled statements (57014), connections
    that sat idle in a transaction for too long (25P03), too many connections (53300).

    ## Why it costs
    The work of the transaction is lost and has to be done again; a deadlock is noticed only after deadlock_timeout,
    a second by default, in which both sides wait.

    ## Example
    ```python
    session.execute(text("SET LOCAL statement_timeout = 50"))
    try:
        session.execute(text("SELECT pg_sleep(1)"))
    except DBAPIError:
        session.rollback()
    ```

    ## Use instead
    ```python
    session.execute(text("SET LOCAL statement_timeout = 500"))
    session.execute(text("SELECT pg_sleep(0.01)"))
    ```

    ## Thresholds
    None: each is worth knowing.

    ## How to silence it
    `with sqla_watch.ignore("database-error", "deadlock", reason="…"):` or `# sqla-watch: ignore[database-error]`.

    ## Limits
    A serialization failure whose statement was sent again with success is how such transactions are meant to be
    written, and silent. Errors of the application's own (a unique key, a syntax error) are not its business.
    """

    id = "database-error"
    guide = (3,)
    warning = DatabaseErrorWarning
    reads = "errors"

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each SQLSTATE, statement and line."""
        for group in facts.groups:
            for code, count in group.states.items():
                state = _STATES.get(code)
                if state is not None and not (code == "40001" and not group.failed_last):
                    yield Found(self._of_statement(group, code, state, count), (group,), group.ignores)
        for transaction in facts.transactions:
            state = _STATES.get(transaction.error)
            if state is not None:
                yield Found(self._of_commit(transaction, state), (), transaction.ignores)

    @staticmethod
    def _of_statement(group: StatementGroup, code: str, state: _State, count: int) -> Finding:
        return Finding(
            rule=DatabaseError.id,
            target=state.name,
            severity=state.severity,
            message=f"{state.name} (SQLSTATE {code}) in {group.fingerprint.summary}",
            location=where(group.call_site),
            evidence={
                "sqlstate": code,
                "errors": count,
                "statements": group.count,
                "slowest_seconds": seconds(group.slowest),
            },
            suggestion=state.advice,
            statement=group.fingerprint.text,
            statements=count,
            database_seconds=seconds(group.nanoseconds),
        )

    @staticmethod
    def _of_commit(transaction: Transaction, state: _State) -> Finding:
        return Finding(
            rule=DatabaseError.id,
            target=state.name,
            severity=state.severity,
            message=f"{state.name} (SQLSTATE {transaction.error}) at the COMMIT",
            location=where(transaction.failed_at or transaction.last),
            evidence={"sqlstate": transaction.error, "errors": 1, "statements": transaction.statements},
            suggestion=state.advice,
            statements=transaction.statements,
            database_seconds=seconds(transaction.database + transaction.ending),
        )
