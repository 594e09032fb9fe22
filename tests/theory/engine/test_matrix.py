"""The lazily sampled matrix is one fixed Gaussian matrix, whatever is asked of it and in whatever order."""

import pytest
import torch

from torch_dmft.theory.engine.layers import InfiniteLinear
from torch_dmft.theory.engine.lazy_layer import LazySettings
from torch_dmft.theory.engine.matrix import GaussianMatrix
from torch_dmft.theory.gaussian.latents import Population


def _matrix(size_in: int, size_out: int, seed: int, *, law: str = "network", tolerance: float = 1e-9) -> GaussianMatrix:
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = (
        Population(size, law=law, generator=generator, dtype=torch.float64, device="cpu")
        for size in (size_in, size_out)
    )
    return GaussianMatrix(inputs, outputs, tolerance=tolerance)


def _apply(matrix: GaussianMatrix, x: torch.Tensor) -> torch.Tensor:
    c = matrix.meet_inputs(x)
    d = c @ matrix.core[..., 0].T
    if matrix.responses:
        d = d + matrix.owed_to_inputs(x)
    return c @ matrix.forward_side.latents.rows + d @ matrix.backward_side.basis.rows


def _apply_transpose(matrix: GaussianMatrix, y: torch.Tensor) -> torch.Tensor:
    d = matrix.meet_gradients(y)
    c = d @ matrix.core[..., 0]
    if matrix.responses:
        c = c + matrix.owed_to_gradients(y)
    return d @ matrix.backward_side.latents.rows + c @ matrix.forward_side.basis.rows


def _alternate(apply, transpose, x: torch.Tensor) -> torch.Tensor:
    """Four nonlinear uses that depend on each other, as training does: numbers that see the matrix's whole law."""
    h = apply(x)
    g = transpose(torch.tanh(2 * h) + h)
    h2 = apply(torch.tanh(g) + 0.5 * x)
    g2 = transpose(h2 * h)
    vectors = [h.T, g.T, h2.T, g2.T]
    moments = [(u * u).mean() for u in vectors] + [(h * h2).mean(), (g * g2).mean(), (g * x).mean(), (g2 * x).mean()]
    return torch.stack([*moments, (h**3 * h2).mean(), (torch.relu(h2) ** 2).mean()])


@pytest.mark.parametrize("law", ["network", "limit"])
def test_forward_and_backward_are_adjoint(law: str) -> None:
    matrix = _matrix(40, 30, 0, law=law)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        x = torch.randn(3, 40, generator=generator, dtype=torch.float64)
        y = torch.randn(2, 30, generator=generator, dtype=torch.float64) + _apply(matrix, x)[:2]
        forward, backward = _apply(matrix, x), _apply_transpose(matrix, y)
        torch.testing.assert_close(y @ forward.T, backward @ x.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.5])
def test_forward_and_backward_are_adjoint_whatever_stays_outside_of_the_bases(tolerance: float) -> None:
    """A layer in training, asked with bases that no longer grow: <g, W x> = <W^T g, x>; without the rest it does not hold."""
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = (
        Population(size, law="limit", generator=generator, dtype=torch.float64, device="cpu") for size in (300, 200)
    )
    layer = InfiniteLinear(inputs, outputs, LazySettings(gain=1.3, tolerance=tolerance))
    start = torch.randn(3, 300, generator=generator, dtype=torch.float64)
    for _ in range(3):
        layer(start + 0.2 * torch.randn(3, 300, generator=generator, dtype=torch.float64)).sin().sum().backward()
    with torch.no_grad():
        rank = layer.rank
        layer.core[: rank[1], : rank[0]].normal_(generator=generator)
        layer.initial_scale.fill_(0.7)
    layer.matrix.tolerance = 1.0  # whatever comes now stays outside
    x = torch.randn(4, 300, generator=generator, dtype=torch.float64).requires_grad_()
    g = torch.randn(4, 200, generator=generator, dtype=torch.float64)
    y = layer(x)
    (pulled,) = torch.autograd.grad(y, x, g)
    assert layer.rank == rank
    torch.testing.assert_close(y @ g.T, x @ pulled.T, rtol=0, atol=1e-9)
    layer.matrix.responses = False
    y = layer(x)
    (pulled,) = torch.autograd.grad(y, x, g)
    assert float((y @ g.T - x @ pulled.T).detach().abs().max()) > 1e-2


def test_a_vector_met_before_has_the_same_image() -> None:
    matrix = _matrix(40, 30, 0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    first = _apply(matrix, x)
    _apply_transpose(matrix, torch.tanh(first))
    _apply(matrix, torch.randn(5, 40, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(_apply(matrix, x), first, rtol=0, atol=1e-10)


def test_bases_are_orthonormal_and_cover_what_they_met() -> None:
    tolerance = 1e-2
    matrix = _matrix(500, 400, 0, law="limit", tolerance=tolerance)
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(6, 500, generator=generator, dtype=torch.float64)
    for step in range(8):
        x = torch.tanh(start + 0.05 * step * torch.randn(6, 500, generator=generator, dtype=torch.float64))
        matrix.meet_inputs(x)
        basis = matrix.forward_side.basis.rows
        residual = x - x @ basis.T @ basis
        assert float((residual.norm(dim=1) / x.norm(dim=1)).max()) <= tolerance * (1 + 1e-9)
    gram = basis @ basis.T
    torch.testing.assert_close(gram, torch.eye(len(basis), dtype=torch.float64), rtol=0, atol=1e-10)


def test_a_basis_has_no_more_directions_than_there_are_neurons() -> None:
    """Though rounding leaves something of vectors outside of a basis that spans everything."""
    matrix = _matrix(24, 24, 0, tolerance=0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        matrix.meet_inputs(torch.randn(10, 24, generator=generator, dtype=torch.float64))
    assert matrix.forward_side.basis.count == 24


def test_when_one_vector_has_to_be_covered_others_are_too() -> None:
    """What is a little below the tolerance would soon be above it; alone it brings no directions."""
    tolerance, size = 0.1, 50
    axes = torch.eye(size, dtype=torch.float64)
    nearly, over = axes[0] + 0.09 * axes[1], axes[0] + 0.5 * axes[2]
    for met, rank in (([nearly], 1), ([over], 2), ([nearly, over], 3)):
        matrix = _matrix(size, size, 0, tolerance=tolerance)
        matrix.meet_inputs(axes[:1])
        matrix.meet_inputs(torch.stack(met))
        assert matrix.forward_side.basis.count == rank, rank


def test_law_is_that_of_a_dense_gaussian_matrix() -> None:
    size_in, size_out, count = 12, 9, 4000
    x = torch.linspace(-1, 2, size_in, dtype=torch.float64).unsqueeze(0)
    lazy, dense = [], []
    generator = torch.Generator().manual_seed(5)
    for seed in range(count):
        matrix = _matrix(size_in, size_out, seed)
        lazy.append(_alternate(lambda v, m=matrix: _apply(m, v), lambda v, m=matrix: _apply_transpose(m, v), x))
        weights = torch.randn(size_out, size_in, generator=generator, dtype=torch.float64) / size_in**0.5
        dense.append(_alternate(lambda v, w=weights: v @ w.T, lambda v, w=weights: v @ w, x))
    a, b = torch.stack(lazy), torch.stack(dense)
    for power in (1, 2):  # means and second moments
        u, v = a**power, b**power
        z = (u.mean(0) - v.mean(0)) / ((u.var(0) + v.var(0)) / count).sqrt()
        assert float(z.abs().max()) < 5, z


def test_without_responses_the_law_is_another_one() -> None:
    """The same statistic tells a matrix whose transpose is independent of it."""
    x = torch.linspace(-1, 2, 12, dtype=torch.float64).unsqueeze(0)
    values = {True: [], False: []}
    for responses, found in values.items():
        for seed in range(500):
            matrix = _matrix(12, 9, seed)
            matrix.responses = responses
            found.append(_alternate(lambda v, m=matrix: _apply(m, v), lambda v, m=matrix: _apply_transpose(m, v), x))
    a, b = (torch.stack(found) for found in values.values())
    z = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / 500).sqrt()
    assert float(z.abs().max()) > 5


def test_what_gradients_have_in_common_is_covered_though_it_is_little_of_each() -> None:
    """Jointly; each by itself it is left out."""
    size, rows, part = 200, 20, 0.2
    generator = torch.Generator().manual_seed(0)
    first = torch.linalg.qr(torch.randn(size, rows + 1, generator=generator, dtype=torch.float64)).Q.T
    for jointly in (False, True):
        matrix = _matrix(size, size, 0, tolerance=0.1)  # of gradients 0.3
        matrix.jointly = jointly
        matrix.meet_gradients(first[:rows])
        matrix.meet_gradients((1 - part**2) ** 0.5 * first[:rows] + part * first[rows])
        covered = matrix.backward_side.basis.rows @ first[rows]
        assert matrix.backward_side.basis.count == rows + jointly
        assert float(covered.norm()) == pytest.approx(float(jointly), abs=1e-9)
