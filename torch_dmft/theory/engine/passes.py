"""One pass through a model, which serves both a step of training and a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_dmft.architecture import Layer, Role
from torch_dmft.core.activation import Activation, activation
from torch_dmft.measurement import capture, measure
from torch_dmft.measurement.capture import Taps
from torch_dmft.measurement.gradients import Layouts
from torch_dmft.measurement.normal_form import Layout, Stream, backward_gram, forward_gram
from torch_dmft.measurement.snapshot import LayerSnapshot, Snapshot, output_rows, squeeze_outputs
from torch_dmft.measurement.subject import Subject
from torch_dmft.theory.engine.layers import InfiniteLinear
from torch_dmft.theory.engine.weight_gradients import are_products, fields_for, fields_in, set_gradients


@runtime_checkable
class Pass(Protocol):
    """A forward pass of a model, and what can be computed from it; measure before taking the gradients.

    Attributes:
        outputs: f, ``(sample, output)``.
    """

    outputs: Tensor

    def measure(self) -> Snapshot:
        """Kernels of all layers."""

    def backward(self, error: Float[Tensor, "sample output"]) -> None:
        """Set the gradients of all parameters to those of the loss with the error signal Delta = -dL/df."""


class Passes:
    """Makes the passes of one model: with explicit formulas for a dense chain, by autograd for any other model.

    Args:
        subject: the model.
        by_autograd: whether a chain's are autograd's too, with the hooks on its modules.
        alike: what passes of networks alike found out of where samples are; it is added to.
    """

    def __init__(self, subject: Subject, *, by_autograd: bool = False, alike: dict[str, Layouts] | None = None) -> None:
        self.subject, self._alike = subject, {} if alike is None else alike
        self.weights = [
            (layer, subject.model.get_submodule(layer.path), layer.activation or "linear")
            for layer in subject.architecture.layers
        ]
        self.rates = {name: subject.rate(name) for name, _ in subject.model.named_parameters()}
        linear = all(isinstance(module, nn.Linear | InfiniteLinear) for _, module, _ in self.weights)
        self.written_out = subject.is_chain and linear and not by_autograd
        self.may_be_products = not by_autograd and are_products(subject)
        self.has_convolutions = any(layer.kind == "conv" for layer in subject.architecture.layers)

    @property
    def layouts(self) -> Layouts | None:
        """Where samples are, as far as it is known."""
        return self._alike.get("layouts")

    def learn(self, layouts: Layouts | None) -> None:
        """Keep where samples are, if a measurement told."""
        if layouts is not None:
            self._alike["layouts"] = layouts

    @property
    def are_products(self) -> bool:
        """Whether gradients are products of what a pass knows, as far as it is known where samples are."""
        layouts = [] if self.layouts is None else [one for uses in self.layouts.values() for one in uses]
        return self.may_be_products and bool(layouts) and all(one is Layout.FIRST for one in layouts)

    def __call__(self, inputs: Tensor, *, measured: bool) -> Pass:
        """Run the model; ``measured`` tells whether ``measure`` will be called."""
        if self.written_out and inputs.ndim == 2:
            return ChainPass(self, inputs)
        return AutogradPass(self, inputs, measured=measured)


class AutogradPass:
    """A pass of any model.

    Where all that is trained are weights of layers, their gradients are products of what a pass knows of them
    (``weight_gradients``).
    """

    def __init__(self, passes: Passes, inputs: Tensor, *, measured: bool) -> None:
        self._passes = passes
        self._taken: Snapshot | None = None
        self._by_products = passes.are_products and (measured or passes.has_convolutions)
        self._taps: Taps | None = None
        if measured or self._by_products:
            with capture(passes.subject) as self._taps:
                outputs = passes.subject.run(inputs)
        else:
            outputs = passes.subject.run(inputs)
        self._attached = output_rows(outputs, len(inputs))
        self.outputs = self._attached.detach()

    def measure(self) -> Snapshot:
        """Kernels of all layers."""
        assert self._taps is not None  # asked for
        retain = not self._by_products
        self._taken = measure(self._taps, self._attached, layouts=self._passes.layouts, retain_graph=retain)
        self._passes.learn(self._taken.layouts)
        return self._taken

    def backward(self, error: Float[Tensor, "sample output"]) -> None:
        """Set the gradients of all parameters."""
        self._passes.subject.model.zero_grad()
        if not self._by_products:
            self._attached.backward(gradient=-error)
            return
        assert self._taps is not None  # taken for it
        assert self._passes.layouts is not None  # samples are first
        if self._taken is not None:
            fields = fields_in(self._taken, error)
        else:
            fields = fields_for(self._taps, self._passes.layouts, self._attached, error)
        set_gradients(self._taps, fields)


@dataclass(eq=False)
class _Weight:
    """One weight of a chain during a pass.

    Attributes:
        layer: what it is.
        module: the weight.
        phi: the activation behind it.
        x: its inputs, ``(sample, neuron)``.
        h: its outputs, ``(sample, neuron)``.
        c: coordinates of its inputs, if it is lazily sampled.
        g: gradients by h of the outputs, or of one combination of them: ``(sample, output, neuron)``.
        d: coordinates of g, if the weight is lazily sampled.
    """

    layer: Layer
    module: nn.Module
    phi: Activation
    x: Tensor
    h: Tensor
    c: Tensor | None = None
    g: Tensor | None = None
    d: Tensor | None = None


class ChainPass:
    r"""A pass of a dense chain, of finite or infinite width, written out.

    .. math::
        h^{l+1} = W^l \phi(h^l) + b^{l+1}, \qquad
        \frac{\partial f_c}{\partial h^l} = \phi'(h^l) \odot {W^l}^T \frac{\partial f_c}{\partial h^{l+1}} .

    The gradients of each output, which a measurement needs, serve the update too: the gradient of the loss by a weight is
    sum over mu and c of -Delta_c(mu) df_c(mu)/dh x(mu)^T. Without a measurement only their sum over outputs is computed.
    """

    @torch.no_grad()
    def __init__(self, passes: Passes, inputs: Tensor) -> None:
        self.subject, self._rates = passes.subject, passes.rates
        self._weights: list[_Weight] = []
        x = inputs
        for layer, module, name in passes.weights:
            phi, c = activation(name), None
            if isinstance(module, InfiniteLinear):
                h, c, _ = module.forward_rows(x)
                h = h if module.bias is None else h.add_(module.bias)
            else:
                h = module(x)
            self._weights.append(_Weight(layer, module, phi, x, h, c))
            x = phi.function(h)
        self.outputs = h

    @torch.no_grad()
    def measure(self) -> Snapshot:
        """Kernels of all layers."""
        samples, outputs = self.outputs.shape
        unit = torch.eye(outputs, dtype=self.outputs.dtype, device=self.outputs.device)
        self._descend(unit.expand(samples, outputs, outputs))
        layers = tuple(self._kernels(weight) for weight in self._weights)
        total = torch.stack([layer.ntk for layer in layers if layer.ntk is not None]).sum(0)
        return Snapshot(self.outputs, layers, total, None)

    @torch.no_grad()
    def backward(self, error: Float[Tensor, "sample output"]) -> None:
        """Set the gradients of all parameters."""
        coefficients = -error
        if self._weights[0].g is None:
            self._descend(coefficients.unsqueeze(1))
            coefficients = torch.ones_like(error[:, :1])
        for weight in self._weights:
            assert weight.g is not None  # set by _descend
            module = weight.module
            if isinstance(module, InfiniteLinear):
                assert weight.c is not None  # set by the forward pass
                assert weight.d is not None  # set by _descend
                combined = (coefficients.unsqueeze(1) @ weight.d).squeeze(1)
                module.core.grad = module.core_gradient(combined, weight.c, weight.c.shape[1])
                module.initial_scale.grad = torch.zeros_like(module.initial_scale)
            else:
                combined = (coefficients.unsqueeze(1) @ weight.g).squeeze(1)
                module.get_parameter("weight").grad = (weight.x.T @ combined).T
            if weight.layer.bias is not None:
                module.get_parameter("bias").grad = torch.einsum("sc,scn->n", coefficients, weight.g)

    def _descend(self, cotangents: Float[Tensor, "sample k output"]) -> None:
        """Gradients of sum_c v_c f_c by every h, for k combinations v of the outputs per sample."""
        samples, count, _ = cotangents.shape
        g = cotangents
        for index, weight in reversed(list(enumerate(self._weights))):
            weight.g = g
            rows = g.flatten(0, 1)
            if isinstance(weight.module, InfiniteLinear):
                d, back = weight.module.backward_rows(rows)
                weight.d = d.unflatten(0, (samples, count))
                assert back is not None  # wanted
            elif index:
                back = rows @ weight.module.get_parameter("weight")
            else:
                return
            below = self._weights[index - 1]
            slope = below.phi.slope(below.h, weight.x)
            g = back.unflatten(0, (samples, count)).mul_(slope.unsqueeze(1))

    def _kernels(self, weight: _Weight) -> LayerSnapshot:
        assert weight.g is not None  # set by _descend
        layer = weight.layer
        stream = Stream(
            layer,
            self.subject.gamma0,
            (weight.x.unsqueeze(1),),
            (weight.h.unsqueeze(1),),
            (weight.g.unsqueeze(2),),
        )
        forward, backward = forward_gram(stream, stream), backward_gram(stream, stream)
        # df/dW df/dW = (x x)(df/dh df/dh), with x x = fan_in Phi and df/dh df/dh as G is scaled.
        features = 1 if layer.role is Role.READOUT else layer.out_features
        unscaled = backward * (features / stream.gradient_scale**2)
        ntk = self._rates[layer.weight] * layer.fan_in * forward[:, None, :, None] * unscaled
        if layer.bias is not None:
            ntk = ntk + self._rates[layer.bias] * unscaled
        return LayerSnapshot(layer.path, forward, squeeze_outputs(backward), squeeze_outputs(ntk), stream)
