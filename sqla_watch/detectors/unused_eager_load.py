from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, about
from sqla_watch.facts import CallSite, LoadKind, Relationship, StatementGroup
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning
from sqla_watch.settings import Action, Profile


class UnusedEagerLoadWarning(SqlaWatchWarning):
    """A relationship was loaded eagerly, and nobody read it."""


class UnusedEagerLoad(Rule):
    """A relationship that was loaded with the query, and never read.

    ## What it sees
    Relationships that `joinedload`, `selectinload`, `subqueryload` or the mapping load eagerly, by the line of the
    query, and whether one of them was read on any object of that query within the scope.

    ## Why it costs
    It is a join or a statement more, rows on the wire and objects in memory, for nothing.

    ## Example
    ```python
    for order in session.scalars(select(Order).options(selectinload(Order.items)).limit(10)):
        print(order.status)
    ```

    ## Use instead
    ```python
    for order in session.scalars(select(Order).limit(10)):
        print(order.status)
    ```

    ## Thresholds
    `min_parents`: objects for which it was loaded (5 in all).

    ## How to silence it
    `with sqla_watch.ignore("unused-eager-load", "Order.items", reason="…"):` or
    `# sqla-watch: ignore[unused-eager-load]`.

    ## Limits
    Off by default, in all profiles: to know what is read, the class of eagerly loaded relationships is replaced by
    one that notes each reading. What is read after the scope is not seen; objects of which nothing at all was read
    (read by their `__dict__`, perhaps) and those whose table was deleted from are silent. Implicit scopes have no
    findings of this rule.
    """

    id = "unused-eager-load"
    guide = (5,)
    warning = UnusedEagerLoadWarning
    thresholds: ClassVar = {"min_parents": Threshold(5, 5, 5, "objects for which it was loaded")}
    actions: ClassVar = dict.fromkeys(Profile, Action.IGNORE)

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each relationship and query."""
        if not facts.follows_attributes:
            return
        groups = facts.groups
        eager = [(group, relationship) for group in groups for relationship in _eager(group)]
        if not eager:
            return
        read = facts.attributes_read()
        deleted = {
            table for group in groups if group.fingerprint.operation == "DELETE" for table in group.fingerprint.tables
        }
        sites = {(relationship.key, facts.root_site(group)) for group, relationship in eager}
        # Read on objects which another query had loaded before: it may have been this one that brought what was read.
        elsewhere = {key for key, site in read if (key, site) not in sites}
        for group, relationship in eager:
            site = facts.root_site(group)
            if site is None or (relationship.key, site) in read or relationship.key in elsewhere:
                continue
            parents = _parents(group)
            if parents < context["min_parents"]:
                continue
            # Objects of which nothing at all is read are read in another way; what is deleted goes by its cascade.
            if deleted.isdisjoint(group.fingerprint.tables) and any(site == each for _, each in read):
                yield Found(self._finding(group, relationship, parents, site), (), group.ignores)

    @staticmethod
    def _finding(group: StatementGroup, relationship: Relationship, parents: int, site: CallSite) -> Finding:
        return about(
            UnusedEagerLoad,
            group,
            target=relationship.name,
            severity=Severity.LOW,
            message=f"{relationship.name} was loaded eagerly and never read ({group.rows} rows)",
            evidence={
                "relationship": relationship.name,
                "objects": parents,
                "rows": group.rows,
            },
            suggestion=(
                f"Take its option out of the query, or, where the mapping says so, out of this one:\n"
                f".options(lazyload({relationship.name}))"
            ),
            site=site,
        )


def _parents(group: StatementGroup) -> int:
    """Return for how many objects one statement loaded a relationship, as far as that can be told."""
    if group.kind is LoadKind.EAGER:
        return group.most_listed or group.most_rows
    return group.multiplied_parents or group.most_rows


def _eager(group: StatementGroup) -> tuple[Relationship, ...]:
    """Return the relationships that a group's statements loaded eagerly."""
    shape = group.fingerprint.shape
    joined = () if shape is None or group.kind is LoadKind.COLUMN else shape.relationships
    return joined if group.kind is not LoadKind.EAGER or group.relationship is None else (group.relationship, *joined)
