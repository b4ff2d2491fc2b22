"""The panel itself: keeps the last requests of an application and answers for the pages about them.

It knows nothing of servers: a middleware hands over method, path and headers, and sends what it gets back.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote, urlencode

from sqla_watch.panel.access import Access, pairs_of
from sqla_watch.panel.entry import read_entry
from sqla_watch.panel.errors import PanelError, require_extra
from sqla_watch.panel.store import Kept, Store

__all__ = ["Panel", "Response"]

logger = logging.getLogger("sqla_watch")

_SECURITY = (
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
_ASSETS = {"/panel.css": "text/css", "/panel.js": "text/javascript"}
_ONE = re.compile(r"/requests/([0-9]{1,15})", re.ASCII)


@dataclass(frozen=True)
class Response:
    """An answer, for a server to send."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Panel:
    """The last requests of an application, and the pages about them.

    Args:
        token: What those who may see it know, 16 characters at least; without one it is for this machine only.
        most_requests: How many requests are kept; 20 MB of them at most.

    Raises:
        PanelError: The token is too short, or the packages of the extra `panel` are not there.

    Example::

        panel = Panel()
        panel.add(scope.to_dict())
        response = panel.respond("GET", "/", "", {"host": "localhost"}, "127.0.0.1", https=False, root="/panel")
    """

    def __init__(self, *, token: str | None = None, most_requests: int = 200) -> None:
        require_extra()
        if not isinstance(most_requests, int) or isinstance(most_requests, bool) or most_requests < 1:
            raise PanelError(f"most_requests is {most_requests!r}, not a whole number from 1")
        self._access = Access(token)
        self._store = Store(most_requests)
        self._most = most_requests
        self._of = secrets.token_hex(3)
        """This panel: the numbers of another process are other requests."""
        self._said: set[str] = set()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Keep a request, from any thread. Never raises: what cannot be kept is said once in the log.

        Args:
            entry: As `Scope.to_dict` makes it, perhaps with `timeline` (`Timeline.to_dict`) and `request`: `method`,
                `route`, `status` (0 where no response was sent), `failed` and `sampled`.
        """
        try:
            self._store.add(entry)
        except Exception:
            self._say("a request is not in the panel")

    def respond(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        client: str | None,
        *,
        https: bool,
        root: str,
    ) -> Response:
        """Return the answer to a request for a page of the panel. Never raises.

        Args:
            method: `GET` or `HEAD`; nothing else is answered.
            path: Below the place where the panel is mounted: `/`, `/requests/12`.
            query: Without the question mark.
            headers: With names in lower case.
            client: The address it comes from, or None where it has none.
            https: Whether it came that way: then a cookie does, too.
            root: Where the panel is mounted, without a slash at its end: `/__sqla_watch__`.
        """
        try:
            response = self._answer(method, path, query, headers, client, https, _clean(root))
        except Exception:
            self._say("a page of the panel could not be made")
            response = _plain(500, "The panel could not make this page; the log of sqla_watch says why.")
        return Response(response.status, response.headers, b"") if method == "HEAD" else response

    def _answer(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        client: str | None,
        https: bool,
        root: str,
    ) -> Response:
        refusal = self._access.refusal(headers, client, query)
        if refusal:
            return _plain(403, refusal)
        if method not in ("GET", "HEAD"):
            return _plain(405, "The panel answers GET and HEAD only.", ("Allow", "GET, HEAD"))
        if self._access.brings_token(query):
            kept = [pair for pair in pairs_of(query) if pair[0] != "token"]
            cookie = self._access.cookie(quote(root), https=https)
            return _elsewhere(root, path, urlencode(kept), ("Set-Cookie", cookie))
        if not path:
            return _elsewhere(root, "/", query)
        return self._page(path, query)

    def _page(self, path: str, query: str) -> Response:
        from sqla_watch.panel import pages

        wanted = dict(pairs_of(query))
        if path == "/":
            return _page(200, pages.list_page(self._store.last(), of=self._of, most=self._most))
        if path in _ASSETS:
            return _response(200, _ASSETS[path], pages.asset(path[1:]))
        if path == "/requests.json":
            return self._news(wanted)
        found = _ONE.fullmatch(path)
        if found is None:
            return _plain(404, "The panel has no such page.")
        return self._one(int(found[1]), wanted)

    def _one(self, number: int, wanted: Mapping[str, str]) -> Response:
        from sqla_watch.panel import pages

        kept = self._store.last()
        place = next((place for place, each in enumerate(kept) if each.number == number), None)
        if place is None or wanted.get("of", self._of) != self._of:
            text = (
                f"Request {number} is not kept: newer ones have taken its place, the application was started again, "
                "or another of its processes has it."
            )
            return _page(404, pages.message_page("Not there any more", text))
        try:
            entry = read_entry(kept[place].unpack(), ("entry",))
        except PanelError as error:
            self._say("a request cannot be shown")
            return _plain(500, f"This request cannot be shown: {error}.")
        neighbours: list[Kept | None] = [None, *kept, None]
        return _page(200, pages.request_page(entry, of=self._of, newer=neighbours[place], older=neighbours[place + 2]))

    def _news(self, wanted: Mapping[str, str]) -> Response:
        """Answer with the requests after a number; with all of them where that number is another process's."""
        from sqla_watch.panel.pages import news_row

        after = wanted.get("after", "0")
        if wanted.get("of", self._of) != self._of or not (after.isascii() and after.isdigit() and len(after) < 16):
            after = "0"
        kept = self._store.last(int(after))
        rows = [asdict(news_row(each, self._of)) for each in kept]
        last = kept[0].number if kept else int(after)
        return _response(200, "application/json", json.dumps({"of": self._of, "after": last, "requests": rows}))

    def _say(self, what: str) -> None:
        """Log the exception that is handled, each kind of trouble once."""
        if what not in self._said:
            self._said.add(what)
            logger.exception("%s; this is said once", what)


def _clean(root: str) -> str:
    """Return a mount point that cannot be taken for another host."""
    inner = root.strip("/")
    return f"/{inner}" if inner else ""


def _elsewhere(root: str, path: str, query: str, *headers: tuple[str, str]) -> Response:
    known = path if path in ("/", "/requests.json", *_ASSETS) or _ONE.fullmatch(path) else "/"
    location = quote(root + known) + (f"?{query}" if query else "")
    return _plain(303, f"See {location}", ("Location", location), *headers)


def _page(status: int, html: str) -> Response:
    return _response(status, "text/html", html)


def _plain(status: int, text: str, *headers: tuple[str, str]) -> Response:
    return _response(status, "text/plain", f"{text}\n", *headers)


def _response(status: int, kind: str, content: str, *headers: tuple[str, str]) -> Response:
    body = content.encode("utf-8", "backslashreplace")
    return Response(
        status,
        (
            ("Content-Type", kind if kind.endswith("json") else f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            *_SECURITY,
            *headers,
        ),
        body,
    )
