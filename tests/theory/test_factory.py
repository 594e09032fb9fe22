"""Ensembles whose networks a factory builds: equal to the widened ones where both can, and a reference for all other models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torch_dmft as dmft
from tests.reference.ensembles import observables
from tests.theory.factories import (
    IMAGES,
    MODELS,
    ROWS,
    SEQUENCES,
    STEPS,
    TARGETS,
    TOKENS,
    Factory,
    Grouped,
    Recurrent,
    cnn,
    mlp,
    trained,
)
from torch_dmft.comparison.consistency import consistency
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.parameterization.start import starts_of
from torch_dmft.theory.choose import choose
from torch_dmft.theory.engine.built import Built
from torch_dmft.theory.solvers import FiniteWidth, WideEnsemble

# The same networks, where both ways can build them


@pytest.mark.parametrize(("factory", "inputs"), [(mlp, ROWS), (cnn, IMAGES)], ids=["MLP", "CNN"])
def test_a_factory_builds_the_networks_that_are_widened_elsewhere(factory: Factory, inputs: Tensor) -> None:
    problem = trained(factory, inputs, optimizer="adamw").problem()
    for solver in (WideEnsemble((8, 16), 4), FiniteWidth(16, 4)):
        own, other = (dmft.solve(problem, replace(solver, factory=f), record=[STEPS]) for f in (None, factory))
        for name, values in observables(own).items():
            torch.testing.assert_close(observables(other)[name], values, rtol=1e-3, atol=1e-5)
        assert own.width == other.width
    wrong = dmft.solve(problem.trained(gamma0=2.0), replace(solver, factory=factory), record=[STEPS])
    assert not torch.allclose(wrong.outputs, own.outputs, rtol=1e-2)


def test_biases_that_the_factory_draws_have_the_same_limit() -> None:
    """They are uniform, and Gaussian where the network is widened: other numbers of one law at infinite width."""

    def factory(width: int) -> nn.Module:
        return mlp(width, bias=True)

    problem = trained(factory, ROWS).problem()
    one, other = (dmft.solve(problem, WideEnsemble((16, 32), 8, factory=f), record=[STEPS]) for f in (None, factory))

    def largest(a: dmft.Trajectory, b: dmft.Trajectory) -> float:
        values, errors = (observables(a), observables(b)), (observables(a.stderr), observables(b.stderr))
        return max(
            float(((values[0][n] - values[1][n]) / (errors[0][n] ** 2 + errors[1][n] ** 2 + 1e-12).sqrt()).abs().max())
            for n in values[0]
        )

    assert largest(one, other) <= 5
    fast = dmft.solve(problem.trained(lr=0.5), WideEnsemble((16, 32), 8, factory=factory), record=[STEPS])
    assert largest(one, fast) > 5


# A reference for any model


@pytest.mark.parametrize(("optimizer", "lr", "gamma0"), [("sgd", 0.04, 1.0), ("adamw", 0.05, 2.0)])
@pytest.mark.parametrize("name", MODELS)
def test_a_network_is_what_the_factory_s_networks_of_its_width_are(
    name: str, optimizer: str, lr: float, gamma0: float
) -> None:
    factory, inputs = MODELS[name]
    settings: dict[str, Any] = {"optimizer": optimizer, "wider": factory, "width": 32}
    recorder = trained(factory, inputs, lr=lr, gamma0=gamma0, **settings)
    measured = recorder.trajectory()
    networks = dmft.solve(recorder.problem(), FiniteWidth(32, 19), record=measured.steps)
    assert networks.width == measured.width == 32
    judged = dmft.compare(measured, networks).deviations[0].consistency
    assert judged is not None
    assert judged.consistent
    for wrong in ({"gamma0": 8 * gamma0, "lr": lr}, {"gamma0": gamma0, "lr": 8 * lr}):
        other = trained(factory, inputs, **wrong, **settings).trajectory()
        with pytest.raises(InvalidInputError, match=r"gamma0|learning rate"):
            dmft.compare(other, networks)
        found = consistency(replace(other, training=measured.training), networks)
        assert found is not None
        assert bool(other.losses.isfinite().all())
        assert not found.consistent
        assert found.worst[1].z > judged.worst[1].z


def test_the_reference_is_the_limit_of_means_at_other_widths() -> None:
    """A mean at width N is a + b / N: that of width 48 follows from the networks of widths 12 and 24."""
    problem = trained(Grouped, IMAGES, wider=Grouped).problem()
    wide = dmft.solve(problem, WideEnsemble((12, 24), 12), record=[STEPS])
    assert wide.width is None
    assert wide.metadata["networks"] == "the factory's"
    other = dmft.solve(problem, WideEnsemble((20, 48), 12, torch.Generator().manual_seed(1)), record=[STEPS])
    a, b, errors = observables(wide), observables(other), (observables(wide.stderr), observables(other.stderr))
    for name, values in a.items():
        error = (errors[0][name] ** 2 + errors[1][name] ** 2 + 1e-12).sqrt()
        assert float(((values - b[name]) / error).abs().max()) <= 5


def test_dictionaries_and_parts_of_what_is_returned() -> None:
    class Logits(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.tokens, self.inside, self.head = nn.Embedding(11, width), nn.Linear(width, width), nn.Linear(width, 3)

        def forward(self, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
            h = torch.tanh(self.inside(self.tokens(input_ids)))
            return {"logits": self.head((h * mask[..., None]).mean(1))}

    inputs = {"input_ids": TOKENS, "mask": (TOKENS > 2).float()}
    recorder = trained(Logits, inputs, wider=Logits, outputs=lambda returned: returned["logits"][:, :1])
    problem = recorder.problem()
    assert problem.outputs == 1
    assert problem.training.data_print == recorder.training.data_print
    wide = dmft.solve(problem, WideEnsemble((8, 16), 4), record=[0, STEPS])
    compared = dmft.compare(recorder.trajectory(), wide)
    assert [layer.name for layer in wide.layers] == ["tokens", "inside", "head"]
    assert float(wide.losses[-1]) < float(wide.losses[0])
    assert "wide-network reference" in str(compared)


def test_batches_are_the_run_s() -> None:
    def run(rows: list[list[int]]) -> dmft.Trajectory:
        model = mlp(16)
        plan = dmft.parameterize(model, ROWS, wider=mlp)
        optimizer = torch.optim.SGD(plan.param_groups(0.1))
        recorder = dmft.Recorder(plan, dmft.Probe(ROWS, TARGETS))
        with recorder.attach(optimizer):
            for some in rows:
                optimizer.zero_grad()
                recorder.batch(some)
                F.mse_loss(model(ROWS[some]), TARGETS[some]).backward()
                optimizer.step()
        return dmft.solve(recorder.problem(), FiniteWidth(8, 4, factory=mlp))

    first, second = run([[0, 1], [2, 3]]), run([[0, 1], [1, 2]])
    torch.testing.assert_close(first.outputs[:2], second.outputs[:2])
    assert not torch.allclose(first.outputs[2], second.outputs[2])


class Nerf(nn.Module):
    """A fixed random encoding of positions, which enter again beside the features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("encoding", torch.randn(6, 8))
        self.first, self.second = nn.Linear(16, width), nn.Linear(width + 6, width)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.cat([torch.sin(x @ self.encoding), torch.cos(x @ self.encoding)], 1)
        return self.head(F.relu(self.second(torch.cat([F.relu(self.first(waves)), x], 1))))


def normed(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1))


@pytest.mark.parametrize("factory", [Nerf, normed])
def test_a_nerf_and_batch_norm_on_the_batches_of_a_loader(factory: Factory) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(3)
        model = factory(64)
        plan = dmft.parameterize(model, ROWS, wider=factory)
        optimizer = torch.optim.SGD(plan.param_groups(0.05))
        recorder = dmft.Recorder(plan, dmft.Probe(ROWS, TARGETS), schedule=[0, 4])
        loader = DataLoader(TensorDataset(ROWS, TARGETS), batch_size=2, shuffle=True)
        with recorder.attach(optimizer):
            for _ in range(2):
                for inputs, targets in recorder.batches(loader):
                    optimizer.zero_grad()
                    F.mse_loss(model(inputs), targets).backward()
                    optimizer.step()
    measured = recorder.trajectory()
    networks = dmft.solve(recorder.problem(), FiniteWidth(64, 19, factory=factory), record=measured.steps)
    judged = dmft.compare(measured, networks).deviations[0].consistency
    assert judged is not None
    assert judged.consistent


def test_batch_norm_is_measured_as_it_was_recorded() -> None:
    """Running averages of a few steps are far from the statistics of the probe, and the networks have them too."""
    recorder = trained(normed, ROWS, width=1024, wider=normed, batch_norm="run")
    problem, measured = recorder.problem(), recorder.trajectory().layers[-1].forward.array[-1]
    assert problem.network.batch_norm == "run"
    off = {}
    for choice in ("run", "probe"):
        asked = replace(problem, network=replace(problem.network, batch_norm=choice))
        answer = dmft.solve(asked, FiniteWidth(1024, 4), record=[STEPS]).layers[-1].forward.array[-1]
        off[choice] = float((answer - measured).norm() / measured.norm())
    assert off["run"] < 0.15, off  # a few times 1024**-0.5
    assert off["probe"] > 0.3


# What starts how


def test_what_has_no_width_is_the_run_s_and_what_has_one_the_factory_s() -> None:
    class Features(nn.Module):
        """A fixed random encoding of the data, a trained slope, and frozen random weights."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.register_buffer("encoding", torch.randn(6, 8))
            self.slope, self.first = nn.PReLU(init=float(torch.rand(()))), nn.Linear(8, width)
            self.frozen, self.head = nn.Linear(width, width, bias=False).requires_grad_(False), nn.Linear(width, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.frozen(self.slope(self.first(torch.sin(x @ self.encoding))))))

    recorder = trained(Features, ROWS, wider=Features)
    problem, start = recorder.problem(), recorder.subject.plan.initial
    networks = Built(problem, Features, 32, other=16, generator=torch.Generator().manual_seed(0))
    one, other = (networks.draw(torch.Generator().manual_seed(seed)).model.state_dict() for seed in (0, 1))
    for name in ("encoding", "slope.weight"):
        assert torch.equal(one[name], start[name])
        assert torch.equal(other[name], start[name])
    for name in ("frozen.weight", "first.bias", "first.weight"):
        assert not torch.equal(one[name], other[name])
        assert one[name].std().item() == pytest.approx(other[name].std().item(), rel=0.4)
    # They are not drawn by the plan, and stay as they are.
    run = dmft.solve(problem, FiniteWidth(32, 4), record=[STEPS])
    assert run.training.frozen == ("frozen.weight",)


def test_orthogonal_weights_are_the_factory_s() -> None:
    def orthogonal(width: int) -> nn.Module:
        model = mlp(width)
        nn.init.orthogonal_(model[2].weight)
        return model

    problem = trained(orthogonal, ROWS, width=32, wider=orthogonal, init="keep").problem()
    networks = Built(problem, orthogonal, 64, other=32, generator=torch.Generator().manual_seed(0))
    plan = networks.draw(torch.Generator())
    assert "orthogonal" in starts_of(plan, untrained=True)["2.weight"]
    assert not networks.is_symmetric  # the readout is the factory's, and need not be symmetric
    with pytest.raises(UnsupportedProblemError, match=r"InfiniteWidth does not cover.*2.weight.*orthogonal"):
        dmft.solve(problem, dmft.solvers.InfiniteWidth(neurons=256))
    solver, _ = choose(problem)
    assert isinstance(solver, WideEnsemble)


def test_seeds_decide_and_nothing_else_is_drawn() -> None:
    problem = trained(Recurrent, SEQUENCES, steps=1, wider=Recurrent).problem()
    state = torch.random.get_rng_state()
    one, two, three = (
        dmft.solve(problem, FiniteWidth(8, 4, torch.Generator().manual_seed(seed))) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.outputs, two.outputs)
    assert not torch.equal(one.outputs, three.outputs)
    assert not torch.equal(one.replicas[0].outputs, one.replicas[1].outputs)
