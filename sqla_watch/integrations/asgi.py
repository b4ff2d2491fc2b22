"""ASGI middleware: one request, one scope. For FastAPI, Starlette, Litestar, Quart, BlackSheep, and any other.

Pure ASGI 3 (https://asgi.readthedocs.io/en/latest/specs/main.html), without a dependency on any of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from sqla_watch import registry
from sqla_watch.budgets import Budget
from sqla_watch.integrations._requests import PANEL_PATH, Request, Requests, logger, path_pattern
from sqla_watch.settings import Settings

if TYPE_CHECKING:
    from sqla_watch.panel import Panel

__all__ = ["SqlaWatchMiddleware"]

_Scope: TypeAlias = MutableMapping[str, Any]
_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]
_Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]


class SqlaWatchMiddleware:
    """Opens a scope for each request, from its first byte to its last, background tasks included.

    Put it outside of other middlewares, so that what they do with the database is seen, too. What a rule with the
    action `raise` finds when the request is over is raised in the profile `test` only; elsewhere it is a warning,
    because the response has been sent by then.

    Args:
        app: The ASGI application.
        budgets: What a route may cost at most, by method and route template: `{"GET /orders/{id}": Budget(…)}`;
            of a websocket, `"WS /chat"`.
        default_budget: What any other request may cost at most.
        server_timing: Whether responses get the header `Server-Timing`, for the browser's network panel.
        sample_rate: Share of the requests that are watched, from 0 to 1; the others cost almost nothing. Of those
            only the slow and the failed are told, without statements.
        slow_seconds: From how many seconds on a request is slow.
        panel: Whether the panel is served at `/__sqla_watch__/`; a development tool.
        panel_token: Who has it may see the panel from elsewhere than this machine; 16 characters at least.
        settings: Settings to judge by; those of the latest `install()` by default.

    Raises:
        SettingsError: An option cannot be what it is.

    Example::

        sqla_watch.install(engine)
        app = FastAPI()
        app.add_middleware(SqlaWatchMiddleware, panel=True)
    """

    def __init__(
        self,
        app: _Application,
        *,
        budgets: Mapping[str, Budget] | None = None,
        default_budget: Budget | None = None,
        server_timing: bool = False,
        sample_rate: float = 1.0,
        slow_seconds: float = 1.0,
        panel: bool | Panel = False,
        panel_token: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.app = app
        self._requests = Requests(
            budgets=budgets,
            default_budget=default_budget,
            server_timing=server_timing,
            sample_rate=sample_rate,
            slow_seconds=slow_seconds,
            panel=panel,
            panel_token=panel_token,
            settings=settings,
        )

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve one connection: a request or a websocket with a scope around it, anything else as it is."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        root = str(scope.get("root_path") or "")
        path = _path(scope, root)
        if self._requests.panel is not None and kind == "http" and _is_below(path, PANEL_PATH):
            await _show(self._requests.panel, scope, path, root, send)
            return
        if kind == "http":
            request = self._requests.begin(str(scope.get("method") or ""), path)
        else:
            request = self._requests.begin("WS", path, "websocket")
        try:
            await self.app(scope, receive, self._sending(send, request, scope, root))
        except BaseException as error:
            request.route = _route(scope, root)
            request.end(error)
            raise
        request.route = _route(scope, root)
        request.end()

    def _sending(self, send: _Send, request: Request, scope: _Scope, root: str) -> _Send:
        """Return `send` with an eye on the status."""
        with_timing = self._requests.server_timing

        async def sending(message: _Message) -> None:
            kind = message.get("type")
            if kind == "http.response.start" or kind == "websocket.http.response.start":
                status = message.get("status")
                request.status = status if isinstance(status, int) else 0
                if with_timing and (timing := request.server_timing):
                    headers = [*message.get("headers", ()), (b"server-timing", timing.encode("ascii"))]
                    message = {**message, "headers": headers}
            elif kind == "http.response.body":
                if registry.answering and not message.get("more_body"):
                    request.route = _route(scope, root)
                    request.answering()
            elif kind == "websocket.accept":
                request.status = 101
            elif kind == "websocket.close" and not request.status:  # not accepted
                request.status = 403
            await send(message)

        return sending


def _path(scope: _Scope, root: str) -> str:
    """Return the path below the application's root, which servers and frameworks put before it, or not."""
    path = str(scope.get("path") or "/")
    return path[len(root) :] or "/" if root and _is_below(path, root) else path


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


def _route(scope: _Scope, root: str) -> str:
    """Return the template of the route that the framework has chosen, empty if it does not tell."""
    try:
        template = scope.get("path_template")  # Litestar
        if isinstance(template, str):
            return template
        route = scope.get("route")  # Starlette, FastAPI
        if route is None:
            return ""
        if "fastapi" in scope:
            context = (scope["fastapi"] or {}).get("effective_route_context")
            if getattr(context, "original_route", None) is route:  # with the prefixes of the routers that it is in
                route = context
        path = getattr(route, "path_format", None) or getattr(route, "path", None)
        if not isinstance(path, str):
            return ""
        mounted = str(scope.get("root_path") or "")  # by now with the mounts that the route is below
        return path_pattern(mounted[len(root) :]) + path if mounted != root and mounted.startswith(root) else path
    except Exception:
        logger.exception("sqla_watch: the route of a request could not be read; please report this")
        return ""


async def _show(panel: Panel, scope: _Scope, path: str, root: str, send: _Send) -> None:
    """Serve a page of the panel."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
    client = scope.get("client")
    response = panel.respond(
        str(scope.get("method") or ""),
        path[len(PANEL_PATH) :],
        bytes(scope.get("query_string") or b"").decode("latin-1"),
        headers,
        str(client[0]) if client else None,
        https=scope.get("scheme") == "https",
        root=root + PANEL_PATH,
    )
    await send(
        {
            "type": "http.response.start",
            "status": response.status,
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers],
        }
    )
    await send({"type": "http.response.body", "body": response.body})
