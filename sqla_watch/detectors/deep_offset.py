from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about, is_query
from sqla_watch.facts import StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class DeepOffsetWarning(SqlaWatchWarning):
    """A page far behind the start was asked for by OFFSET."""


class DeepOffset(Rule):
    """A large OFFSET: PostgreSQL reads and throws away all rows before the page.

    ## What it sees
    The number that a SELECT's outermost OFFSET has, in a parameter or written out.

    ## Why it costs
    To skip 100,000 rows PostgreSQL has to produce them first, in order, and then drop them: the hundredth page costs a
    hundred times the first, and rows that come or go meanwhile make pages overlap or leave gaps. Going on from the
    last key that was seen costs the same for every page.

    ## Example
    ```python
    page = select(Item).order_by(Item.quantity, Item.id).limit(20)
    session.scalars(page.offset(300)).all()
    ```

    ## Use instead
    ```python
    page = select(Item).order_by(Item.quantity, Item.id).limit(20)
    last = session.scalars(page).all()[-1]
    session.scalars(page.where(tuple_(Item.quantity, Item.id) > (last.quantity, last.id))).all()
    ```

    ## Thresholds
    `min_offset`: rows skipped (development 1000, test 1000, production 5000).

    ## How to silence it
    `with sqla_watch.ignore("deep-offset", reason="…"):` or `# sqla-watch: ignore[deep-offset]`.

    ## Limits
    On asyncpg and SQLite the number cannot be read where the same statement also has a list that SQLAlchemy expands.
    """

    id = "deep-offset"
    guide = (15, 14)
    warning = DeepOffsetWarning
    reads = "skipped"
    thresholds: ClassVar = {"min_offset": Threshold(1_000, 1_000, 5_000, "rows skipped")}

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and line."""
        for group in facts.groups:
            if is_query(group) and group.most_skipped >= context["min_offset"]:
                yield Found(self._finding(group), (), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup) -> Finding:
        return about(
            DeepOffset,
            group,
            severity=Severity.MEDIUM,
            message=(
                f"OFFSET {group.most_skipped} on {', '.join(group.fingerprint.tables) or 'a query'}: "
                f"{group.most_skipped} rows were read to be thrown away"
            ),
            evidence={
                "offset": group.most_skipped,
                "rows": group.most_rows,
            },
            suggestion=f"Go on from the last row of the page before:\n{keyset(group.fingerprint.order)}",
        )


def keyset(order: str) -> str:
    """Return the condition that takes the place of an OFFSET under an ORDER BY.

    >>> keyset("orders.placed_at DESC, orders.id DESC")
    '.where(tuple_(orders.c.placed_at, orders.c.id) < (last.placed_at, last.id))'
    >>> keyset("orders.id")
    '.where(orders.c.id > last.id)'
    """
    keys = [_key(part) for part in order.split(",") if part.strip()]
    if not keys or not all(name for name, _, _ in keys):
        return ".order_by(table.c.id).where(table.c.id > last.id)  # an order by a unique key comes first"
    columns = [(f"{table}.c.{name}" if table else name, f"last.{name}") for name, table, _ in keys]
    directions = {descending for _, _, descending in keys}
    if len(directions) > 1:
        return f".where({_written_out(columns, [descending for _, _, descending in keys])})"
    sign = "<" if directions.pop() else ">"
    if len(columns) == 1:
        return f".where({columns[0][0]} {sign} {columns[0][1]})"
    left, right = (", ".join(side) for side in zip(*columns, strict=True))
    return f".where(tuple_({left}) {sign} ({right}))"


def _key(part: str) -> tuple[str, str, bool]:
    """Split one key of an ORDER BY into column, table and whether it descends; no column for an expression."""
    words = part.replace('"', "").split()
    name = words[0]
    if not all(character.isalnum() or character in "._" for character in name):
        return "", "", False
    table, _, column = name.rpartition(".")
    return column, table, "DESC" in (word.upper() for word in words[1:])


def _written_out(columns: list[tuple[str, str]], descending: list[bool]) -> str:
    """Return a keyset whose keys go in different directions, for which a comparison of tuples does not serve."""
    cases = []
    for index, (column, last) in enumerate(columns):
        equal = [f"{before} == {value}" for before, value in columns[:index]]
        cases.append(", ".join([*equal, f"{column} {'<' if descending[index] else '>'} {last}"]))
    return "or_(" + ", ".join(f"and_({case})" if ", " in case else case for case in cases) + ")"
