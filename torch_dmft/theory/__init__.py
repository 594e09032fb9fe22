"""The infinite-width prediction: problems, solvers, and the infinite-width twin of a model."""

from torch_dmft.theory.chain import Chain, HiddenLayer
from torch_dmft.theory.covariance import covariance
from torch_dmft.theory.depth import DepthLimit, infinite_depth
from torch_dmft.theory.engine.twin import infinite_width
from torch_dmft.theory.fluctuations import Fluctuations, fluctuations
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.responses.responses import Responses, responses
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solver import Solver
from torch_dmft.theory.spectrum import Spectrum, spectrum

__all__ = [
    "Chain",
    "DepthLimit",
    "Fluctuations",
    "HiddenLayer",
    "Problem",
    "Responses",
    "Solver",
    "Spectrum",
    "covariance",
    "fluctuations",
    "infinite_depth",
    "infinite_width",
    "responses",
    "solve",
    "spectrum",
]
