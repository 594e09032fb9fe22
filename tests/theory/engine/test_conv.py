"""The infinite convolution is a convolution, its law is that of a Gaussian one, and its limit is that of wide networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import Limit, observables, z_scores
from tests.theory.engine import convolutional
from tests.theory.validation.wrong import WithoutResponses
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.theory.choose import choose
from torch_dmft.theory.engine.conv import InfiniteConv
from torch_dmft.theory.engine.lazy_layer import LazySettings
from torch_dmft.theory.gaussian.latents import Population

KERNEL_2D = [
    nn.Conv2d(1, 1, 3, padding=1),
    nn.Conv2d(1, 1, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    nn.Conv2d(1, 1, 3, padding="same", padding_mode="circular"),
    nn.Conv2d(1, 1, (2, 3), padding="same"),
    nn.Conv2d(1, 1, 3, stride=2, padding=2, padding_mode="reflect"),
    nn.Conv2d(1, 1, 1),
]
GEOMETRIES = [
    *((conv, (5, 6)) for conv in KERNEL_2D),
    (nn.Conv1d(1, 1, 3, stride=2, padding=1, padding_mode="replicate"), (7,)),
    (nn.Conv3d(1, 1, 2, stride=2, padding=1), (3, 4, 3)),
]


def _layer(like: nn.Module, sizes: tuple[int, int], generator: torch.Generator, **settings) -> InfiniteConv:
    inputs, outputs = (
        Population(size, law="network", generator=generator, dtype=torch.float64, device="cpu") for size in sizes
    )
    bias = settings.pop("bias", None)
    drawing = LazySettings(**{"gain": 1.3, "tolerance": 1e-9, "rank": 100, **settings})
    return InfiniteConv(inputs, outputs, like, drawing, bias=bias)


def _dense(layer: InfiniteConv) -> nn.Module:
    """The ordinary convolution that the layer has been all along, asked of it vector by vector; its memory is then full."""
    layer.matrix.meet_inputs(torch.eye(layer.in_channels, dtype=torch.float64))
    inputs, gradients = layer.matrix.forward_side, layer.matrix.backward_side
    q, latents = inputs.basis.rows, inputs.latents.rows.unflatten(0, (inputs.basis.count, -1))
    q2, latents2 = gradients.basis.rows, gradients.latents.rows.unflatten(0, (gradients.basis.count, -1))
    known = torch.einsum("lo,lkt,ki->oit", q2, layer.matrix.core, q)
    weight = torch.einsum("kto,ki->oit", latents, q) + torch.einsum("lo,lti->oit", q2, latents2) + known
    weight = layer.gain * weight
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(layer.kernel_size)]
    settings = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    dense = convolution(
        layer.in_channels, layer.out_channels, layer.kernel_size, bias=layer.bias is not None, **settings
    ).double()
    with torch.no_grad():
        dense.weight.copy_(weight.reshape(dense.weight.shape))
        if layer.bias is not None:
            dense.bias.copy_(layer.bias)
    return dense


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("like", "spatial"), GEOMETRIES, ids=lambda value: str(value))
def test_trains_like_the_dense_convolution_it_stands_for(
    like: nn.Module, spatial: tuple[int, ...], whole: bool, generator
) -> None:
    layer = _layer(like, (7, 9), generator, bias=torch.randn(9, generator=generator), whole=whole)
    images = torch.randn(2, 7, *spatial, generator=generator, dtype=torch.float64)
    layer(images).square().sum().backward()  # what it meets before it is read out must not matter
    dense = _dense(layer)
    found = []
    for model in (layer, dense):
        sgd = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5, weight_decay=0.1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, eps=0.1) if whole else sgd
        optimizer.zero_grad()
        steps = []
        for _ in range(4):
            x = images.clone().requires_grad_()
            outputs = model(x)
            optimizer.zero_grad()
            (outputs.sin() * outputs).mean().backward()
            optimizer.step()
            steps += [outputs.detach(), x.grad]
        found.append(steps)
    assert float((found[1][0] - found[1][-2]).abs().max()) > 1e-2, "training must have moved the layer"
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("like", "spatial"), GEOMETRIES, ids=lambda value: str(value))
def test_forward_and_backward_are_adjoint_beyond_the_bases(
    like: nn.Module, spatial: tuple[int, ...], generator
) -> None:
    """With bases that no longer grow, what stays outside of them is treated alike on the way up and down."""
    layer = _layer(like, (90, 80), generator, tolerance=0.5)
    one = torch.randn(1, 90, *spatial, generator=generator, dtype=torch.float64)
    layer(one).square().sum().backward()
    rank = layer.rank
    with torch.no_grad():
        layer.core[: rank[1], : rank[0]].normal_(generator=generator)
    layer.matrix.tolerance = 1.0
    x = torch.randn(2, 90, *spatial, generator=generator, dtype=torch.float64).requires_grad_()
    y = layer(x)
    g = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    (pulled,) = torch.autograd.grad(y, x, g)
    assert layer.rank == rank
    assert not layer.saturated
    torch.testing.assert_close((y * g).sum(), (x * pulled).sum(), rtol=1e-9, atol=1e-9)
    layer.matrix.responses = False
    y = layer(x)
    (pulled,) = torch.autograd.grad(y, x, g)
    assert float(((y * g).sum() - (x * pulled).sum()).detach().abs()) > 1e-2, (
        "there was something outside to be treated"
    )


def _moments(apply: nn.Module, images: Tensor) -> Tensor:
    """Numbers that see how the taps, W and W^T depend on each other."""
    h = apply(images)
    x = torch.tanh(h.mean(1, keepdim=True)).expand_as(images).clone().requires_grad_()
    (g,) = torch.autograd.grad((apply(x) ** 2).sum() + (apply(x) ** 3).sum(), x)
    h2 = apply(torch.tanh(g) + 0.5 * images)
    moments = [h.square().mean(), g.square().mean(), (g * x).mean(), (h * h2).mean(), h2.square().mean()]
    return torch.stack([m.detach() for m in [*moments, (h**3 * h2).mean(), (h[..., 0] * h2[..., 1]).mean()]])


@pytest.mark.parametrize("responses", [True, False])
def test_law_is_that_of_a_gaussian_convolution(responses: bool, generator) -> None:
    """Means and second moments over many draws; a transpose that knows nothing of the matrix has another law."""
    count, like = 500, nn.Conv1d(1, 1, 3, padding=1)
    images = torch.linspace(-1, 2, 5 * 4, dtype=torch.float64).reshape(1, 5, 4).sin()
    lazy, dense = [], []
    convolution = nn.Conv1d(5, 6, 3, padding=1, bias=False).double()
    for _ in range(count):
        layer = _layer(like, (5, 6), generator, responses=responses)
        lazy.append(_moments(layer, images))
        nn.init.normal_(convolution.weight, std=1.3 * 15**-0.5, generator=generator)
        dense.append(_moments(convolution, images))
    a, b = torch.stack(lazy), torch.stack(dense)
    a, b = torch.cat([a, a**2], 1), torch.cat([b, b**2], 1)
    z = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / count).sqrt()
    assert (float(z.abs().max()) < 5) is responses, z


LR = {"pooled": 0.5, "flattened": 0.25}


@pytest.fixture(scope="module", params=["pooled", "flattened"])
def case(request) -> Iterator[tuple[dmft.Problem, Limit, int]]:
    """A small convolutional network's problem, its limit by wide networks, and how many neurons to take."""
    flat, lr = request.param == "flattened", LR[request.param]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, convolutional.CHANNELS, 4, 4, generator=generator, dtype=torch.float64)
    targets = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    limit = convolutional.limit(
        images.float(),
        targets.float(),
        {16: 3000, 32: 1000, 64: 300},
        order=1,
        lr=lr,
        steps=5,
        gamma0=1.0,
        generator=generator,
        flat=flat,
    )
    plan = dmft.parameterize(convolutional.module(16, flat=flat).double(), images)
    problem = dmft.Problem.like(plan, dmft.Probe(images, targets[:, None]), lr=lr, steps=5)
    return problem, limit, 4096 if flat else 1024


def _largest_z(limit: Limit, prediction: dmft.Trajectory) -> dict[str, float]:
    values, errors = observables(prediction), observables(prediction.stderr)
    scores = z_scores(limit, {name: values[name] for name in limit.mean}, errors)
    return {name: float(z.abs().max()) for name, z in scores.items()}


def test_limit_is_that_of_wide_networks(case) -> None:
    problem, limit, neurons = case
    prediction = dmft.solve(problem, dmft.solvers.InfiniteWidth(neurons=neurons, replicas=4))
    z = _largest_z(limit, prediction)
    assert max(z.values()) < 5, z
    assert prediction.metadata["saturated"] is False


def test_limit_needs_the_responses(case) -> None:
    problem, limit, neurons = case
    prediction = dmft.solve(problem, WithoutResponses(neurons=neurons, replicas=2))
    z = _largest_z(limit, prediction)
    assert max(z["losses"], z["forward.2"]) > 5, z


def _cnn(width: int, *middle: nn.Module, channels: int = 1) -> nn.Module:
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1)
    return nn.Sequential(nn.Conv2d(channels, width, 3), nn.ReLU(), *middle, nn.ReLU(), *head)


def test_a_twin_of_few_channels_is_a_saturated_network(generator) -> None:
    """It meets every direction there is, says so, and goes on as the network of that width."""
    images = torch.randn(4, 1, 6, 6, generator=generator, dtype=torch.float64)
    plan = dmft.parameterize(_cnn(8, nn.Conv2d(8, 8, 3)).double(), images)
    targets = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    problem = dmft.Problem.like(plan, dmft.Probe(images, targets), lr=0.02, steps=4)
    prediction = dmft.solve(problem, dmft.solvers.InfiniteWidth(neurons=32, replicas=2))
    assert prediction.metadata["saturated"] is True
    assert prediction.metadata["rank"] == 32
    assert "WideEnsemble" in prediction.metadata["advice"]
    assert torch.isfinite(prediction.outputs).all()


def test_a_rectified_convolution_that_would_saturate_is_left_to_networks(generator) -> None:
    """Each step brings new directions for every pixel: the choice sees it coming."""
    images = torch.randn(16, 3, 16, 16, generator=generator)
    plan = dmft.parameterize(_cnn(8, nn.Conv2d(8, 8, 3), channels=3), images)
    problem = dmft.Problem.like(plan, dmft.Probe(images, torch.ones(16, 1)), lr=0.02, steps=30)
    solver, why = choose(problem)
    assert isinstance(solver, dmft.solvers.WideEnsemble)
    assert dmft.solvers.InfiniteWidth().estimate(problem).saturated
    assert "directions" in why or "memory" in why  # whichever comes first on this machine
    few = dmft.Problem.like(plan, dmft.Probe(images[:2], torch.ones(2, 1)), lr=0.02, steps=1)
    assert type(choose(few)[0]) is dmft.solvers.InfiniteWidth


def test_too_many_directions_for_the_room_are_refused_with_a_remedy(generator) -> None:
    images = torch.randn(4, 1, 6, 6, generator=generator)
    limit = dmft.infinite_width(lambda width: _cnn(width, nn.Conv2d(width, width, 3)), images, neurons=256, rank=8)
    with pytest.raises(InvalidInputError, match="rank="):
        limit.model(images)


@pytest.mark.parametrize("neurons", [64, 101])
def test_widths_stay_whole_behind_a_flattened_map(neurons: int, generator) -> None:
    images = torch.randn(2, convolutional.CHANNELS, 4, 4, generator=generator)
    limit = dmft.infinite_width(convolutional.module(6, flat=True), images, neurons=neurons)
    assert limit.model(images).shape == (2, 1)
    assert abs(limit.width - neurons) < 4
    assert limit.width == 4 * limit.model[2].out_channels


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_cnn(8, nn.Conv2d(8, 8, 3, groups=2)), "2: .*groups=1"),
        (_cnn(8, nn.Conv2d(8, 8, 3), nn.LayerNorm([8, 2, 2])), "3: .*channels and positions"),
        (_cnn(8, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)), "3: BatchNorm"),
        (nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 1, 4), nn.Flatten()), "2: .*readout"),
    ],
    ids=["groups", "layer norm over positions", "batch norm", "convolutional readout"],
)
def test_refuses_what_has_no_known_limit(model: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        dmft.infinite_width(model, torch.ones(2, 1, 6, 6))


class _Residual(nn.Module):
    """Residual sum, strides, an uneven kernel, unequal widths, a hidden layer behind a flattened map, biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.branch = nn.Conv2d(width, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, (1, 2), stride=2)
        self.dense = nn.Linear(4 * 2 * width, width)
        self.readout = nn.Linear(width, 1)
        for layer in (self.branch, self.down, self.dense):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.inputs(x))
        h = h + torch.tanh(self.branch(h))
        h = torch.relu(self.down(h)).flatten(1)
        return self.readout(torch.tanh(self.dense(h)))


@pytest.mark.long
@pytest.mark.parametrize("responses", [True, False])
def test_a_residual_network_agrees_with_wide_ones(responses: bool, generator) -> None:
    images = torch.randn(4, 2, 4, 4, generator=generator, dtype=torch.float64)
    targets = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None]
    plan = dmft.parameterize(_Residual(16).double(), images, generator=generator)
    settings = {"lr": 0.05, "steps": 6, "momentum": 0.5, "weight_decay": 0.1}
    problem = dmft.Problem.like(plan, dmft.Probe(images, targets), **settings)
    wide = dmft.solve(problem, dmft.solvers.WideEnsemble(widths=(32, 64, 128), pairs=48))
    solver = dmft.solvers.InfiniteWidth if responses else WithoutResponses
    mine = dmft.solve(problem, solver(neurons=1024, replicas=4))
    theirs, errors, own = (observables(t) for t in (wide, wide.stderr, mine.stderr))
    z = {
        name: float(((values - theirs[name]) / (errors[name] ** 2 + own[name] ** 2 + 1e-20).sqrt()).abs().max())
        for name, values in observables(mine).items()
    }
    assert (max(z.values()) < 5) is responses, z
