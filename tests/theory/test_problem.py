"""A problem refuses what has no answer, before anything runs, and poses what a wrapped model is trained on."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError, UnsupportedProblemError

INPUTS = torch.linspace(-1, 1, 30).reshape(5, 6)
TARGETS = torch.linspace(-1, 1, 5)
CLASSES = torch.tensor([0, 1, 2, 1, 0])

WORKS: dict[str, dict[str, Any]] = {
    "no steps": {"steps": 0},
    "one step": {"steps": 1},
    "one training row": {"inputs": INPUTS[:1], "targets": TARGETS[:1], "test_inputs": INPUTS[1:]},
    "no test rows": {"test_inputs": INPUTS[:0]},
    "all rows alike": {"inputs": INPUTS[:1].expand(5, 6)},
    "inputs of rank one": {"inputs": torch.outer(TARGETS, INPUTS[0])},
    "inputs with a gradient": {"inputs": INPUTS.clone().requires_grad_()},
    "targets of another precision": {"targets": TARGETS.double()},
    "one class": {"targets": 0 * CLASSES},
    "a row twice in a batch": {"batches": 3 * [torch.tensor([0, 0])]},
}


@pytest.mark.parametrize("solver", [dmft.solvers.InfiniteWidth(64, replicas=1), dmft.solvers.StaticNTK()], ids=str)
@pytest.mark.parametrize("case", WORKS)
def test_works(case: str, solver: Any) -> None:
    settings = {"inputs": INPUTS, "targets": TARGETS, "steps": 3, "depth": 2} | WORKS[case]
    problem = dmft.Problem.mlp(settings.pop("inputs"), settings.pop("targets"), **settings)
    answer = dmft.solve(problem, solver)
    for array in (answer.outputs, answer.ntk.array, *(layer.backward.array for layer in answer.layers)):
        assert bool(torch.isfinite(array).all())


@pytest.mark.parametrize(
    ("targets", "outputs"), [(TARGETS, 1), (TARGETS[:, None], 1), (torch.ones(5, 3), 3), (CLASSES, 3)]
)
def test_counts_outputs_and_has_targets_as_floats(targets: Tensor, outputs: int) -> None:
    problem = dmft.Problem.mlp(INPUTS, targets)
    assert problem.outputs == outputs
    assert problem.target_values.shape == (5, outputs)
    if targets.ndim == 1 and targets.is_floating_point():
        assert torch.equal(problem.target_values[:, 0], targets)
    if not targets.is_floating_point():
        assert torch.equal(problem.target_values.argmax(1), targets)
        assert isinstance(problem.loss, nn.CrossEntropyLoss)


def test_error_is_minus_the_gradient_on_the_rows_of_the_batch() -> None:
    batches = (torch.tensor([0, 2]), torch.tensor([1]))
    problem = dmft.Problem.mlp(INPUTS[:3], TARGETS[:3], steps=2, batches=batches, test_inputs=INPUTS[3:])
    assert problem.train.tolist() == [True, True, True, False, False]
    outputs = torch.arange(5.0)[:, None]
    difference = torch.arange(3.0) - TARGETS[:3]
    expected = torch.zeros(2, 5)
    expected[0, [0, 2]] = -2 * difference[[0, 2]] / 2  # the mean runs over the batch
    expected[1, 1] = -2 * difference[1]
    for step in range(2):
        torch.testing.assert_close(problem.error(outputs, step)[:, 0], expected[step])
    whole = dmft.Problem.mlp(INPUTS[:3], TARGETS[:3], test_inputs=INPUTS[3:])
    assert whole.batch(0) is None
    torch.testing.assert_close(whole.error(outputs, 0)[:3, 0], -2 * difference / 3)


def test_one_axis_of_targets_is_not_broadcast_against_outputs() -> None:
    flat, column = (dmft.Problem.mlp(INPUTS, y) for y in (TARGETS, TARGETS[:, None]))
    outputs = torch.randn(5, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flat.training_loss(outputs), column.training_loss(outputs))


def test_input_kernel_is_per_feature() -> None:
    problem = dmft.Problem.mlp(INPUTS, TARGETS)
    torch.testing.assert_close(problem.input_kernel, INPUTS @ INPUTS.T / 6)


def perceptron(outputs: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 24),
        nn.ReLU(),
        nn.Linear(24, 12, bias=False),
        nn.Tanh(),
        nn.Linear(12, outputs),
    )


def test_like_reads_the_chain_off_a_wrapped_model() -> None:
    images = INPUTS.reshape(5, 2, 3)
    model = perceptron()
    nn.init.constant_(model[1].bias, 0.25)
    plan = dmft.parameterize(model, images, gamma0=0.7)
    train = torch.tensor([True, True, True, False, False])
    probe = dmft.Probe(images, TARGETS, train=train)
    with pytest.raises(UnsupportedProblemError, match=r"1\.bias: numbers with mean 1 of their size"):
        dmft.Problem.like(plan, probe, lr=0.3, steps=2, momentum=0.5)
    problem = dmft.Problem.like(plan, probe, lr=0.3, steps=2, momentum=0.5, assume_gaussian=True)
    assert problem.chain is not None
    first, second = problem.chain.hidden
    assert (first.activation, first.gain, first.width_ratio) == ("relu", math.sqrt(2), 2.0)
    assert first.bias_std == pytest.approx(0.25)
    assert (second.activation, second.gain, second.bias_std, second.width_ratio) == ("tanh", 1.0, None, 1.0)
    assert problem.chain.readout_bias
    assert (problem.gamma0, problem.lr, problem.steps, problem.momentum) == (0.7, 0.3, 2, 0.5)
    assert problem.train_samples == 3
    answer = dmft.solve(problem, dmft.solvers.InfiniteWidth(neurons=256, replicas=1))
    assert [layer.name for layer in answer.layers] == ["1", "3", "5"]
    assert answer.outputs.shape == (3, 5, 1)


def test_like_takes_the_effective_gamma0_of_the_ntk_scheme() -> None:
    plan = dmft.parameterize(perceptron(), INPUTS, scheme="ntk")
    problem = dmft.Problem.like(plan, dmft.Probe(INPUTS, TARGETS), lr=0.3, steps=2)
    assert problem.gamma0 == pytest.approx(12**-0.5)


def test_like_refuses_the_standard_scheme() -> None:
    plan = dmft.parameterize(perceptron(), INPUTS, scheme="standard")
    with pytest.raises(UnsupportedProblemError, match='scheme="mean_field"'):
        dmft.Problem.like(plan, dmft.Probe(INPUTS, TARGETS), lr=0.3, steps=2)


@pytest.mark.parametrize(
    ("targets", "train", "message"),
    [
        (None, None, "nothing to train on"),
        (torch.ones(5, 2), None, "one column per output"),
        (torch.tensor([0, 0, 2, 0, 0]), None, r"class numbers 0\.\.0"),
    ],
)
def test_like_refuses_probes_that_do_not_fit(targets: Tensor | None, train: Tensor | None, message: str) -> None:
    plan = dmft.parameterize(perceptron(), INPUTS)
    with pytest.raises(InvalidInputError, match=message):
        dmft.Problem.like(plan, dmft.Probe(INPUTS, targets, train=train), lr=0.3, steps=2)


def test_test_rows_may_stand_anywhere_in_the_probe() -> None:
    plan = dmft.parameterize(perceptron(), INPUTS)
    train = torch.tensor([True, False, True, True, False])
    order = torch.tensor([0, 2, 3, 1, 4])
    mixed, sorted_ = (
        dmft.Problem.like(plan, dmft.Probe(INPUTS[rows], TARGETS[rows], train=train[rows]), lr=0.3, steps=2)
        for rows in (torch.arange(5), order)
    )
    a, b = (dmft.solve(p, dmft.solvers.StaticNTK()) for p in (mixed, sorted_))
    torch.testing.assert_close(a.outputs[:, order], b.outputs)
    torch.testing.assert_close(a.at_rows(order).ntk.array, b.ntk.array)
    assert torch.equal(a.train, train)
    torch.testing.assert_close(a.losses, b.losses)


def test_tokens_are_predicted_in_the_precision_of_the_model() -> None:
    model = nn.Sequential(nn.Embedding(7, 8), nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 1))
    tokens = torch.arange(10).reshape(5, 2) % 7
    plan = dmft.parameterize(model, tokens)
    problem = dmft.Problem.like(plan, dmft.Probe(tokens, TARGETS), lr=0.3, steps=2)
    assert problem.tensor.dtype == torch.int64
    answer = dmft.solve(problem, dmft.solvers.InfiniteWidth(neurons=128, replicas=2))
    assert answer.outputs.dtype == problem.dtype == torch.float32
    assert torch.isfinite(answer.outputs).all()


@pytest.mark.parametrize("steps", [[], [-1], [3], torch.tensor([True])], ids=str)
def test_only_steps_of_the_run_can_be_recorded(steps: Any) -> None:
    problem = dmft.Problem.mlp(INPUTS, TARGETS, steps=2)
    with pytest.raises(InvalidInputError, match=r"0\.\.2"):
        dmft.solve(problem, record=steps)


def test_steps_are_recorded_once_and_in_order() -> None:
    problem = dmft.Problem.mlp(INPUTS, TARGETS, steps=3)
    answer = dmft.solve(problem, dmft.solvers.InfiniteWidth(neurons=64, replicas=1), record=[3, 0, 3])
    assert answer.steps.tolist() == [0, 3]


class Steps(nn.Module):
    """A recurrent cell, which keeps two weights in one module, or a code of fixed size."""

    def __init__(self, width: int, *, code: bool) -> None:
        super().__init__()
        kept = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2), nn.Linear(2, width))
        self.body, self.head = kept if code else nn.RNNCell(6, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


@pytest.mark.parametrize(
    ("code", "place"),
    [
        (False, r"body: RNNCell cannot be scaled.*WideEnsemble\(factory"),
        (True, r"body\.2: fixed inner.*role code.*WideEnsemble\(factory"),
    ],
)
def test_what_only_two_widths_can_wrap_is_refused_by_name(code: bool, place: str) -> None:
    plan = dmft.parameterize(Steps(8, code=code), INPUTS, wider=lambda width: Steps(width, code=code))
    problem = dmft.Problem.like(plan, dmft.Probe(INPUTS, TARGETS), steps=1, lr=0.1)
    with pytest.raises(UnsupportedModelError, match=place):
        dmft.solve(problem, dmft.solvers.InfiniteWidth(64))


@pytest.mark.parametrize("gamma0", [0.5, 1.0])
def test_a_readout_that_keeps_another_size_is_refused_and_the_remedy_is_right(gamma0: float) -> None:
    """Theory drew it at 1/(gamma0 N) whatever it was: G was ten times too small, and nothing was said."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, generator=random)
    probe = dmft.Probe(x, torch.sign(x[:, :1]))
    model = nn.Sequential(
        nn.Linear(5, 512, bias=False),
        nn.Tanh(),
        nn.Linear(512, 512, bias=False),
        nn.Tanh(),
        nn.Linear(512, 1, bias=False),
    )
    for layer, size in zip(model[::2], (5**-0.5, 512**-0.5, 3 / 512 / gamma0), strict=True):
        with torch.no_grad():
            layer.weight.normal_(0.0, size, generator=random)
    plan = dmft.parameterize(model, x, gamma0, init="untouched")
    with pytest.raises(UnsupportedProblemError, match=r"4.weight, (2.9|3|3.1)\d* times as large") as refused:
        dmft.Problem.like(plan, probe, lr=0.1, steps=1)
    right = float(re.search(r"gamma0=([\d.]+), init", str(refused.value))[1])  # type: ignore[index]
    assert right == pytest.approx(gamma0 / 3, rel=0.1)
    plan.undo()
    plan = dmft.parameterize(model, x, right, init="untouched")
    theory = dmft.solve(dmft.Problem.like(plan, probe, lr=0.1, steps=1), dmft.solvers.InfiniteWidth(512, 2), record=[0])
    measured = dmft.Recorder(plan, probe).record()
    for one, two in zip(theory.layers, measured.layers, strict=True):
        assert float(dmft.alignment(one.backward.equal_time, two.backward.equal_time)) > 0.95
        ratio = (
            one.backward.equal_time.diagonal(dim1=1, dim2=2).sum()
            / two.backward.equal_time.diagonal(dim1=1, dim2=2).sum()
        )
        assert float(ratio) == pytest.approx(1.0, abs=0.25)


def test_a_loss_sees_targets_as_precise_as_outputs() -> None:
    """Error bars ask for the loss of outputs in double precision, which torch 2.6 takes of no other targets."""
    seen = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((outputs.dtype, targets.dtype))
        return (outputs - targets).square().mean()

    for given, wanted in ((TARGETS, torch.float64), (TARGETS.double(), torch.float32)):
        problem = dmft.Problem.mlp(INPUTS, given, depth=1, steps=1, loss=loss)
        outputs = torch.zeros(5, 1, dtype=wanted, requires_grad=True)
        seen.clear()
        problem.training_loss(outputs).backward()
        problem.loss_on(outputs, torch.arange(5)).backward()
        problem.kept_loss(outputs).backward()
        assert seen == 3 * [(torch.float64, torch.float64)]


def test_a_loss_with_weights_of_classes_is_predicted() -> None:
    """Its weights are single precision, as the data are; error bars ask for the loss in double precision."""
    weights = torch.tensor([1.0, 4.0, 0.25])
    labels = torch.tensor([0, 1, 2, 1, 0])
    losses = (
        nn.CrossEntropyLoss(weight=weights),
        lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, weight=weights.to(outputs.dtype)),
    )
    problems = [dmft.Problem.mlp(INPUTS.float(), labels, depth=1, steps=3, lr=0.5, loss=loss) for loss in losses]
    one, other = (dmft.solve(problem, dmft.solvers.InfiniteWidth(128, 2)) for problem in problems)
    assert one.losses[-1] < one.losses[0]
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-5, atol=0.0)
    outputs = torch.ones(5, 3, dtype=torch.float64)
    assert problems[0].training_loss(outputs).dtype == torch.float64
