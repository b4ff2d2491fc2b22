"""Everything that comes from an application is hostile: shown in a real browser, nothing of it may run or be obeyed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from sqla_watch.panel import Panel, report_page
from tests.panel.conftest import Window, ask
from tests.panel.examples import slow_order_list
from tests.panel.serving import Served

Serve = Callable[[Panel], Served]
Open = Callable[..., Window]

HOSTILE = {
    "script": "</script><script>window.pwned=1</script>",
    "style": "</style><script>window.pwned=1</script><style>",
    "template": "</template><script>window.pwned=1</script>",
    "title": "</title><script>window.pwned=1</script>",
    "code": "</code></pre></details><img src=x onerror=window.pwned=1>",
    "svg": "</svg><svg onload=window.pwned=1><script>window.pwned=1</script>",
    "attribute": '"><img src=x onerror="window.pwned=1">',
    "quotes": "' onmouseover='window.pwned=1' x=\" onfocus=\"window.pwned=1\" autofocus tabindex=1 `",
    "scheme": "javascript:window.pwned=1//",
    "elsewhere": "<link rel=stylesheet href=http://evil.example/x.css><iframe src=//evil.example></iframe>",
    "refresh": "<meta http-equiv=refresh content='0;url=http://evil.example/'><base href=http://evil.example/>",
    "form": "<form action=http://evil.example/><button autofocus>Log in</button></form>",
    "jinja": "{{ 7*7 }}{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}${7*7}#{7*7}",
    "jinja end": "{% endraw %}{% endblock %}{{ self.__init__.__globals__ }}{# ",
    "comment": "--><!--><script>window.pwned=1</script><!--",
    "cdata": "]]><![CDATA[<script>window.pwned=1</script>",
    "entity": "&lt;script&gt;window.pwned=1&lt;/script&gt;&#60;img src=x onerror=window.pwned=1&#62;",
    "nul": "<scr\x00ipt>window.pwned=1</scr\x00ipt>\x00",
    "surrogate": "\udc80<img src=x onerror=window.pwned=1>\ud800",
    "direction": "\u202e<tpircs/>1=denwp.wodniw<tpircs>\u2066\u200f",
    "terminal": "\x1b]0;pwned\x07\x1b[2J\x1b[31m",
    "lines": "one\r\nSet-Cookie: pwned=1\r\n\r\n<script>window.pwned=1</script>\u2028\u2029\x85",
    "utf-7": "+ADw-script+AD4-window.pwned=1+ADw-/script+AD4-",
    "megabyte": "<img src=x onerror=window.pwned=1>" + "A" * 1_000_000,
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every text in an entry, by the way to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from places(inner, (*path, place))
    elif isinstance(value, str) and path[-1] != "severity" and (path[0], path[-1]) != ("timeline", "kind"):
        yield path


def hostile_entry(text: str) -> dict[str, Any]:
    """An entry with one of everything, where each text is a hostile one."""
    example = slow_order_list()
    for number, path in enumerate([*places(example)]):
        around: Any = example
        for step in path[:-1]:
            around = around[step]
        around[path[-1]] = f"{text}{number}" if len(text) < 10_000 else text
    for found in example["findings"]:
        found["evidence"] = {f"{text}_seconds": text, text: 1, f"{text}x": True}
        found["suggestion"] = f"{text}\n{text}"
    return example


def safe(page: Page, name: str) -> None:
    """Nothing has run, nothing was made of what is hostile, and everything that was hovered or focused stays text."""
    assert page.evaluate("typeof window.pwned") == "undefined", name
    found = page.evaluate(
        """() => {
            const all = [...document.querySelectorAll("*")];
            const strange = "img, iframe, object, embed, form, base, video, audio, meta[http-equiv]";
            return {
                scripts: document.scripts.length,
                handlers: all.filter((each) => !each.matches(".tip")).flatMap((each) => each.getAttributeNames())
                    .filter((name) => /^on|^style$|^srcdoc$|^action$/.test(name)),
                strange: [...document.querySelectorAll(strange)]
                    .filter((each) => each.httpEquiv !== "Content-Security-Policy").map((each) => each.outerHTML),
                addresses: all.map((each) => each.getAttribute("href") ?? each.getAttribute("src") ?? "")
                    .filter((each) => /^\\s*javascript:|evil/i.test(each)),
            };
        }"""
    )
    assert found == {"scripts": 1, "handlers": [], "strange": [], "addresses": []}, name


def poke(page: Page) -> None:
    """Do what a person would do: unfold, open, hover, focus, copy."""
    page.get_by_role("button", name="Unfold all").click()
    page.locator(".steps a.row").first.click()
    page.locator(".steps .row").nth(3).hover()
    page.locator(".steps .row").first.focus()
    for _ in range(12):
        page.keyboard.press("j")
    page.get_by_role("button", name="Copy the suggestion").first.click()
    for summary in page.locator(".used > summary").all():
        summary.click()


def test_nothing_hostile_runs_in_the_panel(serve: Serve, open_window: Open) -> None:
    panel = Panel()
    served = serve(panel)
    window = open_window(permissions=["clipboard-read", "clipboard-write"])
    page = window.page
    page.goto(served.url + "/")
    for text in HOSTILE.values():
        panel.add(hostile_entry(text))
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(len(HOSTILE))  # made by the script
    safe(page, "live")
    page.reload()
    expect(rows).to_have_count(len(HOSTILE))  # made by the server
    safe(page, "list")
    for number, name in enumerate(HOSTILE, 1):
        page.goto(f"{served.url}/requests/{number}")
        expect(page.locator("article.finding")).to_have_count(4)
        poke(page)
        safe(page, name)
        assert window.complaints == [], name
    assert window.elsewhere(served.url) == []


def test_nothing_hostile_runs_in_the_report(tmp_path: Path, open_window: Open) -> None:
    file = tmp_path / "report.html"
    title = "".join(text for text in HOSTILE.values() if len(text) < 1_000)
    file.write_text(report_page([*map(hostile_entry, HOSTILE.values())], title=title[:400]), encoding="utf-8")
    window = open_window(permissions=["clipboard-read", "clipboard-write"])
    page = window.page
    page.goto(file.as_uri())
    expect(page.locator("tbody tr")).to_have_count(len(HOSTILE))
    safe(page, "list")
    for number, name in enumerate(HOSTILE, 1):
        page.goto(f"{file.as_uri()}#scope-{number}")
        expect(page.locator("article.finding:visible")).to_have_count(4)
        scope = page.locator(f"#scope-{number}")
        scope.get_by_role("button", name="Unfold all").click()
        scope.locator(".steps .row").nth(3).hover()
        scope.get_by_role("button", name="Copy the suggestion").first.click()
        safe(page, name)
        assert window.complaints == [], name
    assert window.elsewhere(file.as_uri()) == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("script", "</script><script>window.pwned=1</script>"),
        ("entity", "&lt;script&gt;window.pwned=1&lt;/script&gt;&#60;img src=x onerror=window.pwned=1&#62;"),
        ("jinja", HOSTILE["jinja"]),
        ("nul", "<scr\\x00ipt>window.pwned=1</scr\\x00ipt>\\x00"),
        ("surrogate", "\\udc80<img src=x onerror=window.pwned=1>\\ud800"),
        ("direction", "\\u202e<tpircs/>1=denwp.wodniw<tpircs>\\u2066\\u200f"),
        ("terminal", "\\x1b]0;pwned\\x07\\x1b[2J\\x1b[31m"),
    ],
)
def test_what_is_hostile_is_shown_as_it_is(name: str, shown: str, serve: Serve, open_window: Open) -> None:
    panel = Panel()
    example = slow_order_list()
    example["request"]["route"] = example["findings"][0]["statement"] = HOSTILE[name]
    example["findings"][0]["suggestion"] = "Do it:\n" + HOSTILE[name]
    panel.add(example)
    page = open_window(permissions=["clipboard-read", "clipboard-write"]).page
    page.goto(serve(panel).url + "/requests/1")
    assert page.locator("h1 .route").text_content() == shown
    assert "".join((page.locator("#f1-sql").text_content() or "").split()) == "".join(shown.split())
    page.get_by_role("button", name="Copy the suggestion").first.click()
    expect(page.get_by_role("button", name="Copy the suggestion").first).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == shown


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "megabyte"])
def test_nothing_hostile_in_an_address_comes_back_as_markup(name: str) -> None:
    panel = Panel()
    panel.add(slow_order_list())
    text = HOSTILE[name]
    for path, query in ((f"/{text}", ""), (f"/requests/{text}", ""), ("/requests/1", f"of={text}"), ("/", f"x={text}")):
        for root in ("/__sqla_watch__", text):
            response = ask(panel, path, query, root=root)
            assert response.status in (200, 303, 404)
            assert b"pwned" not in response.body
            assert b"evil.example" not in response.body
            assert not any(character in value for _, value in response.headers for character in "\r\n\x00")
    assert b"pwned" not in ask(panel, host=text).body
    assert b"pwned" not in ask(panel, "/requests.json", f"after={text}&of={text}").body
    assert b"pwned" not in ask(panel, x_forwarded_for=text, client=text, cookie=text, authorization=text).body


def test_very_long_texts_are_cut_everywhere() -> None:
    panel = Panel()
    panel.add(hostile_entry("A" * 1_000_000))
    (kept,) = panel._store.last()
    assert len(kept.packed) < 8_000_000
    for path in ("/", "/requests/1", "/requests.json"):
        response = ask(panel, path)
        assert response.status == 200
        assert len(response.body) < 1_000_000
    assert b" characters)" in ask(panel, "/requests/1").body
    page = report_page([hostile_entry("A" * 1_000_000)], title="A" * 1_000_000)
    assert len(page) < 1_000_000


def test_every_text_of_an_entry_is_tried() -> None:
    tried = {path[-1] for path in places(slow_order_list())}
    assert tried >= {
        "name", "kind", "method", "route", "rule", "message", "file", "function", "suggestion", "target", "role",
        "statement", "load", "doing", "outcome", "error",
    }  # fmt: skip
    assert any(path[:2] == ("timeline", "texts") for path in places(slow_order_list()))
    hostile = hostile_entry("<x>")
    assert all("<x>" in str(_at(hostile, path)) for path in places(hostile) if "evidence" not in path)


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value
