"""Reading the response functions off a twin: the dependence of its lazily sampled weights on their past."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.parameterization import Plan
from torch_dmft.theory.chains.descent import propagators
from torch_dmft.theory.engine.layers import InfiniteLinear
from torch_dmft.theory.engine.matrix import Side
from torch_dmft.theory.engine.training import Moment, train
from torch_dmft.theory.problem import Problem


@dataclass
class _Log:
    """The vectors that passed one weight, and how many directions it had met by then.

    Attributes:
        inputs: phi(h^l) per state, each ``(sample, neuron)``.
        gradients: g^{l+1} per state, each ``(sample, output, neuron)``.
        ranks: directions of inputs and of gradients met so far, after every forward and every backward pass.
        passing: the weight's input and output while they wait for their gradients.
    """

    inputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    ranks: list[tuple[int, int]] = field(default_factory=list)
    passing: tuple[Tensor, ...] = ()

    def hook(self, module: InfiniteLinear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what passes the weight in a forward pass."""
        self.passing = inputs[0], output
        self.ranks.append(module.rank)


def twin_responses(problem: Problem, twin: Plan, *, tolerance: float) -> list[tuple[Tensor, Tensor]]:
    """A^l and B^l of the hidden weights of a twin that has not been trained yet; trains it.

    The image of a new direction is the sum of what the weight owes to earlier directions of the other pass and of a fresh
    latent m, N(0, 1) per neuron. The fresh parts make up the latents of the theory, r(s) = sum_j D_j(s) m_j, and Stein's
    lemma gives A D = < phi(h) m >, solved for the past of every time; likewise B.

    Args:
        problem: a dense chain.
        twin: its twin.
        tolerance: singular values of D below this share of the largest count as zero.

    Returns:
        A and B between rows (t, mu) and (t, mu, c), for each hidden weight.
    """
    layers = [module for module in twin.model.modules() if isinstance(module, InfiniteLinear)]
    logs = _train_and_log(problem, twin, layers)
    decay = propagators(problem.training, problem.steps + 1)[0].to(problem.device)
    responses = []
    for layer, log in zip(layers, logs, strict=True):
        forward, backward = layer.matrix.forward_side, layer.matrix.backward_side
        owed_inputs, owed_gradients = _owed(log.ranks)
        unit, narrowing = layer.in_features**-0.5, layer.in_features / layer.out_features
        x, g = torch.stack(log.inputs), torch.stack(log.gradients).flatten(1, 2)  # (time, row, neuron)
        u = _latents(forward, backward, owed_inputs, unit)
        r = _latents(backward, forward, owed_gradients, unit)
        u_loads = _loads(x, forward.basis.rows, decay) * unit
        r_loads = _loads(g, backward.basis.rows, decay) * unit * narrowing
        a = _solved(_means(x, r), r_loads, tolerance, past=0)
        b = _solved(_means(g, u), u_loads, tolerance, past=1)
        responses.append((a, b))
    return responses


def _train_and_log(problem: Problem, twin: Plan, layers: list[InfiniteLinear]) -> list[_Log]:
    """Train the twin step by step and log every hidden weight, at the states 0..steps."""
    logs = [_Log() for _ in layers]

    def view(step: int, *, measured: bool, trained: bool) -> Moment:
        outputs = twin.model(problem.tensor)
        _log_gradients(twin, layers, logs, outputs)

        def update() -> None:
            twin.model.zero_grad()
            problem.training_loss(outputs, problem.batch(step)).backward()  # type: ignore[no-untyped-call]

        return Moment(outputs.detach(), update)

    with ExitStack() as hooks:
        for layer, log in zip(layers, logs, strict=True):
            hooks.callback(layer.register_forward_hook(log.hook).remove)
        train(problem, twin, view, range(problem.steps + 1), last=problem.steps)
    return logs


def _log_gradients(twin: Plan, layers: list[InfiniteLinear], logs: list[_Log], outputs: Tensor) -> None:
    """Send one unit gradient per output back, which also shows every weight the gradients of test rows."""
    inputs, hidden = zip(*(log.passing for log in logs), strict=True)
    per_output = [torch.autograd.grad(f.sum(), (*hidden, *inputs), retain_graph=True) for f in outputs.unbind(1)]
    for index, log in enumerate(logs):
        log.inputs.append(inputs[index].detach())
        g = torch.stack([gradients[index] for gradients in per_output], dim=1)
        log.gradients.append(twin.gamma0 * g.shape[-1] * g)
        log.ranks.append(layers[index].rank)


def _owed(ranks: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """How many directions of the other pass each direction found when it came, for inputs and for gradients."""
    inputs: list[int] = []
    gradients: list[int] = []
    for known_inputs, known_gradients in ranks:
        # Gradients that came since the last look came before the forward pass that may have brought inputs.
        gradients += [len(inputs)] * (known_gradients - len(gradients))
        inputs += [known_gradients] * (known_inputs - len(inputs))
    return inputs, gradients


def _latents(side: Side, other: Side, owed: list[int], unit: float) -> Float[Tensor, "k neuron"]:
    """The fresh parts of all images, N(0, 1) per neuron."""
    latents, basis = side.latents.rows, other.basis.rows
    past = torch.arange(len(basis), device=basis.device) < torch.tensor(owed, device=basis.device)[:, None]
    return (latents - (latents @ basis.T * past) @ basis) / unit


def _loads(
    vectors: Float[Tensor, "time row neuron"], basis: Float[Tensor, "k neuron"], decay: Float[Tensor, " time"]
) -> Float[Tensor, "time row k"]:
    """Coordinates in the basis, times what is left of the initial weight."""
    return (vectors @ basis.T).double() * decay[:, None, None]


def _means(
    vectors: Float[Tensor, "time row neuron"], latents: Float[Tensor, "k neuron"]
) -> Float[Tensor, "time row k"]:
    """Averages over neurons of a variable times a latent."""
    return (vectors @ latents.T).double() / latents.shape[1]


def _solved(
    means: Float[Tensor, "time row k"], loads: Float[Tensor, "time source k"], tolerance: float, *, past: int
) -> Float[Tensor, "left right"]:
    """The smallest R with R D = means, from the D of times s < t + past for every time t."""
    times, rows, _ = means.shape
    sources = loads.shape[1]
    solution = means.new_zeros(times, rows, times * sources)
    for t in range(times):
        known = loads[: t + past].flatten(0, 1)
        if len(known):
            solution[t, :, : len(known)] = means[t] @ torch.linalg.pinv(known, rtol=tolerance)
    return solution.flatten(0, 1)
