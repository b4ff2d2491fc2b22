from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about
from sqla_watch.facts import StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class CartesianJoinWarning(SqlaWatchWarning):
    """A joined collection multiplied the rows of a result."""


class CartesianJoin(Rule):
    """Joined eager loading of collections that multiplies the rows.

    ## What it sees
    The rows of an ORM query with `joinedload` or `contains_eager` on collections, against the distinct objects of
    the queried class in them; and whether one collection (or a chain of them) was joined, or several side by side.

    ## Why it costs
    A join repeats the columns of the parent in each row of its collection. Two collections side by side multiply each
    other besides: ten orders and eight addresses are eighty rows for one customer, in which nothing is new after the
    eighteenth. PostgreSQL builds, sends and SQLAlchemy takes apart every one of them.

    ## Example
    ```python
    query = select(Customer).options(joinedload(Customer.orders).joinedload(Order.items))
    session.scalars(query).unique().all()
    ```

    ## Use instead
    ```python
    query = select(Customer).options(selectinload(Customer.orders).selectinload(Order.items))
    session.scalars(query).all()
    ```

    ## Thresholds
    `min_rows`: rows of one statement with collections side by side (development 100, test 100, production 1000).
    `min_factor`: rows for each distinct parent then (10 in all).
    `min_rows_of_one`: rows of one statement with one collection, or a chain (development 500, test 500, production
    5000).
    `min_factor_of_one`: rows for each distinct parent then (20 in all).

    ## How to silence it
    `with sqla_watch.ignore("cartesian-join", "Customer", reason="…"):` or `# sqla-watch: ignore[cartesian-join]`.

    ## Limits
    A single parent with one long collection is silent: nothing but its own columns is repeated. Streamed results
    are not counted, nor are joins that the application itself takes apart.
    """

    id = "cartesian-join"
    guide = (10,)
    warning = CartesianJoinWarning
    reads = "multiplied"
    thresholds: ClassVar = {
        "min_rows": Threshold(100, 100, 1_000, "rows with collections side by side"),
        "min_factor": Threshold(10, 10, 10, "rows for each distinct parent then"),
        "min_rows_of_one": Threshold(500, 500, 5_000, "rows with one collection"),
        "min_factor_of_one": Threshold(20, 20, 20, "rows for each distinct parent then"),
    }

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each statement and line."""
        for group in facts.groups:
            shape = group.fingerprint.shape
            rows, parents = group.multiplied_rows, group.multiplied_parents
            if shape is None or not parents:
                continue
            suffix = "" if shape.siblings else "_of_one"
            if rows < context[f"min_rows{suffix}"] or rows < context[f"min_factor{suffix}"] * parents:
                continue
            if parents < 2 and not shape.siblings:
                continue
            yield Found(self._finding(group, rows, parents), (group,), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup, rows: int, parents: int) -> Finding:
        shape = group.fingerprint.shape
        assert shape is not None
        names = [
            ".".join((path[0].partition(".")[0], *(name.partition(".")[2] for name in path)))
            for path in shape.collections
        ]
        if shape.siblings:
            cause = f"{len(names)} joined collections multiply each other ({', '.join(names)})"
        else:
            cause = f"a joined collection repeats its parents ({names[-1]})" if names else "a joined collection"
        options = ", ".join(
            "selectinload({})".format(").selectinload(".join(path)) for path in _longest(shape.collections)
        )
        return about(
            CartesianJoin,
            group,
            target=shape.owner,
            severity=Severity.HIGH if shape.siblings else Severity.MEDIUM,
            message=f"{rows} rows were fetched for {parents} {shape.owner} objects: {cause}",
            evidence={
                "rows": rows,
                "distinct_parents": parents,
                "multiplied": round(rows / parents, 1),
                "cause": "several collections" if shape.siblings else "one collection",
                "collections": ", ".join(names),
            },
            suggestion=(
                "Load the collections by a query of their own instead of joining them:\n"
                f".options({options or 'selectinload(...)'})"
            ),
        )


def _longest(paths: tuple[tuple[str, ...], ...]) -> list[tuple[str, ...]]:
    """Return the paths that are not the beginning of another."""
    return [path for path in paths if not any(other != path and other[: len(path)] == path for other in paths)]
