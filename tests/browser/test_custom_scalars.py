"""The Custom Scalars page in a real browser: every chart that is open has a line for every run, and nothing is thrown."""

from __future__ import annotations

import os
import time

import pytest

from tests.browser.server import tensorboard
from torch_dmft.comparison import Comparison

pytestmark = pytest.mark.browser

_CHARTS = """() => {
    const every = (root, name) => [...root.querySelectorAll('*')].flatMap(
        e => [...(e.localName === name ? [e] : []), ...(e.shadowRoot ? every(e.shadowRoot, name) : [])]);
    const paths = root => [...root.querySelectorAll('*')].flatMap(
        e => [...(e.localName === 'path' ? [e] : []), ...(e.shadowRoot ? paths(e.shadowRoot) : [])]);
    const title = card => (card.shadowRoot.querySelector('h1') || card.shadowRoot.firstElementChild).textContent.trim();
    return ['tf-custom-scalar-multi-line-chart-card', 'tf-custom-scalar-margin-chart-card'].flatMap(
        name => every(document, name).map(card => ({
            title: card.getAttribute('title') || card.title || card._titleDisplayString || title(card),
            lines: paths(card.shadowRoot).filter(p => /^M[^A-Za-z]+L/.test(p.getAttribute('d') || '')
                && p.closest('.plot, .line-plot, g')).length,
        })));
}"""


_LINES = {
    "loss": 8,
    "loss, log10": 8,
    "loss, with band": 11,
    "NTK alignment": 6,
    "NTK relative error": 6,
    "Phi moved, weight 1": 8,
}
"""Some charts and their lines: two of the axes, then two for each run (as it is, and smoothed), and one for each band."""


@pytest.mark.parametrize("load_fast", ["true", "false"], ids=["rust reader", "python reader"])
def test_every_chart_has_a_line_for_every_run(comparison: Comparison, browser_page, tmp_path, load_fast):
    comparison.write_tensorboard(tmp_path)
    thrown: list[str] = []
    browser_page.on("pageerror", lambda error: thrown.append(str(error)))
    browser_page.on("console", lambda message: thrown.append(message.text) if message.type == "error" else None)
    with tensorboard(tmp_path, load_fast, shows=b"comparison") as address:
        browser_page.goto(f"{address}/#custom_scalars")
        deadline = time.monotonic() + 180
        charts: dict[str, int] = {}
        while not all(charts.get(title, 0) >= count for title, count in _LINES.items()) and time.monotonic() < deadline:
            time.sleep(1)
            charts = {chart["title"]: chart["lines"] for chart in browser_page.evaluate(_CHARTS)}
        if artefacts := os.environ.get("ARTEFACTS"):
            browser_page.screenshot(path=f"{artefacts}/custom-scalars-{load_fast}.png", timeout=180_000)
        browser_page.close()  # before the server is gone
    assert {title: charts.get(title) for title in _LINES} == _LINES
    assert thrown == []
