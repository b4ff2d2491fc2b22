"""How an engine was made, as far as that can be wrong: read once, when its watch begins."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Engine

from sqla_watch.facts import CallSite, EngineConfiguration
from sqla_watch.ignores import active

__all__ = ["describe_engine"]


def describe_engine(engine: Engine, site: CallSite | None) -> EngineConfiguration:
    """Return an engine's configuration; nothing of its URL but the names of dialect and driver."""
    pool: Any = engine.pool
    size = getattr(pool, "size", None)
    cache = getattr(engine, "_compiled_cache", None)
    isolation = getattr(engine.dialect, "_on_connect_isolation_level", None) or engine.get_execution_options().get(
        "isolation_level"
    )
    return EngineConfiguration(
        dialect=f"{engine.dialect.name}+{engine.dialect.driver}",
        pool=type(pool).__name__,
        pool_size=size() if callable(size) else 0,
        max_overflow=getattr(pool, "_max_overflow", 0),
        pre_ping=bool(getattr(pool, "_pre_ping", False)),
        recycle_seconds=float(getattr(pool, "_recycle", -1)),
        reset_on_return=getattr(getattr(pool, "_reset_on_return", None), "name", "") != "reset_none",
        echo=bool(engine.echo),
        isolation_level=str(isolation or ""),
        query_cache_size=0 if cache is None else int(getattr(cache, "capacity", 0)),
        call_site=site,
        ignores=active.get(),
    )
