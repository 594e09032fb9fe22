"""Architecture -> scaling: initial sizes and learning rates that make training independent of width."""

from torch_dmft.parameterization.apply import parameterize
from torch_dmft.parameterization.centered import centered
from torch_dmft.parameterization.coordinate_check import CoordinateCheck, coordinate_check
from torch_dmft.parameterization.depth_check import depth_check
from torch_dmft.parameterization.effective import EffectiveScaling, effective_scaling
from torch_dmft.parameterization.learning_rule import LearningRule, learning_rule
from torch_dmft.parameterization.muon import MuonGroups
from torch_dmft.parameterization.plan import Plan
from torch_dmft.parameterization.rules import ParameterRule, in_streams, parameter_rules
from torch_dmft.parameterization.scheme import mean_field

__all__ = [
    "CoordinateCheck",
    "EffectiveScaling",
    "LearningRule",
    "MuonGroups",
    "ParameterRule",
    "Plan",
    "centered",
    "coordinate_check",
    "depth_check",
    "effective_scaling",
    "in_streams",
    "learning_rule",
    "mean_field",
    "parameter_rules",
    "parameterize",
]
