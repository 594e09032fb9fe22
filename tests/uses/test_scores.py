"""Scores over the root of d, found by comparing two widths: the factor that is missing goes into the model, and out again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests.uses.factories import D, P, data


class Attention(nn.Module):
    """One head of attention over tokens, whose scores are q.k * d ** -power, with the factor where libraries have it."""

    def __init__(self, width: int, power: float, where: str) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(D, width, bias=False), nn.Linear(width, 2, bias=False)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.scale, self.where, self.power = width**-power, where, power
        self.norm = nn.LayerNorm(width, elementwise_affine=False) if where == "attribute" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        q, k, v = self.norm(self.q(h)), self.norm(self.k(h)), self.v(h)
        if self.where == "sdpa":
            found = F.scaled_dot_product_attention(q, k, v, scale=None if self.power == 0.5 else 1 / q.shape[-1])
        elif self.where == "attribute":
            found = (self.scale * (q @ k.mT)).softmax(-1) @ v
        else:
            found = ((q / q.shape[-1] ** self.power) @ k.mT).softmax(-1) @ v
        return self.head(found.mean(1))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("where", ["sdpa", "attribute", "on the query"])
def test_scores_over_the_root_train_as_scores_over_d_once_the_missing_factor_is_folded(
    where, optimizer, generator
) -> None:
    x, y = data(generator, 4, D), torch.randn(P, 2, generator=generator, dtype=torch.float64)
    runs, width = [], 16
    for power in (0.5, 1.0):
        model = Attention(width, power, where).double()
        plan = dmft.parameterize(
            model,
            x,
            wider=lambda n, power=power: Attention(n, power, where),
            generator=torch.Generator().manual_seed(3),
        )
        groups = plan.param_groups(0.3, optimizer=optimizer, weight_decay=0.1, eps=0.0)
        opt = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer](groups)
        outputs = []
        for _ in range(4):
            opt.zero_grad()
            f = model(x)
            outputs.append(f.detach())
            F.mse_loss(f, y).backward()
            opt.step()
        runs.append((torch.stack(outputs), plan))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-9, atol=1e-9)
    assert "q.k/d" in str(runs[0][1])
    assert "q.k/d" not in str(runs[1][1])
    assert runs[0][1].architecture.attributes == () or where == "attribute"
    runs[0][1].undo()
    assert runs[0][1].model.scale == width**-0.5


def test_undo_brings_everything_back(generator) -> None:
    model = Attention(16, 0.5, "attribute").double()
    state, x = copy.deepcopy(model.state_dict()), data(generator, 4, D)
    f = model(x)
    plan = dmft.parameterize(model, x, gamma0=2.0, wider=lambda n: Attention(n, 0.5, "attribute"))
    assert model.scale == 1 / 16
    plan.undo()
    assert model.scale == 1 / 4
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), f)


@pytest.mark.parametrize("where", ["sdpa", "attribute"])
def test_untouched_leaves_the_scores_of_a_pretrained_model_as_they_are(where, generator) -> None:
    model, x = Attention(16, 0.5, where).double(), data(generator, 4, D)
    f, scale = model(x), model.scale
    plan = dmft.parameterize(model, x, init="untouched", wider=lambda n: Attention(n, 0.5, where))
    assert model.scale == scale
    assert torch.equal(model(x), f)
    assert "scores stay q.k/sqrt(d)" in " ".join(plan.notes)
    rule = plan.rule("q.weight")
    assert rule.lr == pytest.approx(rule.std**2 * 16)
