from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about
from sqla_watch.facts import LoadKind, StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning
from sqla_watch.settings import Action, Profile


class WideRowsWarning(SqlaWatchWarning):
    """Whole entities were loaded of which few columns were read."""


class WideRows(Rule):
    """Whole entities loaded where a few of their columns are read.

    ## What it sees
    Queries that load many objects of a class with many columns, and which of these columns were read on any of them
    within the scope.

    ## Why it costs
    PostgreSQL reads each column from the table (long ones from where they are stored apart), sends it, the driver
    converts it and SQLAlchemy stores it in the object. A list of titles needs none of that.

    ## Example
    ```python
    for item in session.scalars(select(Item)):
        print(item.quantity)
    ```

    ## Use instead
    ```python
    for quantity in session.scalars(select(Item.quantity)):
        print(quantity)
    ```

    ## Thresholds
    `min_rows`: objects of one statement (development 100, test 100, production 1000).
    `min_columns`: columns of the class that were loaded (10 in all).
    `max_share`: share of them that was read, at most (0.25 in all).

    ## How to silence it
    `with sqla_watch.ignore("wide-rows", "Article", reason="…"):` or `# sqla-watch: ignore[wide-rows]`.

    ## Limits
    Off by default, in all profiles: to know what is read, the class of each column's attribute is replaced by one
    that notes each reading. Readers of `__dict__` are not seen, so a query of which nothing at all was read is
    silent. Implicit scopes have no findings of this rule.
    """

    id = "wide-rows"
    guide = (6,)
    warning = WideRowsWarning
    thresholds: ClassVar = {
        "min_rows": Threshold(100, 100, 1_000, "objects of one statement"),
        "min_columns": Threshold(10, 10, 10, "columns that were loaded"),
        "max_share": Threshold(0.25, 0.25, 0.25, "share of them that was read, at most"),
    }
    actions: ClassVar = dict.fromkeys(Profile, Action.IGNORE)

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each query."""
        if not facts.follows_attributes:
            return
        for group in facts.groups:
            shape = group.fingerprint.shape
            if group.kind is not LoadKind.QUERY or shape is None or group.most_rows < context["min_rows"]:
                continue
            if len(shape.columns) < context["min_columns"] or group.call_site is None:
                continue
            read = [key for key, site in facts.attributes_read() if site == group.call_site and key in shape.columns]
            if read and len(read) <= context["max_share"] * len(shape.columns):
                yield Found(self._finding(group, sorted(read)), (), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup, read: list[str]) -> Finding:
        shape = group.fingerprint.shape
        assert shape is not None
        columns = ", ".join(f"{shape.owner}.{key}" for key in read)
        return about(
            WideRows,
            group,
            target=shape.owner,
            severity=Severity.LOW,
            message=(
                f"{group.most_rows} {shape.owner} objects were loaded with {len(shape.columns)} columns, "
                f"of which {len(read)} {'was' if len(read) == 1 else 'were'} read"
            ),
            evidence={
                "rows": group.most_rows,
                "columns_loaded": len(shape.columns),
                "columns_read": ", ".join(read),
            },
            suggestion=(
                f"Ask for these columns:\nselect({columns})\nor keep the objects: .options(load_only({columns}))"
            ),
        )
