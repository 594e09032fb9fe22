"""The routes of the tab through TensorBoard's own server, with both of its readers."""

import json
import subprocess
import sys
import textwrap
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard import default, program
from tensorboard.plugins.base_plugin import TBContext

from torch_dmft.tab.plugin import DMFTPlugin
from torch_dmft.tab.static_files import static_files

ROOT = Path(__file__).parents[2]
Get = Callable[..., tuple[int, str, bytes]]


@pytest.fixture(scope="module", params=["true", "false"], ids=["rust reader", "python reader"])
def get(trained, request) -> Get:
    """Ask the server: ``get(path, **parameters)`` is status, type and content."""
    server = program.TensorBoard(plugins=[*default.get_static_plugins(), DMFTPlugin])
    where = ["--logdir", str(trained.logdir), "--port", "0", "--host", "127.0.0.1"]
    server.configure(argv=[None, *where, "--load_fast", request.param])
    address = server.launch()

    def ask(path: str, **parameters: str) -> tuple[int, str, bytes]:
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        try:
            with urllib.request.urlopen(f"{address}data/{path}{query}", timeout=60) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read()

    return ask


def test_the_tab_is_listed_and_active(get):
    listed = json.loads(get("plugins_listing")[2])["dmft"]
    assert listed["enabled"]
    assert listed["tab_name"] == "DMFT"
    assert listed["loading_mechanism"]["module_path"].endswith("/dmft/static/index.js")


def test_questions_are_answered(get, trained):
    (run,) = json.loads(get("plugin/dmft/data/runs")[2])["runs"]
    assert run["name"] == trained.network
    status, kind, content = get("plugin/dmft/data/run", run=run["name"])
    assert (status, kind) == (200, "application/json")
    assert json.loads(content)["members"][0]["steps"] == trained.comparison.steps.tolist()
    status, _, content = get("plugin/dmft/data/kernel", run=run["name"], kernel="Phi/1", step="2")
    assert status == 200
    assert all(json.loads(content)["kernels"])


def test_what_is_not_there_is_told_in_words(get):
    status, _, content = get("plugin/dmft/data/run", run="nowhere")
    assert status == 404
    assert json.loads(content)["problem"] == "There is no run 'nowhere'."


@pytest.mark.parametrize("name", sorted(static_files()))
def test_files_of_the_page_are_served(get, name):
    status, kind, content = get(f"plugin/dmft/static/{name}")
    assert status == 200
    assert kind.startswith("text/")
    assert content == static_files()[name].read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "static/../plugin.py",
        "static/..%2fplugin.py",
        "static/%2e%2e/plugin.py",
        "static/vendor/../../plugin.py",
        "static//etc/hostname",
        "static/plugin.py",
        "static/",
        "data/../static/../about.py",
    ],
)
def test_nothing_else_is_served(get, path):
    assert get(f"plugin/dmft/{path}")[0] == 404


@pytest.mark.parametrize("name", ["..", "../a", "/etc", "a/../a/network (N=16)", "a\x00b", "", "a/"])
def test_a_run_is_looked_up_and_never_a_path(get, name):
    assert get("plugin/dmft/data/run", run=name)[0] == 404


def test_a_start_of_tensorboard_imports_neither_torch_nor_matplotlib(trained):
    code = f"""
        import json, sys, urllib.request
        from tensorboard import default, program
        from torch_dmft.tab.plugin import DMFTPlugin

        server = program.TensorBoard(plugins=[*default.get_static_plugins(), DMFTPlugin])
        server.configure(argv=[None, "--logdir", {str(trained.logdir)!r}, "--port", "0", "--load_fast", "false"])
        address = server.launch()
        for path in ("plugins_listing", "plugin/dmft/data/runs"):
            urllib.request.urlopen(address + "data/" + path, timeout=60).read()
        heavy = {{"torch", "matplotlib", "scipy", "rich", "jaxtyping"}} & set(sys.modules)
        sys.exit(", ".join(sorted(heavy)) or 0)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_package_announces_the_plugin_and_ships_its_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["tensorboard_plugins"] == {"dmft": "torch_dmft.tab.plugin:DMFTPlugin"}
    patterns = project["tool"]["setuptools"]["package-data"]["torch_dmft.tab"]
    folder = ROOT / "torch_dmft" / "tab"
    files = [path.relative_to(folder).as_posix() for path in (folder / "static").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [name for name in files if not any(_matches(name, pattern) for pattern in patterns)]
    licence = (folder / "static" / "vendor" / "uPlot.LICENSE.txt").read_text()
    assert "MIT License" in licence


def test_tensorboard_finds_the_installed_plugin():
    found = {entry.name: entry for entry in entry_points(group="tensorboard_plugins")}
    assert "dmft" in found, "the package was installed before it had a plugin: install it again, pip install -e ."
    assert found["dmft"].load() is DMFTPlugin


@pytest.mark.parametrize(
    ("logdir", "spec", "roots"),
    [
        ("runs", "", {"": Path("runs")}),
        ("", "a:one,b:two/three,four", {"a": Path("one"), "b": Path("two/three"), "": Path("four")}),
        ("gs://bucket/runs", "", {}),
        ("", "", {}),
    ],
)
def test_directories_are_those_that_tensorboard_was_given(logdir, spec, roots):
    context = TBContext(logdir=logdir, flags=SimpleNamespace(logdir_spec=spec))
    assert DMFTPlugin(context).library.roots == roots


def _matches(name: str, pattern: str) -> bool:
    """As setuptools does: a star does not cross a slash."""
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)
