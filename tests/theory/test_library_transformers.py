"""Transformers of `transformers`, as they come, have a prediction: networks of their factory at four widths and more."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests.reference.ensembles import observables
from torch_dmft.theory.engine.sources import networks_of
from torch_dmft.theory.solvers import WideEnsemble

TOKENS, LENGTH, SAMPLES, STEPS = 12, 5, 4, 6
GENERATOR = torch.Generator().manual_seed(0)
IDS = {"input_ids": torch.randint(0, TOKENS, (SAMPLES, LENGTH), generator=GENERATOR)}
IMAGES = {"pixel_values": torch.randn(SAMPLES, 1, 4, 4, generator=GENERATOR)}
TARGETS = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
NEAR, FAR = (16, 32, 64), (24, 96)


def gpt2(width: int, dropout: float = 0.0) -> nn.Module:
    """Embeddings of tokens and positions, a readout that is tied to the first, heads whose size grows, scores over sqrt(d)."""
    import transformers

    sizes = {"vocab_size": TOKENS, "n_positions": LENGTH, "n_embd": width, "n_layer": 1, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    drops = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    config = transformers.GPT2Config(**sizes, **tokens, **drops, initializer_range=1.0, use_cache=False)
    return transformers.GPT2LMHeadModel(config)


def vit(width: int) -> nn.Module:
    """Patches, a class token, learned positions, heads that grow in number."""
    import transformers

    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": width // 8}
    images = {"image_size": 4, "patch_size": 2, "num_channels": 1, "num_labels": 1}
    config = transformers.ViTConfig(**sizes, **images, num_hidden_layers=1, initializer_range=1.0)
    return transformers.ViTForImageClassification(config)


MODELS: dict[str, tuple[Callable[[int], nn.Module], Any, Callable[[Any], Tensor]]] = {
    "GPT-2": (gpt2, IDS, lambda returned: returned.logits[:, -1, :1]),
    "ViT": (vit, IMAGES, lambda returned: returned.logits),
}


@cache
def problem_of(name: str) -> dmft.Problem:
    """A run of a network of width 32 in a plain loop, posed as a problem."""
    factory, inputs, outputs = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(1)
        plan = dmft.parameterize(factory(32), inputs, wider=factory, outputs=outputs)
    optimizer = torch.optim.SGD(plan.param_groups(0.01))
    recorder = dmft.Recorder(plan, dmft.Probe(inputs, TARGETS), schedule=[0, STEPS], outputs=outputs)
    with recorder.attach(optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.mse_loss(outputs(plan.model(**inputs)), TARGETS).backward()
            optimizer.step()
    return recorder.problem()


@cache
def limit(name: str, widths: tuple[int, ...], seed: int, lr: float = 0.01, pairs: int = 8) -> dmft.Trajectory:
    solver = WideEnsemble(widths, pairs, torch.Generator().manual_seed(seed))
    return dmft.solve(problem_of(name).trained(lr=lr), solver, record=[STEPS])


def apart(one: dmft.Trajectory, other: dmft.Trajectory) -> dict[str, float]:
    """By how many standard errors, at most, observables differ."""
    a, b, *errors = (observables(run) for run in (one, other, one.stderr, other.stderr))
    size = {name: (errors[0][name] ** 2 + errors[1][name] ** 2 + 1e-12).sqrt() for name in a}
    return {name: float(((values - b[name]) / size[name]).abs().max()) for name, values in a.items()}


@pytest.mark.parametrize("name", ["GPT-2", pytest.param("ViT", marks=pytest.mark.long)])
def test_other_widths_have_the_same_limit(name: str) -> None:
    """Three widths predict what two others, one of them larger, come to; a straight line in 1/N goes through the three."""
    near, far = limit(name, NEAR, 0), limit(name, FAR, 1)
    z = apart(near, far)
    assert max(z.values()) < 5, z
    assert near.metadata["chi_squared"] < 2
    assert float(near.losses[-1]) < 1.0
    wrong = apart(near, limit(name, FAR, 1, lr=0.05))
    assert max(wrong.values()) > 5, wrong


def known_to(run: dmft.Trajectory) -> dict[str, float]:
    """The standard error of every observable, relative to its size."""
    values, errors = observables(run), observables(run.stderr)
    return {name: float(errors[name].norm() / values[name].norm()) for name in ("outputs", "losses", "ntk")}


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_single_outputs_are_known(name: str) -> None:
    """Wider networks, more of them and a larger rate: outputs are predicted too, and half the rate more shows in them."""
    near, far = (limit(name, widths, seed, 0.03, 48) for seed, widths in enumerate(((48, 96, 192), (64, 256))))
    z, known = apart(near, far), [known_to(run) for run in (near, far)]
    assert max(z.values()) < 5, z
    assert near.metadata["chi_squared"] < 2, near.metadata  # three widths are on a straight line in 1/N
    for one in known:
        assert one["outputs"] < 0.1, known
        assert max(one["losses"], one["ntk"]) < 0.05, known
    assert float(near.losses[-1]) < 0.8
    wrong = apart(near, limit(name, (64, 256), 2, 0.045, 48))
    assert wrong["outputs"] > 5, wrong


def test_a_tied_readout_has_no_opposite() -> None:
    """It makes features as well, so that both networks of a pair are drawn."""
    for name, symmetric in (("GPT-2", False), ("ViT", True)):
        generator = torch.Generator().manual_seed(0)
        assert networks_of(problem_of(name), 16, None, NEAR, generator).is_symmetric is symmetric
