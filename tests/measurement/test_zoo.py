"""Models of every shape, measured by watching them, against brute force: every sample and every output by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.measurement.zoo import ZOO, Entry
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.measurement import snapshot, watched
from torch_dmft.measurement.moment import Snapshot
from torch_dmft.measurement.subject import Subject, subject_of, watched_subject
from torch_dmft.measurement.watched import Known, measure_watched
from torch_dmft.uses import forms, ownership
from torch_dmft.uses.outputs import count, rows


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-10 * b.abs().max())


def by_name(name: str) -> Entry:
    return next(entry for entry in ZOO if entry.name == name)


def measured(entry: Entry, generator: torch.Generator, **sizes: int) -> tuple[Subject, Any, Snapshot]:
    model, inputs = entry.make(generator, **sizes)
    subject = replace(watched_subject(model, inputs, outputs=entry.outputs), batch_norm="run")
    return subject, inputs, measure_watched(subject, inputs)


def alone(run: nn.Module, inputs: Any) -> list[Tensor]:
    """The outputs of every sample by itself."""
    return [run(rows(inputs, [mu])).reshape(-1) for mu in range(count(inputs))]


def brute_force(subject: Subject, inputs: Any) -> Tensor:
    """J J^T, one row after the other."""
    parameters = [parameter for parameter in subject.model.parameters() if parameter.requires_grad]
    jacobian = [
        torch.cat(
            [
                gradient.flatten()
                for gradient in torch.autograd.grad(
                    f, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            ]
        )
        for outputs in alone(subject.run, inputs)
        for f in outputs
    ]
    return torch.stack(jacobian) @ torch.stack(jacobian).T


@pytest.fixture(params=ZOO, ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param


@pytest.mark.parametrize(("width", "samples"), [(8, 4), (12, 5), (8, 2)])
def test_ntk_is_that_of_brute_force(entry: Entry, width: int, samples: int, generator: torch.Generator) -> None:
    """Four samples of four tokens too: no shape tells them apart."""
    subject, inputs, taken = measured(entry, generator, width=width, samples=samples)
    expected = brute_force(subject, inputs)
    assert close(taken.ntk.reshape(expected.shape), expected)
    assert close(taken.outputs.flatten(), torch.cat(alone(subject.run, inputs)).detach())
    again = measure_watched(subject, inputs, taken.layouts)
    assert torch.equal(again.ntk, taken.ntk)


def test_a_batch_is_measured_as_its_samples_are(entry: Entry, generator: torch.Generator) -> None:
    subject, inputs, taken = measured(entry, generator)
    apart = measure_watched(subject, inputs, Known(None, taken.layouts.by_samples))
    for one, other in zip(taken.layers, apart.layers, strict=True):
        assert close(one.forward, other.forward)
        assert close(one.backward, other.backward)
    assert close(taken.ntk, apart.ntk)


MODULES = [
    ("gpt", "fc"),
    ("gpt", "proj"),
    ("vit", "head"),
    ("sequence first", "first"),
    ("sequence first", "layers.layers.0.linear1"),
    ("lstm", "head"),
    ("experts", "router"),
    ("token major", "mix"),
    ("lora", "base"),
    ("weight norm", "2"),
    ("forces", "energy.0"),
]


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_kernels_of_a_module_are_those_of_what_goes_in_and_out(
    name: str, path: str, generator: torch.Generator
) -> None:
    subject, inputs, taken = measured(by_name(name), generator)
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append((args[0].detach(), output))

    handle = subject.model.get_submodule(path).register_forward_hook(keep)
    for parameter in subject.model.parameters():
        parameter.requires_grad_(True)
    x, g = [], []
    for outputs in alone(subject.run, inputs):
        given, made = kept.pop(0)
        x.append(given.flatten(0, -2))
        g.append(torch.stack([torch.autograd.grad(f, made, retain_graph=True)[0].flatten(0, -2) for f in outputs]))
    handle.remove()
    inside, back = torch.stack(x), torch.stack(g)  # (sample, position, feature), (sample, output, position, neuron)
    positions, features = inside.shape[1:]
    neurons = back.shape[-1]
    layer = next(layer for layer in taken.layers if layer.name == path)
    assert close(layer.forward, torch.einsum("maf,naf->mn", inside, inside) / (positions * features))
    scale = 1.0 if layer.stream.layer.role == "readout" else subject.gamma0**2 * neurons
    expected = torch.einsum("mcaf,ndaf->mcnd", back, back) * positions * scale
    assert close(layer.backward.reshape(expected.shape), expected)


def test_a_packed_weight_of_a_recurrent_network_by_hand(generator: torch.Generator) -> None:
    """All time steps are uses of the same matrix; the first meets the initial state, which is zero."""
    subject, inputs, taken = measured(by_name("lstm"), generator)
    cell = subject.model.cell
    states = torch.stack([torch.zeros_like(cell(inputs.transpose(0, 1))[0][0]), *cell(inputs.transpose(0, 1))[0][:-1]])
    layer = next(layer for layer in taken.layers if layer.name == "cell.weight_hh_l1")
    expected = torch.einsum("tmf,tnf->mn", states, states) / (len(states) * states.shape[-1])
    assert close(layer.forward, expected.detach())


def test_shares_of_layers_add_up_where_there_is_nothing_else(generator: torch.Generator) -> None:
    _, _, taken = measured(by_name("readout"), generator)
    assert close(sum(layer.ntk for layer in taken.layers), taken.ntk)


def test_roles_and_richness(generator: torch.Generator) -> None:
    subject, _, _ = measured(by_name("gpt"), generator)
    assert subject.architecture.readout.path == "lm_head"
    assert subject.gamma0 == subject.architecture.readout.fan_in**-0.5 == 8**-0.5


# A measurement that is wrong is found out.


def test_a_forgotten_use_is_made_up_for(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, inputs, right = measured(by_name("vit"), generator)
    real = forms.Entrywise.gradient
    monkeypatch.setattr(forms.Entrywise, "gradient", lambda *args: 1.01 * real(*args))
    taken = measure_watched(subject, inputs)
    assert "gamma" in taken.notes[0]
    assert close(taken.ntk, right.ntk)


def test_a_wrong_product_is_refused_by_name(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, inputs, _ = measured(by_name("lora"), generator)
    real = forms.Product.factors

    def wrong(self: forms.Product, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        vectors, pulled = real(self, x, g)
        return (1.01 * vectors if "first.weight" in self.names else vectors), pulled

    monkeypatch.setattr(forms.Product, "factors", wrong)
    with pytest.raises(ValueError, match=r"first: the NTK share of first.weight is 1.02 times"):
        measure_watched(subject, inputs)


@pytest.mark.parametrize("name", ["sequence first", "token major"])
def test_a_wrong_guess_of_samples_is_refused(
    name: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many tokens as samples, taken for the samples."""
    subject, inputs, _ = measured(by_name(name), generator)

    def guess(tensor: Tensor, *_: Any) -> list[ownership.Where]:
        return [ownership.Rows(0, 1) if tensor.shape[0] % 4 == 0 and tensor.ndim > 1 else None]

    monkeypatch.setattr(ownership, "_candidates", guess)
    monkeypatch.setattr(ownership, "_fits", lambda *_: True)
    monkeypatch.setattr(ownership, "_holds", lambda *_: True)
    with pytest.raises((ValueError, RuntimeError)):
        measure_watched(subject, inputs)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_is_no_part_of_the_ntk_and_a_wrong_total_is_refused(
    frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)
    ).double()
    inputs = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model.get_parameter(f"3.{frozen}").requires_grad_(False)
    subject = subject_of(model, inputs)
    taken = measure_watched(subject, inputs)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (inputs,)))(trained)
    ntk = sum(part.reshape(5, -1) @ part.reshape(5, -1).T for part in jacobian.values())
    torch.testing.assert_close(taken.ntk, ntk)

    layers = watched._layers
    monkeypatch.setattr(watched, "_layers", lambda *given: (layers(*given)[0], 1.01 * layers(*given)[1]))
    with pytest.raises(UnsupportedModelError, match="contradicts"):
        measure_watched(subject, inputs)


@pytest.mark.parametrize("norm", [True, False])
def test_a_network_that_is_frozen_as_a_whole_has_features_and_no_ntk(norm: bool) -> None:
    layers = [nn.Linear(4, 8), nn.Tanh(), *[nn.LayerNorm(8)] * norm, nn.Linear(8, 1)]
    model = nn.Sequential(*layers).requires_grad_(False)
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    taken = snapshot(subject_of(model, inputs), inputs)
    assert not taken.ntk.any()
    assert float(taken.layers[0].backward.trace()) > 0


class Positions(nn.Module):
    """Tokens and positions are looked up in tables; the positions meet constants only."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places, self.head = nn.Embedding(7, 8), nn.Embedding(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.tokens(x) + self.places(torch.arange(4))).mean(1))


def test_g_at_a_frozen_table_of_positions_is_that_of_a_trained_one(generator: torch.Generator) -> None:
    model, inputs = Positions().double(), torch.randint(0, 7, (5, 4), generator=generator)
    trained = snapshot(subject_of(model, inputs), inputs)
    model.places.weight.requires_grad_(False)
    frozen = snapshot(subject_of(model, inputs), inputs)
    for one, other in zip(trained.layers, frozen.layers, strict=True):
        assert bool(one.backward.any())
        assert close(other.backward, one.backward)
    assert not frozen.layers[1].ntk.any()
    assert close(frozen.ntk, trained.ntk - trained.layers[1].ntk)
