"""Features move alike at every width, in proportion to gamma0, and the check sees where they do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests import transformer
from tests.architecture.models import ResidualMLP
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.parameterization import coordinate_check


@pytest.fixture(autouse=True)
def biases() -> Iterator[None]:
    """PyTorch draws them, which the check keeps, from its own source: by chance an exponent of 0.08 is 0.10."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        yield


def mlp(width: int) -> nn.Module:
    layers = (nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    return nn.Sequential(*layers)


def normed(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, width),
        nn.LayerNorm(width),
        nn.ReLU(inplace=True),
        nn.Linear(width, width),
        nn.ReLU(inplace=True),
        nn.Linear(width, 1),
    )


def residual(width: int) -> nn.Module:
    return ResidualMLP(width)


@pytest.fixture
def regression(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(16, 5, generator=generator)
    return x, torch.sin(x[:, :1])


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adam", 0.03)])
@pytest.mark.parametrize(("factory", "gamma0"), [(mlp, 0.3), (mlp, 1.0), (normed, 1.0), (residual, 1.0)])
def test_updates_do_not_depend_on_width(factory, gamma0, optimizer, lr, regression, generator) -> None:
    inputs, targets = regression
    targets = targets.expand(-1, 2) if factory is residual else targets
    check = coordinate_check(factory, inputs, targets, lr=lr, gamma0=gamma0, optimizer=optimizer, generator=generator)
    assert check.passed, str(check)
    assert all(abs(exponent) <= 0.1 for exponent in check.exponents.values())


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.05), ("adam", 0.02)])
def test_updates_of_a_convolutional_network(optimizer, lr, generator) -> None:
    inputs = torch.randn(8, 3, 6, 6, generator=generator)
    targets = torch.randn(8, 2, generator=generator)

    def cnn(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 2),
        )

    check = coordinate_check(
        cnn, inputs, targets, widths=(64, 128, 256), seeds=4, lr=lr, optimizer=optimizer, generator=generator
    )
    assert check.passed, str(check)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), pytest.param("adam", 0.03, marks=pytest.mark.long)])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_updates_of_a_transformer_need_scores_over_d(power, optimizer, lr, generator) -> None:
    inputs, targets = transformer.data(6, generator)

    def factory(width: int) -> nn.Module:
        # A factor that is stored when the model is built hides the square root from ``describe``.
        return transformer.Transformer(width, scale=(width / transformer.HEADS) ** (1 - power))

    check = coordinate_check(factory, inputs, targets, lr=lr, optimizer=optimizer, wider=False, generator=generator)
    assert check.passed is (power == 1), str(check)
    assert (check.exponents["blocks.0.attention.out"] > 0.1) is (power < 1), str(check)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), pytest.param("adam", 0.03, marks=pytest.mark.long)])
def test_two_widths_see_a_stored_factor_and_fold_it_into_the_queries(optimizer, lr, generator) -> None:
    inputs, targets = transformer.data(6, generator)

    def factory(width: int) -> nn.Module:
        return transformer.Transformer(width, scale=(width / transformer.HEADS) ** 0.5)

    check = coordinate_check(factory, inputs, targets, lr=lr, optimizer=optimizer, generator=generator)
    assert check.passed, str(check)


def test_exponents_have_errors_that_shrink_with_the_seeds(regression, generator) -> None:
    few, many = (
        coordinate_check(mlp, *regression, widths=(16, 32), seeds=seeds, generator=generator) for seeds in (16, 64)
    )
    for layer in many.layers:
        # 2 times, within what 15 degrees of freedom leave open in one of a thousand.
        assert 1 < few.exponent_errors[layer] / many.exponent_errors[layer] < 4
        assert abs(few.exponents[layer] - many.exponents[layer]) < 4 * few.exponent_errors[layer]


def test_dropout_frozen_layers_and_divergence(regression, generator) -> None:
    def factory(width: int) -> nn.Module:
        model = mlp(width)
        model[2].requires_grad_(False)
        return nn.Sequential(*model[:2], nn.Dropout(0.5), *model[2:])

    check = coordinate_check(factory, *regression, widths=(64, 256), seeds=16, generator=generator)
    assert check.passed, str(check)
    assert check.layers == ("0", "5")
    wild = coordinate_check(mlp, *regression, widths=(16, 32), lr=1e15, steps=40, seeds=2, generator=generator)
    assert set(wild.verdicts.values()) == {"diverged"}
    still = coordinate_check(mlp, *regression, widths=(16, 32), lr=0.0, seeds=2, generator=generator)
    assert set(still.verdicts.values()) == {"did not move"}
    assert "nan" in str(still)


def test_features_move_in_proportion_to_gamma0_and_outputs_do_not(regression, generator) -> None:
    gammas = (0.1, 0.2, 0.4)
    checks = [
        coordinate_check(mlp, *regression, widths=(256, 512), gamma0=gamma0, generator=generator) for gamma0 in gammas
    ]
    x = torch.tensor(gammas, dtype=torch.float64).log()
    y = torch.stack([check.updates[:, 1] for check in checks]).log()
    x = x - x.mean()
    slopes = (x @ y) / (x @ x)
    assert torch.allclose(slopes, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), rtol=0, atol=0.2)


def test_the_lazy_scheme_fails_in_every_hidden_layer(regression, generator) -> None:
    check = coordinate_check(mlp, *regression, scheme="ntk", generator=generator)
    assert check.verdicts == {"0": "vanishes with width", "2": "vanishes with width", "4": "stable"}
    assert check.exponents["2"] == pytest.approx(-0.5, abs=0.2)
    assert not check.passed
    assert "vanishes with width" in str(check)


def test_one_width_has_no_slope(regression) -> None:
    with pytest.raises(InvalidInputError, match="two widths"):
        coordinate_check(mlp, *regression, widths=(64,))


def test_other_layers_at_other_widths_are_refused(regression) -> None:
    def factory(width: int) -> nn.Module:
        return mlp(width) if width < 32 else normed(width)

    with pytest.raises(InvalidInputError, match="the same model at another width"):
        coordinate_check(factory, *regression, widths=(16, 32))
    with pytest.raises(InvalidInputError, match="the same layers at every width"):
        coordinate_check(factory, *regression, widths=(16, 32), wider=False)


class Routed(nn.Module):
    """Every row goes to the experts that a threshold in its features says, which training moves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, width), nn.Linear(width, 1)
        self.one, self.other = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        goes = h[:, 0] > h[:, 1]
        out = torch.zeros_like(h).index_put((goes,), self.one(h[goes])).index_put((~goes,), self.other(h[~goes]))
        return self.head(torch.tanh(out))


def test_experts_whose_rows_change_in_training_are_left_out(generator: torch.Generator) -> None:
    inputs, targets = torch.randn(64, 4, generator=generator), torch.ones(64, 1)
    check = coordinate_check(Routed, inputs, targets, widths=(16, 32), lr=0.3, seeds=4, wider=True, generator=generator)
    assert check.layers == ("first", "head")
