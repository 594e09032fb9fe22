#!/usr/bin/env bash
# torch 2.13.0: `torch.func.functional_call` with its defaults on a model in which one module is found under two paths (held by
# an attribute and by a ModuleList, say) does not put the model back. Afterwards the module's weight is the tensor that was
# given for the call, and no longer the parameter: an optimizer that was made before trains a parameter that the model does not
# use any more, and nothing raises. With tie_weights=False, or with each module under one path, the model is left as it was.
# The documentation says that the call does not change the module.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6
"$here/venv/bin/python" - <<'PY'
import torch
from torch import nn
from torch.func import functional_call


class Model(nn.Module):
    def __init__(self, paths):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        if paths == 2:
            self.layers = nn.ModuleList([self.layer])

    def forward(self, x):
        return self.layer(x)


def is_left_as_it_was(paths, **settings):
    model = Model(paths)
    parameter = model.layer.weight
    values = {name: value.detach().clone() for name, value in model.named_parameters()}
    functional_call(model, values, (torch.ones(1, 2),), **settings)
    return model.layer.weight is parameter


one, two, untied = is_left_as_it_was(1), is_left_as_it_was(2), is_left_as_it_was(2, tie_weights=False)
print(f"torch {torch.__version__}: the weight is the parameter still: one path {one}, two paths {two}, untied {untied}")
assert one and untied and not two, "functional_call puts a module under two paths back now"
PY
