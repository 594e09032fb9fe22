"""torch_dmft: dynamical mean field theory for PyTorch models.

Wrap a model (``parameterize``), measure its kernels while it trains (``Recorder``), predict what the infinitely wide
network does (``solve``), and compare the two (``compare``). Public names are loaded on first use, so importing the
package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch_dmft.version import __version__ as __version__

_HOME = {
    "Architecture": "torch_dmft.architecture",
    "describe": "torch_dmft.uses",
    "Plan": "torch_dmft.parameterization",
    "parameterize": "torch_dmft.parameterization",
    "centered": "torch_dmft.parameterization",
    "learning_rule": "torch_dmft.parameterization",
    "Indexed": "torch_dmft.measurement",
    "Probe": "torch_dmft.measurement",
    "Recorder": "torch_dmft.measurement",
    "every": "torch_dmft.measurement",
    "log_spaced": "torch_dmft.measurement",
    "empirical_ntk": "torch_dmft.measurement",
    "Richness": "torch_dmft.measurement",
    "richness": "torch_dmft.measurement",
    "Problem": "torch_dmft.theory",
    "solve": "torch_dmft.theory",
    "infinite_width": "torch_dmft.theory",
    "Kernel": "torch_dmft.core.kernel",
    "Training": "torch_dmft.core.training",
    "Trajectory": "torch_dmft.core.trajectory",
    "alignment": "torch_dmft.comparison",
    "compare": "torch_dmft.comparison",
    "Comparison": "torch_dmft.comparison",
    "check": "torch_dmft.referee",
    "Verdict": "torch_dmft.referee",
    "Transferred": "torch_dmft.referee",
    "transfer": "torch_dmft.referee",
    "InfiniteWidthClassifier": "torch_dmft.integrations.sklearn",
    "InfiniteWidthRegressor": "torch_dmft.integrations.sklearn",
}

__all__ = [
    "Architecture",
    "Comparison",
    "Indexed",
    "Kernel",
    "Plan",
    "Probe",
    "Problem",
    "Recorder",
    "Richness",
    "Training",
    "Trajectory",
    "Transferred",
    "Verdict",
    "__version__",
    "alignment",
    "centered",
    "check",
    "compare",
    "describe",
    "empirical_ntk",
    "every",
    "infinite_width",
    "learning_rule",
    "log_spaced",
    "parameterize",
    "richness",
    "solve",
    "solvers",
    "transfer",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name == "solvers":
        return import_module("torch_dmft.theory.solvers")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'torch_dmft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_HOME})  # of which scikit-learn's are no part of an import of everything, without it


if TYPE_CHECKING:
    from torch_dmft.architecture import Architecture
    from torch_dmft.comparison import Comparison, alignment, compare
    from torch_dmft.core.kernel import Kernel
    from torch_dmft.core.training import Training
    from torch_dmft.core.trajectory import Trajectory
    from torch_dmft.integrations.sklearn import InfiniteWidthClassifier as InfiniteWidthClassifier
    from torch_dmft.integrations.sklearn import InfiniteWidthRegressor as InfiniteWidthRegressor
    from torch_dmft.measurement import Indexed, Probe, Recorder, Richness, empirical_ntk, every, log_spaced, richness
    from torch_dmft.parameterization import Plan, centered, learning_rule, parameterize
    from torch_dmft.referee import Transferred, Verdict, check, transfer
    from torch_dmft.theory import Problem, infinite_width, solve, solvers
    from torch_dmft.uses import describe
