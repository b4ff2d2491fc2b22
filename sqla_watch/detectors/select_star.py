from __future__ import annotations

from collections.abc import Iterator

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, about, is_query
from sqla_watch.facts import StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class SelectStarWarning(SqlaWatchWarning):
    """SQL of the application's own asks for every column by `*`."""


class SelectStar(Rule):
    """`SELECT *` from a table in SQL that the application wrote itself.

    ## What it sees
    Text SQL whose outermost SELECT has a `*`, alone or behind a table's name, and reads from a table.

    ## Why it costs
    PostgreSQL sends what nobody reads, large values are fetched from where they are stored out of line, no index can
    answer the query alone, and the result changes its shape with the next migration.

    ## Example
    ```python
    session.execute(text("SELECT * FROM customers WHERE country = 'CH'")).all()
    ```

    ## Use instead
    ```python
    session.execute(text("SELECT id, name FROM customers WHERE country = 'CH'")).all()
    ```

    ## Thresholds
    None: once is enough.

    ## How to silence it
    `with sqla_watch.ignore("select-star", reason="…"):` or `# sqla-watch: ignore[select-star]`.

    ## Limits
    A `*` over a subquery, a function, or a common table expression whose columns are named is silent. So are
    `count(*)`, `EXISTS (SELECT * …)`, and SQL that loads entities, which need their columns.
    """

    id = "select-star"
    guide = (14,)
    warning = SelectStarWarning
    reads = "stars"

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and line."""
        for group in facts.groups:
            if group.fingerprint.star and is_query(group) and not group.fingerprint.entities:
                yield Found(self._finding(group), (), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup) -> Finding:
        table = group.fingerprint.tables[0]
        return about(
            SelectStar,
            group,
            severity=Severity.LOW,
            message=f"SELECT * asks for every column of {', '.join(group.fingerprint.tables)}",
            evidence={"rows": group.rows},
            suggestion=f"Name the columns that are read:\nSELECT {table}.…, {table}.… FROM {table}",
        )
