"""Why models are refused, or their features do not move alike at every width, where that is known."""

from __future__ import annotations

REASONS: dict[str, str] = {}
"""By the name of the model."""
