r"""A base learning rate from the curvature of the loss at a plan's model, before it is trained.

SGD is stable where eta lambda_max(K H) / 2 < 1 (``torch_dmft.core.stability``), K the NTK per unit of eta and H the curvature
of the loss by the outputs. Adam's first step is -eta d with d_p = r_p sign(g_p), g = dL/dtheta and r_p its rates. Along it the
loss falls most, with J = df/dtheta, at

.. math:: \eta = \frac{g \cdot d}{(J d)^\top H (J d)}.

Muon's first step of a hidden matrix is m NS(G) in the place of r_p sign(g_p) (``core.muon``), that of all else is Adam's.

Either number holds to second order at the weights of today: it belongs to the start of training, to full batches of the probe's
training rows, and to no momentum. In a plan's parameterization it is the same at every width, up to O(1/sqrt(N)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.loss import Loss
from torch_dmft.core.muon import MUON_NUMBERS, newton_schulz, scale_of
from torch_dmft.core.numbers import require_number
from torch_dmft.core.stability import curvatures
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.measurement.batch_norm import Statistics
from torch_dmft.measurement.functional import called_with
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.probe_loss import ProbeLoss
from torch_dmft.measurement.recorder import Recorder
from torch_dmft.parameterization.muon import is_hidden_matrix, muon_groups, muon_rate
from torch_dmft.parameterization.rules import ParameterRule
from torch_dmft.uses.outputs import Runs, Selection, count, moved, output_rows, rows

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan


@dataclass(frozen=True)
class SuggestedRate:
    """A base learning rate, and what it rests on; ``float(rate)`` is the number.

    Attributes:
        lr: the base learning rate eta.
        limit: of SGD the rate at which training becomes unstable, of others that of the first step which lowers the loss most.
        fraction: lr / limit.
        optimizer: "sgd", "adam", "adamw" or "muon".
    """

    lr: float
    limit: float
    fraction: float
    optimizer: str

    def __float__(self) -> float:
        return self.lr

    def __str__(self) -> str:
        rests = (
            "2 / lambda_max(K H), where training becomes unstable" if self.optimizer == "sgd" else "the best first step"
        )
        return f"lr = {self.lr:.3g}: {self.fraction:g} of {self.limit:.3g}, {rests} (full batch of the probe, at these weights)"


def suggested_rate(
    plan: Plan,
    probe: Probe,
    *,
    loss: Loss | None = None,
    optimizer: str = "sgd",
    fraction: float = 0.5,
    outputs: Selection | None = None,
) -> SuggestedRate:
    """See ``Plan.suggest_lr``."""
    require_number("fraction", fraction, above=0, remedy="fraction=0.5")
    if probe.targets is None:
        raise InvalidInputError(
            "The curvature of the loss needs targets.", got="a probe without targets", remedy="Probe(inputs, targets)"
        )
    if optimizer not in ("sgd", "adam", "adamw", "muon"):
        raise InvalidInputError(
            "`optimizer` must be one whose first step is known.",
            got=repr(optimizer),
            remedy='"sgd", "adam", "adamw" or "muon"',
        )
    if optimizer == "muon":
        muon_groups(plan.model, plan.rules, 1.0, scheme=plan.scheme)  # refuses models that have nothing for it
    recorder = Recorder(plan, probe, loss=loss, outputs=outputs, fields=False)
    taken = ProbeLoss(recorder.subject, probe, loss)
    if optimizer == "sgd":
        record = recorder.record()
        curvature = float(curvatures(record.outputs, record.known_ntk, record.train, taken)[0])
        limit = 2 / curvature if curvature else math.inf
    else:
        limit = _first_step(plan, probe, taken, outputs, by_muon=optimizer == "muon")
    if not 0 < limit < math.inf:
        raise InvalidInputError(
            "The loss has no curvature here from which a rate would follow.",
            got=f"a limit of {limit:.3g}",
            remedy="targets that differ from the outputs, finite weights, and a loss with a second derivative",
        )
    return SuggestedRate(fraction * limit, limit, fraction, optimizer)


def _first_step(plan: Plan, probe: Probe, loss: ProbeLoss, outputs: Selection | None, *, by_muon: bool) -> float:
    """The rate at which Adam's first step, or Muon's and Adam's, lowers the loss most, to second order."""
    run = Runs(plan.model, outputs)
    device = next(run.parameters()).device
    inputs = moved(rows(probe.inputs, probe.train_rows.nonzero().flatten()), device)
    rates = {f"model.{rule.name}": rule.adam_lr for rule in plan.rules if rule.adam_lr}
    values = {name: value.detach() for name, value in run.named_parameters() if name in rates}

    def f(parameters: dict[str, Tensor]) -> Tensor:
        return output_rows(called_with(run, parameters, inputs), count(inputs))

    statistics = Statistics(run, run, "probe")
    with undisturbed(run), sdpa_kernel(SDPBackend.MATH), statistics.set(run, inputs):
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        found = torch.autograd.grad(loss(f(leaves)), list(leaves.values()), allow_unused=True)
        slopes = {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(leaves.items(), found, strict=True)}
        direction = {name: rates[name] * slope.sign() for name, slope in slopes.items()}
        if by_muon:
            direction |= {
                f"model.{rule.name}": _orthogonal(rule, slopes[f"model.{rule.name}"], plan.scheme)
                for rule in plan.rules
                if rule.adam_lr and is_hidden_matrix(rule, plan.model)
            }
        now, change = jvp(f, (values,), (direction,))  # type: ignore[misc]
        at = now.detach().requires_grad_()
        (bent,) = torch.autograd.grad(loss(at), at, create_graph=True)
        (bent,) = torch.autograd.grad(bent, at, change.detach())
    fall = sum(float((slopes[name] * step).sum()) for name, step in direction.items())
    bend = float((bent * change).sum())
    return fall / bend if bend > 0 else math.nan


def _orthogonal(rule: ParameterRule, slope: Tensor, scheme: str) -> Tensor:
    """Muon's first step of a hidden matrix, by torch's iteration in bfloat16, per unit of the base rate: ``(out, in)``."""
    numbers, shape = MUON_NUMBERS, tuple(slope.shape)
    settings = {
        "ns_coefficients": tuple(numbers[f"ns_{letter}"] for letter in "abc"),
        "ns_steps": int(numbers["ns_steps"]),
        "eps": numbers["eps"],
        "low": True,
    }
    size = muon_rate(rule, shape, scheme=scheme) * scale_of(shape, "original")
    return size * newton_schulz(slope, settings).to(slope)
