from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, seconds, where
from sqla_watch.facts import Repeat
from sqla_watch.findings import Finding, RelatedLocation, Severity, SqlaWatchWarning


class RepeatedQueryWarning(SqlaWatchWarning):
    """The same question was asked several times in one transaction."""


class RepeatedQuery(Rule):
    """The same statement with the same values, several times in one transaction.

    ## What it sees
    A SELECT whose answer the code has had already: the same text, the same values, in the same transaction, with
    no write to its tables in between, from one line or from several. Values are compared by hash and not kept.

    ## Why it costs
    The answer is the same, the round trip is paid again. Usually several helpers each look up the same user,
    setting or permission because none of them hands it on.

    ## Example
    ```python
    for order in orders:
        rate = session.scalar(select(Rate.percent).where(Rate.country == "CH"))
    ```

    ## Use instead
    ```python
    rate = session.scalar(select(Rate.percent).where(Rate.country == "CH"))
    for order in orders:
        ...
    ```

    ## Thresholds
    `min_repeats`: executions in one transaction, the first included (development 3, test 3, production 5).
    `min_seconds`: database seconds of all but the first (production 0.02, else 0).

    ## How to silence it
    `with sqla_watch.ignore("repeated-query", reason="…"):` or `# sqla-watch: ignore[repeated-query]`.

    ## Limits
    Polling asks again in a new transaction, in autocommit, or after more than a second, and is silent. So are
    locking reads, and statements without a table. What other sessions wrote in between is not seen.
    """

    id = "repeated-query"
    guide = (14,)
    warning = RepeatedQueryWarning
    reads = "repeats"
    thresholds: ClassVar = {
        "min_repeats": Threshold(3, 3, 5, "executions in one transaction"),
        "min_seconds": Threshold(0.0, 0.0, 0.02, "database seconds of all but the first"),
    }
    after = ("n-plus-one", "query-in-loop")

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and its values."""
        claimed = [(group.fingerprint.text, group.call_site) for group in facts.groups if group in context.claimed]
        for repeat in facts.repeats:
            if repeat.count < context["min_repeats"] or repeat.nanoseconds < context["min_seconds"] * 1e9:
                continue
            if claimed and any((repeat.fingerprint.text, site) in claimed for site in repeat.sites):
                continue
            yield Found(self._finding(repeat), (repeat,), repeat.ignores)

    @staticmethod
    def _finding(repeat: Repeat) -> Finding:
        sites = repeat.sites
        others = [location for site in sites[1:4] if (location := where(site)) is not None]
        return Finding(
            rule=RepeatedQuery.id,
            target=repeat.fingerprint.summary,
            severity=Severity.MEDIUM,
            message=(
                f"the same question ({repeat.fingerprint.summary}, same values) was asked {repeat.count} times "
                "in one transaction"
            ),
            location=where(sites[0]),
            evidence={
                "statements": repeat.count,
                "call_sites": len(sites),
                "rows": repeat.rows,
                "saved_seconds": seconds(repeat.nanoseconds),
            },
            suggestion="Keep the first answer: ask before the loop, and hand the result to whoever needs it.",
            related=tuple(RelatedLocation("also asked", location) for location in others),
            statement=repeat.fingerprint.text,
            statements=repeat.count,
            database_seconds=seconds(repeat.nanoseconds),
        )
