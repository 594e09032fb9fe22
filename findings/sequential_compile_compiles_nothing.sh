#!/usr/bin/env bash
# torch 2.13.0: `nn.Sequential(...).compile()` compiles nothing and says nothing: the model runs as before. The same holds for a
# subclass of Sequential without a forward of its own, and for a single `nn.Linear`. `torch.compile(model)` compiles all of them,
# and `.compile()` of a class of one's own with the same layers does. The documentation says that the call of the module is
# compiled by torch.compile.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6
"$here/venv/bin/python" - <<'PY'
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x):
        return self.layers(x)


class Chain(nn.Sequential):
    pass


def graphs(model, *, in_place):
    """How many graphs the compiler is given when the model is called."""
    given = []

    def backend(graph, inputs):
        given.append(graph)
        return graph.forward

    torch.compiler.reset()
    if in_place:
        model.compile(backend=backend)
        model(torch.ones(1, 4))
    else:
        torch.compile(model, backend=backend)(torch.ones(1, 4))
    return len(given)


made = {
    "Sequential": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
    "subclass": lambda: Chain(nn.Linear(4, 4), nn.ReLU()),
    "Linear": lambda: nn.Linear(4, 4),
    "own class": Own,
}
found = {name: (graphs(make(), in_place=True), graphs(make(), in_place=False)) for name, make in made.items()}
print(f"torch {torch.__version__}: graphs of model.compile() and of torch.compile(model): {found}")
expected = {"Sequential": (0, 1), "subclass": (0, 1), "Linear": (0, 1), "own class": (1, 1)}
assert found == expected, "compile() of a Sequential compiles now"
PY
