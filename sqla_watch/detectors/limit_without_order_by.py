from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about, is_query
from sqla_watch.facts import StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class LimitWithoutOrderByWarning(SqlaWatchWarning):
    """Pages were taken although no order says which rows are on them."""


class LimitWithoutOrderBy(Rule):
    """A page of rows whose order is not defined.

    ## What it sees
    A SELECT whose outermost LIMIT and OFFSET come without ORDER BY, for a page behind the first with several rows.

    ## Why it costs
    PostgreSQL may return any rows that fit, and other ones the next time: after an update, with another plan, while a
    scan runs that it can join. Pages then repeat rows and leave others out. With an index, an order costs nothing.

    ## Example
    ```python
    session.scalars(select(Order).limit(10).offset(20)).all()
    ```

    ## Use instead
    ```python
    session.scalars(select(Order).order_by(Order.id).limit(10).offset(20)).all()
    ```

    ## Thresholds
    `min_rows`: rows returned (development 2, test 2, production 2): one row by `.first()` needs no order.

    ## How to silence it
    `with sqla_watch.ignore("limit-without-order-by", reason="…"):` or
    `# sqla-watch: ignore[limit-without-order-by]`.

    ## Limits
    A LIMIT without an OFFSET may mean any rows (a sample, the next batch of work) and is silent, as is a query that
    takes locks. A page inside of a subquery is not looked at.
    """

    id = "limit-without-order-by"
    guide = (15,)
    warning = LimitWithoutOrderByWarning
    reads = "skipped"
    thresholds: ClassVar = {"min_rows": Threshold(2, 2, 2, "rows returned")}

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and line."""
        for group in facts.groups:
            fingerprint = group.fingerprint
            # SQLite's dialect writes OFFSET 0 behind every LIMIT: only a page behind the first is one for sure.
            if not group.most_skipped or fingerprint.ordered or fingerprint.locks or not fingerprint.tables:
                continue
            if is_query(group) and group.most_rows >= context["min_rows"]:
                yield Found(self._finding(group), (), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup) -> Finding:
        fingerprint = group.fingerprint
        table = fingerprint.tables[0]
        return about(
            LimitWithoutOrderBy,
            group,
            severity=Severity.MEDIUM,
            message=f"pages of {table} are taken without ORDER BY: which rows are on them is not defined",
            evidence={
                "rows": group.most_rows,
                "offset": group.most_skipped,
            },
            suggestion=f"Order by a unique column, such as the primary key:\n.order_by({table}.c.id)",
        )
