"""A problem of images before ``nn.Flatten`` has the answer of the same problem of rows."""

import pytest
import torch
from torch import nn

import torch_dmft as dmft


def problem(samples: int, optimizer: str, init: str, *, flat: bool) -> dmft.Problem:
    """A chain on 2x2 images, or on the same numbers as rows."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 1, 2, 2, generator=generator, dtype=torch.float64)
    targets = torch.sign(images[:, 0, 0, :1])
    layers = [nn.Linear(4, 16, bias=False), nn.Tanh(), nn.Linear(16, 16, bias=False), nn.Tanh(), nn.Linear(16, 1)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in layers[::2]:
            layer.reset_parameters()
    model = nn.Sequential(nn.Identity() if flat else nn.Flatten(), *layers).double()
    inputs = images.flatten(1) if flat else images
    plan = dmft.parameterize(model, inputs, init=init, generator=generator)
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=0.02, steps=3, optimizer=optimizer)


@pytest.mark.parametrize("samples", [3, 6], ids=["fewer rows than pixels", "more"])
@pytest.mark.parametrize(
    ("optimizer", "init", "solver"),
    [
        ("sgd", "normal", dmft.solvers.InfiniteWidth(128, 1)),
        ("sgd", "normal", dmft.solvers.GradientIndependence(128, 1)),
        ("sgd", "normal", dmft.solvers.FiniteWidth(16, 4)),
        ("sgd", "keep", dmft.solvers.InfiniteWidth(128, 1)),
        ("adam", "normal", dmft.solvers.FiniteWidth(16, 4)),
        ("adam", "normal", dmft.solvers.WideEnsemble((8, 16, 32), 4)),
    ],
)
def test_images_are_rows(samples, optimizer, init, solver):
    rows, images = (dmft.solve(problem(samples, optimizer, init, flat=flat), solver) for flat in (True, False))
    assert torch.equal(images.outputs, rows.outputs)
    assert torch.equal(images.layers[1].forward.array, rows.layers[1].forward.array)
