"""What torch-dmft doctor says of whole environments and of broken ones."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
import torch

import torch_dmft
from torch_dmft import doctor
from torch_dmft.cli import main


def test_of_this_environment_it_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    lines = {line[8:].split()[0]: line for line in shown.splitlines()}
    assert lines["torch_dmft"].startswith(f"ok      torch_dmft                  {torch_dmft.__version__}")
    assert torch.__version__.split("+")[0] in lines["torch"]
    assert "GiB free" in lines["cpu"]
    assert "known to TensorBoard" in lines["DMFT"]
    assert {"numpy", "scipy", "tensorboard", "scikit-learn", "transformers"} <= lines.keys()
    assert "ruff" not in lines  # for whoever works on the package


@pytest.mark.parametrize(
    ("broken", "found", "status", "said"),
    [
        ("scipy", None, 1, "missing scipy                       not installed. Remedy: pip install -U torch_dmft"),
        ("numpy", "1.20", 1, "missing numpy                       1.20, not >=1.26. Remedy: pip install -U torch_dmft"),
        ("scikit-learn", None, 0, "not installed. Remedy: pip install -U 'torch_dmft[sklearn]'"),
        ("transformers", "4.1", 0, "4.1, not >=5. Remedy: pip install -U 'torch_dmft[transformers]'"),
    ],
)
def test_what_is_missing_or_old_is_said_with_its_remedy(
    broken: str,
    found: str | None,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = doctor.version

    def version(name: str) -> str:
        if name != broken:
            return own(name)
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(doctor, "version", version)
    assert main(["doctor"]) == status
    assert said in capsys.readouterr().out


def test_a_package_that_cannot_be_imported_is_no_good(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def imported(name: str) -> None:
        if name == "scipy":
            raise RuntimeError("operator does not exist\nin this build")

    monkeypatch.setattr(doctor, "import_module", imported)
    assert main(["doctor"]) == 1
    assert "cannot be imported (RuntimeError: operator does not exist). Remedy" in capsys.readouterr().out


def test_a_tab_that_is_not_registered_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "entry_points", lambda group: ())
    assert main(["doctor"]) == 1
    assert "not known to TensorBoard" in capsys.readouterr().out
