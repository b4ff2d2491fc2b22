from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about, where
from sqla_watch.facts import LoadKind, Relationship, StatementGroup
from sqla_watch.findings import Finding, RelatedLocation, Severity, SqlaWatchWarning


class NPlusOneWarning(SqlaWatchWarning):
    """One relationship was lazily loaded for many parents, one by one."""


class NPlusOne(Rule):
    """One relationship lazily loaded for many distinct parents of one session.

    ## What it sees
    A query brings many objects; then code touches the same relationship on one after the other, and each touch
    sends a SELECT of its own. Counted are distinct parents for each session, relationship and line, not
    executions. The line that touches the relationship and the line of the query that loaded the parents are both
    named, and the `.options(...)` for that query, with nested relationships chained from it.

    ## Why it costs
    Each SELECT is a round trip: 100 parents at half a millisecond are 50 ms in which the application waits and a
    connection is taken, and the number grows with the data. One statement more for all parents at once costs
    about as much as one of the hundred.

    ## Example
    ```python
    for customer in session.scalars(select(Customer)):
        print(len(customer.orders))
    ```

    ## Use instead
    ```python
    for customer in session.scalars(select(Customer).options(selectinload(Customer.orders))):
        print(len(customer.orders))
    ```

    ## Thresholds
    `min_parents`: distinct parents loaded by one query and then touched one by one (development 2, test 2,
    production 5). Parents that were each loaded by a query of their own count from five in one transaction on.
    `min_seconds`: database seconds of the lazy loads together (production 0.05, else 0).

    ## How to silence it
    `with sqla_watch.ignore("n-plus-one", "Customer.orders", reason="…"):` around the code, or
    `# sqla-watch: ignore[n-plus-one]` on its line.

    ## Limits
    Relationships with `lazy="dynamic"` or `"write_only"` send ordinary queries: `query-in-loop` sees those. Parents
    loaded before the scope was opened have no query to name. What a flush, `session.delete()` or `immediateload` loads
    parent by parent counts as well.
    """

    id = "n-plus-one"
    guide = (4, 5)
    warning = NPlusOneWarning
    reads = "lazy loads"
    floor = ("min_parents",)
    thresholds: ClassVar = {
        "min_parents": Threshold(2, 2, 5, "distinct parents"),
        "min_seconds": Threshold(0.0, 0.0, 0.05, "database seconds of the lazy loads together"),
    }

    _LONE_PARENTS = 5  # parents that each came by a query of their own: the loop around those is the mistake

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each relationship, line and session."""
        for group in facts.groups:
            relationship = group.relationship
            if group.kind is not LoadKind.LAZY or relationship is None:
                continue
            parents = len(group.values) + group.uncounted
            together = parents - max(len(group.roots), 1) + 1
            lone = max(self._LONE_PARENTS, context["min_parents"])
            if parents < context["min_parents"] or (
                together < context["min_parents"] and group.most_in_checkout < lone
            ):
                continue
            if group.nanoseconds < context["min_seconds"] * 1e9:
                continue
            yield Found(self._finding(group, relationship, parents), (group,), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup, relationship: Relationship, parents: int) -> Finding:
        option = loader_option(relationship)
        related = []
        for site in group.root_sites.most_first()[:1]:
            location = where(site)
            if location is not None:
                related.append(RelatedLocation("parents loaded by the query", location))
        place = f"the query at {related[0].location}" if related else "the query that loads them"
        how, suggestion = _HOW[group.cause]
        return about(
            NPlusOne,
            group,
            target=relationship.name,
            severity=Severity.HIGH,
            message=(
                f"{relationship.name} was loaded {how} for {parents} {relationship.owner} objects, one by one: "
                f"{group.count} statements where one would do"
            ),
            evidence={
                "relationship": relationship.name,
                "distinct_parents": parents,
                "rows": group.rows,
            },
            suggestion=suggestion.format(place=place, option=option, relationship=relationship),
            related=tuple(related),
        )


_PASSIVE = (
    "Let the database delete what belongs to them, without loading it first:\n"
    'relationship({relationship.target}, cascade="all, delete-orphan", passive_deletes=True), with '
    'ForeignKey(..., ondelete="CASCADE")\n'
    "or load it with the objects: {option}"
)
_HOW = {
    "": ("lazily", "Add to {place}:\n{option}"),
    "immediate": ("by immediateload", "Instead of immediateload, in {place}:\n{option}"),
    "delete": ("by session.delete()", _PASSIVE),
    "flush": ("by the flush", _PASSIVE),
}
"""How a relationship was loaded, and what to change, by who touched it."""


def loader_option(relationship: Relationship) -> str:
    """Return the option that loads a relationship with the query at the root of its path.

    >>> orders = ("Customer", "orders", True)
    >>> loader_option(Relationship("Order", "items", "Item", True, (orders,)))
    '.options(selectinload(Customer.orders).selectinload(Order.items))'
    """
    steps = (*relationship.path, (relationship.owner, relationship.key, relationship.to_many))
    chain = ".".join(f"{'selectinload' if to_many else 'joinedload'}({owner}.{key})" for owner, key, to_many in steps)
    return f".options({chain})"
