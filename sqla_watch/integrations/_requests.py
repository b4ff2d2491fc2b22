"""What the middlewares have in common: one request, one scope; its name, its budget, and who is told of it."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Mapping
from contextvars import Token
from typing import TYPE_CHECKING, Any

from sqla_watch import registry
from sqla_watch.budgets import Budget, check_budgets
from sqla_watch.findings import FindingRaised
from sqla_watch.scopes import UNSAMPLED, Scope, close_scope, current, open_scope
from sqla_watch.settings import Profile, Settings, SettingsError

if TYPE_CHECKING:
    from sqla_watch.panel import Panel

__all__ = ["Request", "Requests", "path_pattern"]

logger = logging.getLogger("sqla_watch")

PANEL_PATH = "/__sqla_watch__"
TIMELINE = 10_000
"""Statements, waits and transactions of one request that the panel shows one by one."""
_LONGEST_NAME = 200
_MOST_SEGMENTS = 12
_NUMBER = re.compile(r"[-+]?[0-9]+(?:[-.,:_][0-9]+)*\Z")
_UUID = re.compile(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\Z")
_WORD = re.compile(r"(?:[^\W\d_]|[-_.]){1,60}\Z")
_WORD_WITH_NUMBER = re.compile(
    r"[a-z]{1,8}[0-9]{1,3}\Z|[0-9]{1,2}[a-z]{1,8}\Z|v[0-9]{1,3}(?:[._-]?[0-9a-z]{1,5}){0,2}\Z"
)
"""`oauth2`, `2fa`, `v1.2`"""
_HEXADECIMAL = re.compile(r"[a-fA-F]{12,}\Z")
_LONG_WORD = 16
_ROUTE = re.compile(r"[A-Z?-]+ /")
"""How the name of a request begins."""
_MOST_WORDS = 1_000
_randomly = random.Random()
"""Our own: the application's generator gives the application the same numbers as without us."""


def path_pattern(path: str) -> str:
    """Return a path with its numbers, UUIDs and tokens replaced, so that it names a route and no secret.

    >>> path_pattern("/orders/17/items/9f0c1d2e-0000-4000-8000-000000000001")
    '/orders/{number}/items/{uuid}'
    """
    segments = path.split("/", _MOST_SEGMENTS)
    shown = "/".join(map(_shown, segments[:_MOST_SEGMENTS]))
    if len(segments) > _MOST_SEGMENTS:
        shown += "/…"
    return shown[:_LONGEST_NAME] or "/"


class _Shown(dict[str, str]):
    """How a segment of a path is shown. Words that were seen before are kept; what may be a secret is not."""

    def __missing__(self, segment: str) -> str:
        if _NUMBER.match(segment):
            return "{number}"
        if _UUID.match(segment):
            return "{uuid}"
        if segment and not _is_word(segment):
            return "{token}"
        if len(self) < _MOST_WORDS:
            self[segment] = segment
        return segment


_shown = _Shown().__getitem__


def _is_word(segment: str) -> bool:
    """Whether a segment is a word of the application's, and not one thing of many, or a secret."""
    if not _WORD.match(segment):
        return _WORD_WITH_NUMBER.match(segment) is not None
    if _HEXADECIMAL.match(segment):
        return False
    if len(segment) < _LONG_WORD:
        return True
    capitals = sum(map(str.isupper, segment))  # a secret without a digit has them everywhere
    return capitals * 3 <= len(segment) or segment.isupper()


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
        self.budgets = check_budgets(source, budgets if budgets is not None else {})
        for name in self.budgets:
            if not _ROUTE.match(name):
                raise SettingsError(
                    f"{source}: a budget is for {name!r}, but must be for a method and a route, as 'GET /orders'"
                )
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
        self._timeline = None if self.panel is None else TIMELINE

    def begin(self, method: str, path: str, kind: str = "request") -> Request:
        """Open the scope of a request in the running context, if it is in the sample."""
        request = Request(self, method, path, kind)
        rate = self.sample_rate
        try:
            if rate >= 1 or _randomly.random() < rate:
                request.scope = open_scope("request", kind, self.settings, timeline=self._timeline)
            else:
                request.unsampled = current.set(UNSAMPLED), time.perf_counter_ns()
        except Exception:  # the application is served all the same
            logger.exception("sqla_watch: the scope of a request could not be opened; please report this")
        return request


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

    __slots__ = ("_requests", "kind", "method", "outside", "path", "route", "scope", "status", "unsampled")

    def __init__(self, requests: Requests, method: str, path: str, kind: str) -> None:
        self._requests = requests
        self.method = method if method.isascii() and method.isalpha() and len(method) <= 20 else "?"
        self.path = path
        self.kind = kind
        self.route = ""
        """The route's template, if the framework has told."""
        self.status = 0
        """The status of the response; 500 where an exception was raised instead of one."""
        self.scope: Scope | None = None
        """None for a request that is not in the sample."""
        self.outside = current.get()
        """The scope around it."""
        self.unsampled: tuple[Token[Scope | None], int] | None = None
        """Of a request that is not in the sample, what takes it out of the context, and when it began."""

    @property
    def name(self) -> str:
        """Method and route: `GET /orders/{id}`."""
        route = self.route
        shown = route[:_LONGEST_NAME] if route and route.isprintable() else path_pattern(self.path)
        return f"{self.method} {shown}"

    @property
    def server_timing(self) -> str:
        """The value of the header Server-Timing (https://www.w3.org/TR/server-timing/): durations in milliseconds."""
        try:
            return "" if self.scope is None else _server_timing(self.scope)
        except Exception:
            logger.exception("sqla_watch: Server-Timing could not be written; please report this")
            return ""

    def answering(self) -> None:
        """The last of the response is about to be sent; of WSGI's the first, because nothing tells of its last."""
        scope = self.scope
        if registry.answering and scope is not None:
            scope.name = self.name
            scope.budget = self._budget_of(scope)
            scope.answer()

    def end(self, error: BaseException | None = None, *, quiet: bool = False) -> None:
        """Close the scope; tell the panel. Called again it does nothing.

        By then the response has been sent. An exception would make a server close the connection, on which the
        client's next request may be on its way, so only the profile `test` has one.

        Args:
            error: What the application raised.
            quiet: Whether nothing is to be raised at all, because there still is a response to be sent.

        Raises:
            FindingRaised: A rule's action is `raise`, and the request itself did not fail.
            Warning: A filter makes an exception of a warning, and the request itself did not fail.
        """
        scope, self.scope = self.scope, None
        sampled = scope is not None
        if not self.status and isinstance(error, Exception):
            self.status = 500
        try:
            if scope is None:
                scope = self._slow_or_failed(error)
                if scope is None:
                    return
                quiet = True
            scope.name = self.name
            if sampled:
                scope.budget = self._budget_of(scope)
            close_scope(scope, error, quiet=quiet or scope.settings.profile != Profile.TEST)
        except (FindingRaised, Warning):
            raise
        except Exception:
            logger.exception("sqla_watch: the scope of a request could not be closed; please report this")
        finally:
            if scope is not None:
                self._show(scope, error, sampled=sampled)

    def _budget_of(self, scope: Scope) -> Budget | None:
        requests = self._requests
        return requests.budgets.get(scope.name, requests.default_budget if self.kind == "request" else None)

    def _slow_or_failed(self, error: BaseException | None) -> Scope | None:
        """Return a scope without facts for a request that was not in the sample but was slow or failed."""
        if self.unsampled is None:
            return None
        token, started = self.unsampled
        self.unsampled = None
        try:
            current.reset(token)
        except ValueError:  # ended in another context than it had begun in
            if current.get() is UNSAMPLED:
                current.set(self.outside)
        elapsed = time.perf_counter_ns() - started
        slow = self.kind == "request" and elapsed >= self._requests.slow_seconds * 1e9  # a websocket is meant to last
        if not slow and error is None and self.status < 500:
            return None
        scope = Scope("request", self.kind, self._requests.settings or registry.active_settings(), timeline=0)
        scope.started_at -= (scope.started - started) / 1e9
        scope.started = started
        return scope

    def _show(self, scope: Scope, error: BaseException | None, *, sampled: bool) -> None:
        """Hand the request to the panel, if there is one."""
        panel = self._requests.panel
        if panel is None:
            return
        try:
            panel.add({**_facts(scope), "request": self._facts(error, sampled=sampled)})
        except Exception:
            logger.exception("sqla_watch: a request could not be shown in the panel; please report this")

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


def _server_timing(scope: Scope) -> str:
    statements = scope.statements
    plural = "" if statements == 1 else "s"
    parts = [f'db;dur={scope.database_seconds * 1e3:.1f};desc="{statements} statement{plural}"']
    if scope.commit_seconds:
        parts.append(f'db_commit;dur={scope.commit_seconds * 1e3:.1f};desc="COMMIT and ROLLBACK"')
    if scope.wait_seconds:
        parts.append(f'db_wait;dur={scope.wait_seconds * 1e3:.1f};desc="waiting for the pool"')
    return ", ".join(parts)
