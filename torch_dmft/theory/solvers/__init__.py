"""The methods: one file each, all through ``solve(problem, solver)``."""

from torch_dmft.theory.solvers.alternating_monte_carlo import AlternatingMonteCarlo
from torch_dmft.theory.solvers.deep_linear import DeepLinear
from torch_dmft.theory.solvers.finite_width import FiniteWidth
from torch_dmft.theory.solvers.gradient_independence import GradientIndependence
from torch_dmft.theory.solvers.infinite_width import InfiniteWidth
from torch_dmft.theory.solvers.perturbation import Perturbation
from torch_dmft.theory.solvers.static_ntk import StaticNTK
from torch_dmft.theory.solvers.whitened_linear import WhitenedLinear
from torch_dmft.theory.solvers.wide_ensemble import WideEnsemble

__all__ = [
    "AlternatingMonteCarlo",
    "DeepLinear",
    "FiniteWidth",
    "GradientIndependence",
    "InfiniteWidth",
    "Perturbation",
    "StaticNTK",
    "WhitenedLinear",
    "WideEnsemble",
]
