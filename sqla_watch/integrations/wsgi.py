"""WSGI middleware: one request, one scope. For Flask, Pyramid, Bottle, Django under WSGI, and any other.

PEP 3333, without a dependency on any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias

from sqla_watch.budgets import Budget
from sqla_watch.integrations._requests import PANEL_PATH, Request, Requests, logger, path_pattern
from sqla_watch.scopes import current
from sqla_watch.settings import Settings

if TYPE_CHECKING:
    from sqla_watch.panel import Panel, Response

__all__ = ["SqlaWatchMiddleware"]

_Environ: TypeAlias = dict[str, Any]
_StartResponse: TypeAlias = Callable[..., Any]
_Application: TypeAlias = Callable[[Any, Any], Iterable[bytes]]

_ROUTES = (("werkzeug.request", ("url_rule", "rule")), ("bottle.route", ("rule",)))  # Flask; Bottle
"""Where frameworks put the route they have chosen, and the way from there to its template."""


class SqlaWatchMiddleware:
    """Opens a scope for each request, from its first byte to its last.

    Put it outside of other middlewares, so that what they do with the database is seen, too. What a rule with the
    action `raise` finds when the request is over is raised in the profile `test` only; elsewhere it is a warning,
    because the response has been sent by then.

    Args:
        app: The WSGI application.
        budgets: What a route may cost at most, by method and route template:
            `{"GET /orders/<int:id>": Budget(…)}`, as the framework writes it.
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

        sqla_watch.install(db.engine)
        app = Flask(__name__)
        app.wsgi_app = SqlaWatchMiddleware(app.wsgi_app, panel=True)
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

    def __call__(self, environ: _Environ, start_response: _StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        path = _text(environ.get("PATH_INFO", "")) or "/"
        panel = self._requests.panel
        if panel is not None and (path == PANEL_PATH or path.startswith(PANEL_PATH + "/")):
            return _show(panel, environ, path, start_response)
        request = self._requests.begin(str(environ.get("REQUEST_METHOD", "")), path)
        root = environ.get("SCRIPT_NAME")
        try:
            body = self.app(environ, self._starting(environ, start_response, request, root))
            if type(body) is list or type(body) is tuple or _is_file(body, environ):  # nothing is left but to send it
                request.end(quiet=True)
                return body
            pieces = iter(body)
        except BaseException as error:
            request.route = request.route or _route(environ, root)
            request.end(error)
            raise
        return (_SizedBody if hasattr(type(body), "__len__") else _Body)(body, pieces, request)

    def _starting(
        self, environ: _Environ, start_response: _StartResponse, request: Request, root: object
    ) -> _StartResponse:
        """Return `start_response` with an eye on status and route."""
        with_timing = self._requests.server_timing

        def starting(status: str, headers: list[tuple[str, str]], *further: Any, **named: Any) -> Any:
            number = str(status)[:3]
            request.status = int(number) if number.isascii() and number.isdigit() else 0
            request.route = request.route or _route(environ, root)
            request.answering()
            if with_timing and (timing := request.server_timing):
                headers = [*headers, ("Server-Timing", timing)]
            return start_response(status, headers, *further, **named)

        return starting


class _Body:
    """A body that is made while it is sent: each piece in the request's scope, which ends with the last."""

    def __init__(self, body: Iterable[bytes], pieces: Iterator[bytes], request: Request) -> None:
        self._body = body
        self._pieces = pieces
        self._request = request
        self._scope = current.get()
        self._leave()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        current.set(self._scope)
        try:
            return next(self._pieces)
        except StopIteration:
            raise
        except BaseException as error:
            self._request.end(error)
            raise
        finally:
            self._leave()

    def close(self) -> None:
        """Close the application's body, and with it the scope. Servers call this also when the client is gone."""
        current.set(self._scope)
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            self._request.end(error)
            raise
        else:
            self._request.end()
        finally:
            self._leave()

    def __del__(self) -> None:
        """End the scope also where nobody called `close`: a test client, a server that lost its client."""
        self._request.end(quiet=True)
        self._leave()

    def _leave(self) -> None:
        """Between two pieces the server may serve others in this thread."""
        if current.get() is self._scope:
            current.set(self._request.outside)


class _SizedBody(_Body):
    """A body that knows how many pieces it has: of one alone a server takes the length for a header."""

    def __len__(self) -> int:
        size: int = len(self._body)  # type: ignore[arg-type]
        return size


def _text(value: object) -> str:
    """Return a value of the environ as text: WSGI has UTF-8 as Latin-1 there."""
    text = str(value)
    return text if text.isascii() else text.encode("latin-1", "replace").decode("utf-8", "replace")


def _is_file(body: object, environ: _Environ) -> bool:
    """Whether a body is the server's own for a file, which it sends better than we could."""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


def _route(environ: _Environ, root: object) -> str:
    """Return the template of the route that the framework has chosen, empty if it does not tell."""
    try:
        for key, names in _ROUTES:
            if key not in environ:
                continue
            found = environ[key]
            for name in names:
                found = getattr(found, name, None)
            if isinstance(found, str):
                root, mounted = _text(root or ""), _text(environ.get("SCRIPT_NAME", ""))
                if mounted != root and mounted.startswith(root):  # the application is mounted in another
                    return path_pattern(mounted[len(root) :]) + found
                return found
    except Exception:
        logger.exception("sqla_watch: the route of a request could not be read; please report this")
    return ""


def _show(panel: Panel, environ: _Environ, path: str, start_response: _StartResponse) -> list[bytes]:
    """Serve a page of the panel."""
    response: Response = panel.respond(
        str(environ.get("REQUEST_METHOD", "")),
        path[len(PANEL_PATH) :],
        str(environ.get("QUERY_STRING", "")),
        {key[5:].replace("_", "-").lower(): str(value) for key, value in environ.items() if key.startswith("HTTP_")},
        str(environ.get("REMOTE_ADDR") or "") or None,
        https=environ.get("wsgi.url_scheme") == "https",
        root=_text(environ.get("SCRIPT_NAME", "")) + PANEL_PATH,
    )
    start_response(
        f"{response.status} {HTTPStatus(response.status).phrase}", [(name, value) for name, value in response.headers]
    )
    return [response.body]
