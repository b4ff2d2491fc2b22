"""What is told to OpenTelemetry: which spans, which metrics. No import of it: the core depends on SQLAlchemy alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol

__all__ = ["AwaitingProvider", "ConnectionTelemetry", "PoolTelemetry", "Telemetry", "provider_is_set"]

STATEMENTS = ("all", "slow", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What is told to OpenTelemetry.

    Args:
        statements: Which statements have a span: `all`, `slow` (with those that failed), or `none`.
        slow_seconds: From how many seconds on a statement is slow.
        fold: Whether statements alike, from one line and below one span, become one span with their number.
        findings: Whether each finding has a span, and an event on the request's span.
        metrics: Whether the metrics are written.
        transactions: Whether each transaction has a span, with its COMMIT or ROLLBACK apart.
        waits: Whether a wait for the pool has a span, from the threshold of the rule `pool-wait` on.
        rows: Whether spans have the number of rows returned.
        parameters: Whether spans have the values of parameters. They may be secrets.
        enrich: Whether another instrumentation's statement spans get the attributes, and none of ours is made. None
            does so where `opentelemetry-instrumentation-sqlalchemy` has a span of the statement; True also with spans
            of the driver's instrumentation; False never does.
        comments: Whether a comment with trace, route and application is appended to each statement's text.
        application: Name of the application in those comments.

    Raises:
        ValueError: A value cannot be what it is; the message names it.

    Example::

        sqla_watch.install(engine, settings=sqla_watch.Settings(telemetry=sqla_watch.Telemetry(statements="slow")))
    """

    statements: Literal["all", "slow", "none"] = "all"
    slow_seconds: float = 0.1
    fold: bool = True
    findings: bool = True
    metrics: bool = True
    transactions: bool = False
    waits: bool = False
    rows: bool = False
    parameters: bool = False
    enrich: bool | None = None
    comments: bool = False
    application: str = ""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "statements":
                if value not in STATEMENTS:
                    raise ValueError(f"statements is {value!r}, but must be one of {', '.join(STATEMENTS)}")
            elif each.name == "slow_seconds":
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                    raise ValueError(f"slow_seconds is {value!r}, but must be seconds, 0 or more")
            elif each.name == "application":
                if not isinstance(value, str):
                    raise ValueError(f"application is {value!r}, but must be a name")
            elif not isinstance(value, bool) and not (each.name == "enrich" and value is None):
                raise ValueError(f"{each.name} is {value!r}, but must be true or false")

    @classmethod
    def of(cls, value: object, weaker: Telemetry | None = None) -> Telemetry | Literal[False] | None:
        """Return what a setting means: true or false, a table of fields, a Telemetry, or None, which says nothing.

        Args:
            value: The setting.
            weaker: What a weaker source says; a table changes only the fields that it names.

        Raises:
            ValueError: It is nothing of these, or has a field that is not known.
        """
        if value is None or value is False:
            return value
        if value is True:
            return weaker or cls()
        if isinstance(value, Telemetry):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"is {value!r}, but must be true, false, or a table")
        known = [each.name for each in fields(cls)]
        for name in value:
            if name not in known:
                import difflib  # nobody needs it before a mistake

                near = difflib.get_close_matches(str(name), known, 1, 0.4)
                hint = f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(known)
                raise ValueError(f"has the unknown key {name!r}; {hint}")
        return replace(weaker or cls(), **value)


class ConnectionTelemetry(Protocol):
    """What is told of one connection while it is out. Its methods raise nothing."""

    def ended(self, transaction: Any) -> None:
        """A transaction has ended (`Transaction`)."""

    def returned(self, nanoseconds: int) -> None:
        """The connection is back in the pool, after so long."""


class PoolTelemetry(Protocol):
    """Who is told what happens at the pools of an engine. Its methods raise nothing."""

    def created(self, nanoseconds: int) -> None:
        """A connection was opened."""

    def taken(self, started: int, nanoseconds: int) -> ConnectionTelemetry | None:
        """A connection was got, after so long; asked for at `started` (`time.perf_counter_ns`)."""

    def in_vain(self, started: int, nanoseconds: int, *, timed_out: bool) -> None:
        """Somebody waited and got none."""


def provider_is_set() -> bool:
    """Whether the application has given OpenTelemetry a global provider that does anything.

    Nothing is imported: without its modules there is none. OpenTelemetry's own way to ask would make one of the
    environment's where there is none yet, and costs several times as much; this is asked with each checkout.
    """
    modules = sys.modules
    if "opentelemetry" not in modules:
        return False
    for module, name in _PROVIDERS:
        provider = getattr(modules.get(module), name, None)
        if provider is not None and not type(provider).__name__.startswith("NoOp"):
            return True
    return False


_PROVIDERS = (("opentelemetry.trace", "_TRACER_PROVIDER"), ("opentelemetry.metrics._internal", "_METER_PROVIDER"))


class AwaitingProvider:
    """Stands where the telemetry of an engine's pools will be, until there is a provider (`PoolTelemetry`)."""

    def __init__(self, begin: Callable[[], PoolTelemetry | None]) -> None:
        self._begin = begin
        """Begins to tell OpenTelemetry, and returns what is in this one's place then; None if it cannot be now."""

    def created(self, nanoseconds: int) -> None:
        """A connection was opened."""
        telemetry = self._begin() if provider_is_set() else None
        if telemetry is not None:
            telemetry.created(nanoseconds)

    def taken(self, started: int, nanoseconds: int) -> ConnectionTelemetry | None:
        """A connection was got."""
        if not provider_is_set():
            return None
        telemetry = self._begin()
        return None if telemetry is None else telemetry.taken(started, nanoseconds)

    def in_vain(self, started: int, nanoseconds: int, *, timed_out: bool) -> None:
        """Somebody waited and got none."""
        telemetry = self._begin() if provider_is_set() else None
        if telemetry is not None:
            telemetry.in_vain(started, nanoseconds, timed_out=timed_out)
