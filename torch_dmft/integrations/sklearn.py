"""Infinitely wide networks as scikit-learn's estimators: ``pip install 'torch_dmft[sklearn]'``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

if find_spec("sklearn") is None:
    raise ModuleNotFoundError("Estimators need scikit-learn. Remedy: pip install 'torch_dmft[sklearn]'", name="sklearn")

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor, nn

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.loss import Loss
from torch_dmft.integrations.estimator import InfiniteWidth


class InfiniteWidthClassifier(ClassifierMixin, InfiniteWidth):  # type: ignore[misc]
    r"""The infinitely wide network that learns features, as a classifier of scikit-learn.

    A chain in the mean-field parameterization, N -> infinity at fixed data and steps,

    .. math:: h^{l+1} = g W^l \phi(h^l) / \sqrt{N}, \qquad f_c = w_c \cdot \phi(h^L) / (\gamma_0 N),

    trained by SGD on the cross entropy of its outputs; solved by ``replicas`` twins of ``neurons`` sampled neurons
    (``solvers.InfiniteWidth``). New rows are passed through the trained twins at O(S k) each, every one as if it were the only
    further sample: predictions do not depend on which rows are asked for together. Inputs are centred, and divided by one
    number, the root mean square of all features. Training stops where the loss of held-out rows is least for the first twin.

    Args:
        gamma0: feature-learning strength; small is the NTK, large is rich.
        depth: L, hidden layers.
        activation: phi, one of ``torch_dmft.core.activation.ACTIVATIONS``; g is sqrt(2) before relu, gelu, silu and their kin,
            as in ``parameterize``, else 1.
        lr: eta; None for a tenth of the rate at which full batches would be unstable at the start, times
            1 - momentum; a quarter of it where that diverges.
        momentum: of SGD.
        weight_decay: of SGD.
        epochs: most passes over the training rows.
        batch_size: rows per step; all of them if there are fewer.
        validation_fraction: share of the rows that is held out to stop by; 0 to train all epochs on all rows.
        patience: epochs without a smaller loss of the held-out rows after which training stops.
        neurons: S, neurons per twin and layer.
        replicas: R, independent twins; outputs are means over them.
        tolerance: of the bases, see ``solvers.InfiniteWidth``.
        random_state: seed of the split, of the batches and of the twins.
        device: where it is computed.
        dtype: "float32" or "float64".
        verbose: print the estimate of memory and time before work begins, and show progress.

    Attributes:
        classes_: labels, ``(class,)``.
        n_steps_: steps that they were trained.
        lr_: eta.
        validation_losses_: of the first twin after every epoch at ``lr_``, if rows were held out.
        start_: root mean square of outputs before training, of rows not yet met: 0 at infinite width, noise in a sample of
            neurons, in proportion to 1 / (gamma0 sqrt(neurons)). Above 0.2 ``fit`` warns.

    Source: Bordelon & Pehlevan 2022, eqs. 9 and 10; rows alone: ``torch_dmft.theory.engine.closed``.

    Example:
        >>> from sklearn.datasets import load_digits  # doctest: +SKIP
        >>> X, y = load_digits(return_X_y=True)  # doctest: +SKIP
        >>> InfiniteWidthClassifier(gamma0=2.0).fit(X[:500], y[:500]).score(X[500:], y[500:])  # doctest: +SKIP
    """

    def fit(self, X: Any, y: Any) -> InfiniteWidthClassifier:
        """Train on rows ``(sample, feature)`` and labels ``(sample,)``."""
        self._fit(X, y)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Mean outputs f, ``(sample, class)``; of two classes the difference of theirs, ``(sample,)``."""
        mean = self._outputs(X).mean(0)
        return mean[:, 1] - mean[:, 0] if len(self.classes_) == 2 else mean

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, softmax of the mean outputs: ``(sample, class)``."""
        outputs = self._outputs(X).mean(0)
        return np.asarray(softmax(outputs, axis=1))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row."""
        likeliest = self._outputs(X).mean(0).argmax(1)
        labels: np.ndarray = self.classes_[likeliest]
        return labels

    def _encoded(self, y: np.ndarray) -> Tensor:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self.classes_, encoded = np.unique(y, return_inverse=True)
        self._classes = len(self.classes_)
        if self._classes < 2:
            raise InvalidInputError("A classifier needs two classes.", got="1 class", remedy="rows of another class")
        return torch.as_tensor(encoded)

    def _loss(self) -> Loss:
        return nn.CrossEntropyLoss()


class InfiniteWidthRegressor(RegressorMixin, InfiniteWidth):  # type: ignore[misc]
    """The infinitely wide network that learns features, as a regressor of scikit-learn.

    As ``InfiniteWidthClassifier``, with the mean squared error. Targets are centred and divided by their standard deviation.
    ``predict(X, return_std=True)`` gives standard errors too: they are of sampling, and not of the data.

    Args:
        gamma0: feature-learning strength.
        depth: hidden layers.
        activation: phi.
        lr: eta, or None.
        momentum: of SGD.
        weight_decay: of SGD.
        epochs: most passes over the training rows.
        batch_size: rows per step.
        validation_fraction: share of the rows that is held out to stop by.
        patience: epochs without a smaller loss of the held-out rows.
        neurons: S.
        replicas: R.
        tolerance: of the bases.
        random_state: seed.
        device: where it is computed.
        dtype: "float32" or "float64".
        verbose: show cost and progress.

    Attributes:
        n_steps_: steps that they were trained.
        lr_: eta.
        validation_losses_: of the first twin after every epoch at ``lr_``, in units of the targets' variance.
        start_: outputs before training, in units of the targets' deviation; see ``InfiniteWidthClassifier``.

    Example:
        >>> InfiniteWidthRegressor(gamma0=1.0).fit(X, y).predict(X, return_std=True)  # doctest: +SKIP
    """

    def __sklearn_tags__(self) -> Any:
        """That there may be several targets."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> InfiniteWidthRegressor:
        """Train on rows ``(sample, feature)`` and targets ``(sample,)`` or ``(sample, output)``."""
        self._fit(X, y)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Mean outputs, and if asked for their standard errors, in the units and the shape of the targets."""
        outputs = self._outputs(X)
        mean = self._shift + self._spread_of_targets * outputs.mean(0)
        mean = mean[:, 0] if self._flat else mean
        if not return_std:
            return mean
        errors = self._spread_of_targets * self._spread(outputs)
        return mean, errors[:, 0] if self._flat else errors

    def _encoded(self, y: np.ndarray) -> Tensor:
        self._flat = y.ndim == 1
        columns = y.reshape(len(y), -1).astype(float)
        self._shift, spread = columns.mean(axis=0), columns.std(axis=0)
        self._spread_of_targets = np.where(spread > 0, spread, 1.0)
        scaled = (columns - self._shift) / self._spread_of_targets
        return torch.as_tensor(scaled).to(getattr(torch, self.dtype))

    def _loss(self) -> Loss:
        return nn.MSELoss()
