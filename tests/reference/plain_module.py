"""The oracle's own oracle: one ordinary nn.Module, trained by torch.optim.SGD and measured by hooks and Jacobians.

No multiplier stands in its forward pass; they are folded into the initial weights and the learning rates (an effective
weight m W learns with m^2 times the unit-form rate). That the two agree to round-off checks both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.reference.networks import Chain, Observables, Parameters, Training


class PlainModule(nn.Module):
    """Linear -> LayerNorm -> activation, L times (with a skip connection from the second on), then Linear."""

    def __init__(self, chain: Chain, parameters: Parameters, network: int) -> None:
        super().__init__()
        self.chain = chain
        self.multipliers: dict[str, float] = {}
        linears, norms = [], []
        for layer in range(chain.depth + 1):
            weight = parameters[f"weight.{layer}"][network]
            fan_out, fan_in = weight.shape
            multiplier = chain.gain / math.sqrt(fan_in) if layer < chain.depth else 1 / (chain.gamma0 * fan_in)
            bias = parameters.get(f"bias.{layer}")
            linear = nn.Linear(fan_in, fan_out, bias=bias is not None, dtype=weight.dtype)
            linear.weight.data = multiplier * weight
            self.multipliers[f"linears.{layer}.weight"] = multiplier
            if bias is not None:
                linear.bias.data = bias[network].clone()
            linears.append(linear)
            if layer < chain.depth and chain.norm is not None:
                affine = chain.norm == "affine"
                norms.append(nn.LayerNorm(fan_out, elementwise_affine=affine, dtype=weight.dtype))
        self.linears, self.norms = nn.ModuleList(linears), nn.ModuleList(norms)
        self.width: int = linears[-1].in_features
        self.dtype: torch.dtype = linears[-1].weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        h = self.linears[0](x)
        for layer in range(1, self.chain.depth + 1):
            normed = self.norms[layer - 1](h) if self.norms else h
            out = self.linears[layer](self.chain.activation(normed))
            h = h + self.chain.branch_scale * out if self.chain.branch_scale and layer < self.chain.depth else out
        return h

    def rate(self, name: str) -> float:
        """The SGD learning rate of a parameter per unit of eta."""
        return self.multipliers.get(name, 1.0) ** 2 * self.chain.gamma0**2 * self.width


def _layer_fields(module: PlainModule, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per weight: its inputs, and gamma0 * N_out * df/d(output) as ``(sample, output, neuron)``."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [m.register_forward_hook(lambda _, x, y: seen.append((x[0], y))) for m in module.linears]
    f = module(inputs)
    for hook in hooks:
        hook.remove()
    found = []
    for features, output in seen[:-1]:
        # Row by row and output by output, so that nothing relies on rows being independent.
        rows = [
            [torch.autograd.grad(f[mu, c], output, retain_graph=True)[0][mu] for c in range(f.shape[1])]
            for mu in range(len(f))
        ]
        gradient = torch.stack([torch.stack(row) for row in rows])
        found.append((features.detach(), module.chain.gamma0 * output.shape[1] * gradient))
    readout = torch.eye(f.shape[1], dtype=f.dtype).expand(*f.shape, f.shape[1])
    return [*found, (seen[-1][0].detach(), readout)]


def _ntk(module: PlainModule, inputs: Tensor) -> dict[str, Tensor]:
    """What every parameter adds to the NTK, ``(sample, output, sample, output)``, from the full Jacobian."""
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(module, p, (inputs,)))(parameters)
    flat = {name: j.flatten(2) for name, j in jacobian.items()}
    return {name: module.rate(name) * torch.einsum("ucp,vdp->ucvd", j, j) for name, j in flat.items()}


def train_module(chain: Chain, training: Training, module: PlainModule, *, two_time: bool = False) -> Observables:
    """Train for T steps and measure before each; the observables of ``networks.train`` (ntk at equal times always)."""
    inputs = training.rows(module.dtype)
    targets = training.targets
    optimizer = torch.optim.SGD(
        [
            {"params": [p], "lr": training.lr * rate, "weight_decay": training.weight_decay / rate}
            for (name, p), rate in zip(
                module.named_parameters(), map(module.rate, dict(module.named_parameters())), strict=True
            )
        ],
        momentum=training.momentum,
    )
    outputs, losses, fields, ntks = [], [], [], []
    start = module(inputs).detach() * training.centered
    for t in range(training.steps):
        rows = torch.arange(len(training.inputs)) if training.batches is None else training.batches[t]
        outputs.append(module(inputs).detach() - start)
        losses.append(training.loss(outputs[-1][: len(targets)], targets))
        fields.append(_layer_fields(module, inputs))
        ntks.append(_ntk(module, inputs))
        optimizer.zero_grad()
        training.loss(module(training.inputs[rows]) - start[rows], targets[rows]).backward()
        optimizer.step()

    times = range(training.steps)
    found = {"outputs": torch.stack(outputs), "losses": torch.stack(losses)}
    found["ntk"] = torch.stack([torch.stack(list(ntk.values())).sum(0) for ntk in ntks])
    for layer in range(chain.depth + 1):
        own = (f"linears.{layer}.weight", f"linears.{layer}.bias")
        found[f"ntk.{layer}"] = torch.stack(
            [torch.stack([ntk[name] for name in own if name in ntk]).sum(0) for ntk in ntks]
        )

        def phi(t: int, s: int, layer: int = layer) -> Tensor:
            x, y = fields[t][layer][0], fields[s][layer][0]
            return torch.einsum("un,vn->uv", x, y) / x.shape[-1]

        def g(t: int, s: int, layer: int = layer) -> Tensor:
            x, y = fields[t][layer][1], fields[s][layer][1]
            return torch.einsum("ucn,vdn->ucvd", x, y) / (x.shape[-1] if layer < chain.depth else 1)

        for name, kernel in ((f"forward.{layer}", phi), (f"backward.{layer}", g)):
            if two_time:
                blocks = torch.stack([torch.stack([kernel(t, s) for s in times]) for t in times])
                half = 1 if kernel is phi else 2
                found[name] = blocks.movedim(1, 1 + half)
            else:
                found[name] = torch.stack([kernel(t, t) for t in times])
    if chain.outputs == 1:
        for name in [n for n in found if n.startswith(("backward", "ntk"))]:
            array = found[name]
            found[name] = array.squeeze(-1).squeeze(2)
    return found
