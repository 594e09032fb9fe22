"""Problem: what a network is trained on and how; the question that every solver answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torch_dmft.core.arguments import checked, checks_itself
from torch_dmft.core.classes import one_hot_rows
from torch_dmft.core.equality import by_value
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.loss import Loss, as_the_loss_takes_them, default_loss
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.own_arithmetic import ordinary, own_arithmetic
from torch_dmft.core.training import Training
from torch_dmft.measurement import Probe
from torch_dmft.parameterization import Plan
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.checks import check_loss, check_problem, checked_training, count_outputs
from torch_dmft.theory.mlp import chain_rows, equal_layers, numbers_of
from torch_dmft.theory.muon import beside_muon, rest_of_chain, rest_of_plan
from torch_dmft.theory.network import ChainNetwork, Network
from torch_dmft.theory.objective import Objective, descent
from torch_dmft.theory.printed import with_prints
from torch_dmft.theory.recorded import count_recorded, recorded_steps
from torch_dmft.uses.outputs import Example, Selection, copied, count, tensors


@checked
@by_value
@dataclass(frozen=True)
class Problem:
    """A training run without a width: data, loss, how it is trained, and which network.

    Build it with ``Problem.mlp`` or ``Problem.like`` before training, or with ``recorder.problem()`` of a run.

    Attributes:
        inputs: ``(sample, ...)``, training rows first, then other rows; of a wrapped model whatever its ``forward`` takes, as
            in ``Probe``.
        targets: targets of the training rows as the loss takes them, ``(train, output)`` or ``(train,)`` floats, ``(train,)``
            classes, or ``(train, place)`` of them.
        loss: ``loss(outputs, targets) -> scalar`` with its own reduction; outputs are ``(train, output)``.
        training: optimizer, rates, steps, batches (rows of the training rows), gamma0, and all else that decides a step.
        network: what is trained.
        probe: ``(kept,)``, the rows that kernels are kept of and that answers are about; None for all of them.
    """

    inputs: Example
    targets: Tensor
    loss: Loss
    training: Training
    network: Network
    probe: Tensor | None = None

    def __repr__(self) -> str:
        """One line."""
        network = type(self.network).__name__ if self.chain is None else f"chain of depth {self.chain.depth}"
        return (
            f"Problem({network}, {self.train_samples} training rows of {self.samples}, {self.outputs} outputs, "
            f"gamma0={self.gamma0:g}, {self.training.optimizers}, lr={self.training.rate}, steps={self.steps})"
        )

    @own_arithmetic()
    def __post_init__(self) -> None:
        """Refuse problems that no solver can solve."""
        check_problem(self)
        inputs = ordinary(self.inputs.detach()) if isinstance(self.inputs, Tensor) else copied(self.inputs)
        for name, value in (("inputs", inputs), ("targets", ordinary(self.targets.detach()))):
            object.__setattr__(self, name, value)
        settled = as_the_loss_takes_them(self.loss, self.zeros(self.train_samples), self.targets)
        object.__setattr__(self, "targets", settled)
        check_loss(self)
        object.__setattr__(
            self, "training", with_prints(self.training, self.inputs, self.targets, self.loss, self.outputs)
        )

    @property
    def selection(self) -> Selection | None:
        """Which part of what the model returns is f; None for the usual one."""
        return self.network.selection

    @property
    def factory(self) -> Callable[[int], nn.Module] | None:
        """What builds the model at any width, if it was wrapped with ``wider=`` such a function."""
        return None if self.network.plan is None else self.network.plan.wrapping.factory

    @property
    def chain(self) -> Chain | None:
        """The network as a dense chain, or None if it is something else."""
        return self.network.chain

    @property
    def outputs(self) -> int:
        """C."""
        return self.network.outputs

    @property
    def samples(self) -> int:
        """Rows in all, training and other rows."""
        return count(self.inputs)

    @property
    def tensor(self) -> Tensor:
        """The inputs, where they are one tensor of numbers or tokens, as theory needs them.

        Raises:
            UnsupportedProblemError: if they are not.
        """
        return numbers_of(self.inputs)

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return tensors(self.inputs)[0].device

    def zeros(self, rows: int) -> Tensor:
        """Outputs of zero: ``(rows, output)``."""
        require_whole("rows", rows, at_least=0)
        return torch.zeros(rows, self.outputs, dtype=self.dtype, device=self.device)

    @property
    def train_samples(self) -> int:
        """P, the number of training rows."""
        return len(self.targets)

    @property
    def train(self) -> Tensor:
        """``(sample,)`` bool mask of the training rows."""
        return torch.arange(self.samples, device=self.device) < self.train_samples

    @property
    def kept(self) -> Tensor:
        """``(kept,)``, the rows that answers are about."""
        return torch.arange(self.samples, device=self.device) if self.probe is None else self.probe

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the inputs, or of the network where they are no numbers; solvers answer in it."""
        is_one = isinstance(self.inputs, Tensor) and self.inputs.is_floating_point()
        return tensors(self.inputs)[0].dtype if is_one else self.network.dtype

    @property
    def steps(self) -> int:
        """T."""
        return self.training.steps

    @property
    def gamma0(self) -> float:
        """Feature-learning strength."""
        return self.training.gamma0

    @property
    def lr(self) -> float:
        """Eta, the base learning rate of all steps; refused if it changes, where ``training.lr`` has it step by step."""
        return self._constant("lr")

    @property
    def momentum(self) -> float:
        """Beta, likewise."""
        return self._constant("momentum")

    @property
    def weight_decay(self) -> float:
        """Lambda, likewise."""
        return self._constant("weight_decay")

    @property
    def temperature(self) -> float:
        """T of Langevin noise."""
        return self.training.temperature

    @property
    def batches(self) -> tuple[Tensor, ...] | None:
        """The training rows of every step; None for all of them."""
        return self.training.batches

    def _constant(self, name: str) -> float:
        value = self.training.number(name)
        if isinstance(value, Tensor):
            raise InvalidInputError(
                f"The {name} of this training changes from step to step.", remedy=f"problem.training.at({name!r}, step)"
            )
        return value

    def trained(self, **changes: Any) -> Problem:
        """The same problem trained otherwise: numbers such as ``lr`` and ``momentum``, or fields of ``Training``."""
        fields = {name: value for name, value in changes.items() if name in Training.__dataclass_fields__}
        numbers = {name: value for name, value in changes.items() if name not in fields}
        return replace(self, training=replace(self.training, **fields).with_numbers(**numbers))

    @property
    def input_kernel(self) -> Tensor:
        """K^x = X X^T / D: ``(sample, sample)``."""
        flat = self.tensor.flatten(1)
        return flat @ flat.T / flat.shape[1]

    @property
    def target_values(self) -> Tensor:
        """Targets as floats ``(train, output)``, one-hot for integer classes."""
        if self.targets.is_floating_point():
            return self.targets.reshape(self.train_samples, -1)
        return one_hot_rows(self.targets, self.outputs).to(self.dtype)

    def batch(self, step: int) -> Tensor | None:
        """Rows that the update of this step sees, or None for all training rows."""
        states = self.steps if self.batches is None else max(self.steps - 1, 0)  # the last state has an error, too
        require_whole("step", step, at_least=0, at_most=states)
        return None if self.batches is None else self.batches[step]

    def rows_of(self, step: int) -> Tensor:
        """Rows that the update of this step sees: ``(row,)``."""
        rows = self.batch(step)
        return torch.arange(self.train_samples, device=self.device) if rows is None else rows

    def recorded(self, record: Iterable[int] | int | Tensor | None = None) -> Tensor:
        """The steps to keep, sorted and each once: ``(time,)`` integers in 0..steps; None for all.

        Raises:
            InvalidInputError: if one lies outside the run.
        """
        return recorded_steps(record, self.steps)

    def number_recorded(self, record: Iterable[int] | int | Tensor | None = None) -> int:
        """How many steps ``recorded`` would keep; those of a range, and all, are not listed.

        Raises:
            InvalidInputError: if one lies outside the run.
        """
        return count_recorded(record, self.steps)

    @property
    def _objective(self) -> Objective:
        """The loss on the training rows, and its gradient."""
        return Objective(self.loss, self.targets, self.outputs, self.device, self.dtype)

    def loss_on(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """The loss of the outputs ``(row, output)`` of some training rows."""
        return self._objective.on(outputs, rows)

    def training_loss(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """The loss on the training rows, or on ``rows`` of them: ``outputs`` is ``(sample, output)``, other rows ignored."""
        return self._objective.among(outputs, rows)

    def kept_loss(self, outputs: Tensor) -> Tensor:
        """The loss on those training rows that answers are about: ``outputs`` is ``(kept, output)``.

        NaN if none of them is.
        """
        self._objective.require_outputs(outputs, len(self.kept))
        if self.probe is None:
            return self.training_loss(outputs)
        mine = self.probe < self.train_samples
        if not bool(mine.any()):
            return outputs.new_full((), torch.nan)
        return self.loss_on(outputs[mine.to(outputs.device)], self.probe[mine])

    def error(self, outputs: Tensor, step: int) -> Tensor:
        """The error signal of a step, Delta = -dL/df: ``(sample, output)``, zero on rows that the step does not see."""
        return descent(outputs, lambda at: self.training_loss(at, self.batch(step)))

    def error_on(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """The error signal of the outputs of some training rows: ``(row, output)``."""
        return descent(outputs, lambda at: self.loss_on(at, rows))

    @classmethod
    @checks_itself
    def mlp(
        cls,
        inputs: Tensor,
        targets: Tensor,
        *,
        depth: int = 1,
        activation: str = "tanh",
        gamma0: float = 1.0,
        loss: Loss | None = None,
        lr: float | Sequence[float] | Tensor = 0.1,
        steps: int = 100,
        gain: float = 1.0,
        bias_std: float | None = None,
        momentum: float | None = None,
        weight_decay: float = 0.0,
        width_ratios: Sequence[float] | None = None,
        batches: Sequence[Tensor] | None = None,
        test_inputs: Tensor | None = None,
        temperature: float = 0.0,
        optimizer: str = "sgd",
        others: Mapping[str, Any] | None = None,
        rule: str = "gradient",
        rho: float = 0.0,
        **numbers: float | int | bool,
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
            lr: eta, the base learning rate, or one for every step.
            steps: number of optimizer steps.
            gain: g of every hidden weight (sqrt 2 keeps ReLU alive).
            bias_std: standard deviation of the initial biases of the hidden layers; None for no biases.
            momentum: beta; None for torch's default, 0 of SGD and 0.95 of Muon.
            weight_decay: lambda, inside of the momentum as ``torch.optim.SGD`` has it; outside with ``decoupled=True``.
            width_ratios: N_l / N_L for l = 1..L, the last of them 1.
            batches: one index tensor into the training rows per step.
            test_inputs: ``(test, D)`` further rows to predict, appended after the training rows.
            temperature: T of Langevin noise.
            optimizer: "sgd", "adam", "adamw" or "muon". Adam has betas instead of momentum; Muon trains hidden matrices alone.
            others: beside Muon, how everything else is trained: ``optimizer`` ("sgd", "adam" or "adamw"), ``lr`` and its other
                settings; None for "adamw" at the rate of Muon.
            rule: what hidden weights learn by: "gradient", "feedback_alignment", "direct_feedback_alignment" or "hebb"; see
                ``learning_rule``.
            rho: of feedback alignment, the correlation of backward and initial weights.
            **numbers: further settings as torch names them: ``dampening``, ``nesterov``, ``decoupled`` of SGD, ``beta1``,
                ``beta2``, ``eps`` of Adam, ``nesterov``, ``ns_steps``, ``ns_a`` to ``ns_c`` (its ``ns_coefficients``) and
                ``eps`` of Muon, with ``exact=True`` for the polar factor in the place of its iteration.

        Raises:
            InvalidInputError: for shapes or values that do not fit, each with its remedy.
        """
        rows = chain_rows(inputs, targets, test_inputs)
        hidden = equal_layers(depth, activation, gain, bias_std, width_ratios)
        training = checked_training(
            lr, steps, gamma0, momentum, weight_decay, batches, temperature=temperature, optimizer=optimizer, **numbers
        )
        network = ChainNetwork.unnamed(Chain(rows.shape[-1], hidden, count_outputs(targets)))
        rest = rest_of_chain(network.chain, network.paths) if optimizer == "muon" else []
        training = replace(beside_muon(training, others, rest), rule=rule, rho=rho)
        return cls(rows, targets, default_loss(targets) if loss is None else loss, training, network)

    @classmethod
    def like(
        cls,
        plan: Plan,
        probe: Probe,
        *,
        lr: float | Sequence[float] | Tensor,
        steps: int,
        loss: Loss | None = None,
        momentum: float | None = None,
        weight_decay: float = 0.0,
        batches: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        optimizer: str = "sgd",
        others: Mapping[str, Any] | None = None,
        rule: str = "gradient",
        rho: float = 0.0,
        assume_gaussian: bool = False,
        **numbers: float | int | bool,
    ) -> Problem:
        """The problem of training a wrapped model: same data, loss, schedule and architecture, at infinite width.

        Of a run that was recorded, ``recorder.problem()`` poses the same without typing the settings again.

        Args:
            plan: what ``parameterize`` returned (schemes "mean_field" and "ntk").
            probe: the data, with targets; its training rows are all that is trained on.
            lr: eta, the base rate given to ``plan.param_groups``, or that of every step.
            steps: number of steps of the optimizer.
            loss: the training loss; default ``nn.MSELoss()`` for floats, ``nn.CrossEntropyLoss()`` for classes.
            momentum: the optimizer's momentum; None for torch's default, 0 of SGD and 0.95 of Muon.
            weight_decay: the weight decay given to ``plan.param_groups``, inside of the momentum as ``torch.optim.SGD`` has it;
                outside with ``decoupled=True``.
            batches: one index tensor into the training rows per step; None for full-batch training.
            temperature: T of Langevin noise, which your loop brings; without momentum by a noise in the gradients,
                ``p.grad += torch.randn_like(p) * math.sqrt(2 * T / (group["lr"] * plan.width)) / plan.gamma0``.
            optimizer: "sgd" for ``torch.optim.SGD``, "adam" or "adamw" for ``torch.optim.Adam`` or ``AdamW``, as given to
                ``plan.param_groups``, or "muon" for ``torch.optim.Muon`` of all hidden matrices.
            others: beside Muon, how everything else is trained, as ``Problem.mlp`` takes it.
            rule: what hidden weights will learn by, likewise; train inside ``learning_rule``.
            rho: of feedback alignment.
            assume_gaussian: take weights that start otherwise (``init="keep"``, orthogonal, pretrained) for Gaussian numbers of
                their size.
            **numbers: further settings, as ``Problem.mlp`` takes them.

        Raises:
            UnsupportedProblemError: if the plan's scheme or the initial weights do not have this infinite-width limit.
            InvalidInputError: if the probe lacks targets.
        """
        from torch_dmft.theory.posing import problem_like  # it makes problems

        training = checked_training(
            lr, steps, 1.0, momentum, weight_decay, batches, temperature=temperature, optimizer=optimizer, **numbers
        )
        rest = rest_of_plan(plan) if optimizer == "muon" and isinstance(plan, Plan) else []
        training = replace(beside_muon(training, others, rest), rule=rule, rho=rho)
        return problem_like(plan, probe, training, loss, assume_gaussian=assume_gaussian)
