from __future__ import annotations

from collections.abc import Iterator

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, where
from sqla_watch.facts import MissingLoad
from sqla_watch.findings import Finding, RelatedLocation, Severity, SqlaWatchWarning


class AsyncLazyLoadWarning(SqlaWatchWarning):
    """An attribute would have had to load where nothing can be awaited."""


class AsyncLazyLoad(Rule):
    """MissingGreenlet explained: which attribute would have had to load, and how to have it loaded.

    ## What it sees
    The `MissingGreenlet` that SQLAlchemy raises when an object of an AsyncSession has to ask the database in the
    middle of an attribute's access: the attribute, why it was not there (a lazy relationship, a deferred column, an
    object that a commit has expired), the line that touched it, and the query that loaded the object.

    ## Why it costs
    It is an error, and its text names neither the attribute nor the query. A serializer far from the query is where
    it mostly happens.

    ## Example
    ```python
    async def handler():
        async with AsyncSession(async_engine) as session:
            order = (await session.scalars(select(Order).limit(1))).one()
            try:
                return order.items
            except MissingGreenlet:
                return None

    asyncio.run(handler())
    ```

    ## Use instead
    ```python
    async def handler():
        async with AsyncSession(async_engine) as session:
            query = select(Order).limit(1).options(selectinload(Order.items))
            order = (await session.scalars(query)).one()
            return order.items

    asyncio.run(handler())
    ```

    ## Thresholds
    None: each is an error.

    ## How to silence it
    `with sqla_watch.ignore("async-lazy-load", "Order.items", reason="…"):` or
    `# sqla-watch: ignore[async-lazy-load]`.

    ## Limits
    The query is named where it ran in the same scope.
    """

    id = "async-lazy-load"
    guide = (4, 18)
    warning = AsyncLazyLoadWarning
    reads = "missing loads"

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each attribute and line."""
        told = set()
        for missing in facts.missing_loads:
            key = (missing.owner, missing.key, missing.call_site)
            if key not in told:
                told.add(key)
                yield Found(self._finding(missing), (), missing.ignores)

    @staticmethod
    def _finding(missing: MissingLoad) -> Finding:
        name = f"{missing.owner}.{missing.key}" if missing.key else "a synchronous method"
        query = where(missing.query)
        message, suggestion = _explain(missing, name, f"the query at {query}" if query else "the query that loads it")
        return Finding(
            rule=AsyncLazyLoad.id,
            target=name,
            severity=Severity.HIGH,
            message=message,
            location=where(missing.call_site),
            evidence={"attribute": name, "cause": missing.cause or "synchronous call"},
            suggestion=suggestion,
            related=() if query is None else (RelatedLocation("loaded by the query", query),),
        )


def _explain(missing: MissingLoad, name: str, query: str) -> tuple[str, str]:
    """Return what happened, and what to change."""
    object_name = missing.owner.lower()
    if missing.cause == "relationship":
        option = f"{'selectinload' if missing.to_many else 'joinedload'}({name})"
        return (
            f"MissingGreenlet: {name} was touched before it was loaded, where nothing can be awaited",
            f"Add to {query}:\n.options({option})\n"
            f"or await it: await {object_name}.awaitable_attrs.{missing.key}  (with AsyncAttrs)",
        )
    if missing.cause == "deferred":
        return (
            f"MissingGreenlet: {name} is deferred, and was touched where nothing can be awaited",
            f"Add to {query}:\n.options(undefer({name}))",
        )
    if missing.cause == "subclass":
        return (
            f"MissingGreenlet: {name} is of a subclass that the query did not load, and nothing can be awaited here",
            f"Add to {query}:\n.options(selectin_polymorphic(Base, [{missing.owner}]))",
        )
    if missing.cause == "computed":
        return (
            f"MissingGreenlet: {name} is computed by the database, and was touched where nothing can be awaited",
            "Have the flush bring it along, in the class:\n"
            f'__mapper_args__ = {{"eager_defaults": True}}\nor read it before: await session.refresh({object_name})',
        )
    if missing.cause == "expire":
        return (
            f"MissingGreenlet: {name} was expired by session.expire(), and touched where nothing can be awaited",
            f"Read it again before:\nawait session.refresh({object_name}, [{missing.key!r}])",
        )
    if missing.cause == "thrown":
        return (
            f"MissingGreenlet: {name} was touched after expire(), expire_all() or a rollback had thrown it away",
            f"Read it again before:\nawait session.refresh({object_name})",
        )
    if missing.cause == "expired":
        return (
            f"MissingGreenlet: {name} was touched after its object had expired, as by a commit",
            "Keep objects as they are over a commit, or read them again before:\n"
            f"async_sessionmaker(engine, expire_on_commit=False)\nawait session.refresh({object_name})",
        )
    return (
        "MissingGreenlet: a synchronous method of an AsyncEngine's objects was called where nothing can be awaited",
        "Call it through run_sync:\nawait session.run_sync(function)",
    )
