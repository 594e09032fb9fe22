"""A running model -> kernels: what to measure on, when, how, and the recorder that does it while a model trains."""

from torch_dmft.measurement.capture import capture
from torch_dmft.measurement.ntk import empirical_ntk
from torch_dmft.measurement.ntk_operator import NTKOperator
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.projection import Projection
from torch_dmft.measurement.recorder import Recorder
from torch_dmft.measurement.richness import Richness, richness
from torch_dmft.measurement.rows import Indexed
from torch_dmft.measurement.schedule import Schedule, at_steps, every, log_spaced
from torch_dmft.measurement.snapshot import Snapshot, measure, snapshot
from torch_dmft.measurement.subject import Subject, subject_of

__all__ = [
    "Indexed",
    "NTKOperator",
    "Probe",
    "Projection",
    "Recorder",
    "Richness",
    "Schedule",
    "Snapshot",
    "Subject",
    "at_steps",
    "capture",
    "empirical_ntk",
    "every",
    "log_spaced",
    "measure",
    "richness",
    "snapshot",
    "subject_of",
]
