from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about
from sqla_watch.facts import LoadKind, StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class ColumnLoadLoopWarning(SqlaWatchWarning):
    """Columns were loaded object by object."""


_CAUSES = {
    "deferred": "it is deferred",
    "expired": "the objects had expired, as by a commit",
    "subclass": "the query loaded the base class only",
    "refresh": "each was refreshed by itself",
    "thrown": "expire(), expire_all() or a rollback had thrown them away",
    "computed": "the database had computed it in the flush",
    "expire": "session.expire() had thrown it away",
}


class ColumnLoadLoop(Rule):
    """Columns of many objects, loaded one object at a time.

    ## What it sees
    SELECTs that SQLAlchemy sends for columns of one object: deferred ones, all columns of an object that has expired
    (every commit expires what the session holds), columns that the database computed in a flush, and columns of a
    subclass that the query did not load. Counted are distinct objects for each session and line.

    ## Why it costs
    As with relationships, each is a round trip, and there are as many as objects.

    ## Example
    ```python
    customers = session.scalars(select(Customer)).all()
    for customer in customers:
        print(customer.notes)  # a deferred column
    ```

    ## Use instead
    ```python
    customers = session.scalars(select(Customer).options(undefer(Customer.notes))).all()
    for customer in customers:
        print(customer.notes)
    ```

    ## Thresholds
    `min_objects`: distinct objects (development 5, test 5, production 10).
    `min_seconds`: database seconds of the loads together (production 0.05, else 0).

    ## How to silence it
    `with sqla_watch.ignore("column-load-loop", "Customer.notes", reason="…"):` or
    `# sqla-watch: ignore[column-load-loop]`.

    ## Limits
    An object whose columns were loaded again counts once, however many they are.
    """

    id = "column-load-loop"
    guide = (5, 6)
    warning = ColumnLoadLoopWarning
    reads = "column loads"
    floor = ("min_objects",)
    thresholds: ClassVar = {
        "min_objects": Threshold(5, 5, 10, "distinct objects"),
        "min_seconds": Threshold(0.0, 0.0, 0.05, "database seconds of the loads together"),
    }

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each line and session."""
        for group in facts.groups:
            if group.kind is not LoadKind.COLUMN:
                continue
            objects = len(group.values) + group.uncounted
            if objects >= context["min_objects"] and group.nanoseconds >= context["min_seconds"] * 1e9:
                yield Found(self._finding(group, objects), (group,), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup, objects: int) -> Finding:
        what = ", ".join(group.columns)
        owner = what.partition(".")[0]
        return about(
            ColumnLoadLoop,
            group,
            target=what,
            severity=Severity.HIGH,
            message=(
                f"{what} was loaded for {objects} {owner} objects, one by one: {_CAUSES[group.cause]}"
                if group.cause not in ("expired", "thrown", "refresh")
                else f"{objects} {owner} objects were loaded again, one by one: {_CAUSES[group.cause]}"
            ),
            evidence={
                "cause": group.cause,
                "distinct_objects": objects,
            },
            suggestion=_repair(group, what, owner),
        )


def _repair(group: StatementGroup, what: str, owner: str) -> str:
    """Return what to change, by cause."""
    if group.cause == "deferred":
        undefer = ", ".join(f"undefer({column})" for column in group.columns)
        return f"Load it with the query of the objects:\n.options({undefer})"
    if group.cause == "subclass":
        return f"Load the subclass's columns with the query:\n.options(selectin_polymorphic(Base, [{owner}]))"
    if group.cause == "expired":
        return (
            "Keep the objects as they are over a commit, commit after they were read, or read them with one query:\n"
            "sessionmaker(engine, expire_on_commit=False)"
        )
    if group.cause == "computed":
        return 'Have the flush bring it along, in the class:\n__mapper_args__ = {"eager_defaults": True}'
    return f"Read them again with one query:\nselect({owner}).where(...).execution_options(populate_existing=True)"
