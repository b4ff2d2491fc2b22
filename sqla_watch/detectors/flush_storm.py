from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, seconds, where
from sqla_watch.facts import FlushCause, FlushGroup, StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class FlushStormWarning(SqlaWatchWarning):
    """A session flushed again and again."""


class FlushStorm(Rule):
    """A session that flushes again and again from one line.

    ## What it sees
    Flushes that sent statements, by session, transaction and line, and what made the session flush:
    `session.flush()`, or a query, before which a session with changes flushes by itself (autoflush); and then which
    query.

    ## Why it costs
    A flush sorts all pending changes, sends them, and waits. Once for a hundred objects it sends one batch; a hundred
    times it sends a hundred statements, and looks through the session each time.

    ## Example
    ```python
    for number in range(12):
        known = session.scalar(select(func.count()).select_from(Rate))  # flushes what was added
        session.add(Rate(country=f"{known:02}", percent=20))
    ```

    ## Use instead
    ```python
    known = session.scalar(select(func.count()).select_from(Rate))
    session.add_all(Rate(country=f"{known + number:02}", percent=20) for number in range(12))
    session.flush()
    ```

    ## Thresholds
    `min_flushes`: flushes in one transaction from one line (development 10, test 10, production 50).
    `min_seconds`: seconds in all of them (production 0.05, else 0).

    ## How to silence it
    `with sqla_watch.ignore("flush-storm", reason="…"):` or `# sqla-watch: ignore[flush-storm]`.

    ## Limits
    Flushes of a COMMIT are `row-by-row-write`'s, and those of `begin_nested()` are how a duplicate is survived.
    """

    id = "flush-storm"
    guide = (12,)
    warning = FlushStormWarning
    reads = "flushes"
    floor = ("min_flushes",)
    thresholds: ClassVar = {
        "min_flushes": Threshold(10, 10, 50, "flushes in one transaction from one line"),
        "min_seconds": Threshold(0.0, 0.0, 0.05, "seconds in all of them"),
    }

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each session and line."""
        for flush in facts.flushes:
            if flush.cause not in (FlushCause.EXPLICIT, FlushCause.AUTOFLUSH) or flush.count < context["min_flushes"]:
                continue
            # Many objects a flush is a batch, which is what a flush is for.
            if flush.objects > _BATCH * flush.count or flush.nanoseconds < context["min_seconds"] * 1e9:
                continue
            here = [group for group in facts.groups if group.call_site == flush.call_site]
            writes = [group for group in here if group.fingerprint.writes]
            if 2 * sum(group.savepoints for group in writes) >= flush.count:
                continue  # one for each, to survive those that fail
            yield Found(self._finding(flush, here, writes), writes, flush.ignores)

    @staticmethod
    def _finding(flush: FlushGroup, here: list[StatementGroup], writes: list[StatementGroup]) -> Finding:
        tables = ", ".join(dict.fromkeys(table for group in writes for table in group.fingerprint.tables[:1]))
        query = next((group.fingerprint.summary for group in here if group.fingerprint.reads), "")
        evidence: dict[str, int | float | str | bool] = {
            "cause": str(flush.cause),
            "flushes": flush.count,
            "objects": flush.objects,
            "statements": flush.statements,
            "flush_seconds": seconds(flush.nanoseconds),
        }
        if flush.cause is FlushCause.AUTOFLUSH:
            evidence["triggered_by"] = query
            message = f"the session flushed {flush.count} times before {query or 'a query'}"
            suggestion = (
                "Ask before the loop that changes, or hold the flush back where the query does not need it:\n"
                "with session.no_autoflush: ..."
            )
        else:
            message = f"session.flush() was called {flush.count} times"
            suggestion = (
                "Flush once, behind the loop; to refer to a row that has no key yet, set the relationship instead of "
                "the foreign key: Item(order=order)"
            )
        return Finding(
            rule=FlushStorm.id,
            target=tables or "Session",
            severity=Severity.HIGH,
            message=f"{message}, {flush.objects} objects in all" + (f" ({tables})" if tables else ""),
            location=where(flush.call_site),
            evidence=evidence,
            suggestion=suggestion,
            statement=writes[0].fingerprint.text if writes else "",
            statements=flush.statements,
            database_seconds=seconds(flush.nanoseconds),
        )


_BATCH = 20
"""Objects for each flush above which it is a batch."""
