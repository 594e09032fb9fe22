"""Error bars of few replicas: how often they cover in models whose truth is known, beside bars without what they know."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_dmft.theory.error_bars import Limit, kernel_error, standard_error

GROUPS = 200
SIZES = torch.tensor([3.0, 3.0, 1.0, 1.0, 0.1, 0.1], dtype=torch.float64)
Bars = Callable[[list[Tensor]], Tensor]


def plain(values: list[Tensor]) -> Tensor:
    """The standard error without pooling and Student's t."""
    return torch.stack(values).std(0) / math.sqrt(len(values))


def kernel_scores(bars: Bars, replicas: int, outputs: int, generator: torch.Generator, *, two_times: bool) -> Tensor:
    """Z of every entry, ``(answer, entry)``, of Gram matrices of 200 neurons at two times.

    Fields are independent Gaussians, those of some samples (and of the other output) smaller, so the truth is diagonal.
    """
    sizes = (SIZES[:, None] * torch.tensor([1.0, 0.05], dtype=torch.float64)[:outputs]).flatten()
    row = (len(SIZES), outputs)[:outputs]
    exact = torch.diag(sizes.square()).expand(2, -1, -1)
    if two_times:
        exact = torch.einsum("ts,ab->tasb", torch.eye(2, dtype=torch.float64), exact[0])
    shape = (2, *row, 2, *row) if two_times else (2, *row, *row)
    pairs = "ktan,ksbn->ktasb" if two_times else "ktan,ktbn->ktab"
    scores = []
    for _ in range(GROUPS):
        fields = torch.randn(replicas, 2, len(sizes), 200, generator=generator, dtype=torch.float64) * sizes[:, None]
        group = list((torch.einsum(pairs, fields, fields) / 200).reshape(replicas, *shape))
        scores.append(((torch.stack(group).mean(0) - exact.reshape(shape)) / bars(group)).flatten())
    return torch.stack(scores)


@pytest.mark.parametrize("two_times", [False, True], ids=["equal times", "two times"])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("replicas", [2, 4])
def test_bars_of_kernels_hold_for_entries_of_every_size(
    replicas: int, outputs: int, two_times: bool, generator: torch.Generator
) -> None:
    """Z has one size for all entries; pooled as if errors had one size it has not, and plain bars cover too little."""
    z = kernel_scores(kernel_error, replicas, outputs, generator, two_times=two_times)
    sizes = z.square().mean(0).sqrt()
    noise = 1 / math.sqrt(2 * GROUPS)  # of the size of one entry
    assert 0.8 - 5 * noise < float(sizes.min()) < float(sizes.max()) < 1.1 + 5 * noise, sizes
    assert 0.8 < float(z.square().mean().sqrt()) < 1.1
    assert float((z.abs() < 1.96).double().mean()) > 0.945
    one_size = kernel_scores(standard_error, replicas, outputs, generator, two_times=two_times).square().mean(0).sqrt()
    assert float(one_size.min()) < 0.5 * float(sizes.min())
    covered = kernel_scores(plain, replicas, outputs, generator, two_times=two_times).abs() < 1.96
    assert float(covered.double().mean()) < 0.90


RATES = torch.tensor([0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 12.0], dtype=torch.float64)
TIMES = torch.tensor([0.0, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)


def half_square(outputs: Tensor) -> Tensor:
    return 0.5 * (outputs - 1).square().sum()


def trained(count: int, common: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient flow of half the sum of squares in replicas of one tangent kernel: outputs, kernels, and the exact outputs.

    Rates are off by 4% each, of which a share ``common`` is the same for all.
    """
    modes, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
    together, alone = (torch.randn(count, n, generator=generator, dtype=torch.float64) for n in (1, 8))
    rates = RATES * (1 + 0.04 * (math.sqrt(common) * together + math.sqrt(1 - common) * alone))

    def outputs(rates: Tensor) -> Tensor:
        decays = torch.exp(-rates[:, None] * TIMES[:, None])
        return 1 - (decays * (modes.T @ torch.ones(8, dtype=torch.float64))) @ modes.T

    kernels = torch.einsum("ai,ri,bi->rab", modes, rates, modes)[:, None].expand(-1, len(TIMES), -1, -1)
    return outputs(rates)[..., None], kernels, outputs(RATES[None])[0]


@pytest.mark.parametrize(("common", "replicas"), [(0.0, 2), (0.5, 2), (0.0, 4), (0.5, 4)])
def test_bars_of_the_loss_cover_until_it_is_tiny(replicas: int, common: float, generator: torch.Generator) -> None:
    """To 1e-9 of its start, whether modes are off together or not; bars of the loss's own spread cover far less.

    Were they off together entirely, two replicas would know one number, and no bar of 95% could be short.
    """
    outputs, kernels, exact = trained(GROUPS * replicas, common, generator)
    true = torch.stack([half_square(f[:, None]) for f in exact])
    assert float(true[-1] / true[0]) < 2e-9
    rows = torch.ones(8, dtype=torch.bool)
    covered, plainly = [], []
    for first in range(0, len(outputs), replicas):
        own = slice(first, first + replicas)
        _, losses, bars = Limit(outputs[own], kernels[own], rows, TIMES, half_square).bars()
        error = (losses - true).abs()[1:]
        covered.append(error <= 1.96 * bars[1:])
        single = torch.stack([torch.stack([half_square(f) for f in run]) for run in outputs[own]])
        plainly.append(error <= 1.96 * (single.std(0) / math.sqrt(replicas))[1:])
    noise = math.sqrt(0.05 * 0.95 / GROUPS)
    share = torch.stack(covered).double().mean(0)
    assert bool((share > 0.95 - 4 * noise).all()), share
    if replicas == 2:
        assert float(torch.stack(plainly).double().mean()) < 0.85


def test_a_mode_that_is_fed_again_is_off_by_no_more_than_it_has_decayed() -> None:
    """Minibatches keep fast modes alive: of the time that has passed they remember little."""
    rows = torch.ones(1, dtype=torch.bool)
    kernels = torch.tensor([0.96, 1.04], dtype=torch.float64)[:, None, None, None].expand(2, 3, 1, 1)
    fallen = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64)[None, :, None, None].expand(2, 3, 1, 1)
    bars = [
        Limit(fallen, kernels, rows, torch.tensor(times, dtype=torch.float64), half_square).bars()[2]
        for times in ([0.0, 0.7, 2.0], [0.0, 0.7, 200.0])
    ]
    assert float(bars[0][0]) < 1e-9 < float(bars[0][1])
    assert float(bars[1][1]) == pytest.approx(float(bars[0][1]))
    assert float(bars[1][2]) == pytest.approx(float(bars[0][2]))


def test_only_a_small_positive_loss_has_the_bar_of_its_logarithm(generator: torch.Generator) -> None:
    """What is added to a loss leaves the bar, unless it makes the loss small."""
    outputs, kernels, _ = trained(2, 0.5, generator)
    rows = torch.ones(8, dtype=torch.bool)

    def bar(shift: float) -> float:
        return float(Limit(outputs, kernels, rows, TIMES, lambda f: half_square(f) + shift).bars()[2][3])

    assert bar(-100.0) == pytest.approx(bar(100.0), rel=1e-3)
    small = bar(1e-3 - float(half_square(outputs.mean(0)[3])))
    assert 2 * bar(100.0) < small < 3.2 * bar(100.0)
