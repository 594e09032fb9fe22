"""Gradients of convolutions by offsets in memory, against autograd sample by sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torch_dmft.measurement import empirical_ntk, shares
from torch_dmft.uses import forms, products
from torch_dmft.uses.products import Slide, is_cheaper_by_positions, is_cheaper_by_taps, sliding_ntk

CONVOLUTIONS = {
    "1d": (nn.Conv1d(3, 4, 3, padding=1), (9,)),
    "2d": (nn.Conv2d(3, 4, 3, padding=1), (6, 5)),
    "2d, oblong, no border": (nn.Conv2d(3, 4, (2, 3)), (5, 7)),
    "2d, dilated": (nn.Conv2d(3, 4, 3, padding=(2, 1), dilation=(2, 1)), (6, 5)),
    "2d, groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5)),
    "3d": (nn.Conv3d(2, 3, (3, 2, 2), padding=(1, 0, 1)), (3, 4, 3)),
    "one pixel": (nn.Conv2d(3, 4, 1), (4, 4)),
    "1d, stride": (nn.Conv1d(3, 4, 3, padding=1, stride=2), (9,)),
    "2d, stride": (nn.Conv2d(3, 4, 3, padding=1, stride=2), (8, 8)),
    "2d, stride beyond the kernel": (nn.Conv2d(3, 4, 1, stride=(2, 3)), (6, 7)),
    "2d, strides": (nn.Conv2d(4, 6, (3, 2), padding=(2, 1), stride=(3, 2), dilation=(2, 3), groups=2), (9, 8)),
    "3d, stride": (nn.Conv3d(2, 3, (3, 2, 2), padding=(1, 0, 1), stride=(1, 2, 3)), (3, 5, 4)),
}
SAMPLES, OUTPUTS = 3, 2


def brute_force(conv: nn.Module, inputs: list[Tensor], readouts: list[Tensor]) -> Tensor:
    """J J^T of f_c = sum over uses of v_c . conv(x), row by row."""
    rows = []
    for mu in range(SAMPLES):
        for c in range(OUTPUTS):
            f = sum((conv(x[mu : mu + 1])[0] * v[mu, c]).sum() for x, v in zip(inputs, readouts, strict=True))
            rows.append(torch.autograd.grad(f, conv.weight)[0].flatten())
    jacobian = torch.stack(rows)
    return (jacobian @ jacobian.T).reshape(SAMPLES, OUTPUTS, SAMPLES, OUTPUTS)


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("block", [2**24, 8], ids=["whole", "neuron by neuron"])
def test_gradients_by_offsets_are_those_of_autograd(
    name: str, uses: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_BLOCK", block)
    conv, pixels = CONVOLUTIONS[name]
    conv = conv.double()
    inputs, readouts, pairs = [], [], []
    for use in range(uses):  # of another size each
        size = (pixels[0] + use, *pixels[1:])
        x = torch.randn(SAMPLES, conv.in_channels, *size, dtype=torch.float64)
        v = torch.randn(SAMPLES, OUTPUTS, *conv(x).shape[1:], dtype=torch.float64)
        padded = nn.functional.pad(x, [p for one in reversed(conv.padding) for p in (one, one)])
        inputs.append(x)
        readouts.append(v)
        pairs.append(Slide(padded, v, conv.stride, conv.dilation))
    found = sliding_ntk(pairs, taps=conv.kernel_size, groups=conv.groups)
    torch.testing.assert_close(found, brute_force(conv, inputs, readouts), rtol=1e-10, atol=1e-10)


def test_inputs_that_all_samples_share() -> None:
    conv = nn.Conv2d(2, 3, 3).double()
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    v = torch.randn(SAMPLES, OUTPUTS, 3, 3, 3, dtype=torch.float64)
    found = sliding_ntk([Slide(x, v, (1, 1), (1, 1))], taps=(3, 3), groups=1)
    expected = brute_force(conv, [x.expand(SAMPLES, -1, -1, -1)], [v])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_many_positions_are_better_summed_first() -> None:
    assert not is_cheaper_by_positions(32, 1, 1024, 9 * 64, 64)
    assert is_cheaper_by_positions(32, 1, 4, 9 * 64, 64)


class TwoDilations(nn.Module):
    """One kernel at two dilations, as in switchable atrous convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.kernel, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        weight, bias = self.kernel.weight, self.kernel.bias
        near = nn.functional.conv2d(h, weight, bias, padding=1)
        far = nn.functional.conv2d(h, weight, bias, padding=2, dilation=2)
        return self.last(torch.tanh(near + far).mean((2, 3)))


@pytest.fixture(params=[True, False], ids=["tap by tap", "written out"])
def tap_by_tap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways to a convolution's gradients, whatever its size."""
    monkeypatch.setattr(forms, "is_cheaper_by_taps", lambda *sizes: request.param)
    return bool(request.param)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("tap_by_tap")
def test_one_kernel_at_two_dilations(seed: int) -> None:
    torch.manual_seed(seed)
    model, inputs = TwoDilations().double(), torch.randn(4, 2, 12, 12, dtype=torch.float64)
    found = empirical_ntk(model, inputs)
    torch.testing.assert_close(found, empirical_ntk(model, inputs, method="jacobian"), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("conv", [one for one, _ in CONVOLUTIONS.values()], ids=CONVOLUTIONS)
def test_every_convolution_in_a_network(conv: nn.Module, tap_by_tap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dims, slid = len(conv.kernel_size), []
    monkeypatch.setattr(shares, "sliding_ntk", lambda uses, **kernel: slid.append(1) or sliding_ntk(uses, **kernel))
    monkeypatch.setattr(forms, "is_cheaper_by_positions", lambda *sizes: False)
    model = nn.Sequential(conv.double(), nn.Tanh(), nn.Flatten(2), Mean(), nn.Linear(conv.out_channels, 2).double())
    inputs = torch.randn(4, conv.in_channels, *(8,) * dims, dtype=torch.float64)
    found = empirical_ntk(model, inputs)
    torch.testing.assert_close(found, empirical_ntk(model, inputs, method="jacobian"), rtol=1e-10, atol=1e-12)
    assert bool(slid) == tap_by_tap


class Mean(nn.Module):
    """Over pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def test_few_channels_and_small_images_are_better_written_out() -> None:
    assert is_cheaper_by_taps(32, 32 * 32, 64, 9)
    assert not is_cheaper_by_taps(32, 32 * 32, 3, 9)
    assert not is_cheaper_by_taps(16, 4 * 4, 32, 9)
    assert is_cheaper_by_taps(32, 224 * 224, 3, 49), "half a gigabyte is not written out"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("tap_by_tap")
def test_convolutions_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, inputs = TwoDilations(), torch.randn(4, 2, 12, 12)
    model.kernel.dilation = (1, 1)
    expected = empirical_ntk(model, inputs)
    found = empirical_ntk(model.to(dtype), inputs.to(dtype)).float()
    assert float((found - expected).norm() / expected.norm()) < 0.03
