from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._pool import evidence_of, limit_of
from sqla_watch.detectors._rule import Context, Facts, Found, Rule, seconds, short, where
from sqla_watch.facts import Wait
from sqla_watch.findings import Finding, RelatedLocation, Severity, SqlaWatchWarning


class NestedCheckoutWarning(SqlaWatchWarning):
    """Code that had a connection asked for another one of the same pool."""


class NestedCheckout(Rule):
    """A second connection asked for while the first is still held: a deadlock of the pool in waiting.

    ## What it sees
    A thread or task that has a connection, or whose parent task has one, and asks the same pool for another: a
    helper with an engine or session of its own inside of a transaction.

    ## Why it costs
    As many of these at once as the pool has connections, and each has one and waits for a second that nobody can
    return: all of them stand still until `pool_timeout`, and then fail.

    ## Example
    ```python
    with Session(engine) as session:
        order = session.get(Order, 1)
        with Session(engine) as own:  # a helper's
            rates = own.scalars(select(Rate.percent)).all()
        order.status = "paid"
        session.commit()
    ```

    ## Use instead
    ```python
    with Session(engine) as session:
        order = session.get(Order, 1)
        rates = session.scalars(select(Rate.percent)).all()  # the helper is given the session
        order.status = "paid"
        session.commit()
    ```

    ## Thresholds
    None: one is enough, for the others come with the load.

    ## How to silence it
    `with sqla_watch.ignore("nested-checkout", reason="…"):` around the inner one, or
    `# sqla-watch: ignore[nested-checkout]` on its line.

    ## Limits
    Told within a request, task or job, and where other threads or tasks have connections of the pool at that moment:
    a program that does one thing at a time cannot deadlock. A pool without a limit (`NullPool`) cannot, either.
    """

    id = "nested-checkout"
    guide = (17,)
    warning = NestedCheckoutWarning
    reads = "nested"
    thresholds: ClassVar = {}

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each pair of lines."""
        by_lines: dict[tuple[object, ...], list[Wait]] = {}
        for wait in facts.nested:
            if facts.in_unit or wait.shared or wait.nanoseconds:
                by_lines.setdefault((wait.call_site, wait.inside, wait.ignores), []).append(wait)
        for waits in by_lines.values():
            yield Found(self._finding(waits), waits, waits[0].ignores)

    @staticmethod
    def _finding(waits: list[Wait]) -> Finding:
        longest = max(waits, key=lambda wait: wait.nanoseconds)
        location, outer = where(longest.call_site), where(longest.inside)
        limit = limit_of(longest)
        waited = ""
        if longest.nanoseconds:
            end = " and got none" if any(wait.timed_out for wait in waits) else ""
            waited = f", waited {longest.nanoseconds / 1e9:.1f} s for it{end}"
        here = "" if outer is None else f" (taken at {short(outer)})"
        return Finding(
            rule=NestedCheckout.id,
            target=location.function if location else "checkout",
            severity=Severity.HIGH if longest.nanoseconds else Severity.MEDIUM,
            message=(
                f"asked for a second connection while holding one{here}{waited}: {limit} of these at once, and none "
                "can go on"
            ),
            location=location,
            evidence={
                "nested": len(waits),
                "wait_seconds": seconds(longest.nanoseconds),
                "timeouts": sum(wait.timed_out for wait in waits),
                **evidence_of(longest),
            },
            suggestion=(
                "Hand the open session or connection on to where the second one is made, or end the first "
                "transaction before it."
            ),
            related=() if outer is None else (RelatedLocation("first connection", outer),),
        )
