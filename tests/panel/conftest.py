"""A real browser, and a server for a panel; whatever the browser complains of fails the test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from sqla_watch.panel import Panel, Response
from tests.panel.serving import ROOT, Served


def ask(
    panel: Panel,
    path: str = "/",
    query: str = "",
    *,
    method: str = "GET",
    client: str | None = "127.0.0.1",
    https: bool = False,
    root: str = ROOT,
    **headers: str,
) -> Response:
    """Ask a panel as a browser on this machine would; a header's name is written with underscores."""
    sent = {"host": "localhost:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return panel.respond(method, path, query, sent, client, https=https, root=root)


class Window:
    """A page of the browser, and what the browser said of it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text} {message.location}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", self._dismiss)
        page.on("request", lambda request: self.asked.append(request.url))

    def _dismiss(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def forgive(self, expected: str) -> None:
        """Forget what the browser said where that was right to happen."""
        for _ in range(100):
            if any(expected in complaint for complaint in self.complaints):
                break
            self.page.wait_for_timeout(50)
        else:
            pytest.fail(f"the browser did not say {expected!r}, but {self.complaints}")
        self.complaints[:] = [complaint for complaint in self.complaints if expected not in complaint]

    def elsewhere(self, *allowed: str) -> list[str]:
        """What the page asked for from somewhere else."""
        return [url for url in self.asked if not url.startswith((*allowed, "data:"))]


def _launch(playwright: Playwright) -> Browser:
    own = Path(playwright.chromium.executable_path)
    found = str(own) if own.exists() else next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        pytest.fail(
            "the panel's tests need a Chromium: install Debian's chromium, or run `playwright install chromium`",
            pytrace=False,
        )
    return playwright.chromium.launch(executable_path=found)


_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


# Playwright keeps an event loop running in the thread that it was started in, and switches greenlets there. No other
# test must find these in its own thread, so the browser has a thread to itself, and what uses it runs in there.
@pytest.fixture(scope="session")
def browser_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, thread_name_prefix="browser") as thread:
        yield thread


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if "open_window" not in pyfuncitem.fixturenames:
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    thread = pyfuncitem.funcargs["browser_thread"]
    assert isinstance(thread, ThreadPoolExecutor)
    thread.submit(pyfuncitem.obj, **arguments).result()
    return True


@pytest.fixture(scope="session")
def browser(browser_thread: ThreadPoolExecutor) -> Iterator[Browser]:
    playwright = browser_thread.submit(lambda: sync_playwright().start()).result()
    try:
        browser = browser_thread.submit(_launch, playwright).result()
        yield browser
        browser_thread.submit(browser.close).result()
    finally:
        browser_thread.submit(playwright.stop).result()


@pytest.fixture
def serve() -> Iterator[Callable[[Panel], Served]]:
    """Serve a panel until the test is over."""
    with ExitStack() as stack:

        def start(panel: Panel) -> Served:
            served = Served(panel)
            stack.callback(served.stop)
            return served

        yield start


@pytest.fixture
def open_window(browser: Browser, browser_thread: ThreadPoolExecutor) -> Iterator[Callable[..., Window]]:
    """Open a window of the browser; at the end nothing must have been complained of in any of them."""
    windows: list[Window] = []

    def open_one(width: int = 1280, height: int = 900, **options: Any) -> Window:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(15_000)
        windows.append(Window(context.new_page()))
        return windows[-1]

    yield open_one
    for window in windows:
        browser_thread.submit(window.page.context.close).result()
    assert [complaint for window in windows for complaint in window.complaints] == []
