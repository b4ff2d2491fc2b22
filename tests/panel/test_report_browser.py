"""The report as somebody opens it who got it by mail: a file, without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from sqla_watch.panel import report_page
from tests.panel.conftest import Window
from tests.panel.examples import busy_shop, many_statements, slow_order_list

Open = Callable[..., Window]


@pytest.fixture
def report(tmp_path: Path) -> Path:
    file = tmp_path / "report.html"
    file.write_text(report_page(busy_shop(), title="Report of a test run"), encoding="utf-8")
    return file


@pytest.mark.parametrize("script", [True, False])
def test_a_scope_takes_the_place_of_the_list_and_gives_it_back(script: bool, report: Path, open_window: Open) -> None:
    window = open_window(java_script_enabled=script)
    page = window.page
    page.goto(report.as_uri())
    expect(page).to_have_title("Report of a test run")
    listed = page.get_by_role("table")
    expect(listed).to_be_visible()
    expect(page.locator("article.scope:visible")).to_have_count(0)
    page.get_by_role("link", name="/checkout").click()
    expect(page.locator("article.scope:visible")).to_have_count(1)
    expect(page.locator("article.scope:visible h1")).to_contain_text("/checkout")
    expect(listed).to_be_hidden()
    page.get_by_role("link", name="All scopes").click()
    expect(listed).to_be_visible()
    page.go_back()
    expect(page.locator("article.scope:visible h1")).to_contain_text("/checkout")
    assert window.elsewhere(report.as_uri()) == []


def test_what_is_inside_of_a_scope_keeps_it_open(report: Path, open_window: Open) -> None:
    page = open_window(java_script_enabled=False).page
    page.goto(report.as_uri() + "#scope-13")
    page.locator("#scope-13 .steps a.row").first.click()
    expect(page.locator("#s13-t0-sql")).to_be_visible()
    expect(page.locator("article.scope:visible")).to_have_count(1)


def test_the_report_is_walked_with_keys(report: Path, open_window: Open) -> None:
    page = open_window().page
    page.goto(report.as_uri())
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("article.scope:visible h1")).to_contain_text("/products/{slug}")
    assert page.evaluate("document.activeElement.id") == "s2-title"
    page.keyboard.press("Escape")
    expect(page.get_by_role("table")).to_be_visible()


def test_a_suggestion_is_copied_from_the_file(report: Path, open_window: Open) -> None:
    page = open_window(permissions=["clipboard-read", "clipboard-write"]).page
    page.goto(report.as_uri() + "#scope-13")
    button = page.locator("#scope-13").get_by_role("button", name="Copy the suggestion").first
    button.click()
    expect(button).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == ".options(joinedload(Order.customer))"


def test_a_single_scope_is_open_at_once(tmp_path: Path, open_window: Open) -> None:
    file = tmp_path / "one.html"
    file.write_text(report_page([slow_order_list()], title="one"), encoding="utf-8")
    page = open_window().page
    page.goto(file.as_uri())
    expect(page.locator("article.finding:visible")).to_have_count(4)
    expect(page.get_by_role("table")).to_be_hidden()
    hatch = page.locator(".row.gap rect").evaluate("(rect) => getComputedStyle(rect).fill")
    assert "hatch" in hatch


@pytest.mark.parametrize("width", [360, 720, 1280])
def test_the_report_never_scrolls_sideways(width: int, report: Path, open_window: Open) -> None:
    page = open_window(width, 740).page
    for place in ("", "#scope-13"):
        page.goto(report.as_uri() + place)
        page.reload()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_paper_everything_is_there(report: Path, open_window: Open) -> None:
    page = open_window().page
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    expect(page.locator("article.scope:visible")).to_have_count(13)
    expect(page.get_by_role("table")).to_be_visible()


def test_many_scopes_with_many_statements_open_at_once(tmp_path: Path, open_window: Open) -> None:
    file = tmp_path / "large.html"
    scopes = [many_statements(5_000, different=number % 2 == 0) for number in range(4)] + busy_shop() * 8
    file.write_text(report_page(scopes, title="large"), encoding="utf-8")
    page = open_window().page
    page.goto(file.as_uri())
    expect(page.locator("tbody tr")).to_have_count(4 + 13 * 8)
    page.get_by_role("link", name="/reports/monthly").first.click()
    expect(page.locator("#scope-1 .steps .row").last).to_be_attached()
    expect(page.locator("#scope-1 h1")).to_be_visible()
