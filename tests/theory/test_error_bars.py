"""Error bars of few replicas: how often they cover in models whose truth is known, beside bars without what they know."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_dmft.theory.error_bars import Limit, kernel_error, standard_error

GROUPS = 300
Bars = Callable[[list[Tensor]], Tensor]


def plain(values: list[Tensor]) -> Tensor:
    """The standard error without pooling and Student's t."""
    return torch.stack(values).std(0) / math.sqrt(len(values))


def gram_matrices(count: int, outputs: int, generator: torch.Generator, *, two_times: bool = False) -> list[Tensor]:
    """Gram matrices of 200 neurons at two times, whose fields of later samples (and of other outputs) are smaller."""
    sizes = torch.tensor([3.0, 3.0, 1.0, 1.0, 0.3, 0.3, 0.1, 0.1], dtype=torch.float64)
    sizes = (sizes[:, None] * torch.tensor([1.0, 0.05], dtype=torch.float64)[:outputs]).flatten()
    fields = torch.randn(count, 2, len(sizes), 200, generator=generator, dtype=torch.float64) * sizes[:, None]
    row = (8, outputs) if outputs > 1 else (8,)
    if two_times:
        products = torch.einsum("ktan,ksbn->ktasb", fields, fields) / 200
        return list(products.reshape(count, 2, *row, 2, *row))
    return list((fields @ fields.transpose(2, 3) / 200).reshape(count, 2, *row, *row))


def kernel_scores(bars: Bars, replicas: int, outputs: int, generator: torch.Generator, *, two_times: bool) -> Tensor:
    """z of every entry, ``(answer, entry)``; fields are independent, so off the diagonal (of times and rows) the truth is 0."""
    runs = gram_matrices(GROUPS * replicas, outputs, generator, two_times=two_times)
    exact = torch.stack(gram_matrices(20_000, outputs, generator, two_times=two_times)).mean(0)
    groups = [runs[first : first + replicas] for first in range(0, len(runs), replicas)]
    return torch.stack([((torch.stack(group).mean(0) - exact) / bars(group)).flatten() for group in groups])


@pytest.mark.parametrize("two_times", [False, True], ids=["equal times", "two times"])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("replicas", [2, 4])
def test_bars_of_kernels_hold_for_entries_of_every_size(
    replicas: int, outputs: int, two_times: bool, generator: torch.Generator
) -> None:
    """z has one size for every entry; pooled without their sizes it is far off for small ones, and plain bars cover too little."""
    z = kernel_scores(kernel_error, replicas, outputs, generator, two_times=two_times)
    sizes = z.square().mean(0).sqrt()
    noise = 1 / math.sqrt(2 * GROUPS)  # of the size of one entry
    assert 0.8 - 5 * noise < float(sizes.min()) < float(sizes.max()) < 1.1 + 6 * noise, sizes
    assert float((z.abs() < 1.96).double().mean()) > 0.95 - 5 * math.sqrt(0.05 * 0.95 / GROUPS)
    one_size = kernel_scores(standard_error, replicas, outputs, generator, two_times=two_times).square().mean(0).sqrt()
    assert float(one_size.min()) < 0.5 * float(sizes.min())
    covered = float(
        (kernel_scores(plain, replicas, outputs, generator, two_times=two_times).abs() < 1.96).double().mean()
    )
    assert covered < 0.90


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


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("replicas", [2, 4])
def test_bars_of_the_loss_cover_until_it_is_tiny(replicas: int, common: float, generator: torch.Generator) -> None:
    """To 1e-9 of its start, whether modes are off together or not; bars of the loss's own spread cover far less."""
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
