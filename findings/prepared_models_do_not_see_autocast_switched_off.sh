#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13.0: `Accelerator(mixed_precision="bf16").prepare(model)` wraps the forward of the model itself in an
# autocast of its own. `torch.autocast(device, enabled=False)` around a call, which keeps an evaluation in float32 elsewhere, has
# no effect: what comes out is float32, converted, and has the error of bfloat16. `accelerator.unwrap_model(model,
# keep_fp32_wrapper=False)` takes the wrapper off.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6 accelerate==1.15.0
"$here/venv/bin/python" - <<'PY'
import accelerate
import torch
from accelerate import Accelerator
from torch import nn

inputs = torch.linspace(-1, 1, 8 * 64).reshape(8, 64)
model = nn.Linear(64, 1)
accelerator = Accelerator(mixed_precision="bf16", cpu=True)
with torch.no_grad():
    nn.init.constant_(model.weight, 0.123)
    exact = model(inputs)
    prepared = accelerator.prepare(model)
    with torch.autocast("cpu", enabled=False):
        off = prepared(inputs)
    unwrapped = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)(inputs)
size = exact.abs().max()
errors = {"autocast off": (off - exact).abs().max() / size, "unwrapped": (unwrapped - exact).abs().max() / size}
text = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
print(f"accelerate {accelerate.__version__}, torch {torch.__version__}: relative error, outputs in {off.dtype}: {text}")
assert off.dtype == torch.float32
assert errors["autocast off"] > 1e-4, "a prepared model sees that autocast is off now"
assert errors["unwrapped"] < 1e-6
PY
