from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, seconds, where
from sqla_watch.facts import StatementGroup
from sqla_watch.findings import Finding, RelatedLocation, Severity, SqlaWatchWarning
from sqla_watch.ignores import is_ignored


class BlockingCallWarning(SqlaWatchWarning):
    """A synchronous engine was used on a running event loop."""


class BlockingCall(Rule):
    """A synchronous engine used in a thread where an event loop runs.

    ## What it sees
    Connections of a synchronous engine that are taken in a thread whose asyncio event loop is running, and the
    statements sent through them.

    ## Why it costs
    While the statement runs, the whole loop stands still: no other request, no timer, no heartbeat goes on. Ten
    requests that could have waited at the same time wait one after the other.

    ## Example
    ```python
    async def handler():
        with Session(engine) as session:
            return session.scalars(select(Order.status).limit(5)).all()

    asyncio.run(handler())
    ```

    ## Use instead
    ```python
    async def handler():
        def read():
            with Session(engine) as session:
                return session.scalars(select(Order.status).limit(5)).all()

        return await asyncio.to_thread(read)

    asyncio.run(handler())
    ```

    ## Thresholds
    `min_seconds`: seconds that the loop stood still (production 0.05, else 0).

    ## How to silence it
    `with sqla_watch.ignore("blocking-call", reason="…"):` or `# sqla-watch: ignore[blocking-call]`.

    ## Limits
    Told once for each scope, on the line that took most time. A connection that was taken elsewhere and is used on
    the loop is not seen. In a notebook, where a loop always runs, the rule is silent, and so it is where a worker
    thread of an executor runs a loop of its own.
    """

    id = "blocking-call"
    guide = (18,)
    warning = BlockingCallWarning
    reads = "blocking"
    thresholds: ClassVar = {"min_seconds": Threshold(0.0, 0.0, 0.05, "seconds that the loop stood still")}

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for all blocking statements of the scope."""
        groups = [group for group in facts.groups if group.on_event_loop]
        while groups:
            total = sum(group.nanoseconds for group in groups)
            if total < context["min_seconds"] * 1e9:
                return
            worst = max(groups, key=lambda group: group.nanoseconds)
            finding = self._finding(groups, worst, total)
            yield Found(finding, (), worst.ignores)
            if not is_ignored(finding, worst.ignores):
                return
            groups = [group for group in groups if group.call_site != worst.call_site]  # the others are not meant

    @staticmethod
    def _finding(groups: list[StatementGroup], worst: StatementGroup, total: int) -> Finding:
        count = sum(group.count for group in groups)
        others = dict.fromkeys(
            location
            for group in groups
            if (location := where(group.call_site)) is not None and group.call_site != worst.call_site
        )
        statements = "one statement" if count == 1 else f"{count} statements"
        return Finding(
            rule=BlockingCall.id,
            target=worst.fingerprint.summary,
            severity=Severity.HIGH,
            message=f"the event loop stood still for {statements} of a synchronous engine",
            location=where(worst.call_site),
            evidence={
                "statements": count,
                "lines": len(others) + 1,
                "database_seconds": seconds(total),
                "slowest_seconds": seconds(max(group.slowest for group in groups)),
            },
            suggestion=(
                "Use create_async_engine() and AsyncSession there, or leave the loop alone meanwhile:\n"
                "await asyncio.to_thread(function_that_uses_the_session)"
            ),
            related=tuple(RelatedLocation("blocks, too", location) for location in list(others)[:3]),
            statement=worst.fingerprint.text,
            statements=count,
            database_seconds=seconds(total),
        )
