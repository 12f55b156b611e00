"""A Chromium that is installed already, or the tests are skipped, and the page in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from server.own.dashboard.browsing import CHROMIUM, MOST_MS, open_live
from server.running import Running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for longer: while it is open, Playwright's event loop runs in the thread of all tests."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed; CHROMIUM names one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=MOST_MS
        )
        yield browser
        browser.close()


@pytest.fixture
def problems() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, problems: list[str]) -> Iterator[Page]:
    """An empty page; `problems` are what goes wrong on it."""
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
    page.set_default_timeout(MOST_MS)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(f"{request.url}: {request.failure}"))
    yield page
    page.close()


@pytest.fixture
def live(server: Running, page: Page, problems: list[str]) -> Iterator[Page]:
    """The dashboard of `server`, connected; nothing may go wrong on it."""
    open_live(page, server.url)
    yield page
    page.goto("about:blank")
    assert [each for each in problems if "net::ERR_ABORTED" not in each] == []
