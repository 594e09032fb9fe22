"""Formulas of pages and docstrings are typeset, by a library that comes with the pages: nothing is asked of other servers."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from markdown import Markdown

from tests.docs.conftest import ROOT

_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
_SEEN_FORMULAS = """() => ({
    marked: document.querySelectorAll('.arithmatex').length,
    typeset: document.querySelectorAll('.arithmatex > .katex, .arithmatex > .katex-display').length,
    wrong: [...document.querySelectorAll('.katex-error')].map(formula => formula.title),
    cut: [...document.querySelectorAll('.katex-display')].filter(
        formula => formula.scrollWidth > formula.clientWidth + 1).map(formula => formula.textContent),
})"""


class _Loaded(HTMLParser):
    """The addresses that a browser loads with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what the tag loads."""
        address = dict(attrs).get(_LOADS.get(tag, ""))
        if address:
            self.addresses.append(address)


def pages(site: Path) -> list[Path]:
    """All of them."""
    return sorted(site.rglob("*.html"))


def test_pages_load_nothing_from_other_servers(site):
    for page in pages(site):
        loaded = _Loaded()
        loaded.feed(page.read_text())
        assert loaded.addresses
        assert [address for address in loaded.addresses if re.match(r"(https?:)?//", address)] == [], page
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*", style.read_text()) == [], style


def test_the_library_comes_with_its_licence_and_every_font_that_its_style_names(site):
    folder = site / "assets" / "katex"
    assert "MIT" in (folder / "LICENSE.txt").read_text()
    named = set(re.findall(r"url\(fonts/([^)]+)\)", (folder / "katex.min.css").read_text()))
    assert named == {path.name for path in (folder / "fonts").iterdir()}
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 600_000


def test_no_formula_is_shown_as_its_source(site):
    for page in pages(site):
        text = page.read_text()
        assert ".. math::" not in text, page
        if 'class="arithmatex"' in text:
            assert "katex.min.js" in text
    reference = (site / "api" / "theory" / "index.html").read_text()
    assert r"f(t + 1) = f(t) + \eta K(t) \Delta(t)" in reference  # of a docstring


@pytest.mark.parametrize("continued", ["", "\n    + c"], ids=["one line", "two lines"])
def test_blocks_of_docstrings(monkeypatch, continued):
    monkeypatch.syspath_prepend(str(ROOT))
    from mkdocs_math import DocstringMath

    arithmatex = {"pymdownx.arithmatex": {"generic": True}}
    reader = Markdown(extensions=[DocstringMath(), *arithmatex], extension_configs=arithmatex)
    html = reader.convert(f"Sum\n\n.. math:: a_1 * b * 2{continued}\n\nof numbers.")
    assert r'<div class="arithmatex">\[' in html
    assert "a_1 * b * 2" + continued.replace("    ", "") in html
    assert html.endswith("<p>of numbers.</p>")


@pytest.fixture
def address(site) -> Iterator[str]:
    """Of a server of the pages."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.browser
def test_every_formula_is_typeset(site, address, browser_page):
    complaints: list[str] = []
    browser_page.on("pageerror", lambda error: complaints.append(str(error)))
    browser_page.on("response", lambda answer: complaints.append(answer.url) if answer.status >= 400 else None)
    browser_page.on("request", lambda asked: None if asked.url.startswith(address) else complaints.append(asked.url))
    count = 0
    for page in pages(site):
        if 'class="arithmatex"' not in page.read_text():
            continue
        browser_page.goto(f"{address}/{page.relative_to(site)}")
        browser_page.wait_for_load_state("load")
        seen = browser_page.evaluate(_SEEN_FORMULAS)
        assert seen["marked"] == seen["typeset"] > 0, page
        assert (seen["wrong"], seen["cut"]) == ([], []), page
        count += seen["marked"]
    assert count > 30
    assert complaints == []
