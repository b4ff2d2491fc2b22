"""The panel as somebody uses it, in a real browser."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch.demo.models import Order
from sqla_watch.panel import Panel
from sqla_watch.timeline import Timeline
from tests.panel.conftest import Window
from tests.panel.examples import (
    busy_shop,
    commit_for_each_row,
    entry,
    finding,
    request,
    slow_order_list,
)
from tests.panel.serving import Served

Serve = Callable[[Panel], Served]
Open = Callable[..., Window]


def panel_of(*entries: dict[str, Any]) -> Panel:
    panel = Panel()
    for each in entries:
        panel.add(each)
    return panel


def focused(page: Page) -> str:
    """The text of what has the focus, without what only screen readers say."""
    found = page.evaluate("document.activeElement.innerText")
    assert isinstance(found, str)
    return " ".join(found.split())


def bars_of(page: Page) -> list[tuple[str, float, float]]:
    """Every bar that can be seen: its class, and where it is on the axis as shares, as the browser has drawn it."""
    found = page.evaluate(
        """() => [...document.querySelectorAll(".steps .row > svg")].filter((svg) => svg.checkVisibility()).flatMap(
            (svg) => [...svg.querySelectorAll("rect")].map((rect) => {
                const axis = svg.getBoundingClientRect(), bar = rect.getBoundingClientRect();
                return [rect.getAttribute("class"), (bar.left - axis.left) / axis.width, bar.width / axis.width];
            }))"""
    )
    return [(kind, left, width) for kind, left, width in found]


# The list and a request


def test_a_request_is_opened_and_left_again(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(*busy_shop()))
    window = open_window()
    page = window.page
    page.goto(served.url + "/")
    expect(page.get_by_role("row")).to_have_count(14)
    expect(page.get_by_role("columnheader")).to_have_text(
        ["Time", "Request", "Status", "Took", "Database", "Statements", "Rows", "Findings"]
    )
    row = page.get_by_role("row").filter(has_text="/checkout")
    expect(row).to_contain_text("500")
    row.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("/checkout")
    page.get_by_role("link", name="Newer").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("/products/{slug}/reviews")
    page.get_by_role("link", name="Older").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("/checkout")
    page.get_by_role("link", name="Requests").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Requests")
    assert window.elsewhere(served.url) == []


def test_everything_can_be_read_without_the_script(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(*busy_shop()))
    page = open_window(java_script_enabled=False).page
    page.goto(served.url + "/")
    page.get_by_role("link", name="/orders").first.click()
    expect(page.get_by_role("article").first).to_contain_text("Order.customer was loaded lazily")
    expect(page.get_by_role("button", name="Copy the suggestion")).to_have_count(0)
    folded = page.locator("summary.row", has_text="customers")
    rows = page.locator(".steps .depth3:visible")
    expect(rows).to_have_count(0)
    folded.click()
    expect(rows).to_have_count(50)
    rows.first.click()  # a link to the statement, which unfolds
    expect(page.locator("#t1-sql")).to_be_visible()


def test_the_page_has_landmarks_and_headings(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(slow_order_list()))
    page = open_window().page
    page.goto(served.url + "/requests/1")
    roles: list[Any] = ["banner", "navigation", "main", "contentinfo"]
    for role in roles:
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    expect(page.get_by_role("heading", level=2)).to_have_count(4)
    expect(page.locator("section")).to_have_count(4)
    for name in ("Findings", "Numbers", "Waterfall", "Statements"):
        expect(page.get_by_role("region", name=name)).to_have_count(1)
    expect(page.locator("article.finding").first).to_have_attribute("aria-labelledby", "f1-message")


def test_a_suggestion_is_copied(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(slow_order_list()))
    page = open_window(permissions=["clipboard-read", "clipboard-write"]).page
    page.goto(served.url + "/requests/1")
    buttons = page.get_by_role("button", name="Copy the suggestion")
    expect(buttons).to_have_count(4)
    buttons.first.click()
    expect(buttons.first).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == ".options(joinedload(Order.customer))"
    buttons.nth(1).click()  # without code: the sentence
    expect(buttons.nth(1)).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("Call requests.get before the first statement")
    expect(buttons.first).to_have_text("Copy")


def test_where_the_clipboard_is_refused_the_text_is_selected(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(slow_order_list()))
    page = open_window().page
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.goto(served.url + "/requests/1")
    page.get_by_role("button", name="Copy the suggestion").first.click()
    expect(page.get_by_role("button", name="Copy the suggestion").first).not_to_have_text("Copy")
    assert page.evaluate("getSelection().toString().trim()") == ".options(joinedload(Order.customer))"


# The waterfall


def test_bars_are_where_their_times_are(serve: Serve, open_window: Open) -> None:
    example = slow_order_list()
    served = serve(panel_of(example))
    page = open_window().page
    page.goto(served.url + "/requests/1")
    page.get_by_role("button", name="Unfold all").click()
    length = example["duration_seconds"]
    drawn = bars_of(page)
    for each in example["timeline"]["entries"]:
        start, width = each["start"] / length, max(each["seconds"] / length, 0.0025)
        assert any(
            kind == each["kind"] and abs(left - start) < 0.002 and abs(bar - width) < 0.002 for kind, left, bar in drawn
        ), each
    marks = page.evaluate(
        """() => {
            const axis = document.querySelector(".axis > svg").getBoundingClientRect();
            return [...document.querySelectorAll(".axis > svg > line")].map(
                (line) => (line.getBoundingClientRect().left - axis.left) / axis.width);
        }"""
    )
    labels = page.locator(".axis text").all_text_contents()
    assert labels == ["0", "100 ms", "200 ms", "300 ms"]
    assert marks == pytest.approx([0, 0.1 / length, 0.2 / length, 0.3 / length], abs=0.003)


def test_the_axis_its_grid_and_the_bars_are_in_one_column(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(slow_order_list()))
    for width in (1600, 1280, 900, 721, 720, 500, 360):
        page = open_window(width).page
        page.goto(served.url + "/requests/1")
        edges = page.evaluate(
            """() => [".axis > svg", ".grid", ".steps .depth1 > svg", ".steps .depth2 > svg"].map((each) => {
                const box = document.querySelector(each).getBoundingClientRect();
                return [Math.round(box.left), Math.round(box.right)];
            })"""
        )
        assert len({tuple(edge) for edge in edges}) == 1, (width, edges)


def test_a_real_request_is_drawn_as_it_was(
    watch: sqla_watch.Watch, engine: Engine, serve: Serve, open_window: Open
) -> None:
    timeline = Timeline(10_000)
    scopes: list[sqla_watch.Scope] = []

    def work() -> None:
        with sqla_watch.scope("GET /orders", kind="request") as scope:
            scopes.append(scope)
            with Session(engine) as session:
                for order in session.query(Order).order_by(Order.id).limit(5):
                    _ = order.customer.name
                time.sleep(0.12)
                session.execute(text("SELECT pg_sleep(0.08)"))
            timeline.take(scope.pending)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sqla_watch.SqlaWatchWarning)
        thread = threading.Thread(target=work)  # apart from the event loop that drives the browser
        thread.start()
        thread.join()
    (scope,) = scopes
    facts = {**scope.to_dict(), "timeline": timeline.to_dict(scope.started), "request": request("GET", "/orders")}
    served = serve(panel_of(facts))
    page = open_window().page
    page.goto(served.url + "/requests/1")
    expect(page.get_by_role("article").nth(1)).to_contain_text("Order.customer")
    expect(page.locator(".row.gap .label")).to_have_text("Idle in transaction")
    expect(page.locator(".steps > li > details > summary .tag").first).to_have_text("rolled back")
    folded = page.locator("summary.row.statement b")
    expect(folded).to_have_count(1)
    slow = page.locator(".steps a.row", has_text="pg_sleep")
    expect(slow).to_have_count(1)
    bar = slow.locator("rect")
    length = facts["duration_seconds"]
    assert float(str(bar.get_attribute("width")).rstrip("%")) / 100 * length == pytest.approx(0.08, abs=0.02)
    gap = page.locator(".row.gap rect")
    left, width = (float(str(gap.get_attribute(name)).rstrip("%")) / 100 * length for name in ("x", "width"))
    assert width >= 0.12
    assert left + width <= float(str(bar.get_attribute("x")).rstrip("%")) / 100 * length + 0.005


def test_repeated_statements_are_unfolded_and_folded(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(slow_order_list()))
    page = open_window().page
    page.goto(served.url + "/requests/1")
    rows = page.locator(".steps .row:visible")
    expect(rows).to_have_count(11)
    folded = page.locator("summary.row.statement").first
    expect(folded.locator("b")).to_have_text("50 times")
    folded.click()
    expect(rows).to_have_count(61)
    folded.click()
    expect(rows).to_have_count(11)
    page.get_by_role("button", name="Unfold all").click()
    expect(rows).to_have_count(63)
    page.get_by_role("button", name="Fold all").click()
    expect(rows).to_have_count(11)


def test_transactions_that_are_alike_are_unfolded_and_folded(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(commit_for_each_row(150)))
    page = open_window().page
    page.goto(served.url + "/requests/1")
    rows = page.locator(".steps .row:visible")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("150")
    page.get_by_role("button", name="Unfold all").click()
    expect(rows).to_have_count(1 + 150 + 2 * 100)  # the last ones show their bars only
    expect(rows.last.locator("rect")).to_have_count(3)
    page.get_by_role("button", name="Fold all").click()
    expect(rows.first).to_be_visible()
    assert rows.count() == 1


def test_a_rows_statement_is_opened_beneath_it(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(slow_order_list()))
    page = open_window(permissions=["clipboard-read", "clipboard-write"]).page
    page.goto(served.url + "/requests/1")
    page.locator(".steps a.row", has_text="stock").click()
    opened = page.locator(".opened")
    expect(opened).to_contain_text("HAVING sum(stock.quantity) > 0")
    expect(opened.locator(".k").first).to_have_text("SELECT")
    opened.get_by_role("button").click()
    assert "HAVING sum(stock.quantity) > 0" in page.evaluate("navigator.clipboard.readText()")
    page.locator(".steps a.row", has_text="stock").click()
    expect(opened).to_have_count(0)


def test_the_pointer_and_the_focus_tell_of_a_row(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(slow_order_list()))
    page = open_window().page
    page.goto(served.url + "/requests/1")
    page.locator(".fall").scroll_into_view_if_needed()
    tip = page.get_by_role("tooltip")
    expect(tip).to_have_count(0)
    page.locator("summary.row.statement").first.hover()
    expect(tip).to_be_visible()
    for part in (
        "FROM customers",
        "/srv/shop/shop/templates/orders.html:12 in block 'rows'",
        "63 ms",
        "80 ms (50 times)",
    ):
        expect(tip).to_contain_text(part)
    page.mouse.move(5, 5)
    expect(tip).to_have_count(0)
    page.locator(".steps .row.wait").focus()
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(tip).to_contain_text("Wait for a connection")
    expect(tip).to_contain_text("db.py:9 in session")
    page.keyboard.press("Escape")
    expect(tip).to_have_count(0)


# Keys


def test_the_list_is_walked_with_keys(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(*busy_shop()))
    page = open_window().page
    page.goto(served.url + "/")
    page.keyboard.press("j")
    assert focused(page) == "GET /orders"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    assert focused(page) == "PUT /admin/products/{id}"
    page.keyboard.press("k")
    page.keyboard.press("ArrowUp")
    assert focused(page) == "GET /orders"
    page.keyboard.press("k")
    assert focused(page) == "GET /orders"
    outline = page.evaluate("getComputedStyle(document.activeElement, '::after').outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("/orders")
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", level=1)).to_have_text("Requests")


def test_a_request_is_walked_with_keys(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(slow_order_list()))
    page = open_window().page
    page.goto(served.url + "/requests/1")
    for _ in range(4):
        page.keyboard.press("j")
    assert "limit-without-order-by" in focused(page)
    page.keyboard.press("j")
    assert focused(page).startswith("Wait for a connection")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert focused(page).startswith("50")
    rows = page.locator(".steps .row:visible")
    page.keyboard.press("ArrowRight")
    expect(rows).to_have_count(61)
    page.keyboard.press("ArrowRight")  # into what was unfolded
    assert focused(page).startswith("at 63 ms")
    page.keyboard.press("ArrowLeft")  # out again
    assert focused(page).startswith("50")
    page.keyboard.press("ArrowLeft")
    expect(rows).to_have_count(11)
    page.keyboard.press("Enter")  # as the browser does it
    expect(rows).to_have_count(61)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(".opened")).to_contain_text("WHERE customers.id = ?")
    page.keyboard.press("Escape")  # the tooltip
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", level=1)).to_have_text("Requests")


def test_keys_of_the_browser_stay_the_browsers(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(*busy_shop()))
    page = open_window().page
    page.goto(served.url + "/")
    page.evaluate("addEventListener('keydown', (event) => { window.prevented = event.defaultPrevented })")
    for key, ours in (("Control+j", False), ("Tab", False), ("PageDown", False), ("x", False), ("j", True)):
        page.keyboard.press(key)
        assert page.evaluate("window.prevented") is ours, key


# New requests


def test_requests_appear_while_they_come_in(serve: Serve, open_window: Open) -> None:
    panel = panel_of()
    served = serve(panel)
    window = open_window()
    page = window.page
    page.goto(served.url + "/")
    expect(page.get_by_text("No requests yet.")).to_be_visible()
    panel.add(slow_order_list())
    row = page.get_by_role("row").nth(1)
    expect(row).to_contain_text("/orders")
    expect(page.get_by_text("No requests yet.")).to_be_hidden()
    panel.add(entry(request=request("POST", "/checkout", 500, failed=True), errors=2))
    expect(row).to_contain_text("/checkout")
    expect(row).to_contain_text("failed")
    expect(page.get_by_role("row")).to_have_count(3)
    row.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("/checkout")
    assert window.elsewhere(served.url) == []


def test_a_row_that_came_in_is_the_same_as_one_that_was_there(serve: Serve, open_window: Open) -> None:
    panel = panel_of()
    served = serve(panel)
    page = open_window().page
    page.goto(served.url + "/")
    for each in busy_shop():
        panel.add(each)
    expect(page.get_by_role("row")).to_have_count(14)
    live = page.locator("tbody tr").evaluate_all(_ROWS)
    page.reload()
    assert page.locator("tbody tr").evaluate_all(_ROWS) == live


_ROWS = "(rows) => rows.map((row) => [row.id, row.innerHTML.replace(/\\s+/g, ' ')])"


def test_many_threads_of_an_application_are_followed(serve: Serve, open_window: Open) -> None:
    panel = Panel(most_requests=20)
    served = serve(panel)
    page = open_window().page
    page.goto(served.url + "/")
    done = threading.Event()

    def work(name: str) -> None:
        number = 0
        while not done.wait(0.05):
            number += 1
            panel.add(entry(request=request("GET", f"/{name}/{number}")))

    threads = [threading.Thread(target=work, args=(f"thread-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        expect(page.locator("tbody tr")).to_have_count(20)
        time.sleep(2.5)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    newest = panel._store.last()
    expect(page.locator("tbody .route").first).to_have_text(newest[0].summary.request.route)  # type: ignore[union-attr]
    routes = page.locator("tbody .route").all_text_contents()
    assert routes == [each.summary.request.route for each in newest if each.summary.request]
    assert len(routes) == 20


def test_the_list_goes_on_after_the_application_was_started_again(serve: Serve, open_window: Open) -> None:
    panel = panel_of(entry(request=request("GET", "/before")), entry(request=request("GET", "/before/too")))
    served = serve(panel)
    page = open_window().page
    page.goto(served.url + "/")
    served.panel = panel_of(entry(request=request("GET", "/after")))
    expect(page.get_by_role("row").nth(1)).to_contain_text("/after")
    expect(page.get_by_role("row")).to_have_count(4)
    page.get_by_role("row").nth(1).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("/after")


def test_an_application_that_does_not_answer_is_told(serve: Serve, open_window: Open) -> None:
    panel = panel_of(entry(request=request("GET", "/before")))
    served = serve(panel)
    window = open_window()
    page = window.page
    page.goto(served.url + "/")
    status = page.locator(".live [aria-live]")
    expect(status).to_have_text("Live")
    page.context.set_offline(True)
    expect(status).to_have_text("No answer")
    page.context.set_offline(False)
    panel.add(entry(request=request("GET", "/after")))
    expect(page.get_by_role("row").nth(1)).to_contain_text("/after")
    expect(status).to_have_text("Live")
    window.forgive("ERR_INTERNET_DISCONNECTED")


def test_the_list_can_be_held(serve: Serve, open_window: Open) -> None:
    panel = panel_of(entry(request=request("GET", "/before")))
    served = serve(panel)
    page = open_window().page
    page.goto(served.url + "/")
    button = page.get_by_role("button", name="Live")
    button.click()
    expect(page.get_by_role("button", name="Paused")).to_have_attribute("aria-pressed", "false")
    panel.add(entry(request=request("GET", "/after")))
    time.sleep(1.5)
    expect(page.get_by_role("row")).to_have_count(2)
    page.get_by_role("button", name="Paused").click()
    expect(page.get_by_role("row")).to_have_count(3)


def test_a_token_is_given_once(serve: Serve, open_window: Open) -> None:
    token = "a-token-that-nobody-guesses"
    panel = Panel(token=token)
    panel.add(entry(request=request("GET", "/secret")))
    served = serve(panel)
    window = open_window()
    page = window.page
    answer = page.goto(served.url + "/")
    assert answer is not None
    assert answer.status == 403
    assert "token" in page.inner_text("body")
    window.forgive("403 (Forbidden)")
    page.goto(f"{served.url}/requests/1?token={token}")
    expect(page.get_by_role("heading", level=1)).to_contain_text("/secret")
    assert page.url == f"{served.url}/requests/1"
    assert page.evaluate("document.cookie") == ""
    panel.add(entry(request=request("GET", "/another")))
    page.goto(served.url + "/")
    expect(page.get_by_role("row")).to_have_count(3)


# Light, dark, narrow, large


def test_it_is_dark_where_that_is_wanted(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(*busy_shop()))
    brightness = {}
    for scheme in ("light", "dark"):
        page = open_window(color_scheme=scheme).page
        page.goto(served.url + "/requests/13")
        brightness[scheme] = page.evaluate(
            "[document.body, document.querySelector('h1')].map((each, place) => "
            "getComputedStyle(each)[place ? 'color' : 'backgroundColor'].match(/\\d+/g)[0] / 255)"
        )
    ground, ink = brightness["light"]
    assert ground > 0.9
    assert ink < 0.2
    ground, ink = brightness["dark"]
    assert ground < 0.1
    assert ink > 0.8


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_readable_on_its_ground(scheme: str, serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(*busy_shop()))
    window = open_window(color_scheme=scheme)
    for path in ("/", "/requests/13", "/requests/99"):
        window.page.goto(served.url + path)
        assert window.page.evaluate(_CONTRAST) == []
    window.forgive("404 (Not Found)")


_CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].map((each) => each / 255);
    };
    const luminance = (colour) => {
        const [r, g, b] = colour.slice(0, 3).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (let each = element; each; each = each.parentElement) {
            const colour = rgba(getComputedStyle(each).backgroundColor);
            if (colour[3] > 0.99) return colour;
        }
        return [1, 1, 1, 1];
    };
    const faint = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim();
        const element = walker.currentNode.parentElement;
        if (!text || !element.checkVisibility() || element.closest("svg")) continue;
        const [a, b] = [luminance(rgba(getComputedStyle(element).color)), luminance(ground(element))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) faint.push([text.slice(0, 40), element.className, ratio]);
    }
    return faint;
}"""


@pytest.mark.parametrize("width", [320, 360, 412, 720, 721, 1000])
def test_a_narrow_window_never_scrolls_sideways(width: int, serve: Serve, open_window: Open) -> None:
    long = "/" + "very-long-route-without-a-break" * 12
    many = entry(
        request=request("OPTIONS", long),
        findings=[
            finding(
                "n-plus-one",
                "high",
                "x" * 500,
                target="T" * 400,
                suggestion="y" * 300 + "\n" + "z" * 500,
                statement="SELECT " + "w" * 900,
                evidence={"k" * 200: "v" * 400},
                location={"file": "/" + "f" * 400, "line": 1, "function": "g" * 300},
            )
        ],
    )
    served = serve(panel_of(many, slow_order_list()))
    window = open_window(width, 740)
    page = window.page
    for path in ("/", "/requests/1", "/requests/2", "/requests/99"):
        page.goto(served.url + path)
        if path == "/requests/2":
            page.get_by_role("button", name="Unfold all").click()
            page.locator(".steps a.row").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    window.forgive("404 (Not Found)")


def test_on_a_phone_everything_is_still_there(serve: Serve, open_window: Open) -> None:
    served = serve(panel_of(*busy_shop()))
    page = open_window(360, 740, has_touch=True, is_mobile=True).page
    page.goto(served.url + "/")
    row = page.get_by_role("row").filter(has_text="/account/orders")
    for part in ("200", "184 ms", "41", "212", "65 %"):
        expect(row).to_contain_text(part)
    row.tap()
    expect(page.get_by_role("heading", level=1)).to_contain_text("/account/orders")
    page.goto(served.url + "/requests/13")
    first = page.locator(".steps a.row").first
    for part in (".what", ".where", ".rows", ".took", "svg"):
        expect(first.locator(part)).to_be_visible()


_FIRST_PAINT = """() => new Promise((tell) => new PerformanceObserver((seen) => {
    const first = seen.getEntriesByName("first-paint")[0];
    if (first) tell(first.startTime);
}).observe({type: "paint", buffered: true}))"""


def slowdown() -> float:
    """How many times slower this machine is now than if nobody else used it: 1 for a machine of one's own."""
    wall, own = time.perf_counter(), time.thread_time()
    while time.thread_time() - own < 0.1:
        sum(range(1_000))
    return max(1.0, (time.perf_counter() - wall) / (time.thread_time() - own))


@pytest.fixture
def serve_large() -> Iterator[Callable[[str], str]]:
    """Serve a request with 5,000 statements from a process of its own, which nobody traces or counts lines in."""
    with ExitStack() as stack:

        def start(story: str) -> str:
            clean = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.panel.serving", story],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=clean,
                cwd=Path(__file__).parents[2],
            )
            stack.enter_context(server)  # closes its input, and waits for its end
            assert server.stdout is not None
            return server.stdout.readline().strip()

        yield start


@pytest.mark.parametrize("story", ["same", "different", "committed"])
def test_5000_statements_are_painted_within_a_second(
    story: str,
    serve_large: Callable[[str], str],
    open_window: Open,
    record_property: Callable[[str, object], None],
) -> None:
    url = serve_large(story)
    paints = []
    for _ in range(5):
        before = slowdown()
        window = open_window()
        window.page.goto(url + "/requests/1")
        paint = window.page.evaluate(_FIRST_PAINT)
        paints.append((paint / ((before + slowdown()) / 2), paint))
        expect(window.page.get_by_role("heading", level=1)).to_be_visible()
        if len(paints) < 5:
            window.page.close()
    fastest, measured = min(paints)
    print(f"5,000 statements, {story}: first paint after {measured:.0f} ms, {fastest:.0f} on a machine of its own")
    record_property("first_paint_milliseconds", fastest)
    assert fastest < 1_000
    # It can be used, too: to the last row, and back.
    page = window.page
    begun = time.perf_counter()
    page.get_by_role("button", name="Unfold all").click()
    last = page.locator(".steps .row").last
    last.scroll_into_view_if_needed()
    expect(last).to_be_in_viewport()
    assert (time.perf_counter() - begun) / slowdown() < 5
    assert page.locator(".steps .row").count() >= 5_000
