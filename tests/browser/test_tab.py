"""The DMFT tab in a real browser: in TensorBoard and as one file, every view, light and dark, while a run goes on."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.browser.server import tensorboard
from torch_dmft.comparison import compare
from torch_dmft.tab.about import About
from torch_dmft.tab.log import TEXT, RecordLog
from torch_dmft.tab.page import write_page
from torch_dmft.tab.runs import Library

pytestmark = pytest.mark.browser

VIEWS = ["Overview", "Kernels", "Neurons", "Spectrum", "Runs"]
NETWORK, THEORY = "--network", "--theory"
# How many pixels of a canvas have nearly the colour of a CSS variable.
_PAINTED = """(canvas, name) => {
    const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let count = 0;
    for (let i = 0; i < data.length; i += 4) {
        const off = Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b);
        if (data[i + 3] > 200 && off < 30) count++;
    }
    return count;
}"""
_COLORS = """(canvas) => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const seen = new Set();
    for (let i = 0; i < data.length; i += 4) seen.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
    return seen.size;
}"""
_PICTURE = "(canvas) => canvas.toDataURL()"


@pytest.fixture
def complaints(browser_page) -> Iterator[list[str]]:
    """Errors on the console, exceptions, and requests that leave the server; there must be none at the end."""
    heard: list[str] = []
    browser_page.on("pageerror", lambda error: heard.append(str(error)))
    browser_page.on("console", lambda message: heard.append(message.text) if message.type == "error" else None)

    def asked(request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:", "file:")):
            heard.append(f"request to {request.url}")

    browser_page.on("request", asked)
    yield heard
    assert [text for text in heard if "favicon" not in text and "404" not in text] == []


def tab(page, address: str, *, dark: bool = False):
    """The tab's own frame within TensorBoard."""
    page.goto(f"{address}/?darkMode={str(dark).lower()}#dmft")
    page.frame_locator("iframe").locator("nav button").first.wait_for(timeout=60_000)
    return next(frame for frame in page.frames if "plugin_entry" in frame.url)


def open_view(frame, name: str) -> None:
    frame.get_by_role("tab", name=name).click()
    frame.locator(f"nav button[aria-selected=true]:text-is('{name}')").wait_for()


def keep(page, name: str) -> None:
    """A picture for people to look at, where ``ARTEFACTS`` says."""
    if folder := os.environ.get("ARTEFACTS"):
        page.screenshot(path=f"{folder}/tab-{name}.png", timeout=180_000)


def eventually(check: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def painted(frame, selector: str, color: str) -> int:
    return sum(canvas.evaluate(_PAINTED, color) for canvas in frame.locator(selector).all())


def every_view_is_drawn(page, frame, name: str) -> None:
    """Lines of network and theory, and coloured cells, are really there."""
    open_view(frame, "Overview")
    frame.locator(".verdict .headline").wait_for()
    eventually(lambda: painted(frame, ".chart canvas", NETWORK) > 200, "no loss of the network")
    assert painted(frame, ".chart canvas", THEORY) > 100
    assert [canvas.evaluate(_COLORS) > 3 for canvas in frame.locator("canvas.heatmap").all()] == [True] * 3
    keep(page, f"{name}-overview")
    open_view(frame, "Kernels")
    frame.locator(".caption", has_text="relative error").wait_for()
    eventually(
        lambda: (
            [canvas.evaluate(_COLORS) > 8 for canvas in frame.locator(".matrix canvas.heatmap").all()][:3] == [True] * 3
        ),
        "no kernels",
    )
    keep(page, f"{name}-kernels")
    open_view(frame, "Neurons")
    eventually(lambda: painted(frame, ".chart canvas", THEORY) > 100, "no densities")
    assert frame.locator(".small-multiples figure").count() == 2
    keep(page, f"{name}-neurons")
    open_view(frame, "Spectrum")
    eventually(lambda: painted(frame, ".chart canvas", NETWORK) > 200, "no eigenvalues")
    assert frame.locator("canvas.heatmap").count() == 2
    keep(page, f"{name}-spectrum")
    open_view(frame, "Runs")


@pytest.mark.parametrize("load_fast", ["true", "false"], ids=["rust reader", "python reader"])
def test_every_view_in_tensorboard(trained, browser_page, complaints, load_fast):
    with tensorboard(trained.logdir, load_fast) as address:
        frame = tab(browser_page, address)
        every_view_is_drawn(browser_page, frame, f"tensorboard-{load_fast}")
        assert frame.locator(".empty", has_text="One run").count() == 1
        browser_page.close()  # before the server is gone


def test_lines_have_their_colours_where_the_style_sheet_is_slow(trained, browser_page, complaints):
    """Charts take their colours from it: drawn before it was there, they had no lines."""

    def late(route) -> None:
        time.sleep(3)
        route.continue_()

    with tensorboard(trained.logdir) as address:
        browser_page.route("**/style.css*", late)
        frame = tab(browser_page, address)
        frame.locator(".verdict .headline").wait_for()
        eventually(lambda: painted(frame, ".chart canvas", NETWORK) > 200, "no loss of the network")
        browser_page.close()


def test_a_style_sheet_that_does_not_come_is_told(trained, browser_page):
    with tensorboard(trained.logdir) as address:
        browser_page.route("**/style.css*", lambda route: route.abort())
        frame = tab(browser_page, address)
        frame.locator(".messages", has_text="style.css could not be loaded").wait_for()
        browser_page.close()


def test_tensorboard_opens_with_the_tab_in_sight(trained, browser_page, complaints):
    """TensorBoard has its own pages first, and hides what 1280 pixels cannot hold."""
    with tensorboard(trained.logdir) as address:
        browser_page.goto(address)
        offered = browser_page.get_by_role("tab", name="DMFT")
        offered.wait_for(timeout=60_000)
        keep(browser_page, "opened")
        box = offered.bounding_box()
        for x in (box["x"] + 2, box["x"] + box["width"] - 2):  # nothing lies over either end
            place = [x, box["y"] + box["height"] / 2]
            assert (
                browser_page.evaluate("([x, y]) => document.elementFromPoint(x, y)?.textContent.trim()", place)
                == "DMFT"
            )
        browser_page.close()


def test_dark_like_tensorboard(trained, browser_page, complaints):
    with tensorboard(trained.logdir) as address:
        frame = tab(browser_page, address, dark=True)
        assert frame.evaluate("document.documentElement.dataset.theme") == "dark"
        every_view_is_drawn(browser_page, frame, "dark")
        browser_page.evaluate("document.body.classList.remove('dark-mode')")
        eventually(lambda: frame.evaluate("document.documentElement.dataset.theme") == "light", "still dark")
        open_view(frame, "Overview")
        eventually(lambda: painted(frame, ".chart canvas", NETWORK) > 200, "not drawn again")
        browser_page.close()


def test_every_view_in_one_file(trained, browser_page, complaints, tmp_path):
    trained.comparison.write_html(tmp_path / "report.html")
    browser_page.goto((tmp_path / "report.html").as_uri())
    every_view_is_drawn(browser_page, browser_page, "file")
    open_view(browser_page, "Kernels")
    browser_page.locator(".matrix canvas.heatmap").first.click(position={"x": 60, "y": 300})
    assert browser_page.get_by_role("button", name="a pair of samples").get_attribute("aria-pressed") == "true"
    assert browser_page.get_by_label("samples", exact=True).input_value() == "5"
    browser_page.locator(".panel", has_text="Between two times").locator("canvas.heatmap").first.wait_for()


def test_a_run_without_an_ntk_is_drawn_and_says_so(comparison, browser_page, complaints, tmp_path):
    measured, *predictions = comparison.runs
    compare(measured.without_ntk(), *predictions).write_html(tmp_path / "report.html")
    page = browser_page
    page.goto((tmp_path / "report.html").as_uri())
    page.locator(".verdict .headline").wait_for()
    eventually(lambda: painted(page, ".chart canvas", NETWORK) > 200, "no loss of the network")
    assert [canvas.evaluate(_COLORS) > 3 for canvas in page.locator("canvas.heatmap").all()] == [True] * 2
    open_view(page, "Kernels")
    page.locator(".caption", has_text="relative error").wait_for()
    assert page.get_by_role("button", name="NTK", exact=True).count() == 0
    open_view(page, "Spectrum")
    page.locator(".empty", has_text="The NTK was not recorded").wait_for()


def test_the_slider_moves_what_is_shown(trained, browser_page, complaints, tmp_path):
    trained.comparison.write_html(tmp_path / "report.html")
    page = browser_page
    page.goto((tmp_path / "report.html").as_uri())
    open_view(page, "Kernels")
    page.locator(".caption", has_text="Step 6").wait_for()
    last = page.locator(".matrix canvas.heatmap").first.evaluate(_PICTURE)
    page.get_by_label("step", exact=True).fill("2")
    page.locator(".caption", has_text="Step 2").wait_for()
    assert page.locator(".matrix canvas.heatmap").first.evaluate(_PICTURE) != last
    page.keyboard.press("ArrowLeft")
    page.locator(".caption", has_text="Step 1").wait_for()
    page.keyboard.press("Home")
    page.locator(".caption", has_text="Step 0").wait_for()
    page.locator("h1").click()
    page.keyboard.press("Space")
    page.locator(".caption", has_text="Step 6").wait_for()
    page.keyboard.press("4")
    assert page.locator("nav button[aria-selected=true]").inner_text() == "Spectrum"
    assert page.locator("output").inner_text() == "step 6 of 6"


def test_values_are_told_where_the_pointer_is(trained, browser_page, complaints, tmp_path):
    trained.comparison.write_html(tmp_path / "report.html")
    browser_page.goto((tmp_path / "report.html").as_uri())
    open_view(browser_page, "Kernels")
    browser_page.locator(".caption", has_text="Step 6").wait_for()
    browser_page.locator(".matrix canvas.heatmap").first.hover(position={"x": 60, "y": 40})
    told = browser_page.locator(".readout").first.inner_text()
    assert "sample" in told
    assert "theory (N=inf)" in told
    assert "difference" in told
    with browser_page.expect_download() as download:
        browser_page.locator(".panel").first.get_by_role("button", name="CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "sample,sample,network (N=16),theory (N=inf),difference"
    assert len(lines) == 1 + 7 * 7
    with browser_page.expect_download() as download:
        browser_page.locator(".panel").first.get_by_role("button", name="PNG").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_runs_are_chosen_and_compared(browser_page, complaints, tmp_path):
    for width in (64, 256, 1024):
        write_pair(tmp_path / f"width={width}", width)
    with tensorboard(tmp_path) as address:
        frame = tab(browser_page, address)
        headline = frame.locator(".headline")
        headline.wait_for()
        first = headline.inner_text()
        frame.get_by_label("Run", exact=True).select_option("width=256/network (N=256)")
        eventually(lambda: "N=256" in headline.inner_text(), "the run did not change")
        assert first != headline.inner_text()
        open_view(frame, "Runs")
        frame.get_by_label("Quantity").select_option("relative error/all")
        frame.locator("h2", has_text="Against the setting in which they differ: width").wait_for()
        eventually(lambda: painted(frame, ".panel:last-child .chart canvas", THEORY) > 50, "no line of slope -1/2")
        keep(browser_page, "runs")
        browser_page.close()


def test_a_run_that_goes_on_grows_on_the_page(make_log, browser_page, complaints, tmp_path):
    make_log(tmp_path / "live", start=0)
    with tensorboard(tmp_path) as address:
        frame = tab(browser_page, address)
        frame.locator("output", has_text="step 3 of 3").wait_for()
        make_log(tmp_path / "live", start=4, steps=range(4, 9))
        frame.locator("output", has_text="step 8 of 8").wait_for(timeout=20_000)
        assert "without a prediction" in frame.locator(".headline").inner_text()
        keep(browser_page, "live")
        browser_page.close()


def test_what_is_missing_or_damaged_is_told_and_what_to_do(make_log, browser_page, complaints, tmp_path):
    with tensorboard(tmp_path) as address:
        # TensorBoard itself opens no tab without data; what the tab says is there for a run whose folder is removed.
        frame = browser_page
        frame.goto(f"{address}/data/plugin_entry.html?name=dmft")
        frame.locator(".empty", has_text="comparison.write_tensorboard(logdir)").wait_for()
        keep(browser_page, "empty")
        make_log(tmp_path / "cut", start=0)
        with (tmp_path / "cut" / TEXT).open("a") as file:
            file.write('{"step": 9, "val')
        frame.locator(".messages", has_text="The last record is not complete").wait_for(timeout=20_000)
        for view in VIEWS:
            open_view(frame, view)
        (tmp_path / "cut" / TEXT).write_text("foreign\n")
        frame.locator(".empty", has_text="holds no records of torch_dmft").wait_for(timeout=20_000)
        browser_page.close()


def test_a_run_that_diverged_and_one_of_many_weights_are_drawn(browser_page, complaints, tmp_path):
    about = About("network (N=8)", "network", ("0", "2"), (0, 1, 2), (0.0, 0.0, 1.0), samples=3)
    with RecordLog(tmp_path / "logs" / "diverged", about) as log:
        for step, loss in enumerate((1.0, 1e30, float("inf"), float("nan"))):
            kernels = {name: np.full((3, 3), loss) for name in about.kernels}
            values = {"loss": loss, "NTK moved/0": loss, "Phi moved/1": loss}
            log.record(step, 0.1, values, kernels, ([loss] * 3, [float("nan")] * 3))
    write_pair(tmp_path / "logs" / "deep", 64, weights=60, theory_every=2)
    write_page(Library({"": tmp_path / "logs"}), tmp_path / "report.html")
    page = browser_page
    page.goto((tmp_path / "report.html").as_uri())
    for run in ("deep/network (N=64)", "diverged"):
        page.get_by_label("Run", exact=True).select_option(run)
        for view in VIEWS:
            open_view(page, view)
            page.keyboard.press("ArrowLeft")
        if run.startswith("deep"):  # the last step with kernels of both, network and theory
            page.keyboard.press("End")
            open_view(page, "Kernels")
            page.locator(".caption", has_text="Step 18").wait_for()
        open_view(page, "Overview")
        keep(page, run.split("/")[0])
    assert page.locator(".headline").inner_text() == "Network (N=8) diverged: its loss is not finite at step 2."


@pytest.mark.parametrize("load_fast", ["true", "false"], ids=["rust reader", "python reader"])
def test_logs_without_records_show_their_curves(trained, browser_page, complaints, tmp_path, load_fast):
    shutil.copytree(trained.logdir, tmp_path / "logs", ignore=shutil.ignore_patterns("dmft.*"))
    with tensorboard(tmp_path / "logs", load_fast, shows=b"static") as address:
        frame = tab(browser_page, address)
        frame.locator(".messages", has_text="these logs hold curves only").wait_for()
        eventually(lambda: painted(frame, ".chart canvas", THEORY) > 100, "no loss of the theory")
        assert [canvas.evaluate(_COLORS) > 3 for canvas in frame.locator("canvas.heatmap").all()] == [True] * 3
        for view in VIEWS:
            open_view(frame, view)
        browser_page.close()


@pytest.mark.long
def test_a_thousand_records_of_twelve_layers_open_and_move_fast(browser_page, complaints, tmp_path):
    write_pair(tmp_path, 512, records=1000, weights=12, samples=64)
    move = """async (count) => {
        const slider = document.querySelector('input[type=range]');
        const caption = [...document.querySelectorAll('.caption')].find((one) => one.textContent.startsWith('Step'));
        const times = [];
        for (let i = 0; i < count; i++) {
            const before = caption.textContent;
            const start = performance.now();
            slider.value = String((i * 37 + 11) % 1000);
            slider.dispatchEvent(new Event('input'));
            while (caption.textContent === before) await new Promise((next) => setTimeout(next, 1));
            await new Promise(requestAnimationFrame);
            times.push(performance.now() - start);
        }
        return times;
    }"""
    opened = []
    with tensorboard(tmp_path) as address:
        for _ in range(3):
            start = time.perf_counter()
            browser_page.goto(f"{address}/data/plugin_entry.html?name=dmft")
            browser_page.locator(".chart canvas").wait_for()
            opened.append(time.perf_counter() - start)
        open_view(browser_page, "Kernels")
        browser_page.locator(".caption", has_text="Step 999").wait_for()
        moves = browser_page.evaluate(move, 40)
        (server,) = (child for child in psutil.Process().children() if address.rpartition(":")[2] in child.cmdline())
        memory = server.memory_info().rss
        browser_page.close()
    shutil.rmtree(tmp_path)  # hundreds of megabytes
    assert np.median(opened) < 2, opened
    assert np.median(moves) < 100, moves
    assert memory < 300 * 2**20


def write_pair(
    folder: Path, width: int, *, records: int = 20, weights: int = 3, samples: int = 6, theory_every: int = 1
) -> None:
    """A network and a theory that it nears as 1 / sqrt(width)."""
    rng = np.random.default_rng(width)
    names = tuple(f"blocks.{number}" for number in range(weights))
    network = f"network (N={width})"
    labels = tuple(float(number % 2) for number in range(samples))
    for origin, kind in ((network, "network"), ("theory (N=inf)", "theory")):
        about = About(origin, kind, names, tuple(range(samples)), tuple(sorted(labels)), samples=samples)
        about = About(
            **{**about.as_json(), "network": None if kind == "network" else network, "facts": {"width": width}}
        )
        with RecordLog(folder / origin, about) as log:
            for step in range(0, records, 1 if kind == "network" else theory_every):
                kernel = rng.normal(size=(samples, samples))
                values = {"loss": float(np.exp(-step / records)), "NTK moved/all": step / records}
                for weight in range(weights):
                    values |= {f"{name} moved/{weight}": step / records for name in ("Phi", "G", "NTK")}
                if kind == "theory":
                    values |= {"relative error/all": width**-0.5, "NTK alignment/all": 1 - 1 / width}
                    for weight in range(weights):
                        values |= {f"{name} alignment/{weight}": 1 - weight / width for name in ("Phi", "G", "NTK")}
                log.record(step, 0.1 * step, values, dict.fromkeys(about.kernels, kernel + kernel.T))
