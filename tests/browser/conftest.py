"""A browser, and the logs that the tests look at with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.report.conftest import comparison
from tests.tab.conftest import make_log, trained

__all__ = ["browser_page", "comparison", "make_log", "trained"]

_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture
def browser_page() -> Iterator:
    """A blank page of 1280 pixels in headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=_FLAGS)
        yield browser.new_page(viewport={"width": 1280, "height": 1200})
        browser.close()
