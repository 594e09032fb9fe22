"""Two trajectories side by side: metrics, deviations with error bars, and a verdict."""

from torch_dmft.comparison.comparison import Comparison, compare
from torch_dmft.comparison.consistency import Consistency, LayerScores, Score, Scores
from torch_dmft.comparison.deviation import Deviation, Deviations, Difference, LayerDeviations, deviation
from torch_dmft.comparison.metrics import alignment, centered_alignment, relative_error, target_alignment
from torch_dmft.comparison.richness import movement, target_alignments
from torch_dmft.comparison.spectrum import NTKSpectrum, ntk_spectrum

__all__ = [
    "Comparison",
    "Consistency",
    "Deviation",
    "Deviations",
    "Difference",
    "LayerDeviations",
    "LayerScores",
    "NTKSpectrum",
    "Score",
    "Scores",
    "alignment",
    "centered_alignment",
    "compare",
    "deviation",
    "movement",
    "ntk_spectrum",
    "relative_error",
    "target_alignment",
    "target_alignments",
]
