from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about
from sqla_watch.facts import LoadKind, StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class LargeInListWarning(SqlaWatchWarning):
    """A list of thousands of values was sent as IN."""


class LargeInList(Rule):
    """A very long list of values behind IN.

    ## What it sees
    The number of values in the longest list of a statement, as parameters that SQLAlchemy expands or written out.

    ## Why it costs
    Each value is a parameter of its own, which SQLAlchemy renders, the driver converts and PostgreSQL parses and plans;
    each length is another statement for the server. An array is one parameter, whatever its length. Often the values
    came from the database, and a join would have saved both ways.

    ## Example
    ```python
    session.scalars(select(Item.id).where(Item.order_id.in_(many_ids))).all()
    ```

    ## Use instead
    ```python
    ids = literal(many_ids, ARRAY(Integer))
    session.scalars(select(Item.id).where(Item.order_id == func.any(ids))).all()
    ```

    ## Thresholds
    `min_values`: values in one list (development 1001, test 1001, production 2001).

    ## How to silence it
    `with sqla_watch.ignore("large-in-list", reason="…"):` or `# sqla-watch: ignore[large-in-list]`.

    ## Limits
    Chunks up to the threshold, among them the 500 of `selectinload`, are silent.
    """

    id = "large-in-list"
    guide = (14,)
    warning = LargeInListWarning
    reads = "listed"
    thresholds: ClassVar = {"min_values": Threshold(1_001, 1_001, 2_001, "values in one list")}

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and line."""
        for group in facts.groups:
            if group.kind is LoadKind.QUERY and group.most_listed >= context["min_values"]:
                yield Found(self._finding(group), (), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup) -> Finding:
        return about(
            LargeInList,
            group,
            severity=Severity.MEDIUM,
            message=f"{group.fingerprint.summary} had a list of {group.most_listed} values",
            evidence={
                "values": group.most_listed,
                "rows": group.rows,
            },
            suggestion=(
                "Join with the query that the values came from, or send one array:\n"
                "column == func.any(literal(values, ARRAY(Integer)))"
            ),
        )
