"""As it would be released: what is in wheel and sdist, and what works where only the wheel is installed."""

from __future__ import annotations

import email
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import torch_dmft

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
PLUGIN = """
from importlib.metadata import entry_points
from pathlib import Path
import sys, torch_dmft
from torch_dmft.tab.static_files import static_files

(plugin,) = entry_points(group="tensorboard_plugins", name="dmft")
print(plugin.load().plugin_name)
assert Path(torch_dmft.__file__).is_relative_to(sys.prefix), torch_dmft.__file__
assert {"index.js", "style.css", "vendor/uPlot.esm.js", "views/overview.js"} <= set(static_files())
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; a failure shows what it says."""
    ran = subprocess.run(command, cwd=cwd, env=OUTSIDE, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


class Release:
    """The sources built in a place of their own, in an environment with nothing but what builds them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = folder, folder / "environment"
        run(sys.executable, "-m", "venv", self.environment, cwd=folder)
        requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
        self.pip("install", *requires)
        self.sdist = self.build("sdist", self.copied())
        with tarfile.open(self.sdist) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (unpacked,) = (folder / "unpacked").iterdir()
        self.unpacked = unpacked
        self.wheel = self.build("wheel", unpacked)

    def copied(self) -> Path:
        """A copy of the files that git has or would take."""
        copy = self.folder / "sources"
        listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
        return copy

    def build(self, kind: str, sources: Path) -> Path:
        """One archive, by the backend that pyproject.toml names."""
        out = self.folder / f"{kind}-of-{sources.name}"
        run(self.python, "-c", f"from setuptools.build_meta import *; build_{kind}({str(out)!r})", cwd=sources)
        (built,) = out.iterdir()
        return built

    def pip(self, *arguments: str | Path) -> None:
        """Call pip of the environment."""
        run(self.python, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=self.folder)

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.environment / "bin" / "python"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(tmp_path_factory.mktemp("release"))


def contents(wheel: Path) -> dict[str, str]:
    """Name of every file in a wheel -> a digest; but of RECORD, which has the digests of the others."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith(("/", "/RECORD"))]
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


def test_the_wheel_has_every_file_of_the_package_as_it_is(release: Release) -> None:
    package = ROOT / "torch_dmft"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    found = contents(release.wheel)
    assert {name: digest for name, digest in found.items() if name.startswith("torch_dmft/")} == expected
    assert {"torch_dmft/py.typed", "torch_dmft/tab/static/index.js", "torch_dmft/referee/schema.json"} <= found.keys()
    others = {name.partition("/")[0] for name in found} - {"torch_dmft"}
    assert others == {f"torch_dmft-{torch_dmft.__version__}.dist-info"}


def test_the_wheel_says_what_it_is(release: Release) -> None:
    about = f"torch_dmft-{torch_dmft.__version__}.dist-info"
    with zipfile.ZipFile(release.wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{about}/METADATA"))
        licences = {name for name in archive.namelist() if name.startswith(f"{about}/licenses/")}
        assert archive.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["Version"] == torch_dmft.__version__
    assert metadata["License-Expression"] == "MIT"
    assert any(name.endswith("uPlot.LICENSE.txt") for name in licences)
    assert set(PROJECT["dependencies"]) <= {one.replace(" ", "") for one in metadata.get_all("Requires-Dist")}


def test_the_sdist_has_what_the_wheel_is_built_of(release: Release) -> None:
    """The wheel of a release is built from the sdist, the one that users build from the repository is the same."""
    assert contents(release.build("wheel", release.folder / "sources")) == contents(release.wheel)
    top = {path.name for path in release.unpacked.iterdir()}
    assert {"torch_dmft", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= top
    assert not {"tests", "docs", "benchmarks", "examples", "findings"} & top


def test_the_wheel_works_where_it_is_installed(release: Release) -> None:
    release.pip("install", "--no-deps", release.wheel)
    libraries = Path(
        run(release.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=ROOT).strip()
    )
    # What it depends on is where these tests run; entries of a .pth file that are themselves such files are not followed.
    (libraries / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = release.environment / "bin" / "torch-dmft"
    assert run(command, "--version", cwd=release.folder).strip() == torch_dmft.__version__
    assert run(release.python, "-c", PLUGIN, cwd=release.folder).strip() == "dmft"


def test_how_to_cite_it() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what the format requires
    assert (cited["type"], cited["license"]) == ("software", PROJECT["license"])
    heads = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## [")]
    released = next(line for line in heads if "Unreleased" not in line)
    assert released == f"## [{cited['version']}] - {cited['date-released']}"
    assert cited["version"] == torch_dmft.__version__
    (paper,) = cited["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Bordelon", "Pehlevan"]
