"""A panel by itself: what it keeps, for how long, what it answers, and that it never raises."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from typing import Any

import pytest

from sqla_watch.panel import Panel, PanelError, pages
from sqla_watch.panel import store as store_module
from tests.panel.conftest import ask
from tests.panel.examples import busy_shop, entry, finding, many_statements, request, slow_order_list


def text_of(panel: Panel, path: str = "/", query: str = "") -> str:
    response = ask(panel, path, query)
    assert response.status == 200, response.body[:500]
    return response.body.decode()


def routes_of(panel: Panel) -> list[str]:
    news = json.loads(text_of(panel, "/requests.json"))
    return [each["name"] for each in news["requests"]]


def test_without_requests_it_says_what_to_do() -> None:
    html = text_of(Panel())
    assert "No requests yet." in html
    assert "sqla_watch.install(engine)" in html


def test_requests_are_listed_the_newest_first() -> None:
    panel = Panel()
    for each in busy_shop():
        panel.add(each)
    html = text_of(panel)
    assert html.index("/orders<") < html.index("/healthz<") < html.index("/search<")
    assert routes_of(panel)[:2] == ["/orders", "/healthz"]


def test_a_scope_that_is_no_request_has_its_name() -> None:
    panel = Panel()
    panel.add(entry("nightly export", kind="block"))
    assert "nightly export" in text_of(panel)
    assert "nightly export" in text_of(panel, "/requests/1")


def test_a_request_that_was_left_in_the_middle_has_no_status() -> None:
    panel = Panel()
    panel.add(entry(request=request("GET", "/stream", 0, failed=True)))
    assert "no response" in text_of(panel)
    assert ">failed<" in text_of(panel, "/requests/1")


def test_a_request_off_the_sample_says_that_facts_may_be_missing() -> None:
    panel = Panel()
    panel.add(entry(request=request("GET", "/", sampled=False)))
    assert "not sampled" in text_of(panel, "/requests/1")


def test_a_page_has_everything_of_its_request() -> None:
    panel = Panel()
    example = slow_order_list()
    panel.add(example)
    html = text_of(panel, "/requests/1")
    for found in example["findings"]:
        assert found["rule"] in html
        assert found["suggestion"].partition("\n")[0] in html
    for part in ("358 ms", "distinct parents", "/srv/shop/shop/templates/orders.html:12", "joinedload(Order.customer)"):
        assert part in html
    assert html.index("Findings") < html.index("Numbers") < html.index("Waterfall")


def test_without_a_timeline_the_page_says_how_to_get_one() -> None:
    panel = Panel()
    panel.add(entry())
    assert "Settings(timeline=" in text_of(panel, "/requests/1")


# Keeping


def test_only_the_last_requests_are_kept() -> None:
    panel = Panel(most_requests=3)
    for number in range(10):
        panel.add(entry(f"request {number}"))
    assert routes_of(panel) == ["request 9", "request 8", "request 7"]
    assert ask(panel, "/requests/7").status == 404
    assert ask(panel, "/requests/8").status == 200


def test_what_is_kept_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST_BYTES", 100_000)
    panel = Panel()
    for number in range(20):
        panel.add(entry(f"request {number}", findings=[finding("slow-query", "high", "x" * 20_000)]))
    assert routes_of(panel) == ["request 19", "request 18", "request 17", "request 16"]


def test_a_very_large_request_loses_its_waterfall_and_says_so() -> None:
    panel = Panel()
    large = many_statements(10_000, different=True)
    large["timeline"]["texts"] = [f"SELECT {place}, '{'x' * 1_900}'" for place in range(10_000)]
    large["timeline"]["lines"] = [
        {"file": f"/srv/{'x' * 490}/{place}.py", "line": 1, "function": "y" * 490} for place in range(10_000)
    ]
    panel.add(large)
    assert "The waterfall was left out: it would take 3" in text_of(panel, "/requests/1")


def test_twenty_megabytes_of_sql_are_kept_in_short() -> None:
    panel = Panel()
    large = many_statements(10_000, different=True)
    large["timeline"]["texts"] = [f"SELECT {place}, '{'x' * 1_900}'" for place in range(10_000)]
    panel.add(large)
    (kept,) = panel._store.last()
    assert len(kept.packed) < store_module.MOST_BYTES_OF_ONE
    assert "SELECT 9999" in text_of(panel, "/requests/1")


@pytest.mark.faults
def test_what_is_too_large_even_in_short_is_said_and_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    panel = Panel()
    panel.add(entry("before"))
    panel.add(entry(findings=[finding("slow-query", "high", "x" * 1_000, target="y" * 1_000)] * 10_000))
    assert routes_of(panel) == ["before"]
    assert "MB was not kept" in caplog.text


def test_evidence_is_told_in_its_units() -> None:
    panel = Panel()
    evidence = {"longest_wait_seconds": 0.25, "wrote": False, "rows": 12_345, "meanwhile": "", "share": 0.333333333}
    panel.add(entry(findings=[finding("pool-wait", "high", "waited", evidence=evidence)]))
    told = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text_of(panel, "/requests/1").partition("Numbers")[0]))
    assert told == {"longest wait": "250 ms", "wrote": "no", "rows": "12,345", "share": "0.333333"}


def test_what_was_added_does_not_change_any_more() -> None:
    panel = Panel()
    mine = entry("before")
    panel.add(mine)
    mine["name"] = "after"
    assert routes_of(panel) == ["before"]


def test_many_threads_add_and_look() -> None:
    panel = Panel(most_requests=50)
    trouble: list[Any] = []

    def add(name: str) -> None:
        for number in range(100):
            panel.add(entry(f"{name} {number}"))
            response = ask(panel, "/requests.json")
            if response.status != 200 or len(json.loads(response.body)["requests"]) > 50:
                trouble.append(response)

    threads = [threading.Thread(target=add, args=(f"thread {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    news = json.loads(text_of(panel, "/requests.json"))
    assert trouble == []
    assert news["after"] == 800
    assert len({each["key"] for each in news["requests"]}) == 50


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "200", None])
def test_a_number_of_requests_that_makes_no_sense_is_an_error(most: Any) -> None:
    with pytest.raises(PanelError, match="most_requests"):
        Panel(most_requests=most)


# News


def test_news_are_what_came_after() -> None:
    panel = Panel()
    panel.add(entry("first"))
    first = json.loads(text_of(panel, "/requests.json"))
    panel.add(entry("second"))
    second = json.loads(text_of(panel, "/requests.json", f"after={first['after']}&of={first['of']}"))
    third = json.loads(text_of(panel, "/requests.json", f"after={second['after']}&of={second['of']}"))
    assert [each["name"] for each in second["requests"]] == ["second"]
    assert third == {"of": first["of"], "after": 2, "requests": []}


@pytest.mark.parametrize(
    "query", ["after=7&of=another", "after=-1", "after=", "after=x", "after=9²", "&&=", "after=" + "9" * 400]
)
def test_a_number_that_is_none_of_ours_brings_everything(query: str) -> None:
    panel = Panel()
    panel.add(entry("first"))
    assert len(json.loads(text_of(panel, "/requests.json", query))["requests"]) == 1


def test_the_numbers_of_another_process_are_other_requests() -> None:
    old, new = Panel(), Panel()
    old.add(entry("of the old process"))
    new.add(entry("of the new process"))
    (row,) = json.loads(text_of(old, "/requests.json"))["requests"]
    path, _, query = row["href"].partition("?")
    response = ask(new, f"/{path}", query)
    assert response.status == 404
    assert b"started again" in response.body
    assert "of the old process" in text_of(old, f"/{path}", query)


@pytest.mark.parametrize("path", ["/requests/0", "/requests/2", "/requests/" + "9" * 15])
def test_a_request_that_is_not_there_has_a_page_that_says_so(path: str) -> None:
    panel = Panel()
    panel.add(entry())
    response = ask(panel, path)
    assert response.status == 404
    assert b"Not there any more" in response.body


@pytest.mark.parametrize(
    "path",
    [
        "/requests/",
        "/requests/x",
        "/requests/1/",
        "/requests/²",
        "/../panel.py",
        "/panel.py",
        "/templates/page.html",
        "//",
    ],
)
def test_there_are_no_other_pages(path: str) -> None:
    panel = Panel()
    panel.add(entry())
    assert ask(panel, path).status == 404


def test_without_its_slash_the_panel_is_found_too() -> None:
    response = ask(Panel(), "", "a=1")
    assert (response.status, dict(response.headers)["Location"]) == (303, "/__sqla_watch__/?a=1")


# Never raising


@pytest.mark.faults
@pytest.mark.parametrize(
    "wrong",
    [None, 5, [], {}, entry() | {"statements": "many"}, entry() | {"findings": [{}]}, entry() | {"extra": object()}],
)
def test_a_wrong_entry_is_said_once_and_not_kept(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    panel = Panel()
    for _ in range(3):
        panel.add(wrong)
    assert routes_of(panel) == []
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("sqla_watch", logging.ERROR)
    panel.add(entry("the next"))
    assert routes_of(panel) == ["the next"]


@pytest.mark.faults
def test_an_entry_within_itself_is_said_and_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    panel = Panel()
    endless: dict[str, Any] = entry()
    endless["more"] = endless
    panel.add(endless)
    assert routes_of(panel) == []
    assert len(caplog.records) == 1


@pytest.mark.faults
def test_a_request_whose_timeline_is_wrong_says_where(caplog: pytest.LogCaptureFixture) -> None:
    panel = Panel()
    panel.add(
        slow_order_list() | {"timeline": {"texts": [], "lines": [], "entries": [{"kind": "dance"}], "left_out": 0}}
    )
    response = ask(panel, "/requests/1")
    assert response.status == 500
    assert dict(response.headers)["Content-Type"].startswith("text/plain")
    assert b"timeline.entries[0].kind is 'dance'" in response.body
    assert ask(panel, "/").status == 200
    assert len(caplog.records) == 1


@pytest.mark.faults
def test_a_broken_template_is_a_plain_500(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import jinja2

    broken = jinja2.Environment(
        loader=jinja2.DictLoader({"list.html": "{{ nothing.of.that }}", "request.html": "{% if"})
    )
    monkeypatch.setattr(pages, "_environment", broken)
    panel = Panel()
    panel.add(entry())
    for path in ("/", "/requests/1", "/"):
        response = ask(panel, path)
        assert response.status == 500
        assert dict(response.headers)["Cache-Control"] == "no-store"
        assert b"Traceback" not in response.body
    assert len(caplog.records) == 1


@pytest.mark.faults
def test_headers_that_are_none_are_a_plain_500() -> None:
    response = Panel().respond("GET", "/", "", None, "127.0.0.1", https=False, root="")  # type: ignore[arg-type]
    assert response.status == 500


@pytest.mark.parametrize("name", ["jinja2", "pygments", "sqlparse"])
def test_without_the_extra_the_error_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqla_watch.panel import report_page

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PanelError, match=rf"{name}: pip install 'sqla-watch\[panel\]'"):
        Panel()
    with pytest.raises(PanelError, match=rf"{name}: pip install 'sqla-watch\[panel\]'"):
        report_page([], title="nothing")


def test_the_package_is_imported_without_the_extra() -> None:
    import subprocess

    code = (
        "import sys; sys.modules.update(jinja2=None, pygments=None, sqlparse=None, markupsafe=None); "
        "import sqla_watch, sqla_watch.panel"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
