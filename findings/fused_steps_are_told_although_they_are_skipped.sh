#!/usr/bin/env bash
# torch 2.13.0: GradScaler leaves out the step of an optimizer when a gradient is infinite. With `foreach` or plain optimizers
# post hooks of the step (`register_step_post_hook`) are then not called; with `fused=True` they are, although no parameter has
# moved: the optimizer is told of the infinity and leaves the parameters alone itself. Whoever counts steps in such a hook counts
# more of them with the fused kind.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6
"$here/venv/bin/python" - <<'PY'
import torch
from torch import nn


def after_an_infinite_gradient(**kind):
    """How often the hook was called, and whether the parameter moved."""
    parameter, calls = nn.Parameter(torch.ones(2)), []
    optimizer = torch.optim.SGD([parameter], lr=0.1, **kind)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale((parameter * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return len(calls), not torch.equal(parameter, torch.ones(2))


kinds = {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
found = {name: after_an_infinite_gradient(**kind) for name, kind in kinds.items()}
print(f"torch {torch.__version__}: (calls of the hook, moved) of a step that is left out: {found}")
assert found == {"plain": (0, False), "foreach": (0, False), "fused": (1, False)}, "fused steps are like the others now"
PY
