"""Infinitely wide networks in scikit-learn: its own checks, kernel regression as the lazy limit, and digits."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import torch_dmft as dmft
from torch_dmft.core.errors import ConvergenceError, InsufficientMemoryError, InvalidInputError

SMALL = {"neurons": 128, "replicas": 1, "epochs": 60, "depth": 1, "dtype": "float64"}


@pytest.mark.parametrize("name", ["InfiniteWidthClassifier", "InfiniteWidthRegressor"])
def test_it_is_an_estimator(name: str) -> None:
    """In a process of its own, as annotations are not checked there: `__init__` has to take anything."""
    code = f"""
import warnings, torch, torch_dmft
from sklearn.utils.estimator_checks import check_estimator
torch.set_num_threads(1)
warnings.simplefilter("ignore")
results = check_estimator(torch_dmft.{name}(**{SMALL}), on_fail=None)
failed = {{check["check_name"]: check["exception"] for check in results if check["status"] == "failed"}}
assert len(results) > 40 and not failed, failed
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def waves(seed: int, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    X = random.normal(size=(count, 5))
    return X, np.sin(2 * X[:, 0]) + X[:, 1]


@pytest.mark.parametrize("seed", [0, 1])
def test_lazy_it_is_kernel_regression_and_rich_it_is_not(seed: int) -> None:
    X, y = waves(seed)
    further, _ = waves(seed + 10)
    steps, lr = 60, 0.2
    moved, size = X.mean(0), np.sqrt(np.square(X - X.mean(0)).mean())
    scaled = [torch.as_tensor((rows - moved) / size) for rows in (X, further)]
    problem = dmft.Problem.mlp(
        scaled[0],
        torch.as_tensor((y - y.mean()) / y.std())[:, None],
        depth=2,
        activation="tanh",
        lr=lr,
        steps=steps,
        test_inputs=scaled[1],
    )
    kernel = dmft.solve(problem, dmft.solvers.StaticNTK(), record=[steps]).outputs[-1, len(X) :, 0].numpy()
    off = {}
    for gamma0 in (0.03, 2.0):
        regressor = dmft.InfiniteWidthRegressor(
            gamma0=gamma0,
            activation="tanh",
            lr=lr,
            momentum=0.0,
            epochs=steps,
            validation_fraction=0.0,
            batch_size=len(X),
        ).set_params(random_state=seed, dtype="float64", neurons=1024, replicas=4)
        mean, error = regressor.fit(X, y).predict(further, return_std=True)
        z = (mean - y.mean() - y.std() * kernel) / error
        off[gamma0] = float(np.sqrt(np.square(z).mean()))
    assert off[0.03] < 2
    assert off[2.0] > 4


def test_digits_are_told_apart() -> None:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import RidgeClassifier

    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    train, test = order[:300], order[300:]
    classifier = dmft.InfiniteWidthClassifier(neurons=512, replicas=1, epochs=30, random_state=0).fit(
        X[train], y[train]
    )
    score = classifier.score(X[test], y[test])
    assert score > 0.9
    assert score > RidgeClassifier().fit(X[train], y[train]).score(X[test], y[test]) - 0.02
    assert classifier.n_steps_ % 5 == 0  # epochs of 270 rows
    probabilities = classifier.predict_proba(X[test])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    again = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(again.predict_proba(X[test]), probabilities)


def test_training_stops_where_rows_that_were_held_out_are_told_best() -> None:
    random = np.random.default_rng(0)
    X, y = random.normal(size=(40, 5)), random.integers(0, 2, 40)  # nothing to be learned
    settings = {**SMALL, "epochs": 50, "random_state": 0}
    stopped = dmft.InfiniteWidthClassifier(**settings, validation_fraction=0.3, patience=4).fit(X, y)
    assert len(stopped.validation_losses_) == stopped.n_steps_ + 4  # an epoch is a step here
    assert min(stopped.validation_losses_) == stopped.validation_losses_[stopped.n_steps_ - 1]
    trained = dmft.InfiniteWidthClassifier(**settings, validation_fraction=0.0).fit(X, y)
    assert trained.n_steps_ == 50
    assert trained.validation_losses_ == []


def test_what_it_costs_is_said_before(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = waves(0)
    regressor = dmft.InfiniteWidthRegressor(**SMALL, verbose=True)
    before, drawn = dict(vars(regressor)), torch.get_rng_state()
    cost = regressor.estimate(X, y)
    assert vars(regressor) == before
    regressor.fit(X, y)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert str(cost) in capsys.readouterr().out
    with pytest.raises(InsufficientMemoryError, match=r"fewer neurons"):
        dmft.InfiniteWidthRegressor(neurons=2**20, replicas=64).fit(*waves(0, 4000))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_gains_are_those_of_a_wrapped_network(activation: str) -> None:
    from torch import nn

    from torch_dmft.core.activation import ACTIVATIONS

    X, y = waves(0)
    model = nn.Sequential(nn.Linear(X.shape[1], 64), ACTIVATIONS[activation].module(), nn.Linear(64, 1))
    plan = dmft.parameterize(model, torch.tensor(X[:2], dtype=torch.float32))
    _, problem, _ = dmft.InfiniteWidthRegressor(**SMALL, activation=activation)._posed(X, y)
    assert next(iter(problem.network.gains.values())) == next(
        rule.gain for rule in plan.rules if rule.name == "0.weight"
    )


def test_wrong_settings_are_refused() -> None:
    X, y = waves(0)
    for name, value in {
        "gamma0": 0.0,
        "activation": "swish",
        "lr": -1.0,
        "epochs": 0,
        "batch_size": 0,
        "validation_fraction": 1.0,
        "neurons": 4,
        "replicas": 0,
        "dtype": "float16",
        "momentum": 1.0,
        "weight_decay": -1.0,
        "depth": 0,
    }.items():
        with pytest.raises((InvalidInputError, ValueError), match=rf"{name}"):
            dmft.InfiniteWidthRegressor(**{**SMALL, name: value}).fit(X, y)
    with pytest.raises(InvalidInputError, match=r"replicas=2 or more"):
        dmft.InfiniteWidthRegressor(**SMALL).fit(X, y).predict(X, return_std=True)
    with pytest.raises(ConvergenceError, match=r"lr smaller"):
        dmft.InfiniteWidthRegressor(**{**SMALL, "lr": 1e4}).fit(X, y)


def test_without_scikit_learn_everything_else_is_there() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None; import importlib.util as u\n"
        "find = u.find_spec; u.find_spec = lambda name, *a: None if name == 'sklearn' else find(name, *a)\n"
        "from torch_dmft import *; import torch_dmft\n"
        "try: torch_dmft.InfiniteWidthRegressor\n"
        "except ModuleNotFoundError as error: assert 'torch_dmft[sklearn]' in str(error), error\n"
        "else: raise SystemExit('it came')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_noise_of_the_start_is_said_where_it_is_of_the_size_of_the_targets() -> None:
    X, y = waves(0)
    further, _ = waves(1)
    still = {"lr": 1e-9, "epochs": 1, "validation_fraction": 0.0, "neurons": 256, "replicas": 1, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet = dmft.InfiniteWidthRegressor(**still).fit(X, y)
    with pytest.warns(UserWarning, match=r"0 at infinite width.*gamma0=0.001, neurons=256"):
        noisy = dmft.InfiniteWidthRegressor(gamma0=1e-3, **still).fit(X, y)
    assert noisy.start_ == pytest.approx(1e3 * quiet.start_, rel=1e-2)
    found = np.sqrt(np.square(noisy.predict(further) - y.mean()).mean()) / y.std()  # where the limit says 0
    assert 1 / 3 < found / noisy.start_ < 3
    with pytest.warns(UserWarning, match=r"start"):
        dmft.InfiniteWidthClassifier(gamma0=1e-3, **still).fit(X, y > 0)


def test_rows_that_are_all_the_same_teach_nothing() -> None:
    with pytest.raises(InvalidInputError, match=r"Rows must differ.*6 equal rows"):
        dmft.InfiniteWidthRegressor().fit(np.ones((6, 3)), np.arange(6.0))
