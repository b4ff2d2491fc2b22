"""Pictures of the panel and the report: made by every run of the tests, and looked at by whoever changes them.

They go into a temporary folder. With SQLA_WATCH_TEST_PICTURES=docs those of the documentation are written anew.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import FloatRect

from sqla_watch.panel import Panel, report_page
from tests.panel.conftest import Window
from tests.panel.examples import busy_shop, slow_order_list
from tests.panel.serving import Served

Serve = Callable[[Panel], Served]
Open = Callable[..., Window]

DOCS = Path(__file__).parents[2] / "docs"
MOST_BYTES = 200_000


def shop() -> Panel:
    panel = Panel()
    for each in busy_shop():
        panel.add(each)
    return panel


def in_short() -> Panel:
    """The request with its two worst findings: more would be too long for a picture."""
    panel = Panel()
    example = slow_order_list()
    del example["findings"][2:]
    panel.add(example)
    return panel


def size_of(png: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", png, 16)
    return width, height


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("panel", 1280, "light"),
        ("request", 1280, "light"),
        ("report", 1280, "light"),
        ("panel-dark", 1280, "dark"),
        ("request-dark", 1280, "dark"),
        ("panel-phone", 360, "light"),
        ("request-phone", 360, "light"),
    ],
)
def test_pictures(name: str, width: int, scheme: str, serve: Serve, open_window: Open, tmp_path: Path) -> None:
    page = open_window(width, 900 if name == "report" else 600, color_scheme=scheme).page
    if name.startswith("panel"):
        page.goto(serve(shop()).url + "/")
    elif name.startswith("request"):
        page.goto(serve(in_short()).url + "/requests/1")
    else:
        file = tmp_path / "report.html"
        file.write_text(report_page(busy_shop(), title="Report of a test run"), encoding="utf-8")
        page.goto(file.as_uri() + "#scope-13")
    clip = None
    if name.startswith("request"):  # to the end of the waterfall
        bottom = page.locator(".fall").evaluate("(fall) => fall.getBoundingClientRect().bottom + scrollY")
        clip = FloatRect(x=0, y=0, width=width, height=bottom + 24)
    picture = page.screenshot(full_page=name != "report", animations="disabled", clip=clip)
    (tmp_path / f"{name}.png").write_bytes(picture)
    assert size_of(picture)[0] == width
    assert size_of(picture)[1] >= 600
    assert len(picture) > 20_000  # there is something on it
    if os.environ.get("SQLA_WATCH_TEST_PICTURES") == "docs" and "-" not in name:
        (DOCS / f"{name}.png").write_bytes(picture)


@pytest.mark.parametrize("name", ["panel", "request", "report"])
def test_the_documentation_has_its_pictures(name: str) -> None:
    picture = (DOCS / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert size_of(picture)[0] == 1280
    assert len(picture) < MOST_BYTES
