"""Who may see the panel, and what every answer says to the browser."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest

from sqla_watch.panel import Panel, PanelError, Response
from tests.panel.conftest import ask
from tests.panel.examples import entry, request
from tests.panel.serving import ROOT

TOKEN = "a-token-that-nobody-guesses"


def headers_of(response: Response) -> dict[str, str]:
    return dict(response.headers)


def panel_with_a_request(token: str | None = None) -> Panel:
    panel = Panel(token=token)
    panel.add(entry("GET /secret-route", request=request("GET", "/secret-route")))
    return panel


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST", "shop.localhost:80", "127.0.0.1:8000", "[::1]:8000", "[::1]"]
)
def test_this_machine_is_answered_under_its_own_names(client: str, host: str) -> None:
    assert ask(panel_with_a_request(), client=client, host=host).status == 200


@pytest.mark.parametrize(
    "client", ["10.0.0.1", "192.168.1.5", "128.0.0.1", "::2", "::ffff:10.0.0.1", "fe80::1%lo", "", None, "localhost"]
)
def test_others_are_not_answered(client: str | None) -> None:
    refused_without_a_word_of_the_requests(ask(panel_with_a_request(), client=client), "loopback")


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "evillocalhost",
        "127.0.0.1.evil.example",
        "user@localhost",
        "localhost@evil.example",
        "localhost, evil.example",
        "localhost/evil.example",
        "localhost:80:80",
        "localhost:port",
        "10.0.0.1",
        "0.0.0.0:8000",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::1",
        "[::2]",
        "[localhost]",
        "localh\u00f6st",
        "\u217c\u217calhost",
    ],
)
def test_a_name_that_is_not_this_machines_is_not_answered(host: str) -> None:
    refused_without_a_word_of_the_requests(ask(panel_with_a_request(), host=host), "Host")


def test_a_request_without_a_host_is_not_answered() -> None:
    response = panel_with_a_request().respond("GET", "/", "", {}, "127.0.0.1", https=False, root=ROOT)
    refused_without_a_word_of_the_requests(response, "Host")


@pytest.mark.parametrize("header", ["forwarded", "x-forwarded-for", "x-real-ip", "x-forwarded-host", "via"])
@pytest.mark.parametrize("value", ["127.0.0.1", "203.0.113.9", ""])
def test_what_a_proxy_has_passed_on_is_not_answered(header: str, value: str) -> None:
    sent = {"host": "localhost", header: value}
    response = panel_with_a_request().respond("GET", "/", "", sent, "127.0.0.1", https=False, root=ROOT)
    refused_without_a_word_of_the_requests(response, "proxy")


@pytest.mark.parametrize("path", ["", "/", "/requests/1", "/requests.json", "/panel.css", "/panel.js", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_every_page_is_refused_alike(path: str, method: str) -> None:
    assert ask(panel_with_a_request(), path, method=method, client="10.0.0.1").status == 403
    assert ask(panel_with_a_request(TOKEN), path, method=method).status == 403


def refused_without_a_word_of_the_requests(response: Response, why: str) -> None:
    assert response.status == 403
    assert headers_of(response)["Content-Type"].startswith("text/plain")
    text = response.body.decode()
    assert why in text
    assert "token" in text
    assert "secret-route" not in text
    assert len(text) < 500


# The token


def test_with_a_token_this_machine_needs_it_too() -> None:
    panel = panel_with_a_request(TOKEN)
    refused_without_a_word_of_the_requests(ask(panel), "token")
    assert TOKEN not in ask(panel).body.decode()


@pytest.mark.parametrize("client", ["127.0.0.1", "203.0.113.9", None])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_whoever_sends_the_token_is_answered(client: str | None, scheme: str) -> None:
    response = ask(
        panel_with_a_request(TOKEN),
        client=client,
        host="panel.example",
        x_forwarded_for="203.0.113.9",
        authorization=f"{scheme} {TOKEN}",
    )
    assert response.status == 200
    assert "/secret-route" in response.body.decode()


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer \u00e9\udc80",
    ],
)
def test_a_wrong_token_is_not_answered(authorization: str) -> None:
    assert ask(panel_with_a_request(TOKEN), authorization=authorization).status == 403


def test_a_token_in_the_address_becomes_a_cookie_and_is_gone() -> None:
    panel = panel_with_a_request(TOKEN)
    response = ask(panel, "/requests/1", f"a=1&token={TOKEN}&b=x%20y", client="203.0.113.9", host="panel.example")
    headers = headers_of(response)
    assert response.status == 303
    assert headers["Location"] == f"{ROOT}/requests/1?a=1&b=x+y"
    name, *attributes = headers["Set-Cookie"].split("; ")
    assert sorted(attributes) == ["HttpOnly", f"Path={ROOT}", "SameSite=Strict"]
    assert TOKEN not in headers["Set-Cookie"]
    cookie = f"other=1; {name}; last=2"
    assert ask(panel, cookie=cookie, client="203.0.113.9", host="panel.example").status == 200


def test_over_https_the_cookie_is_secure() -> None:
    response = ask(panel_with_a_request(TOKEN), "/", f"token={TOKEN}", https=True)
    assert "; Secure" in headers_of(response)["Set-Cookie"]


def test_a_cookie_is_of_one_token_and_is_not_the_token() -> None:
    def cookie_of(token: str) -> str:
        return headers_of(ask(panel_with_a_request(token), "/", f"token={token}"))["Set-Cookie"].partition(";")[0]

    panel = panel_with_a_request(TOKEN)
    assert cookie_of(TOKEN) == cookie_of(TOKEN)
    assert ask(panel, cookie=cookie_of("another-token-of-ours")).status == 403
    assert ask(panel, cookie=f"sqla_watch_panel={TOKEN}").status == 403
    assert ask(panel, cookie="sqla_watch_panel=").status == 403
    assert ask(panel, cookie="; =; sqla_watch_panel; \udc80=\x00").status == 403


@pytest.mark.parametrize("query", ["token=", "token", "token=wrong-wrong-wrong-wrong", f"Token={TOKEN}", "&" * 500])
def test_a_wrong_token_in_the_address_sets_no_cookie(query: str) -> None:
    response = ask(panel_with_a_request(TOKEN), "/", query)
    assert response.status == 403
    assert "Set-Cookie" not in headers_of(response)


def test_without_a_token_none_is_taken() -> None:
    response = ask(panel_with_a_request(), "/", "token=")
    assert response.status == 200
    assert "Set-Cookie" not in headers_of(response)


@pytest.mark.parametrize(
    ("root", "path", "location", "cookie"),
    [
        ("/shop/__sqla_watch__", "/", "/shop/__sqla_watch__/", "/shop/__sqla_watch__"),
        ("", "//evil.example/", "/", "/"),
        ("//evil.example", "/", "/evil.example/", "/evil.example"),
        (
            "/a b;\r\nSet-Cookie: x=1",
            "/",
            "/a%20b%3B%0D%0ASet-Cookie%3A%20x%3D1/",
            "/a%20b%3B%0D%0ASet-Cookie%3A%20x%3D1",
        ),
        ("/x", "/\r\nLocation: http://evil.example", "/x/", "/x"),
    ],
)
def test_the_way_back_stays_in_the_application(root: str, path: str, location: str, cookie: str) -> None:
    response = ask(panel_with_a_request(TOKEN), path, f"token={TOKEN}", root=root)
    assert headers_of(response)["Location"] == location
    assert f"; Path={cookie};" in headers_of(response)["Set-Cookie"]
    assert not any("\n" in value or "\r" in value for _, value in response.headers)


@pytest.mark.parametrize("token", ["", "short", "x" * 15])
def test_a_token_that_can_be_guessed_is_an_error(token: str) -> None:
    with pytest.raises(PanelError, match=r"fewer than 16"):
        Panel(token=token)


@pytest.mark.parametrize("token", ["ä" * 20, "with a space in it", "line\nbreak-in-the-token"])
def test_a_token_that_no_header_can_carry_is_an_error(token: str) -> None:
    with pytest.raises(PanelError, match="header"):
        Panel(token=token)


def test_a_token_that_is_no_text_is_an_error() -> None:
    with pytest.raises(PanelError, match="bytes"):
        Panel(token=b"a-token-that-nobody-guesses")  # type: ignore[arg-type]


def test_a_token_with_signs_is_taken_as_it_is_written_in_addresses() -> None:
    token = "+/=&?#%-token-of-ours"
    panel = panel_with_a_request(token)
    assert ask(panel, "/", f"token={quote(token, safe='')}").status == 303
    assert ask(panel, authorization=f"Bearer {token}").status == 200


# What every answer says


@pytest.mark.parametrize(
    "path", ["", "/", "/requests/1", "/requests/99", "/requests.json", "/panel.css", "/panel.js", "/x"]
)
@pytest.mark.parametrize("client", ["127.0.0.1", "10.0.0.1"])
def test_every_answer_keeps_the_browser_from_what_it_need_not_do(path: str, client: str) -> None:
    response = ask(panel_with_a_request(), path, client=client)
    headers = headers_of(response)
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    policy = dict(rule.partition(" ")[::2] for rule in headers["Content-Security-Policy"].split("; "))
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert len(headers) == len(response.headers)
    assert int(headers["Content-Length"]) == len(response.body)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", ""])
def test_only_reading_is_answered(method: str) -> None:
    response = ask(panel_with_a_request(), method=method)
    assert response.status == 405
    assert headers_of(response)["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/", "/requests/1", "/panel.css", "/nothing"])
def test_head_is_get_without_a_body(path: str) -> None:
    panel = panel_with_a_request()
    head, get = ask(panel, path, method="HEAD"), ask(panel, path)
    assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")


def test_the_pages_have_no_script_and_no_style_of_their_own() -> None:
    panel = panel_with_a_request()
    for path in ("/", "/requests/1", "/requests/99"):
        html = ask(panel, path).body.decode()
        assert "style=" not in html
        assert "<style" not in html
        assert not re.search(r"\son[a-z]+=", html)
        assert [tag for tag in re.findall(r"<script[^>]*>", html) if "src=" not in tag] == []
