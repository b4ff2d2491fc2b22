"""SQL comments with trace, route and application, as sqlcommenter has them (https://google.github.io/sqlcommenter/).

A comment that is another one for each execution makes each text a new one. psycopg would then never prepare a
statement, and asyncpg, which prepares all, would do so again each time. So the trace is left out where the driver
prepares statements; application and route, of which there are few, stay.
"""

from __future__ import annotations

import re
from typing import Any

from opentelemetry.trace import Span

from sqla_watch.scopes import UNSAMPLED, Scope

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_.~/{}: -]")
"""What is not written as it is. It becomes `_` instead of a percent code, because drivers read `%` as a parameter."""
_LONGEST_ROUTE = 200


class Comments:
    """Appends comments to the statements of one engine."""

    def __init__(self, application: str) -> None:
        self._application = _plain(application)

    def append(self, statement: Any, context: Any, span: Span, scope: Scope | None) -> Any:
        """Return a statement with its comment at the end; one that ends in a comment, or is no text, as it is."""
        if not isinstance(statement, str) or statement.rstrip().endswith("*/"):
            return statement
        said = {"application": self._application, "route": _plain(_route(scope))}
        above = span.get_span_context()
        if above.is_valid and not prepares(context):
            said["traceparent"] = f"00-{above.trace_id:032x}-{above.span_id:016x}-{above.trace_flags:02x}"
        comment = ",".join(f"{name}='{value}'" for name, value in said.items() if value)
        return f"{statement} /*{comment}*/" if comment else statement


def prepares(context: Any) -> bool:
    """Whether a driver prepares statements by their text, now or once it has seen the same one often enough."""
    driver = context.dialect.driver
    if driver in ("psycopg2", "pysqlite", "aiosqlite"):
        return False
    if driver in ("psycopg", "psycopg_async"):
        connection = getattr(getattr(context, "_dbapi_connection", None), "driver_connection", None)
        return getattr(connection, "prepare_threshold", 5) is not None
    return True


def _route(scope: Scope | None) -> str:
    """Return the route of the request that runs, as the request's span or the scope has it."""
    if scope is None or scope is UNSAMPLED:
        return ""
    unit = scope.unit or scope
    route = (getattr(unit.span, "attributes", None) or {}).get("http.route")
    if isinstance(route, str):
        return route
    return "" if unit.name in ("request", "connection") else unit.name


def _plain(value: str) -> str:
    return _NOT_PLAIN.sub("_", value)[:_LONGEST_ROUTE]
