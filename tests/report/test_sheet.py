"""The page of a check and of a sweep of learning rates."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_dmft as dmft
from torch_dmft.report import sheet
from torch_dmft.report.sheet import of_check, write_sheet

_DATA = re.compile(r'<script type="application/json" id="result">(.*?)</script>', re.DOTALL)


def plain(width: int, lr: float = 0.01) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
    return model, torch.optim.Adam(model.parameters(), lr=lr)


@pytest.fixture(scope="module")
def verdict() -> dmft.Verdict:
    return dmft.check(plain, (16, 32, 64), steps=2, seeds=3, most_seeds=3)


def written(result: dmft.Verdict | dmft.Transferred, path: Path) -> str:
    result.write_html(path)
    return path.read_text("utf-8")


def text(page: str) -> str:
    return re.sub(r"<[^>]*>", " ", page).replace("&#x27;", "'").replace("&gt;", ">").replace("&amp;", "&")


def test_the_page_of_a_check_has_everything(verdict: dmft.Verdict, tmp_path: Path) -> None:
    page = written(verdict, tmp_path / "check.html")
    assert f'<span class="word bad">{verdict.word}</span>' in page
    for line in (*verdict.summary, *verdict.measured.notes):
        assert line in text(page)
    for row in verdict.table().rows:
        assert "".join(f"<td>{cell}</td>" for cell in row) in page
    assert page.count("<svg") == page.count("</svg>") == len(verdict.figures())
    assert page.count("<table>") == 3
    assert json.loads(_DATA.search(page)[1]) == json.loads(verdict.to_json())  # type: ignore[index]


def test_the_page_of_a_sweep_has_everything(tmp_path: Path) -> None:
    rows = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    found = dmft.transfer(plain, (8, 16), lrs=(0.01,), steps=8, seeds=2, data=[(rows, rows[:, :2])])
    page = written(found, tmp_path / "transfer.html")
    shown = text(page)
    for line in (*found.sentences, *found.notes):
        assert f"{line[0].upper()}{line[1:]}." in shown
    assert page.count("<svg") == 1
    assert json.loads(_DATA.search(page)[1]) == found.to_dict()  # type: ignore[index]


def test_the_page_asks_for_nothing(verdict: dmft.Verdict, tmp_path: Path) -> None:
    page = written(verdict, tmp_path / "check.html")
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", page)
    assert not re.findall(r"url\((?!#)|@import", page)
    assert page == written(verdict, tmp_path / "again.html")


def test_names_cannot_end_the_page(verdict: dmft.Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "</script><script>alert(1)</script>"
    right = of_check(verdict)
    wrong = sheet.Sheet(**{**vars(right), "said": [name], "notes": [name], "json": json.dumps({"name": name})})
    monkeypatch.setattr(sheet, "of_check", lambda _: wrong)
    write_sheet(verdict, tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text("utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    assert json.loads(_DATA.search(page)[1]) == {"name": name}  # type: ignore[index]
    assert text(page).count("alert(1)") == 3
