"""The page as one file: complete, alone, and small."""

import base64
import json
import re

import numpy as np
import pytest

from tests.tab.test_answers import numbers
from torch_dmft.cli import main
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.tab import page
from torch_dmft.tab.runs import Library
from torch_dmft.tab.static_files import static_files

_DATA = re.compile(r'<script type="application/json" id="answers">(.*?)</script>', re.DOTALL)
_MAP = re.compile(r'<script type="importmap">(.*?)</script>', re.DOTALL)


def embedded(html: str) -> dict:
    return json.loads(_DATA.search(html)[1])


def test_a_comparison_writes_every_answer_into_one_file(trained, tmp_path):
    path = tmp_path / "report.html"
    trained.comparison.write_html(path)
    html = path.read_text()
    answers = embedded(html)
    (run,) = answers["runs"]["runs"]
    whole = answers[f"run|{run['name']}"]
    assert [member["about"]["origin"] for member in whole["members"]] == run["origins"]
    for step in whole["members"][0]["kernel_steps"]:
        for kernel in ("Phi/0", "G/2", "NTK/all"):
            assert all(answers[f"kernel|{run['name']}|{kernel}|{step}"]["kernels"])
    assert answers[f"pair|{run['name']}|Phi/1|2,0"]["kernels"][0]
    assert np.isfinite(numbers(whole["members"][0]["values"])).any()


def test_the_file_asks_for_nothing(trained, tmp_path):
    trained.comparison.write_html(tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", html)
    modules = json.loads(_MAP.search(html)[1])["imports"]
    assert len(modules) == sum(name.endswith(".js") for name in static_files())
    for module in modules.values():
        text = base64.b64decode(module.partition("base64,")[2]).decode()
        for imported in re.findall(r'^import[^"]*"([^"]+)"', text, re.MULTILINE):
            assert imported in modules


def test_names_cannot_end_the_data(make_log, tmp_path):
    make_log(tmp_path / "runs" / "<script>alert(1)</script>".replace("/", "-"))
    main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "report.html")])
    html = (tmp_path / "report.html").read_text()
    assert html.count("<script") == html.count("</script>") == 3
    assert embedded(html)["runs"]["runs"][0]["name"] == "<script>alert(1)<-script>"


def test_large_runs_keep_evenly_spaced_steps(make_log, tmp_path, monkeypatch):
    make_log(tmp_path / "a", steps=range(100))
    monkeypatch.setattr(page, "KERNEL_BYTES", 5_000)
    page.write_page(Library({"": tmp_path}), tmp_path / "report.html")
    answers = embedded((tmp_path / "report.html").read_text())
    kept = answers["run|a"]["members"][0]["kernel_steps"]
    assert 2 <= len(kept) < 30
    assert (kept[0], kept[-1]) == (0, 99)
    assert {f"kernel|a|Phi/0|{step}" for step in kept} <= answers.keys()
    assert len(answers["run|a"]["members"][0]["steps"]) == 100


def test_the_command_writes_a_file_and_tells_where(trained, tmp_path, capsys):
    assert main(["report", str(trained.logdir), "-o", str(tmp_path / "a.html")]) == 0
    assert "a.html" in capsys.readouterr().out
    assert trained.network in embedded((tmp_path / "a.html").read_text())["runs"]["runs"][0]["name"]


def test_a_folder_without_records_is_refused(tmp_path, capsys):
    with pytest.raises(InvalidInputError, match=r"no records to show.*Remedy: a folder written by"):
        page.write_page(Library({"": tmp_path}), tmp_path / "report.html")
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no records to show" in capsys.readouterr().err
