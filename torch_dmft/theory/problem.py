"""Problem: what a network is trained on and how; the question that every solver answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_dmft.core.activation import activation as named_activation
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.core.loss import Loss, default_loss
from torch_dmft.parameterization.optimizer import OPTIMIZERS
from torch_dmft.theory.chain import Chain, HiddenLayer, chain_of
from torch_dmft.theory.infinite.widen import refuse_unsupported

if TYPE_CHECKING:
    from torch_dmft.measurement import Probe
    from torch_dmft.parameterization import Plan


@dataclass(frozen=True)
class Problem:
    """A training run without a width: data, loss, learning rate, steps, gamma0, and which network.

    Build it with ``Problem.mlp`` or ``Problem.like``; the constructor takes everything explicitly.

    Attributes:
        inputs: ``(sample, ...)``, training rows first, then test rows.
        targets: targets of the training rows as the loss takes them, ``(train, output)`` floats or ``(train,)`` classes.
        loss: ``loss(outputs, targets) -> scalar`` with its own reduction.
        lr: eta, the base learning rate.
        steps: T, the number of optimizer steps; states 0..T can be recorded.
        gamma0: feature-learning strength.
        outputs: C.
        momentum: beta of v <- beta v + dL/dtheta.
        weight_decay: lambda of theta <- theta - ... - eta lambda theta.
        batches: one index tensor into the training rows per step, or None for full-batch steps.
        chain: the network as a dense chain, or None if it is something else.
        network: the plan of a wrapped model of any width, which names the layers and, if ``chain`` is None, shows the
            architecture; None for a chain that was posed without a model.
        temperature: T of Langevin noise: in every step every parameter also gets sqrt(2 T lr_p) / (gamma0 sqrt N) N(0, 1),
            where lr_p is its own learning rate and N the width; that is sqrt(2 T eta) in unit form.
        optimizer: "sgd", or "adam" or "adamw": torch's own with their default betas and eps, on
            ``plan.param_groups(lr, optimizer=..., weight_decay=...)``.
    """

    inputs: Tensor
    targets: Tensor
    loss: Loss
    lr: float
    steps: int
    gamma0: float
    outputs: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    batches: tuple[Tensor, ...] | None = None
    chain: Chain | None = None
    network: Plan | None = None
    temperature: float = 0.0
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        """Refuse what no solver can do."""
        _check(self)

    @property
    def samples(self) -> int:
        """Rows in all, training and test."""
        return len(self.inputs)

    @property
    def train_samples(self) -> int:
        """P, the number of training rows."""
        return len(self.targets)

    @property
    def train(self) -> Tensor:
        """``(sample,)`` bool mask of the training rows."""
        return torch.arange(self.samples, device=self.inputs.device) < self.train_samples

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the inputs, in which solvers answer."""
        return self.inputs.dtype

    @property
    def input_kernel(self) -> Tensor:
        """K^x = X X^T / D: ``(sample, sample)``."""
        flat = self.inputs.flatten(1)
        return flat @ flat.T / flat.shape[1]

    @property
    def target_values(self) -> Tensor:
        """Targets as floats ``(train, output)``, one-hot for integer classes."""
        if self.targets.is_floating_point():
            return self.targets.reshape(self.train_samples, -1)
        return nn.functional.one_hot(self.targets, self.outputs).to(self.dtype)

    def batch(self, step: int) -> Tensor | None:
        """Rows that the update of this step sees, or None for all training rows."""
        return None if self.batches is None else self.batches[step]

    def training_loss(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """The loss on the training rows, or on ``rows`` of them: ``outputs`` is ``(sample, output)``, test rows ignored."""
        predictions, targets = outputs[: self.train_samples].to(self.inputs.device), self.targets
        if rows is not None:
            predictions, targets = predictions[rows], targets[rows]
        if targets.is_floating_point():
            predictions = predictions.reshape(targets.shape)
        return self.loss(predictions, targets)

    def error(self, outputs: Tensor, step: int) -> Tensor:
        """The error signal of a step, Delta = -dL/df: ``(sample, output)``, zero on rows that the step does not see."""
        outputs = outputs.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.training_loss(outputs, self.batch(step))
            (gradient,) = torch.autograd.grad(loss, outputs)
        return -gradient

    @classmethod
    def mlp(
        cls,
        inputs: Tensor,
        targets: Tensor,
        *,
        depth: int = 1,
        activation: str = "tanh",
        gamma0: float = 1.0,
        loss: Loss | None = None,
        lr: float = 0.1,
        steps: int = 100,
        gain: float = 1.0,
        bias_std: float | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        width_ratios: Sequence[float] | None = None,
        batches: Sequence[Tensor] | None = None,
        test_inputs: Tensor | None = None,
        temperature: float = 0.0,
        optimizer: str = "sgd",
    ) -> Problem:
        """A dense chain of ``depth`` equal hidden layers.

        h^1 = g W^0 x / sqrt(D) + b^1, h^{l+1} = g W^l phi(h^l) / sqrt(N_l) + b^{l+1},
        f_c = w_c . phi(h^L) / (gamma0 N_L).

        Args:
            inputs: ``(train, D)`` training inputs.
            targets: ``(train, output)`` or ``(train,)`` floats, or ``(train,)`` integer classes.
            depth: L, the number of hidden layers.
            activation: name of phi, one of ``torch_dmft.core.activation.ACTIVATIONS``.
            gamma0: feature-learning strength, > 0.
            loss: any ``loss(outputs, targets)``; default ``nn.MSELoss()`` for floats, ``nn.CrossEntropyLoss()`` for classes.
            lr: eta, the base learning rate.
            steps: number of optimizer steps.
            gain: g of every hidden weight (sqrt 2 keeps ReLU alive).
            bias_std: standard deviation of the initial biases of the hidden layers; None for no biases.
            momentum: beta.
            weight_decay: lambda.
            width_ratios: N_l / N_L for l = 1..L, the last of them 1.
            batches: one index tensor into the training rows per step.
            test_inputs: ``(test, D)`` further rows to predict, appended after the training rows.
            temperature: T of Langevin noise.
            optimizer: "sgd", "adam" or "adamw"; the latter two have betas in place of momentum.

        Raises:
            InvalidInputError: for shapes or values that do not fit, each with its remedy.
        """
        if inputs.ndim and targets.ndim and len(targets) != len(inputs):
            raise InvalidInputError(
                "Every training input needs its target.",
                got=f"{len(targets)} targets, {len(inputs)} inputs",
                remedy="rows that are not trained on go into test_inputs",
            )
        if depth < 1:
            raise InvalidInputError("A network needs at least one hidden layer.", got=f"depth={depth}")
        ratios = (1.0,) * depth if width_ratios is None else tuple(float(r) for r in width_ratios)
        if len(ratios) != depth or ratios[-1] != 1.0 or min(ratios) <= 0:
            raise InvalidInputError(
                "width_ratios needs one positive number per hidden layer, relative to the last.",
                got=f"{ratios} for depth {depth}",
                remedy="for example width_ratios=[2.0, 1.0] at depth 2",
            )
        if test_inputs is not None and test_inputs.shape[1:] != inputs.shape[1:]:
            raise InvalidInputError(
                "Test inputs differ in shape from training inputs.",
                got=f"{tuple(test_inputs.shape)} beside {tuple(inputs.shape)}",
                remedy="rows alike in both",
            )
        rows = inputs if test_inputs is None else torch.cat([inputs, test_inputs.to(inputs)])
        rows = rows.flatten(1) if rows.ndim > 1 else rows
        outputs = _count_outputs(targets)
        hidden = tuple(HiddenLayer(activation, gain, bias_std, ratio) for ratio in ratios)
        named_activation(activation)
        return cls(
            inputs=rows,
            targets=targets,
            loss=default_loss(targets) if loss is None else loss,
            lr=lr,
            steps=steps,
            gamma0=gamma0,
            outputs=outputs,
            momentum=momentum,
            weight_decay=weight_decay,
            batches=None if batches is None else tuple(batches),
            temperature=temperature,
            optimizer=optimizer,
            chain=Chain(rows.shape[-1], hidden, outputs),
        )

    @classmethod
    def like(
        cls,
        plan: Plan,
        probe: Probe,
        *,
        lr: float,
        steps: int,
        loss: Loss | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        batches: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        optimizer: str = "sgd",
    ) -> Problem:
        """The problem that a wrapped model is being trained on: same data, loss, schedule and architecture, no width.

        Args:
            plan: what ``parameterize`` returned (schemes "mean_field" and "ntk").
            probe: the data; its training rows must come first and have targets.
            lr: eta, the base rate given to ``plan.param_groups``, the same in every step.
            steps: number of steps of the optimizer.
            loss: the training loss; default ``nn.MSELoss()`` for floats, ``nn.CrossEntropyLoss()`` for classes.
            momentum: the optimizer's momentum, without dampening and not Nesterov's.
            weight_decay: the weight decay given to ``plan.param_groups``. Together with momentum theory decays the weights
                outside of it, where ``torch.optim.SGD`` takes the decay into the momentum: then decay them in the loop.
            batches: one index tensor into the training rows per step; None for full-batch training.
            temperature: T of Langevin noise, which your loop brings; without momentum by a noise in the gradients,
                ``p.grad += torch.randn_like(p) * math.sqrt(2 * T / (group["lr"] * plan.width)) / plan.gamma0``.
            optimizer: "sgd" for ``torch.optim.SGD``, or "adam" or "adamw" for ``torch.optim.Adam`` or ``AdamW`` with their
                default betas, as given to ``plan.param_groups``.

        Raises:
            UnsupportedProblemError: if the plan's scheme has no infinite-width limit of this kind.
            UnsupportedModelError: if the model reads tokens, naming its embeddings.
            InvalidInputError: if the probe has no targets or its training rows do not come first.
        """
        if isinstance(plan, nn.Module):
            raise InvalidInputError(
                "A bare model does not say how it is scaled.",
                got=type(plan).__name__,
                remedy="pass the plan: plan = parameterize(model, example_input)",
            )
        if plan.scheme == "standard":
            raise UnsupportedProblemError(
                "The standard parameterization has no stable infinite-width limit with learning.",
                remedy='wrap the model with scheme="mean_field" or scheme="ntk"',
            )
        if probe.targets is None:
            raise InvalidInputError(
                "The probe has no targets, so there is nothing to train on.", remedy="Probe(inputs, targets)"
            )
        if not probe.inputs.is_floating_point():
            refuse_unsupported(plan.model, plan.architecture)
        train = torch.as_tensor(probe.train)
        count = int(train.sum())
        if not bool(train[:count].all()):
            raise InvalidInputError("Training rows must come before test rows.", remedy="reorder the probe")
        targets = probe.targets[:count]
        return cls(
            inputs=probe.inputs,
            targets=targets,
            loss=default_loss(targets) if loss is None else loss,
            lr=lr,
            steps=steps,
            gamma0=plan.gamma0,
            outputs=plan.architecture.readout.out_features,
            momentum=momentum,
            weight_decay=weight_decay,
            batches=None if batches is None else tuple(batches),
            temperature=temperature,
            optimizer=optimizer,
            chain=chain_of(plan),
            network=plan,
        )


def _count_outputs(targets: Tensor) -> int:
    if targets.is_floating_point():
        return 1 if targets.ndim == 1 else targets.shape[1]
    return int(targets.max()) + 1


def _check_targets(targets: Tensor, outputs: int) -> None:
    """Refuse targets that do not fit the outputs, where torch would fail late or broadcast."""
    if targets.is_floating_point():
        if _count_outputs(targets) != outputs:
            raise InvalidInputError(
                "Float targets need one column per output.",
                got=f"shape {tuple(targets.shape)} for {outputs} outputs",
                remedy="targets of shape (sample, output), or a model with as many outputs",
            )
    elif targets.dtype != torch.int64 or int(targets.min()) < 0 or int(targets.max()) >= outputs:
        raise InvalidInputError(
            f"Targets that are not floats are class numbers 0..{outputs - 1} of type torch.int64.",
            got=f"{targets.tolist()[:8]} of {targets.dtype}",
            remedy="targets.long() for classes, targets.float() for numbers",
        )


def _check_optimizer(problem: Problem) -> None:
    if problem.optimizer not in OPTIMIZERS:
        raise InvalidInputError(
            "A problem names its optimizer.", got=repr(problem.optimizer), remedy=f"one of {', '.join(OPTIMIZERS)}"
        )
    if problem.optimizer == "sgd":
        return
    if problem.momentum or problem.temperature:
        raise InvalidInputError(
            "Momentum and Langevin noise are those of SGD; Adam's momentum are its betas, which are torch's defaults.",
            got=f"optimizer={problem.optimizer!r}, momentum={problem.momentum}, temperature={problem.temperature}",
            remedy='momentum=0.0 and temperature=0.0, or optimizer="sgd"',
        )
    if problem.optimizer == "adam" and problem.weight_decay:
        raise InvalidInputError(
            "Adam normalises the weight decay together with the gradient, against which it grows like the square root of "
            "the width: there is no limit.",
            got=f"weight_decay={problem.weight_decay}",
            remedy='optimizer="adamw", which decays alike at every width',
        )


def _check(problem: Problem) -> None:
    inputs, targets = problem.inputs, problem.targets
    if inputs.ndim < 2 or not inputs.is_floating_point():
        raise InvalidInputError(
            "Inputs need a sample axis and at least one feature axis, in floating point.",
            got=f"shape {tuple(inputs.shape)}, {inputs.dtype}",
            remedy="inputs of shape (sample, feature), inputs.float() of numbers; of tokens there is no theory yet, so feed "
            "one-hot rows to an nn.Linear instead of an nn.Embedding",
        )
    if targets.ndim not in (1, 2) or (not targets.is_floating_point() and targets.ndim != 1):
        raise InvalidInputError(
            "Targets are (train, output) or (train,) floats, or (train,) integer classes.",
            got=f"shape {tuple(targets.shape)}",
        )
    if len(targets) < 2 or len(targets) > len(inputs):
        raise InvalidInputError(
            "A problem needs at least two training rows, and no more targets than inputs.",
            got=f"{len(targets)} targets, {len(inputs)} inputs",
        )
    _check_targets(targets, problem.outputs)
    for name, values in (("inputs", inputs), ("targets", targets)):
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            bad = int(
                (~torch.isfinite(values))
                .flatten(1 if values.ndim > 1 else 0)
                .reshape(len(values), -1)
                .any(1)
                .nonzero()[0]
            )
            raise InvalidInputError(
                f"The {name} hold NaN or infinity.", got=f"row {bad}", remedy="clean the data first"
            )
    if not problem.gamma0 > 0 or not math.isfinite(problem.gamma0):
        raise InvalidInputError(
            "gamma0 must be positive.",
            got=str(problem.gamma0),
            remedy="the lazy limit gamma0 = 0 is solvers.StaticNTK()",
        )
    if not 0 < problem.lr < math.inf or problem.steps < 0 or not 0 <= problem.momentum < 1 or problem.weight_decay < 0:
        raise InvalidInputError(
            "lr > 0, steps >= 0, 0 <= momentum < 1 and weight_decay >= 0 are needed.",
            got=f"lr={problem.lr}, steps={problem.steps}, momentum={problem.momentum}, "
            f"weight_decay={problem.weight_decay}",
        )
    _check_optimizer(problem)
    if not 0 <= problem.temperature < math.inf:
        raise InvalidInputError(
            "The temperature is a number >= 0.", got=str(problem.temperature), remedy="0.0: no noise"
        )
    if problem.batches is not None:
        if len(problem.batches) < problem.steps:
            raise InvalidInputError(
                "batches needs one index tensor per step.",
                got=f"{len(problem.batches)} batches for {problem.steps} steps",
                remedy="list the batches of every epoch, in the order of training",
            )
        for step, rows in enumerate(problem.batches):
            is_index = not rows.is_floating_point() and rows.dtype != torch.bool
            if not is_index or rows.numel() == 0 or int(rows.min()) < 0 or int(rows.max()) >= problem.train_samples:
                raise InvalidInputError(
                    "A batch holds row numbers of training rows.",
                    got=f"batch {step}: {rows.tolist()[:8]}",
                    remedy=f"a tensor of integers 0..{problem.train_samples - 1}; mask.nonzero().flatten() of a mask",
                )
    if problem.chain is None and problem.network is None:
        raise InvalidInputError("A problem needs a network.", remedy="use Problem.mlp or Problem.like")
    if isinstance(problem.loss, type):
        raise InvalidInputError("The loss is a class.", got=problem.loss.__name__, remedy=f"{problem.loss.__name__}()")
    probe = problem.training_loss(
        torch.zeros(problem.samples, problem.outputs, dtype=inputs.dtype, device=inputs.device)
    )
    if probe.ndim != 0 or not bool(torch.isfinite(probe)):
        raise InvalidInputError(
            "The loss must return one finite number.",
            got=f"{probe}",
            remedy="loss(outputs, targets) with outputs (train, output)",
        )
