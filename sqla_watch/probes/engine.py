"""How an engine was made, as far as that can be wrong, read when its watch begins; and, on request, its server."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from sqla_watch.facts import CallSite, EngineConfiguration
from sqla_watch.ignores import active

__all__ = ["describe_engine", "describe_server"]

_LIMITS = text(
    """
    SELECT current_setting('max_connections')::int
           - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true)::int, 0),
           (SELECT rolconnlimit FROM pg_catalog.pg_roles WHERE rolname = current_user),
           (SELECT datconnlimit FROM pg_catalog.pg_database WHERE datname = current_database())
    """
)
"""Connections that the server has for those who are no superusers, and the limits of role and database, -1 for none."""


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


def describe_server(connection: Connection, workers: int, site: CallSite | None) -> EngineConfiguration:
    """Return the configuration of a connection's engine with what its server has for it. Sends one statement."""
    was_in_transaction = connection.in_transaction()
    limits = connection.execute(_LIMITS).one()
    if not was_in_transaction:
        connection.rollback()
    most = min(limit for limit in limits if limit is not None and limit >= 0)
    return describe_engine(connection.engine, site)._replace(workers=workers, max_connections=most)
