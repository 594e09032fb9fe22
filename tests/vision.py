"""torchvision beside any torch: ``from tests.vision import torchvision``.

A torchvision built for CUDA cannot load its compiled part beside a CPU build of torch, and then fails at import because
schemas of its operators are missing ("operator torchvision::nms does not exist"). Data sets and models need none of
them, so the schemas are declared and the import tried again. Where torchvision imports as it is, nothing happens.
"""

import importlib
import re
import sys
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A declaration lasts as long as the object that made it.
_DECLARED: list[torch.library.Library] = []


def _import() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
        if missing is None or missing[1] not in _SCHEMAS:
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(_SCHEMAS.pop(missing[1]))
        _DECLARED.append(library)
        return _import()


torchvision = _import()
