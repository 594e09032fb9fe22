"""What the estimators for scikit-learn share: how infinitely wide chains are posed, trained and asked."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from torch_dmft.core.activation import ACTIVATIONS
from torch_dmft.core.errors import ConvergenceError, InvalidInputError
from torch_dmft.core.loss import Loss
from torch_dmft.core.numbers import require_choice, require_number, require_whole
from torch_dmft.core.random_state import random_state_kept
from torch_dmft.measurement import Probe
from torch_dmft.parameterization import parameterize
from torch_dmft.parameterization.rules import usual_gain
from torch_dmft.theory.cost import Cost, twin_cost
from torch_dmft.theory.engine.fitted import Fitted, HeldOut, fit_twins
from torch_dmft.theory.error_bars import error_of_mean
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.tolerance import balanced_tolerance

_FRACTION = 0.1
"""Of the rate at which full batches are unstable at the start: batches are smaller, and kernels grow with what is learned."""
_LOWER, _ATTEMPTS = 0.25, 6
"""By what the rate is multiplied where training diverges even so, and how often."""
_NOISY = 0.2
"""Outputs at the start, 0 at infinite width, above which a fit warns: of regressors in units of the targets' deviation."""
_PROBE_WIDTH, _PROBE_ROWS = 512, 256
"""Of the finite network that a learning rate is suggested for, and most rows that it is suggested on."""


class InfiniteWidth(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: how infinitely wide chains are trained and asked. See ``InfiniteWidthClassifier``."""

    def __init__(
        self,
        *,
        gamma0: float = 1.0,
        depth: int = 2,
        activation: str = "relu",
        lr: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        epochs: int = 100,
        batch_size: int = 64,
        validation_fraction: float = 0.1,
        patience: int = 10,
        neurons: int = 2048,
        replicas: int = 2,
        tolerance: float | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        verbose: bool = False,
    ) -> None:
        self.gamma0, self.depth, self.activation = gamma0, depth, activation
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.epochs, self.batch_size = epochs, batch_size
        self.validation_fraction, self.patience = validation_fraction, patience
        self.neurons, self.replicas, self.tolerance = neurons, replicas, tolerance
        self.random_state, self.device, self.dtype, self.verbose = random_state, device, dtype, verbose

    def estimate(self, X: Any, y: Any) -> Cost:
        """Memory and time that ``fit`` will need at most, on one CPU core; ``print`` it."""
        self._require_settings()
        given = self.__dict__.copy()
        try:
            _, problem, _ = self._posed(X, y)
        finally:  # what it learns of the data is not kept
            self.__dict__.clear()
            self.__dict__.update(given)
        return self._cost(problem)

    def _cost(self, problem: Problem) -> Cost:
        unmeasured = replace(problem, probe=torch.arange(2, device="cpu"))
        cost = twin_cost(unmeasured, neurons=self.neurons, replicas=self.replicas, recorded=1, two_time=False)
        return replace(cost, memory=cost.memory * (self.replicas + 1), most=True)  # all are kept, and the best of one

    def _fit(self, X: Any, y: Any) -> None:
        self._require_settings()
        generator, problem, held_out = self._posed(X, y)
        cost = self._cost(problem)
        if self.verbose:
            print(cost)
        cost.admit(problem, remedy="fewer neurons")
        seed = int(generator.randint(2**31))
        for attempt in range(_ATTEMPTS):
            try:
                self._fitted = self._trained(problem, held_out, seed)
            except ConvergenceError:
                if self.lr is not None or attempt == _ATTEMPTS - 1:
                    raise
                problem = _slower(problem)
            else:
                break
        self.n_steps_, self.lr_ = self._fitted.steps, float(problem.training.number("lr"))
        self.start_ = self._fitted.start
        if not self.start_ <= _NOISY:
            warnings.warn(
                f"Outputs start at {self.start_:.2g}, where they are 0 at infinite width: predictions have as much noise of "
                f"the sample of neurons, which falls like 1 / (gamma0 sqrt(neurons)). Got: gamma0={self.gamma0:g}, neurons="
                f"{self.neurons}. Remedy: more neurons, four times as many as rows in a batch at least, or a larger gamma0.",
                stacklevel=3,
            )
        self.validation_losses_ = [] if held_out is None else held_out.losses

    def _trained(self, problem: Problem, held_out: HeldOut | None, seed: int) -> Fitted:
        usual = balanced_tolerance(problem, self.neurons * self.replicas)
        return fit_twins(
            problem,
            self.neurons,
            self.replicas,
            usual if self.tolerance is None else self.tolerance,
            torch.Generator().manual_seed(seed),
            held_out,
            progress=self.verbose,
        )

    def _require_settings(self) -> None:
        require_number("gamma0", self.gamma0, above=0)
        require_whole("depth", self.depth, at_least=1)
        require_choice("activation", self.activation, tuple(ACTIVATIONS))
        require_whole("epochs", self.epochs, at_least=1)
        require_whole("batch_size", self.batch_size, at_least=1)
        require_whole("patience", self.patience, at_least=1)
        require_whole("neurons", self.neurons, at_least=16)
        require_whole("replicas", self.replicas, at_least=1)
        require_number("momentum", self.momentum, at_least=0, below=1)
        require_number("weight_decay", self.weight_decay, at_least=0)
        require_number("validation_fraction", self.validation_fraction, at_least=0, below=1)
        require_choice("dtype", self.dtype, ("float32", "float64"))
        if self.lr is not None:
            require_number("lr", self.lr, above=0)

    def _posed(self, X: Any, y: Any) -> tuple[np.random.RandomState, Problem, HeldOut | None]:
        """The problem, and the rows that are held out; learns how inputs and targets are scaled."""
        X, y = validate_data(
            self, X, y, multi_output=True, y_numeric=isinstance(self, RegressorMixin), ensure_min_samples=2
        )
        generator = check_random_state(self.random_state)
        targets = self._encoded(y)
        self._center = np.asarray(X, dtype=float).mean(axis=0)
        self._size = float(np.sqrt(np.square(X - self._center).mean())) or 1.0
        if (X[:1] == X).all():
            what = "Rows must differ, as inputs are centred and nothing would be left of them."
            raise InvalidInputError(what, got=f"{len(X)} equal rows", remedy="features that vary")
        rows, held = self._split(np.arange(len(X)), targets, generator)
        inputs, targets = self._inputs(X), targets.to(self.device)
        size = min(self.batch_size, len(rows))
        self._epoch = -(-len(rows) // size)
        order = torch.Generator().manual_seed(int(generator.randint(2**31)))
        batches = [
            batch for _ in range(self.epochs) for batch in torch.randperm(len(rows), generator=order).split(size)
        ]
        gain = usual_gain(self.activation)
        loss = self._loss()
        problem = Problem.mlp(
            inputs[rows],
            targets[rows],
            depth=self.depth,
            activation=self.activation,
            gamma0=self.gamma0,
            loss=loss,
            lr=self._rate(inputs[rows], targets[rows], loss, gain) if self.lr is None else self.lr,
            steps=len(batches),
            batches=None if size == len(rows) else batches,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            gain=gain,
        )
        if not len(held):
            return generator, problem, None
        return generator, problem, HeldOut(inputs[held], targets[held], loss, self._epoch, self.patience)

    def _rate(self, inputs: Tensor, targets: Tensor, loss: Loss, gain: float) -> float:
        """A tenth of the rate at which full batches become unstable, with what momentum makes of it."""
        outputs = targets.shape[1] if targets.ndim > 1 else self._classes
        sizes = [inputs.shape[1], *[_PROBE_WIDTH] * self.depth]
        layers: list[nn.Module] = []
        with random_state_kept():  # the numbers of torch's layers are drawn anew
            for one, two in itertools.pairwise(sizes):
                layers += [nn.Linear(one, two, bias=False), ACTIVATIONS[self.activation].module()]
            model = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs, bias=False)).to(inputs)
        some = slice(_PROBE_ROWS)
        plan = parameterize(model, inputs[:2], self.gamma0, gain=gain, generator=torch.Generator().manual_seed(0))
        suggested = plan.suggest_lr(Probe(inputs[some], targets[some]), loss=loss, fraction=_FRACTION)
        return float(suggested) * (1 - self.momentum)

    def _inputs(self, X: np.ndarray) -> Tensor:
        scaled = (X - self._center) / self._size
        return torch.as_tensor(scaled, device=self.device).to(getattr(torch, self.dtype))

    def _split(
        self, rows: np.ndarray, targets: Tensor, generator: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows that are trained on, and rows that training is stopped by: of every class the same share."""
        held = int(self.validation_fraction * len(rows))
        if held == 0 or len(rows) - held < 2:
            return rows, rows[:0]
        classes = targets.cpu().numpy() if not targets.is_floating_point() else None
        if classes is not None and (np.bincount(classes).min() < 2 or held < self._classes):
            classes = None
        one, two = train_test_split(rows, test_size=held, random_state=generator, stratify=classes)
        return np.sort(one), np.sort(two)

    def _outputs(self, X: Any) -> np.ndarray:
        """F of rows for every replica: ``(replica, row, output)``."""
        check_is_fitted(self)
        inputs = self._inputs(validate_data(self, X, reset=False))
        outputs: np.ndarray = self._fitted.outputs(inputs).double().cpu().numpy()
        return outputs

    def _spread(self, outputs: np.ndarray) -> np.ndarray:
        """Standard errors of the mean over replicas, 1.96 of which are half a 95% interval of Student's t."""
        if len(outputs) < 2:
            raise InvalidInputError(
                "One replica has no standard error.", got=f"replicas={len(outputs)}", remedy="replicas=2 or more"
            )
        variance = torch.as_tensor(outputs).var(0)
        pooled = variance.mean(0, keepdim=True)  # few replicas know the variance of all rows together
        own = len(outputs) - 1
        extra = min(8, own * (len(variance) - 1))
        errors: np.ndarray = error_of_mean(
            (own * variance + extra * pooled) / (own + extra), own + extra, own + 1
        ).numpy()
        return errors

    def _encoded(self, y: np.ndarray) -> Tensor:
        raise NotImplementedError

    def _loss(self) -> Loss:
        raise NotImplementedError


def _slower(problem: Problem) -> Problem:
    """The same problem at a lower rate."""
    numbers = dict(problem.training.numbers)
    numbers["lr"] = _LOWER * numbers["lr"]
    return replace(problem, training=replace(problem.training, numbers=numbers))
