"""An infinitely wide linear chain, written in the Gaussian latents that its vectors have met.

The fields of an infinitely wide linear network are linear functionals of independent standard Gaussians, one set for
each hidden layer. Write a neuron population's vector as coordinates in these latents: <a, b> = a . b / N_l becomes the
dot product of coordinates, and the weight W^l / sqrt(N_l) a matrix between the coordinates of layers l and l + 1. What
has not yet been sent through an initial weight is still unknown, and independent of all that is known; so

- a new input direction q of a weight (orthogonal to all before) goes to a fresh latent e of layer l + 1: W += e q^T;
- a new gradient direction q goes, transposed, to a fresh latent e of layer l: W += q e^T sqrt(N_l / N_{l+1}).

That is all: between such growths the chain is an ordinary one, in as many dimensions as it has met latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from torch_dmft.core.errors import ConvergenceError
from torch_dmft.theory.chain import Chain


class LatentChain:
    """A chain's initial weights, as far as they are known, and its passes forward and backward.

    Layer 0 is the input and layer L + 1 the output, with h^{L+1} = gamma0 f and g^{L+1} = 1. Weight l leads from layer l
    to layer l + 1. What training adds to the weights is not kept here but given to every pass: a list of parameters,
    the learned parts of weights 0..L and the (whole) biases of layers 1..L+1.

    Args:
        chain: gains, biases and widths.
        gamma0: feature-learning strength.
        inputs: ``(coordinate, sample)``, with inner products Phi^0.
        tolerance: a direction counts as new if it is more than this share of a vector's norm.

    Attributes:
        sizes: coordinates of layers 0..L+1 so far.
    """

    def __init__(
        self, chain: Chain, gamma0: float, inputs: Float[Tensor, "coordinate sample"], *, tolerance: float
    ) -> None:
        self.chain, self.gamma0, self.inputs, self.tolerance = chain, gamma0, inputs, tolerance
        self.depth, self.outputs = chain.depth, chain.outputs
        self.sizes = [len(inputs), *(int(bool(layer.bias_std)) for layer in chain.hidden), chain.outputs]
        self.gains = [*(layer.gain for layer in chain.hidden), 1.0]
        self.widths = [*(layer.width_ratio for layer in chain.hidden), 1.0]
        self.biased = [*(layer.bias_std is not None for layer in chain.hidden), chain.readout_bias]
        self.initial = [inputs.new_zeros(0, 0) for _ in self.gains]
        self.seen_inputs = [inputs.new_zeros(0, 0) for _ in self.gains]
        self.seen_gradients = [inputs.new_zeros(0, 0) for _ in self.gains]

    def parameters(self) -> list[Tensor]:
        """The parameters before training: nothing learned, biases in one latent of each layer."""
        nothing = [self.inputs.new_zeros(0, 0) for _ in self.gains]
        biases = [
            self.inputs.new_full((1 if layer.bias_std else 0, 1), layer.bias_std or 0.0) for layer in self.chain.hidden
        ]
        return [*nothing, *biases, self.inputs.new_zeros(0, 1)]

    def passes(self, parameters: Sequence[Tensor], share: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
        """Send the inputs forward and one unit gradient per output backward, meeting new latents on the way.

        Args:
            parameters: learned weights 0..L and biases of layers 1..L+1.
            share: what weight decay has left of the initial weights.

        Returns:
            x, h^1..h^{L+1}, each ``(coordinate, sample)``, and g^1..g^{L+1}, each ``(coordinate, output)``.
        """
        x = self.inputs
        features = [x]
        for weight in range(self.depth + 1):
            if weight < self.depth:  # the readout has finitely many rows: of a new direction they see O(N^-1/2)
                self._meet_inputs(weight, x)
            bias = pad(parameters[self.depth + 1 + weight], self.sizes[weight + 1], 1)
            x = self.gains[weight] * self._matrix(weight, parameters, share) @ x + bias
            features.append(x)
        g = torch.eye(self.outputs, dtype=x.dtype, device=x.device)
        gradients = [g]
        for weight in range(self.depth, 0, -1):
            self._meet_gradients(weight, g)
            g = self.gains[weight] * self._matrix(weight, parameters, share).mT @ g
            gradients.insert(0, g)
        return features, gradients

    def ascent(
        self, features: Sequence[Tensor], gradients: Sequence[Tensor], delta: Float[Tensor, "sample output"]
    ) -> list[Tensor]:
        """How fast the parameters move per unit of time, dtheta/dt, under the error signal ``delta``."""
        weights, biases = [], []
        for weight, (gain, width, biased) in enumerate(zip(self.gains, self.widths, self.biased, strict=True)):
            g = gradients[weight] * (self.gamma0 / width)
            weights.append(gain * g @ delta.mT @ features[weight].mT)
            biases.append(g @ delta.sum(0)[:, None] if biased else g.new_zeros(0, 1))
        return [*weights, *biases]

    def _matrix(self, weight: int, parameters: Sequence[Tensor], share: float) -> Tensor:
        rows, columns = self.sizes[weight + 1], self.sizes[weight]
        return share * pad(self.initial[weight], rows, columns) + pad(parameters[weight], rows, columns)

    def _meet_inputs(self, weight: int, x: Tensor) -> None:
        """Send each new direction among the columns of ``x`` to a fresh latent of the layer after the weight."""
        self.seen_inputs[weight], new = _new_directions(self.seen_inputs[weight], x, self.tolerance)
        fresh = slice(self.sizes[weight + 1], self.sizes[weight + 1] + new.shape[1])
        self.sizes[weight + 1] = fresh.stop
        self.initial[weight] = pad(self.initial[weight], self.sizes[weight + 1], self.sizes[weight])
        self.initial[weight][fresh, : len(new)] = new.mT

    def _meet_gradients(self, weight: int, g: Tensor) -> None:
        """Send each new direction among the columns of ``g``, transposed, to a fresh latent of the layer before it."""
        self.seen_gradients[weight], new = _new_directions(self.seen_gradients[weight], g, self.tolerance)
        fresh = slice(self.sizes[weight], self.sizes[weight] + new.shape[1])
        self.sizes[weight] = fresh.stop
        self.initial[weight] = pad(self.initial[weight], self.sizes[weight + 1], self.sizes[weight])
        narrowing = self.widths[weight - 1] / self.widths[weight]
        self.initial[weight][: len(new), fresh] = math.sqrt(narrowing) * new


def pad(array: Tensor, rows: int, columns: int) -> Tensor:
    """The array in the upper left corner of zeros."""
    if array.shape == (rows, columns):
        return array
    if not array.numel():
        return array.new_zeros(rows, columns)  # torch 2.6 pads nothing that is empty
    return F.pad(array, (0, columns - array.shape[1], 0, rows - len(array)))


def weighted_sum(*terms: tuple[float, Sequence[Tensor]]) -> list[Tensor]:
    """The sum of scaled parameters; terms may lack latents that others have met."""
    scales = [scale for scale, _ in terms]
    total = []
    for arrays in zip(*(parameters for _, parameters in terms), strict=True):
        rows, columns = (max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True))
        padded = [pad(array, rows, columns) for array in arrays]
        total.append(
            sum((scale * array for scale, array in zip(scales, padded, strict=True)), torch.zeros_like(padded[0]))
        )
    return total


def stacked(columns: Sequence[Tensor]) -> Float[Tensor, "time column coordinate"]:
    """Coordinates ``(coordinate, column)`` of several times, padded to the largest number of coordinates."""
    size = max(len(at) for at in columns)
    return torch.stack([pad(at, size, at.shape[1]).mT for at in columns])


def _new_directions(seen: Tensor, vectors: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of all vectors, old and new, and the part of it that is new."""
    if not bool(torch.isfinite(vectors).all()):
        raise ConvergenceError("Training diverges: the fields of a linear chain are not finite.", remedy="a smaller lr")
    seen = pad(seen, len(vectors), seen.shape[1])
    residual = vectors / vectors.norm(dim=0).clamp(min=torch.finfo(vectors.dtype).tiny)
    for _ in range(2):  # twice is enough for orthogonality to round-off
        residual = residual - seen @ (seen.mT @ residual)
    if float(residual.norm()) <= tolerance:
        return seen, seen.new_zeros(len(seen), 0)
    left, values, _ = torch.linalg.svd(residual, full_matrices=False)
    new = left[:, values > tolerance]
    # A direction of a tiny residual is mostly round-off: what it is hardly matters, that it is orthogonal does.
    for _ in range(2):
        new = torch.linalg.qr(new - seen @ (seen.mT @ new)).Q
    return torch.cat([seen, new], dim=1), new
