"""Who may see the panel: this machine, or whoever has the token.

A browser on this machine is also used to look at other people's pages, and a proxy on it makes everybody look as if
they were here. So a loopback address is not enough: the name that was asked for has to be this machine's own, which
a page elsewhere cannot bring about by changing its DNS, and nothing may have forwarded the request.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from sqla_watch.panel.errors import PanelError

__all__ = ["COOKIE", "Access", "pairs_of"]

COOKIE = "sqla_watch_panel"
SHORTEST_TOKEN = 16

_FORWARDED = (
    "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "x-client-ip", "via",
    "cf-connecting-ip", "true-client-ip",
)  # fmt: skip
"""Headers that say that a proxy has passed a request on."""
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9._-]{1,253}))(?::[0-9]{1,5})?", re.ASCII)
_TOKEN = "Or give the panel a token, and send it: Authorization: Bearer TOKEN, or once ?token=TOKEN."


class Access:
    """Says who may see the panel.

    Args:
        token: What those who may see it know; None for this machine only.

    Raises:
        PanelError: The token can be guessed, or cannot be sent.
    """

    def __init__(self, token: str | None) -> None:
        if token is not None and not isinstance(token, str):
            raise PanelError(f"the panel's token is a text or None, not {type(token).__name__}")
        if token is not None and len(token) < SHORTEST_TOKEN:
            raise PanelError(
                f"the panel's token has {len(token)} characters, fewer than {SHORTEST_TOKEN}: take one that "
                "nobody guesses, as secrets.token_urlsafe() makes it"
            )
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise PanelError("the panel's token has characters that no header can carry: ASCII without spaces can")
        self._token = None if token is None else token.encode()
        self._cookie = b"" if token is None else _derived(token.encode())

    def refusal(self, headers: Mapping[str, str], client: str | None, query: str) -> str:
        """Return why somebody may not see the panel, and how they could; empty where they may."""
        if self._token is not None:
            if self._has_token(headers) or self.brings_token(query):
                return ""
            return (
                "This panel needs its token. Open it once with ?token=TOKEN at the end of its address, or send "
                "Authorization: Bearer TOKEN."
            )
        forwarded = next((name for name in _FORWARDED if name in headers), None)
        if forwarded is not None:
            return (
                f"This panel is for this machine only, and the request has a header {forwarded}: a proxy has passed "
                f"it on. Ask the application itself. {_TOKEN}"
            )
        if not _is_loopback(client):
            return (
                "This panel is for this machine only, and the request does not come from a loopback address. Open "
                f"it on the machine where the application runs. {_TOKEN}"
            )
        if not _is_own_name(headers.get("host", "")):
            return (
                "This panel is for this machine only, and the request asks for another one by its Host header. Open "
                f"it as http://localhost or http://127.0.0.1, with the application's port. {_TOKEN}"
            )
        return ""

    def brings_token(self, query: str) -> bool:
        """Whether the query has the token: to be answered by a cookie and a redirection."""
        given = [value for key, value in pairs_of(query) if key == "token"]
        return self._token is not None and any(_same(value, self._token) for value in given)

    def cookie(self, root: str, *, https: bool) -> str:
        """Return the header which sets the cookie; nobody can tell the token from it."""
        secure = "; Secure" if https else ""
        return f"{COOKIE}={self._cookie.decode()}; Path={root or '/'}; HttpOnly; SameSite=Strict{secure}"

    def _has_token(self, headers: Mapping[str, str]) -> bool:
        assert self._token is not None
        scheme, _, value = headers.get("authorization", "").strip().partition(" ")
        if scheme.lower() == "bearer" and _same(value.strip(), self._token):
            return True
        for cookie in headers.get("cookie", "").split(";"):
            name, _, value = cookie.strip().partition("=")
            if name == COOKIE and _same(value, self._cookie):
                return True
        return False


def _derived(token: bytes) -> bytes:
    return hmac.new(token, b"the cookie of the panel of sqla_watch", hashlib.sha256).hexdigest().encode()


def _same(given: str, expected: bytes) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected)


def pairs_of(query: str) -> list[tuple[str, str]]:
    """Return names and values of a query; none of one that nobody would write."""
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return []


def _is_loopback(address: str | None) -> bool:
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return parsed.is_loopback or (mapped is not None and mapped.is_loopback)


def _is_own_name(host: str) -> bool:
    found = _HOST.fullmatch(host.strip().lower())
    if found is None:
        return False
    if found["six"]:
        return _is_loopback(found["six"])
    name = found["name"].removesuffix(".")
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)
