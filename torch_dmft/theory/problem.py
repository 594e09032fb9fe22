"""Problem: what a network is trained on and how; the question that every solver answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.core.loss import Loss, default_loss
from torch_dmft.core.numbers import require_whole
from torch_dmft.measurement import Probe
from torch_dmft.parameterization import Plan
from torch_dmft.theory.chain import Chain, HiddenLayer, chain_of
from torch_dmft.theory.checks import check_inputs, check_problem, check_targets, count_outputs, require_list
from torch_dmft.theory.coverage import refuse_unsupported


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
        check_problem(self)
        for name in ("inputs", "targets"):
            object.__setattr__(self, name, getattr(self, name).detach())

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

    def recorded(self, record: Iterable[int] | int | Tensor | None = None) -> Tensor:
        """The steps to keep, sorted and each once: ``(time,)`` integers in 0..steps; None for all.

        Raises:
            InvalidInputError: if one is no step of the run.
        """
        if record is None:
            return torch.arange(self.steps + 1)
        try:
            kept = [record] if isinstance(record, int) else list(record)
            steps = torch.unique(torch.as_tensor(kept))
        except (TypeError, ValueError, RuntimeError):
            steps = torch.zeros(0)
        if (
            record is True
            or len(steps) == 0
            or steps.dtype != torch.int64
            or int(steps[0]) < 0
            or int(steps[-1]) > self.steps
        ):
            raise InvalidInputError(
                f"Steps to record are integers in 0..{self.steps}.",
                got=f"{record}",
                remedy="record=range(0, steps + 1, 10)",
            )
        return steps

    def training_loss(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """The loss on the training rows, or on ``rows`` of them: ``outputs`` is ``(sample, output)``, test rows ignored."""
        predictions, targets = outputs[: self.train_samples].to(self.inputs.device), self.targets
        if targets.is_floating_point():
            targets = targets.reshape(predictions.shape)
        if rows is not None:
            predictions, targets = predictions[rows], targets[rows]
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
        check_inputs(inputs)
        check_targets(targets)
        if len(targets) != len(inputs):
            raise InvalidInputError(
                "Every training input needs its target.",
                got=f"{len(targets)} targets, {len(inputs)} inputs",
                remedy="rows that are not trained on go into test_inputs",
            )
        require_whole("depth", depth, at_least=1, remedy="the number of hidden layers, at least one hidden layer")
        ratios = (1.0,) * depth if width_ratios is None else require_list("width_ratios", width_ratios)
        hidden = tuple(HiddenLayer(activation, gain, bias_std, ratio) for ratio in ratios)
        if len(ratios) != depth or ratios[-1] != 1.0:
            raise InvalidInputError(
                "width_ratios needs one positive number per hidden layer, relative to the last.",
                got=f"{ratios} for depth {depth}",
                remedy="for example width_ratios=[2.0, 1.0] at depth 2",
            )
        rows = inputs
        if test_inputs is not None:
            check_inputs(test_inputs, "test_inputs")
            if test_inputs.shape[1:] != inputs.shape[1:]:
                raise InvalidInputError(
                    "Test inputs differ in shape from training inputs.",
                    got=f"{tuple(test_inputs.shape)} beside {tuple(inputs.shape)}",
                    remedy="rows alike in both",
                )
            rows = torch.cat([inputs, test_inputs.to(inputs)])
        rows, outputs = rows.flatten(1), count_outputs(targets)
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
            batches=None if batches is None else require_list("batches", batches),
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
        if not isinstance(plan, Plan):
            raise InvalidInputError(
                "Only a plan says how its model is scaled.",
                got=type(plan).__name__,
                remedy="pass the plan: plan = parameterize(model, example_input)",
            )
        if not isinstance(probe, Probe):
            raise InvalidInputError("The data are a probe.", got=type(probe).__name__, remedy="Probe(inputs, targets)")
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
            batches=None if batches is None else require_list("batches", batches),
            temperature=temperature,
            optimizer=optimizer,
            chain=chain_of(plan),
            network=plan,
        )
