#!/usr/bin/env bash
# torch 2.13.0: `copy.deepcopy` of a parametrized module (weight_norm, spectral_norm, ...) shares the class that was made for
# the original, on which the property `weight` lives. `remove_parametrizations` of one of the two takes the property away from
# the class: the other has no `weight` any more and cannot be called, although nobody touched it. The same happens to a model
# whose averaged copy (`AveragedModel`) is stripped for export.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6
"$here/venv/bin/python" - <<'PY'
import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel


def has_weight(module):
    try:
        module(torch.ones(1, 2))
    except AttributeError:
        return False
    return True


def original_after(copied):
    """Whether a parametrized module works once the parametrization is removed from a copy of it."""
    module = parametrizations.weight_norm(nn.Linear(2, 2))
    assert has_weight(module)
    parametrize.remove_parametrizations(copied(module), "weight")
    return has_weight(module)


found = {
    "deepcopy": original_after(copy.deepcopy),
    "AveragedModel": original_after(lambda module: AveragedModel(module).module),
    "made anew": original_after(lambda _: parametrizations.weight_norm(nn.Linear(2, 2))),
}
print(f"torch {torch.__version__}: the original works after the removal from a copy: {found}")
assert found == {"deepcopy": False, "AveragedModel": False, "made anew": True}, "copies have classes of their own now"
PY
