from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, where
from sqla_watch.facts import Spent, StatementGroup
from sqla_watch.findings import Finding, RelatedLocation, Severity, SqlaWatchWarning


class OverBudgetWarning(SqlaWatchWarning):
    """A request, task or test cost more than its budget."""


class OverBudget(Rule):
    """A request, task or test that cost more than its budget.

    ## What it sees
    The numbers of a scope that was given a `Budget`: statements, rows, seconds in the database, seconds of waiting
    for the pool, connections, transactions. The line is the one that spent most.

    ## Why it costs
    What a request may cost is decided once, when it is known to be good; this tells when it is no longer.

    ## Example
    ```python
    budget = sqla_watch.Budget(max_statements=2)
    with sqla_watch.scope("dashboard", budget=budget), Session(engine) as session:
        for country in ("AT", "CH", "DE"):
            session.execute(select(Rate).where(Rate.country == country))
    ```

    ## Use instead
    ```python
    budget = sqla_watch.Budget(max_statements=2)
    with sqla_watch.scope("dashboard", budget=budget), Session(engine) as session:
        session.execute(select(Rate).where(Rate.country.in_(["AT", "CH", "DE"])))
    ```

    ## Thresholds
    None of its own: they are the budget's.

    ## How to silence it
    A larger budget, or none; `with sqla_watch.ignore("over-budget", reason="…"):` around the end of the scope, or
    `# sqla-watch: ignore[over-budget]` on the line that is named.

    ## Limits
    Judged when the scope ends. Statements of scopes inside of it count, but the line is one of its own.
    """

    id = "over-budget"
    guide = (4, 14)
    warning = OverBudgetWarning
    reads = "spent"
    thresholds: ClassVar = {}

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each limit that was exceeded."""
        for spent in facts.spent:
            for name, limit in spent.budget.limits.items():
                used = getattr(spent, name.removeprefix("max_"))
                if used > limit:
                    yield Found(
                        self._finding(spent, name.removeprefix("max_"), used, limit, facts.groups), (), spent.ignores
                    )

    @staticmethod
    def _finding(spent: Spent, what: str, used: float, limit: float, groups: list[StatementGroup]) -> Finding:
        spends, cost = _SPENDERS.get(what, _SPENDERS["statements"])
        dearest = max(groups, key=cost, default=None)
        location = where(dearest.call_site) if dearest is not None else None
        numbers = (
            f"{used:.3f} s, and its budget is {limit:g} s"
            if what.endswith("seconds")
            else (f"{used}, and its budget is {limit:g}")
        )
        others = sorted(groups, key=cost, reverse=True)[1:3]
        return Finding(
            rule=OverBudget.id,
            target=f"{spent.name} {what}",
            severity=Severity.HIGH,
            message=f"{spent.name} {spends} {numbers}",
            location=location,
            evidence={
                "budget": limit,
                "used": round(used, 6),
                "statements": spent.statements,
                "rows": spent.rows,
                "database_seconds": round(spent.database_seconds, 6),
                "wait_seconds": round(spent.wait_seconds, 6),
                "connections": spent.connections,
                "transactions": spent.transactions,
            },
            suggestion="Begin with the line that spends most; other findings of the same scope say how.",
            related=tuple(
                RelatedLocation("then", place)
                for group in others
                if (place := where(group.call_site)) is not None and place != location
            ),
            statement=dearest.fingerprint.text if dearest is not None else "",
            statements=spent.statements,
            database_seconds=round(spent.database_seconds, 6),
        )


_SPENDERS: dict[str, tuple[str, Callable[[StatementGroup], int]]] = {
    "statements": ("sent statements:", lambda group: group.count),
    "rows": ("fetched rows:", lambda group: group.rows),
    "database_seconds": ("spent in the database", lambda group: group.nanoseconds),
    "wait_seconds": ("waited for the pool", lambda group: group.nanoseconds),
    "connections": ("took connections:", lambda group: group.checkouts),
    "transactions": ("made transactions:", lambda group: group.checkouts),
}
