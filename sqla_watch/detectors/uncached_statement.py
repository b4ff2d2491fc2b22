from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about, seconds
from sqla_watch.facts import CallSite, StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class UncachedStatementWarning(SqlaWatchWarning):
    """A statement is a new one for every cache each time it is sent."""


class UncachedStatement(Rule):
    """A statement that no cache can serve, so that each call is a new statement.

    ## What it sees
    Statements for which SQLAlchemy has no cache key and which it therefore compiles anew each time: lists given to
    `values()`, constructs and types of the application's own that do not say that they may be cached. And SQL text
    with values pasted in, by the different texts that one line has sent in this process.

    ## Why it costs
    Compiling takes longer than most statements run. Pasted values make a new entry in every cache on the way:
    SQLAlchemy's, the driver's prepared statements, pg_stat_statements, where they push out what is worth keeping. And
    pasted values are how SQL injection begins.

    ## Example
    ```python
    for customer_id in customer_ids:
        session.execute(text(f"UPDATE orders SET status = 'sent' WHERE customer_id = {customer_id}"))
    ```

    ## Use instead
    ```python
    for customer_id in customer_ids:
        session.execute(text("UPDATE orders SET status = 'sent' WHERE customer_id = :id"), {"id": customer_id})
    ```

    ## Thresholds
    `min_texts`: different texts of the same statement from one line (development 10, test 10, production 50).
    `min_compilations`: compilations of statements without a key on one line (development 5, test 5, production 50).

    ## How to silence it
    `with sqla_watch.ignore("uncached-statement", reason="…"):` or `# sqla-watch: ignore[uncached-statement]`.

    ## Limits
    Counted for the whole process, as the statements of many requests add up: the first ones are not told.
    `execution_options(compiled_cache=None)` is taken for intended.
    """

    id = "uncached-statement"
    guide = (8, 16)
    warning = UncachedStatementWarning
    reads = "uncached"
    thresholds: ClassVar = {
        "min_texts": Threshold(10, 10, 50, "different texts from one line"),
        "min_compilations": Threshold(5, 5, 50, "compilations on one line"),
    }

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each line and cause."""
        told: set[tuple[CallSite | None, str]] = set()
        for group in facts.groups:
            threshold = "min_texts" if group.why == "literals" else "min_compilations"
            if not group.why or group.uncached < context[threshold] or (group.call_site, group.why) in told:
                continue
            told.add((group.call_site, group.why))
            alike = [each for each in facts.groups if each.call_site == group.call_site and each.why == group.why]
            most = max(alike, key=lambda each: each.uncached)
            finding = self._finding(most)
            count, nanoseconds = sum(each.count for each in alike), sum(each.nanoseconds for each in alike)
            yield Found(
                replace(
                    finding,
                    evidence={**finding.evidence, "statements": count, "database_seconds": seconds(nanoseconds)},
                    statements=count,
                    database_seconds=seconds(nanoseconds),
                ),
                alike,
                group.ignores,
            )

    @staticmethod
    def _finding(group: StatementGroup) -> Finding:
        fingerprint = group.fingerprint
        if group.why == "literals":
            message = (
                f"{group.uncached} different texts of {fingerprint.summary} were sent: values are pasted into the SQL"
            )
            cause = "pasted-in literals"
            suggestion = 'Pass the values as parameters:\ntext("... WHERE column = :value"), {"value": value}'
        elif group.why == "values":
            message = (
                f"{fingerprint.summary} was compiled {group.uncached} times: "
                "values() has a list, which has no cache key"
            )
            cause = "values([list])"
            suggestion = "Pass the rows beside the statement:\n" + (
                f"session.execute(insert({fingerprint.tables[0]}), rows)"
                if fingerprint.tables
                else "execute(stmt, rows)"
            )
        else:
            named = "" if group.why == "key" else f": {group.why} does not say that it may be cached"
            message = f"{fingerprint.summary} was compiled {group.uncached} times{named or ': it has no cache key'}"
            cause = "missing cache key" if group.why == "key" else f"missing cache key of {group.why}"
            suggestion = (
                "Say in the class that its compiled form depends on nothing but its arguments: "
                "inherit_cache = True (a construct), cache_ok = True (a type)"
            )
        return about(
            UncachedStatement,
            group,
            severity=Severity.MEDIUM,
            message=message,
            evidence={"cause": cause, "compilations": group.uncached},
            suggestion=suggestion,
        )
