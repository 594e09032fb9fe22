"""The coordinate check along depth: features move alike at every number of blocks, and a wrong rate is seen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.parameterization.streams import ALPHA, D, Residual, gpt2
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.parameterization import CoordinateCheck, depth_check, rules
from torch_dmft.parameterization.scheme import at_depth


def check(depth: str | None, optimizer: str, generator: torch.Generator, **settings) -> CoordinateCheck:
    x = torch.randn(16, D, generator=generator)
    settings = {
        "generator": generator,
        "lr": {"sgd": 0.1, "adamw": 0.03}[optimizer],
        "depths": (4, 8, 16),
        "seeds": 2,
    } | settings
    return depth_check(
        lambda blocks: Residual(blocks, 48), x, torch.sin(x[:, :2]), depth=depth, optimizer=optimizer, **settings
    )


@pytest.mark.parametrize(
    ("depth", "optimizer", "gamma0", "depths"),
    [
        ("1/sqrt(L)", "sgd", 1.0, (4, 16, 64)),
        ("1/L", "adamw", 0.3, (4, 16, 64)),
        *(
            pytest.param(depth, optimizer, gamma0, (4, 8, 16, 32, 64), marks=pytest.mark.long)
            for depth in ALPHA
            for optimizer in ("sgd", "adamw")
            for gamma0 in (1.0, 0.3)
        ),
    ],
)
def test_features_move_alike_at_every_depth(depth, optimizer, gamma0, depths, generator) -> None:
    found = check(depth, optimizer, generator, gamma0=gamma0, depths=depths)
    assert found.passed, str(found)
    assert "blocks.*.down, last third" in found.layers
    assert f"L={depths[-1]}" in str(found)


def deep_gpt2(blocks: int, width: int = 64, embeddings: float = 1.0) -> nn.Module:
    model = gpt2(width, blocks).eval()
    for table in (model.transformer.wte, model.transformer.wpe):
        nn.init.normal_(table.weight, std=embeddings)
    return model


def deep_resnet(blocks: int, width: int = 32) -> nn.Module:
    from torchvision.models.resnet import BasicBlock as block  # noqa: N813

    stem = (nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    readout = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    return nn.Sequential(*stem, *(block(width, width) for _ in range(blocks)), *readout)


def along_depth(
    name: str, depth: str, optimizer: str, generator: torch.Generator, **settings: float
) -> CoordinateCheck:
    targets = torch.randint(0, 3, (6,), generator=generator)
    run = {"depths": (4, 8, 16, 32), "depth": depth, "optimizer": optimizer, "loss": F.cross_entropy, "seeds": 4}
    if name == "ResNet":
        images = torch.randn(6, 3, 8, 8, generator=generator)
        return depth_check(deep_resnet, images, targets, lr=0.1, generator=generator, **run)
    tokens = {"input_ids": torch.randint(1, 50, (6, 8), generator=generator)}
    make, wider = partial(deep_gpt2, **settings), partial(deep_gpt2, width=128, **settings)
    lr = 0.1 if optimizer == "sgd" else 0.05
    return depth_check(make, tokens, targets, lr=lr, wider=wider, outputs="logits", generator=generator, **run)


@pytest.mark.long
@pytest.mark.parametrize("depth", ALPHA)
@pytest.mark.parametrize(("name", "optimizer"), [("GPT-2", "sgd"), ("GPT-2", "adamw"), ("ResNet", "sgd")])
def test_features_of_libraries_move_alike_at_every_depth(name, optimizer, depth, generator) -> None:
    found = along_depth(name, depth, optimizer, generator)
    for layer, exponent in found.exponents.items():
        assert abs(exponent) <= 0.15 + found.exponent_errors[layer], (layer, exponent)


@pytest.mark.long
def test_a_stream_that_starts_small_is_dominated_by_its_first_branches(generator) -> None:
    """With the embeddings of 0.02 that GPT-2 draws, the share of the first branches in the stream depends on L."""
    found = along_depth("GPT-2", "1/L", "adamw", generator, embeddings=0.02)
    assert max(abs(exponent) for exponent in found.exponents.values()) > 0.3


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.002), ("adamw", 0.01)])
def test_without_the_multiplier_the_stream_moves_more_at_every_depth(optimizer, lr, generator) -> None:
    found = check(None, optimizer, generator, lr=lr, seeds=1)
    assert found.exponents["blocks.*.down, last third"] > 0.4
    assert found.verdicts["blocks.*.down, last third"] == "grows with depth"


def test_the_check_sees_a_wrong_rate(generator, monkeypatch) -> None:
    def without_rate(scaling, part, *, branches, alpha, shared=1):
        right = at_depth(scaling, part, branches=branches, alpha=alpha, shared=shared)
        return replace(right, adam_lr=right.adam_lr * branches**0.5)

    monkeypatch.setattr(rules, "at_depth", without_rate)
    found = check("1/sqrt(L)", "adamw", generator, lr=0.01, seeds=1)
    assert found.exponents["blocks.*.down, last third"] > 0.2


def test_what_the_depth_check_refuses(generator) -> None:
    with pytest.raises(InvalidInputError, match=r"`depths` must hold at least two depths of 3 or more"):
        check("1/L", "sgd", generator, depths=(2, 8))
