"""Values as JSON takes them: plain numbers, words, lists and dictionaries; what is no finite number is None."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def plain(value: Any) -> Any:
    """A value in plain types: fields of data classes by name, tensors as nested lists, words of enumerations as text."""
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_json(value: Any) -> str:
    """A value as JSON that every reader takes."""
    return json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False)
