"""Deep linear networks, solved exactly: the network itself, written in the Gaussian latents it has met.

The fields of an infinitely wide linear network are linear functionals of independent standard Gaussians, one set for
each hidden layer. Write a neuron population's vector as coordinates in these latents: <a, b> = a . b / N_l becomes the
dot product of coordinates, and the weight W^l / sqrt(N_l) a matrix between the coordinates of layers l and l + 1. What
training has not yet sent through a weight is still unknown, and independent of all that is known; so

- a new input direction q of a weight (orthogonal to all before) goes to a fresh latent e of layer l + 1: W += e q^T;
- a new gradient direction q goes, transposed, to a fresh latent e of layer l: W += q e^T sqrt(N_l / N_{l+1}).

That is all: between such growths the network is trained like any other, in as many dimensions as it has met latents.
Eliminating the latents gives the paper's eq. 11; time is marched once, so there is no fixed point to iterate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.problem import Chain, Problem
from torch_dmft.theory.solvers.assembly import assemble, error_signal, gram, require_chain, require_finite, track


@dataclass(frozen=True)
class DeepLinear:
    """Exact infinite-width dynamics of deep linear networks (paper, section 4.1, eq. 11) in discrete time.

    Covers any inputs and targets, every loss, several outputs, gains, biases, unequal widths, momentum, weight decay
    and minibatches. Computes in float64; the result is exact to round-off and has no standard error.

    With n latents per layer the cost is O(L T n^2 P) time and O(L n^2) memory. n grows by at most twice the number of
    outputs per layer and step, and saturates where training is smooth.

    Attributes:
        tolerance: a direction counts as new if it is more than this share of a vector's norm.
    """

    tolerance: float = 1e-12

    def check(self, problem: Problem) -> None:
        """Refuse networks that are no linear chain.

        Raises:
            UnsupportedProblemError: naming the layers that are not linear.
        """
        chain = require_chain(problem, "DeepLinear")
        curved = [
            f"{number} ({layer.activation})"
            for number, layer in enumerate(chain.hidden, start=1)
            if layer.activation != "linear"
        ]
        if curved:
            raise UnsupportedProblemError(
                "DeepLinear needs linear activations in every hidden layer.",
                got=f"layers {', '.join(curved)}",
                remedy="solvers.InfiniteWidth() or solvers.AlternatingMonteCarlo()",
            )

    def run(self, problem: Problem, record: Tensor, *, two_time: bool, progress: bool) -> Trajectory:
        """March training in time; see ``Solver.run``."""
        chain = require_chain(problem, "DeepLinear")
        network = _LatentNetwork(problem, chain, self.tolerance)
        kept = set(record.tolist())
        outputs, features, gradients = [], [], []
        for step in track(range(int(record[-1]) + 1), "deep linear theory", progress=progress):
            if step > 0:
                network.update(error_signal(problem, network.outputs, step - 1))
            network.evaluate()
            require_finite(problem, network.outputs, step)
            if step in kept:
                outputs.append(network.outputs)
                features.append(network.features)
                gradients.append(network.gradients)
        samples = problem.samples
        forward = [
            gram(_stack([at[weight] for at in features]), two_time=two_time) for weight in range(chain.depth + 1)
        ]
        backward = []
        for weight in range(chain.depth):
            without_sample = _stack([at[weight] for at in gradients])[:, None]
            backward.append(gram(without_sample.expand(-1, samples, -1, -1), two_time=two_time))
        return assemble(
            problem,
            chain,
            record,
            torch.stack(outputs),
            forward,
            backward,
            origin="deep linear theory (N=inf)",
            metadata={"latents": max(network.sizes)},
        )


class _LatentNetwork:
    """The network in latent coordinates; layer 0 is the input, layer L + 1 the output, h^{L+1} = gamma0 f, g^{L+1} = 1.

    Attributes:
        sizes: coordinates of layers 0..L+1.
        features: x and h^1..h^{L+1}, each ``(coordinate, sample)``.
        gradients: g^1..g^{L+1}, each ``(coordinate, output)``; they are the same for all samples.
        outputs: f, ``(sample, output)``.
    """

    def __init__(self, problem: Problem, chain: Chain, tolerance: float) -> None:
        self.problem, self.depth, self.tolerance = problem, chain.depth, tolerance
        rows = problem.inputs.flatten(1).double() / math.sqrt(chain.input_dim)
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        used = values > tolerance * values[-1]
        inputs = (vectors[:, used] * values[used].sqrt()).T
        self.sizes = [len(inputs), *(int(bool(layer.bias_std)) for layer in chain.hidden), chain.outputs]
        self.gains = [*(layer.gain for layer in chain.hidden), 1.0]
        self.widths = [*(layer.width_ratio for layer in chain.hidden), 1.0]
        self.biased = [*(layer.bias_std is not None for layer in chain.hidden), chain.readout_bias]
        # Weight l leads from layer l to layer l + 1; nothing of it is known before training sends a vector through it.
        self.parameters = {f"weight.{weight}": inputs.new_zeros(0, 0) for weight in range(self.depth + 1)}
        for weight, hidden in enumerate(chain.hidden):
            bias = inputs.new_full((self.sizes[weight + 1], 1), hidden.bias_std or 0.0)
            self.parameters[f"bias.{weight}"] = bias
        self.parameters[f"bias.{self.depth}"] = inputs.new_zeros(chain.outputs, 1)
        self.velocities = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.seen_inputs = [inputs.new_zeros(0, 0)] * self.depth
        self.seen_gradients = [inputs.new_zeros(0, 0)] * (self.depth + 1)
        self.initial_share = 1.0  # what weight decay has left of the initial weights
        self.features = [inputs]
        self.gradients: list[Tensor] = []
        self.outputs = inputs.new_zeros(problem.samples, chain.outputs)

    def evaluate(self) -> None:
        """Send all inputs forward and all gradients backward, meeting new latents on the way."""
        depth, outputs = self.depth, self.sizes[-1]
        x = self.features[0]
        features = [x]
        for weight in range(depth + 1):
            if weight < depth:  # the readout has finitely many rows: its part along a new direction is O(N^-1/2)
                self._meet_inputs(weight, x)
            x = self.gains[weight] * self._weight(weight) @ x + self._bias(weight)
            features.append(x)
        g = torch.eye(outputs, dtype=x.dtype, device=x.device)
        gradients = [g]
        for weight in range(depth, 0, -1):
            self._meet_gradients(weight, g)
            g = self.gains[weight] * self._weight(weight).mT @ g
            gradients.insert(0, g)
        self.features, self.gradients = features, gradients
        self.outputs = x.mT / self.problem.gamma0

    def update(self, delta: Float[Tensor, "sample output"]) -> None:
        """One optimizer step along ``delta`` = -dL/df."""
        problem = self.problem
        for weight in range(self.depth + 1):
            g = self.gradients[weight] * (problem.lr * problem.gamma0 / self.widths[weight])
            self._step(f"weight.{weight}", self.gains[weight] * g @ delta.mT @ self.features[weight].mT)
            if self.biased[weight]:
                self._step(f"bias.{weight}", g @ delta.sum(0)[:, None])
        self.initial_share *= 1 - problem.lr * problem.weight_decay

    def _step(self, name: str, ascent: Tensor) -> None:
        parameter, velocity = self.parameters[name], self.velocities[name]
        rows = max(len(parameter), len(ascent))
        columns = max(parameter.shape[1], ascent.shape[1])
        velocity = self.problem.momentum * _pad(velocity, rows, columns) + _pad(ascent, rows, columns)
        decay = 1 - self.problem.lr * self.problem.weight_decay
        self.velocities[name] = velocity
        self.parameters[name] = decay * _pad(parameter, rows, columns) + velocity

    def _weight(self, weight: int) -> Tensor:
        return _pad(self.parameters[f"weight.{weight}"], self.sizes[weight + 1], self.sizes[weight])

    def _bias(self, weight: int) -> Tensor:
        return _pad(self.parameters[f"bias.{weight}"], self.sizes[weight + 1], 1)

    def _meet_inputs(self, weight: int, x: Tensor) -> None:
        """Send each new direction among the columns of ``x`` to a fresh latent of layer l + 1."""
        seen, new = _new_directions(self.seen_inputs[weight], x, self.tolerance)
        self.seen_inputs[weight] = seen
        fresh = slice(self.sizes[weight + 1], self.sizes[weight + 1] + new.shape[1])
        self.sizes[weight + 1] = fresh.stop
        matrix = self._weight(weight)
        matrix[fresh, : len(new)] = self.initial_share * new.mT
        self.parameters[f"weight.{weight}"] = matrix

    def _meet_gradients(self, weight: int, g: Tensor) -> None:
        """Send each new direction among the columns of ``g``, transposed, to a fresh latent of layer l."""
        seen, new = _new_directions(self.seen_gradients[weight], g, self.tolerance)
        self.seen_gradients[weight] = seen
        fresh = slice(self.sizes[weight], self.sizes[weight] + new.shape[1])
        self.sizes[weight] = fresh.stop
        matrix = self._weight(weight)
        ratio = self.widths[weight - 1] / self.widths[weight]
        matrix[: len(new), fresh] = self.initial_share * math.sqrt(ratio) * new
        self.parameters[f"weight.{weight}"] = matrix


def _new_directions(seen: Tensor, vectors: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of all vectors, old and new, and the part of it that is new."""
    seen = _pad(seen, len(vectors), seen.shape[1])
    residual = vectors / vectors.norm(dim=0).clamp(min=torch.finfo(vectors.dtype).tiny)
    for _ in range(2):  # twice is enough for orthogonality to round-off
        residual = residual - seen @ (seen.mT @ residual)
    left, values, _ = torch.linalg.svd(residual, full_matrices=False)
    new = left[:, values > tolerance]
    # A direction of a tiny residual is mostly round-off: what it is hardly matters, that it is orthogonal does.
    for _ in range(2):
        new = torch.linalg.qr(new - seen @ (seen.mT @ new)).Q
    return torch.cat([seen, new], dim=1), new


def _pad(array: Tensor, rows: int, columns: int) -> Tensor:
    """The array in the upper left corner of zeros (a copy)."""
    return F.pad(array, (0, columns - array.shape[1], 0, rows - len(array)))


def _stack(columns: list[Tensor]) -> Tensor:
    """Coordinates of several times, which later ones have more of: ``(time, column, coordinate)``."""
    size = max(len(at) for at in columns)
    return torch.stack([_pad(at, size, at.shape[1]).mT for at in columns])
