"""The empirical neural tangent kernel of a network, three ways that must agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vjp

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.materialised import require_materialised
from torch_dmft.core.memory import require_memory
from torch_dmft.core.spread import inside
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.measurement.batch_norm import Statistics, require_choice
from torch_dmft.measurement.functional import called_with, plain_attention
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.projection import refuse_classes_of
from torch_dmft.measurement.snapshot import snapshot, squeeze_outputs
from torch_dmft.measurement.subject import subject_of
from torch_dmft.measurement.wanted import Wanted
from torch_dmft.uses.failures import outputs_on
from torch_dmft.uses.outputs import Example, Runs, Selection, count, output_rows
from torch_dmft.uses.products import gram

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan


@checked
def empirical_ntk(
    model: Plan | nn.Module,
    inputs: Example,
    targets: Tensor | None = None,
    *,
    method: str = "layerwise",
    outputs: Selection | None = None,
    batch_norm: str = "probe",
    per_output: bool = True,
) -> Tensor:
    r"""The neural tangent kernel of a finite network without dropout, per unit of the base learning rate.

    .. math:: K_{\mu c, \alpha c'}
        = \sum_p m_p \sum_i \partial_{\theta_{pi}} f_c(\mu)\, \partial_{\theta_{pi}} f_{c'}(\alpha)

    over trained parameters p, with m_p the plan's SGD multiplier, or 1 for a bare model.

    Args:
        model: a plan or a bare module; it is left exactly as it was.
        inputs: ``(sample, ...)``, or a tuple or mapping of the arguments of ``forward``, as in ``Probe``.
        targets: if given, the kernel is that of the one function y_mu . f(mu): with ``(sample,)`` integer classes of
            each sample's own class output, with ``(sample, output)`` floats of that combination of outputs.
        method: ``"layerwise"`` multiplies Gram matrices of inputs and gradients layer by layer, the fastest.
            ``"jacobian"`` forms the full Jacobian with ``torch.func``, for any model but a twin of ``infinite_width`` that
            ``torch.func`` can follow; ``"vjp"`` goes row by row through one vector-Jacobian and one
            Jacobian-vector product, for the same models, and needs memory for one gradient only.
        outputs: which of the model's outputs is f: a key, an index or a function of what it returns, as in ``Recorder``.
        batch_norm: whose statistics BatchNorm has, ``"probe"`` (those of the inputs, as in train mode) or ``"run"``.
        per_output: False averages over equal outputs, (sum over c of K[mu c, alpha c]) / C: exact, one output after the other,
            where the kernel of all pairs of outputs is too large. Not with targets.

    Returns:
        ``(sample, sample)`` for one output, with targets or averaged, else ``(sample, output, sample, output)``.

    Raises:
        UnsupportedModelError: if ``"layerwise"`` does not cover the model, or samples interact.
        InsufficientMemoryError: if the estimate exceeds what is free.
        InvalidInputError: for an unknown method, a twin with another method than ``"layerwise"``, outputs that are
            not ``(sample, output)``, or targets beside ``per_output=False``.
    """
    refuse_classes_of(outputs, targets)
    require_choice(batch_norm)
    if targets is not None and not per_output:
        raise InvalidInputError(
            "Targets choose one function of the outputs, of which nothing is left to average.",
            got="targets and per_output=False",
            remedy="one of the two",
        )
    match method:
        case "layerwise":
            subject = subject_of(model, inputs, outputs=outputs, batch_norm=batch_norm)
            wanted = Wanted(per_output=per_output, fields=False)
            kernel = snapshot(replace(subject, wanted=wanted), inputs).known_ntk
            if kernel.ndim == 2:
                kernel = kernel[:, None, :, None]
        case "jacobian" | "vjp":
            module, multipliers = trained(model)
            refuse_lazily_sampled(module, f"method={method!r}")
            statistics = Statistics(module, module, batch_norm)
            module, multipliers = Runs(module, outputs), {f"model.{name}": m for name, m in multipliers.items()}
            with undisturbed(module), plain_attention(), statistics.set(module, inputs):
                with torch.no_grad():
                    outputs_on(module, inputs)
                way = _jacobian if method == "jacobian" else _row_by_row
                kernel = way(module, multipliers, inputs, per_output=per_output)
        case _:
            raise InvalidInputError("Unknown method.", got=repr(method), remedy='"layerwise", "jacobian" or "vjp"')
    if targets is None:
        return squeeze_outputs(kernel)
    weights = Probe(inputs, targets).target_values(kernel.shape[1])
    assert weights is not None
    if weights.shape[1] != kernel.shape[1]:
        raise InvalidInputError(
            "The targets must have as many numbers per sample as the model has outputs.",
            got=f"targets {tuple(weights.shape)} and {kernel.shape[1]} outputs",
            remedy="targets (sample, output), or outputs= that selects as many",
        )
    weights = weights.to(kernel)
    return torch.einsum("mcad,mc,ad->ma", kernel, weights, weights)


def trained(model: Plan | nn.Module) -> tuple[nn.Module, Mapping[str, float]]:
    """The module to run, and the multiplier of each parameter that is trained."""
    module = inside(model if isinstance(model, nn.Module) else model.model)
    require_materialised(module)
    multipliers = {} if isinstance(model, nn.Module) else model.multipliers
    return module, {
        name: multipliers.get(name, 1.0) for name, value in module.named_parameters() if value.requires_grad
    }


def refuse_lazily_sampled(module: nn.Module, what: str) -> None:
    """Refuse infinite-width twins, whose forward pass draws weights in place: ``torch.func`` cannot follow that."""
    for path, part in module.named_modules():
        if getattr(part, "keeps_what_it_reveals", False):
            raise InvalidInputError(
                f"{what} cannot be used with an infinite-width twin, whose weights are sampled while it runs.",
                got=f"{path or '(model)'}: {type(part).__name__}",
                remedy='empirical_ntk(..., method="layerwise")',
            )


def _jacobian(module: nn.Module, multipliers: Mapping[str, float], inputs: Example, *, per_output: bool) -> Tensor:
    parameters = {name: value.detach() for name, value in module.named_parameters() if name in multipliers}

    def run(values: dict[str, Tensor]) -> Tensor:
        return output_rows(called_with(module, values, inputs), count(inputs))

    with torch.no_grad():
        outputs = run(parameters)
    require_memory(
        outputs.numel() * outputs.element_size() * sum(value.numel() for value in parameters.values()),
        outputs.device,
        what="The full Jacobian",
        remedy='method="layerwise" (with per_output=False where there are many outputs) or method="vjp"',
    )
    jacobian = jacrev(run)(parameters)
    if not per_output:  # all outputs of a sample side by side: one function with so many times the parameters
        jacobian = {name: block.flatten(1)[:, None] / outputs.shape[1] ** 0.5 for name, block in jacobian.items()}
    return torch.stack([multipliers[name] * gram(block) for name, block in jacobian.items()]).sum(0)


def _row_by_row(module: nn.Module, multipliers: Mapping[str, float], inputs: Example, *, per_output: bool) -> Tensor:
    """K e_i = J M J^T e_i for every output i: one product with J^T, one with J."""
    parameters = {name: value.detach() for name, value in module.named_parameters() if name in multipliers}

    def run(values: dict[str, Tensor]) -> Tensor:
        return output_rows(called_with(module, values, inputs), count(inputs))

    outputs, pull_back = vjp(run, parameters)[:2]
    samples, number = outputs.shape
    rows = []
    for place in range(outputs.numel()):
        unit = torch.zeros_like(outputs)
        unit[place // number, place % number] = 1.0
        (gradient,) = pull_back(unit, retain_graph=True)
        direction = {name: multipliers[name] * value for name, value in gradient.items()}
        row = jvp(run, (parameters,), (direction,))[1].detach()
        rows.append(row if per_output else row[:, place % number])
    if per_output:
        return torch.stack(rows).reshape(*outputs.shape, *outputs.shape)
    return torch.stack(rows).reshape(samples, number, samples).mean(1)[:, None, :, None]
