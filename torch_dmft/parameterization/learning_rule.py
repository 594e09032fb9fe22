r"""Learning rules: what hidden weights learn by in the place of the gradients of the loss.

All of them have the form

.. math:: W^l \leftarrow W^l + \mathrm{lr} \sum_\mu \Delta_\mu\, \frac{\tilde g^{l+1}_\mu}{\gamma_0 N}\, \phi(h^l_\mu)^T ,
   \qquad \Delta = -\partial \mathcal{L} / \partial f ,

with a pseudo-gradient in the place of the gradient g = gamma0 N df/dh. The readout learns by its true gradient.

    gradient                    g~^l = phi'(h^l) * W^l(t)^T g~^{l+1},   g~^L = phi'(h^L) * w(t)
    feedback_alignment          g~^l = phi'(h^l) * B^l^T g~^{l+1},      B^l = rho W^l(0) + sqrt(1 - rho^2) W~^l, l to L
    direct_feedback_alignment   g~^l = phi'(h^l) * z~^l,                z~^l ~ N(0, 1), one number per neuron and output
    hebb                        g~^l = Delta_mu phi(h^l)

W~ and z~ are drawn once and do not learn. Of several outputs the updates are summed, each with its own g~ and Delta. Feedback
alignment with rho = 1 has the gradients of the loss in the first step, and at all times in the lazy limit gamma0 -> 0, in which
weights stay near W(0); else it differs from gradient descent, as its backward weights stay behind.

Source: Bordelon & Pehlevan 2022 (arXiv:2210.02157), eqs. 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError, Place, UnsupportedModelError
from torch_dmft.core.training import require_rule
from torch_dmft.core.undisturbed import is_measured, undisturbed
from torch_dmft.parameterization.plan import Plan
from torch_dmft.uses.failures import outputs_on

Feedback = Callable[[Tensor], Tensor]
"""Pseudo-gradients at the outputs of a weight, ``(row, S_out)``, to those at its inputs, ``(row, S_in)``."""


@runtime_checkable
class SamplesFeedback(Protocol):
    """A layer that samples its own backward weights, as those of infinite width do."""

    def feedback(self, rho: float) -> Feedback:
        """B^T, with the correlation rho to the initial weight."""

    def draw_for_inputs(self, count: int) -> Float[Tensor, "count S_in"]:
        """So many numbers N(0, 1) for each of the neurons that the layer reads."""


@checked
@contextmanager
def learning_rule(
    plan: Plan, rule: str, *, rho: float = 0.0, generator: torch.Generator | None = None
) -> Iterator[LearningRule]:
    """Have the weights of a wrapped chain learn by another rule than the gradient, in the body of ``with``.

    ``loss.backward()`` then leaves in ``.grad`` what the rule has there, for any loop and optimizer; the equations are those of
    ``torch_dmft.parameterization.learning_rule``. Recorders inside keep kernels of the true gradients df/dh, as ever,
    and note the rule, so that ``recorder.problem()`` poses it and ``compare`` tells it from others. Backward weights are
    drawn at the first pass, of the weights' initial size, W(0) being the weights at that time: one ``with`` for a run.

    Of unequal widths, N is that of the last hidden layer. Hebb's rule is quadratic in the error: a loss that is scaled
    (``torch.amp.GradScaler``) scales its steps twice.

    Args:
        plan: a dense chain, wrapped by ``parameterize``, or its twin by ``infinite_width``.
        rule: "feedback_alignment", "direct_feedback_alignment", "hebb" or "gradient".
        rho: of feedback alignment, the correlation of backward weights with W(0), in [0, 1].
        generator: source of W~ and z~; None for a fresh one with seed 0. A twin draws from its own.

    Yields:
        The rule, which tells how far its updates point along the gradients.

    Raises:
        UnsupportedModelError: if the model is no plain chain of linear layers and activations.
        InvalidInputError: if the plan learns by another rule already.

    Source:
        Bordelon & Pehlevan 2022, The influence of learning rule on representation dynamics in wide neural networks.

    Example:
        >>> with learning_rule(plan, "feedback_alignment", rho=0.5) as feedback:  # doctest: +SKIP
        ...     train(plan.model, optimizer)
    """
    require_rule(rule, rho)
    if rule != "gradient" and not plan.architecture.is_chain:
        place = Place("(model)", "it is no plain chain of linear layers and activations", "train it by the gradient")
        raise UnsupportedModelError("Learning rules are those of chains:", [place, *plan.architecture.train_differs])
    if plan.learns_by[0] != "gradient":
        raise InvalidInputError(
            "A plan learns by one rule at a time.",
            got=f"{plan.learns_by[0]!r} already",
            remedy="leave the first `with`",
        )
    found = LearningRule(plan, rule, rho, generator or torch.Generator().manual_seed(0))
    if rule == "gradient":
        yield found
        return
    with ExitStack() as stack:
        for index, layer in enumerate(plan.architecture.layers):
            module = plan.model.get_submodule(layer.path)
            stack.callback(module.register_forward_pre_hook(found._reads(index)).remove)
            stack.callback(module.register_forward_hook(found._writes(index)).remove)
        stack.callback(setattr, plan, "learns_by", plan.learns_by)
        plan.learns_by = (rule, rho)
        yield found


class _Pass:
    """What a forward pass leaves for its backward pass.

    Attributes:
        inputs: of each weight, ``(row, S_in)``, without their history, which would hold this pass in turn.
        slope: dL/df, once the backward pass has begun, ``(row, output)``.
        signals: what was sent back to the outputs of each weight, dL/dh with the pseudo-gradient in it, by the weight.
    """

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.slope: Tensor | None = None
        self.signals: dict[int, Tensor] = {}


class LearningRule:
    """A rule at work; ``learning_rule`` makes it.

    Args:
        plan: the chain.
        rule: its name.
        rho: of feedback alignment.
        generator: source of what is drawn for plain layers.
    """

    def __init__(self, plan: Plan, rule: str, rho: float, generator: torch.Generator) -> None:
        self._plan, self._rule, self._rho, self._generator = plan, rule, rho, generator
        self._layers = plan.architecture.layers
        self._feedback: dict[int, Feedback] = {}
        self._pass = _Pass()
        self._attached: Tensor | None = None  # what a weight reads, between its two hooks

    @checked
    def alignment(self, inputs: Tensor) -> Float[Tensor, "layer sample"]:
        """The cosine between gradient and pseudo-gradient of f, the sum of all outputs, at each hidden layer now.

        Args:
            inputs: ``(sample, dim)``, as the model takes them.

        Returns:
            g . g~ / (|g| |g~|) for h^1 to h^L; 1 for the gradient itself. Of Hebb's rule with Delta = 1.
        """
        if self._plan.learns_by != (self._rule, self._rho) and self._rule != "gradient":
            raise InvalidInputError(
                "The rule must be at work.",
                got=f"a plan that learns by {self._plan.learns_by[0]!r}",
                remedy="ask inside of the `with`",
            )
        if not bool(torch.isfinite(inputs).all()):
            raise InvalidInputError("`inputs` must be finite.", got="NaN or infinite ones", remedy="rows of numbers")
        model, fields = self._plan.model, list[Tensor]()
        with undisturbed(model), ExitStack() as stack:
            for layer in self._layers:
                module = model.get_submodule(layer.path)
                stack.callback(module.register_forward_hook(lambda _, __, h: fields.append(h)).remove)
            true = torch.autograd.grad(outputs_on(model, inputs).sum(), fields[:-1])
        if self._rule == "gradient":
            return torch.stack([torch.ones_like(g[:, 0]) for g in true])
        with torch.enable_grad():
            minus = -outputs_on(model, inputs).sum()
        torch.autograd.grad(minus, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
        signals = self._pass.signals
        cosines = [nn.functional.cosine_similarity(g, -signals[index], dim=1) for index, g in enumerate(true)]
        return torch.stack(cosines).detach()

    # The two hooks of a weight

    def _reads(self, index: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        """Before a weight: gradients at its inputs are the rule's, so that its own backward pass ends here."""

        def hook(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not _learns():
                return None
            if index == 0:
                self._pass = _Pass()
            self._attached = given[0] if index else None
            self._pass.inputs.append(given[0].detach())
            return (self._pass.inputs[-1], *given[1:]) if index else None

        return hook

    def _writes(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        """Behind a weight: its inputs are joined to its outputs again, by the rule."""

        def hook(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if not _learns():
                return None
            if index and index not in self._feedback and self._rule != "hebb":
                self._feedback[index] = self._drawn(index, module)
            inputs, self._attached = self._attached, None
            joined: Tensor = _Learn.apply(output, inputs, self, self._pass, index)  # type: ignore[no-untyped-call]
            return joined

        return hook

    # The rule

    def _signal(self, now: _Pass, index: int, slope: Tensor) -> Tensor:
        """DL/dh at the outputs of a weight, with the pseudo-gradient in it, from what came back to them."""
        if index == len(self._layers) - 1:
            now.slope = slope
        elif self._rule == "hebb":
            assert now.slope is not None  # the readout's, which comes first
            unit = 1 / (self._plan.gamma0 * self._plan.width)
            slope = -unit * now.slope.square().sum(1, keepdim=True) * now.inputs[index + 1].detach()
        now.signals[index] = slope
        return slope

    def _sent_back(self, now: _Pass, index: int, signal: Tensor) -> Tensor:
        """What a weight sends to its inputs."""
        if self._rule == "hebb":  # what comes back is not used
            return torch.zeros_like(now.inputs[index])
        assert now.slope is not None  # the readout's, which comes first
        return self._feedback[index](signal if self._rule == "feedback_alignment" else now.slope)

    @torch.no_grad()
    def _drawn(self, index: int, module: nn.Module) -> Feedback:
        """The backward weights of a layer."""
        own: object = module
        rule = self._plan.rule(self._layers[index].weight)
        if self._rule == "direct_feedback_alignment":
            outputs, unit = self._plan.architecture.outputs, 1 / (self._plan.gamma0 * self._plan.width)
            if isinstance(own, SamplesFeedback):
                direct = unit * own.draw_for_inputs(outputs)
            else:
                direct = unit * self._normal((outputs, rule.fan_in), module)
            return lambda slope: slope @ direct
        if isinstance(own, SamplesFeedback):
            return own.feedback(self._rho)
        weight = module.get_parameter("weight").detach()
        other = rule.std * self._normal(tuple(weight.shape), module)
        backward = self._rho * weight + math.sqrt(1 - self._rho**2) * other
        return lambda signal: signal @ backward

    def _normal(self, shape: tuple[int, ...], module: nn.Module) -> Tensor:
        weight, source = module.get_parameter("weight"), self._generator
        return torch.randn(shape, generator=source, dtype=weight.dtype, device=source.device).to(weight.device)


def _learns() -> bool:
    """Whether the pass under way is one to learn from."""
    return torch.is_grad_enabled() and not is_measured()


class _Learn(Function):
    """The outputs of a weight, whose gradients a rule sends to the weight and to its inputs."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor | None, rule: LearningRule, now: _Pass, index: int) -> Tensor:
        ctx.rule, ctx.now, ctx.index = rule, now, index
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        signal = ctx.rule._signal(ctx.now, ctx.index, grads[0])
        wanted = ctx.needs_input_grad[1]
        return signal, ctx.rule._sent_back(ctx.now, ctx.index, signal) if wanted else None, None, None, None
