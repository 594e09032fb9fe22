"""torchvision beside any torch.

A torchvision built for CUDA cannot load its compiled part beside a CPU build of torch, and then fails at import because
schemas of its operators are missing ("operator torchvision::nms does not exist"). Data sets and models need none of
them, so the schemas are declared and the import tried again. Where torchvision imports as it is, nothing happens.
"""

from __future__ import annotations

import importlib.abc
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

import torch

_NAME = "torchvision"
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A declaration lasts as long as the object that made it.
_DECLARED: list[torch.library.Library] = []


def make_importable() -> None:
    """From now on ``import torchvision`` succeeds, here and in the libraries that import it."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _NAME else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        while True:
            try:
                return super().exec_module(module)
            except RuntimeError as error:
                missing = re.search(rf"operator {_NAME}::(\w+) does not exist", str(error))
                if missing is None or missing[1] not in _SCHEMAS:
                    raise
                for name in [name for name in sys.modules if name.startswith(f"{_NAME}.")]:
                    del sys.modules[name]
                library = torch.library.Library(_NAME, "FRAGMENT")
                library.define(_SCHEMAS.pop(missing[1]))
                _DECLARED.append(library)
