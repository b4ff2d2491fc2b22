"""What the middlewares have in common: one request, one scope; its name, its budget, and who is told of it."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Mapping
from contextvars import Token
from typing import TYPE_CHECKING, Any

from sqla_watch.budgets import Budget, check_budgets
from sqla_watch.scopes import UNSAMPLED, Scope, close_scope, current, open_scope
from sqla_watch.settings import Settings, SettingsError

if TYPE_CHECKING:
    from sqla_watch.panel import Panel

__all__ = ["Request", "Requests", "path_pattern"]

logger = logging.getLogger("sqla_watch")

PANEL_PATH = "/__sqla_watch__"
TIMELINE = 10_000
"""Statements, waits and transactions of one request that the panel shows one by one."""
_LONGEST_NAME = 200
_MOST_SEGMENTS = 12
_NUMBER = re.compile(r"[0-9]+\Z")
_UUID = re.compile(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\Z")
_TOKEN = re.compile(r"(?=[^/]*[0-9])[0-9A-Za-z_\-.~%=+]{20,}\Z|[0-9a-fA-F]{12,}\Z|[^/]{60,}\Z")
"""What is one thing of many, and may be a secret: a long word with digits in it, or a very long one."""


def path_pattern(path: str) -> str:
    """Return a path with its numbers, UUIDs and tokens replaced, so that it names a route and no secret.

    >>> path_pattern("/orders/17/items/9f0c1d2e-0000-4000-8000-000000000001")
    '/orders/{number}/items/{uuid}'
    """
    segments = path.split("/", _MOST_SEGMENTS + 1)
    if len(segments) > _MOST_SEGMENTS:
        segments[_MOST_SEGMENTS:] = ["…"]
    return "/".join(map(_segment, segments))[:_LONGEST_NAME] or "/"


def _segment(segment: str) -> str:
    if _NUMBER.match(segment):
        return "{number}"
    if _UUID.match(segment):
        return "{uuid}"
    if _TOKEN.match(segment):
        return "{token}"
    return segment if segment.isprintable() else "{token}"


class Requests:
    """How requests are watched: the options of a middleware.

    Raises:
        SettingsError: An option cannot be what it is; the message names it.
    """

    def __init__(
        self,
        *,
        budgets: Mapping[str, Budget] | None,
        default_budget: Budget | None,
        server_timing: bool,
        sample_rate: float,
        slow_seconds: float,
        panel: bool | Panel,
        panel_token: str | None,
        settings: Settings | None,
    ) -> None:
        source = "SqlaWatchMiddleware"
        self.budgets = check_budgets(source, budgets or {})
        if default_budget is not None and not isinstance(default_budget, Budget):
            raise SettingsError(f"{source}: default_budget is {default_budget!r}, but must be a Budget(…)")
        self.default_budget = default_budget
        for name, value, largest in (("sample_rate", sample_rate, 1), ("slow_seconds", slow_seconds, float("inf"))):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= largest:
                upto = "from 0 to 1" if largest == 1 else "seconds, 0 or more"
                raise SettingsError(f"{source}: {name} is {value!r}, but must be {upto}")
        self.sample_rate = sample_rate
        self.slow_seconds = slow_seconds
        self.server_timing = bool(server_timing)
        if settings is not None and not isinstance(settings, Settings):
            raise SettingsError(f"{source}: settings is {settings!r}, but must be sqla_watch.Settings(…)")
        self.settings = None if settings is None else Settings.load(settings)
        if panel_token is not None and not panel:
            raise SettingsError(f"{source}: panel_token is given, but panel is not")
        self.panel = _panel(source, panel, panel_token)

    def begin(self, method: str, path: str, kind: str = "request") -> Request:
        """Open the scope of a request in the running context."""
        return Request(self, method, path, kind)


def _panel(source: str, panel: object, token: str | None) -> Panel | None:
    if panel is False or panel is None:
        return None
    from sqla_watch.panel import Panel  # late: it needs what only the extra installs

    if isinstance(panel, Panel):
        if token is not None:
            raise SettingsError(f"{source}: panel_token is given, but panel is a Panel, which has its own")
        return panel
    if panel is not True:
        raise SettingsError(f"{source}: panel is {panel!r}, but must be True, False or a Panel")
    return Panel(token=token)


class Request:
    """One request under watch."""

    __slots__ = ("_requests", "_started", "_token", "kind", "method", "path", "route", "scope", "status")

    def __init__(self, requests: Requests, method: str, path: str, kind: str) -> None:
        self._requests = requests
        self.method = method if method.isascii() and method.isalpha() and len(method) <= 20 else "?"
        self.path = path
        self.kind = kind
        self.route = ""
        """The route's template, if the framework has told."""
        self.status = 0
        self.scope: Scope | None = None
        """None for a request that is not in the sample."""
        self._started = time.perf_counter_ns()
        self._token: Token[Scope | None] | None = None
        rate = requests.sample_rate
        if rate >= 1 or random.random() < rate:
            room = TIMELINE if requests.panel is not None else None
            self.scope = open_scope("request", kind, requests.settings, timeline=room)
        else:
            self._token = current.set(UNSAMPLED)

    @property
    def name(self) -> str:
        """Method and route: `GET /orders/{id}`."""
        route = self.route if self.route.isprintable() else ""
        return f"{self.method} {route[:_LONGEST_NAME] or path_pattern(self.path)}"

    @property
    def server_timing(self) -> str:
        """The value of the header Server-Timing (https://www.w3.org/TR/server-timing/): durations in milliseconds."""
        scope = self.scope
        if scope is None:
            return ""
        statements = scope.statements
        plural = "" if statements == 1 else "s"
        parts = [f'db;dur={scope.database_seconds * 1e3:.1f};desc="{statements} statement{plural}"']
        if scope.commit_seconds:
            parts.append(f'db_commit;dur={scope.commit_seconds * 1e3:.1f};desc="COMMIT and ROLLBACK"')
        if scope.wait_seconds:
            parts.append(f'db_wait;dur={scope.wait_seconds * 1e3:.1f};desc="waiting for the pool"')
        return ", ".join(parts)

    def end(self, error: BaseException | None = None) -> None:
        """Close the scope; tell the panel.

        Raises:
            FindingRaised: A rule's action is `raise`, and the request itself did not fail.
        """
        requests = self._requests
        scope, self.scope = self.scope, None
        if scope is None:
            scope = self._unsampled(error)
            if scope is None:
                return
            sampled = False
        else:
            sampled = True
        scope.name = self.name
        scope.budget = requests.budgets.get(scope.name, requests.default_budget if self.kind == "request" else None)
        try:
            close_scope(scope, error)
        finally:
            if requests.panel is not None:
                requests.panel.add({**_facts(scope), "request": self._facts(error, sampled=sampled)})

    def _unsampled(self, error: BaseException | None) -> Scope | None:
        """Return a scope without facts for a request that was not in the sample but was slow or failed."""
        token, self._token = self._token, None
        if token is None:
            return None
        try:
            current.reset(token)
        except ValueError:  # ended in another context than it had begun in
            if current.get() is UNSAMPLED:
                current.set(None)
        slow = time.perf_counter_ns() - self._started >= self._requests.slow_seconds * 1e9
        if not slow and error is None and self.status < 500:
            return None
        scope = Scope("request", self.kind, self._requests.settings or UNSAMPLED.settings)
        scope.started = self._started
        return scope

    def _facts(self, error: BaseException | None, *, sampled: bool) -> dict[str, Any]:
        return {
            "method": self.method,
            "route": self.name.partition(" ")[2],
            "status": self.status,
            "failed": error is not None or self.status >= 500,
            "sampled": sampled,
        }


def _facts(scope: Scope) -> dict[str, Any]:
    """Return what is known of a scope; nothing but its name, should that fail."""
    try:
        return scope.to_dict()
    except Exception:
        logger.exception("sqla_watch: a request could not be described; please report this")
        return {"name": scope.name}
