"""Accelerators of Hugging Face's accelerate, each by itself: the library keeps the settings of the first for all."""

from __future__ import annotations

from typing import Any

import pytest


def accelerator(**settings: Any) -> Any:
    """A new ``Accelerator`` on the CPU, whatever settings earlier ones had."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    return accelerate.Accelerator(cpu=True, **settings)
