"""parameterize: give a model a scaling, in place."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn

from torch_dmft.architecture import Architecture, Role
from torch_dmft.architecture.describe import Roles
from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.listed import listed
from torch_dmft.core.materialised import require_materialised
from torch_dmft.core.multiplied import multiplied, multiply
from torch_dmft.core.numbers import SMALLEST, require_number
from torch_dmft.core.prints import some_entries
from torch_dmft.core.spread import assign, inside, is_spread, processes_differ, whole
from torch_dmft.core.torch_private import is_compiled
from torch_dmft.parameterization.plan import Plan, multipliers_of, set_attributes
from torch_dmft.parameterization.rules import OWN_INIT, ParameterRule, parameter_rules, require_gain, with_multipliers
from torch_dmft.parameterization.scheme import DEPTHS, SCHEMES, effective_gamma0
from torch_dmft.parameterization.start import is_fresh
from torch_dmft.parameterization.wrapping import Wrapping
from torch_dmft.uses.describe import Wider, describe
from torch_dmft.uses.outputs import Example, Runs, Selection
from torch_dmft.uses.streams import streams_of


@checked
def parameterize(
    model: nn.Module,
    example_input: Example,
    gamma0: float = 1.0,
    scheme: str = "mean_field",
    *,
    gain: float | str = "auto",
    init: str = "normal",
    roles: Roles | None = None,
    wider: Wider | None = None,
    outputs: Selection | None = None,
    depth: str | None = None,
    generator: torch.Generator | None = None,
) -> Plan:
    """Scale a model in place: training no longer depends on width, and features move in proportion to gamma0.

    Initial sizes and learning rates follow the table in ``torch_dmft.parameterization.scheme``; the forward pass, the
    modules and the keys of the state_dict stay what they are. Readout biases start at zero; other biases, norm layers
    and embeddings keep their own init, and frozen parameters (``requires_grad=False``) their values, whatever they are.

    Args:
        model: the model, on any device; also inside of DistributedDataParallel, or sharded by ``fully_shard``, where every
            process must call.
        example_input: ``(sample, ...)``, or a tuple or mapping of the arguments of ``forward``.
        gamma0: richness: features move in proportion to it; small is lazy.
        scheme: "mean_field"; "ntk" (mean field with gamma0 = 1/sqrt(N_L)); "standard" (nothing is changed,
            one rate for all).
        gain: g of input and hidden weights, whose std is g/sqrt(fan_in); "auto" is sqrt(2) if the layer's output meets
            relu, gelu, silu or their kin first, and 1 otherwise.
        init: "normal" draws weights from N(0, std^2), and warns where that replaces weights that are no fresh draw; "keep"
            keeps the weights there are (pretrained, orthogonal, structured) and only rescales each to the root mean square std,
            by what ``plan.rescaled`` says; "untouched" leaves every number as it is, to fine-tune a pretrained model: sizes
            enter as gains, and only the learning rates are set. A weight that is all zero stays so (LoRA's second matrix, a
            zero head).
        roles: for module paths or names of weights, roles that overrule what ``describe`` finds.
        wider: the same model at another width, a function that builds it, or a factory ``width -> model``: what differs
            between the two is a width. Settles the roles in models of any kind, library transformers included.
        outputs: with ``wider``: which of the model's outputs is f, a key, an index or a function; default as in ``Recorder``.
        depth: what every residual branch b of a stream h + b(h) is multiplied by, "1/sqrt(L)" or "1/L", where L is the number
            of branches (two per block of a transformer), so that training does not depend on L either; None for 1. The
            multiplier is in the parameters that end the branch.
        generator: where "normal" draws from; torch's default generator if None.

    Returns:
        The plan: print it, train with its ``param_groups``, take it back with ``undo``.

    Raises:
        UnsupportedModelError: if parts of the model cannot be scaled; the message lists all of them.
        InvalidInputError: if an argument is outside its range, the parameters have no numbers yet (meta device), or processes
            that train the model together draw different weights.
    """
    _check(gamma0, scheme, gain, init, depth)
    require_materialised(model)
    model = model if is_compiled(model) else inside(model)
    with whole(model):
        architecture = describe(model, example_input, roles=roles, wider=wider, outputs=outputs)
        if depth is not None:
            architecture = replace(architecture, streams=streams_of(model, Runs(model, outputs), example_input))
        if wider is None and architecture.notes:
            warnings.warn("; ".join(architecture.notes), stacklevel=3)
        wrapping = Wrapping.of(gain, init, roles, outputs, wider, depth)
        plan = scaled(model, architecture, wrapping, gamma0=gamma0, scheme=scheme, generator=generator)
        if init == "normal" and scheme != "standard":
            _warn_of_lost(plan)
        values = dict(model.named_parameters())
    if is_spread(model):
        for name, parameter in model.named_parameters():
            assign(parameter, values[name])
    if scheme != "standard" and processes_differ(model, plan.drawn.values()):
        plan.undo()
        raise InvalidInputError(
            "Every process must draw the same weights.",
            got="other weights on this process than on another one",
            remedy="parameterize(..., generator=torch.Generator().manual_seed(seed)) with one seed everywhere, or parameterize "
            "before DistributedDataParallel(model), which hands on the weights of the first process",
        )
    return plan


def scaled(
    model: nn.Module,
    architecture: Architecture,
    wrapping: Wrapping,
    *,
    gamma0: float,
    scheme: str,
    generator: torch.Generator | None = None,
) -> Plan:
    """Scale a model whose architecture is known and whose parameters are whole, in place.

    Args:
        model: the model.
        architecture: what it is made of.
        wrapping: the gain and the way to draw weights; the rest is kept in the plan.
        gamma0: as in ``parameterize``.
        scheme: likewise.
        generator: likewise.

    Raises:
        InvalidInputError: if an argument is outside its range.
    """
    gain, init, depth = wrapping.gain, wrapping.init, wrapping.depth
    _check(gamma0, scheme, gain, init, depth)
    if scheme == "standard" or init == "untouched":  # parameters hold nothing
        layers = tuple(replace(one, fold=1.0, fold_in=1.0, fold_powers=(0.0, 0.0)) for one in architecture.layers)
        architecture = replace(architecture, layers=layers)
    initial = {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    numbers = [(one, getattr(model.get_submodule(one.path), one.name)) for one in architecture.attributes]
    if init == "untouched":  # a pretrained function stays what it is
        numbers = []
    before = tuple(replace(one, value=number) for one, number in numbers) if scheme != "standard" else ()
    rules = parameter_rules(
        architecture, model, gamma0=gamma0, scheme=scheme, gain=gain, keeps_sizes=init == "untouched", depth=depth
    )
    rescaled: dict[str, float] = {}
    if scheme != "standard":
        matrices = [rule for rule in rules if rule.role not in OWN_INIT and rule.role is not Role.OUTPUT_BIAS]
        is_blank = not any(bool(model.get_parameter(rule.name).any()) for rule in matrices)
        for rule in rules:
            factor = _initialise(model.get_parameter(rule.name), rule, init, generator, is_blank=is_blank)
            if factor is not None:
                rescaled[rule.name] = factor
        set_attributes(model, architecture.attributes if numbers else ())
    gamma0 = effective_gamma0(scheme, gamma0, architecture.width)
    multiplied_before = multiplied(model)
    if scheme != "standard" and init != "untouched":
        architecture = with_multipliers(architecture, rules, gamma0, architecture.factors)
    multiply(model, multipliers_of(architecture))
    drawn = {name: some_entries(parameter).clone() for name, parameter in model.named_parameters()}
    return Plan(
        model,
        architecture,
        rules,
        scheme=scheme,
        gamma0=gamma0,
        initial=initial,
        drawn=drawn,
        before=before,
        multiplied_before=multiplied_before,
        rescaled=rescaled,
        depth=depth,
        wrapping=wrapping,
    )


def _warn_of_lost(plan: Plan) -> None:
    """Say which weights are drawn anew that are no fresh draw: a checkpoint, or a structured start."""
    lost = [
        rule.name
        for rule in plan.rules
        if rule.role not in OWN_INIT
        and rule.role is not Role.OUTPUT_BIAS
        and plan.model.get_parameter(rule.name).requires_grad
        and not is_fresh(plan.initial[rule.name].double())
    ]
    if lost:
        warnings.warn(
            f"Weights that are no fresh random numbers (a checkpoint, or a structured start) are drawn anew: {listed(lost)}. "
            'init="keep" keeps them and rescales each, init="untouched" leaves them as they are; plan.undo() brings them back.',
            stacklevel=4,
        )


@torch.no_grad()
def _initialise(
    parameter: Tensor, rule: ParameterRule, init: str, generator: torch.Generator | None, *, is_blank: bool
) -> float | None:
    """Give a parameter its start.

    Returns:
        What it was multiplied by, if it was kept.
    """
    if not parameter.requires_grad or init == "untouched":
        return None
    if rule.role in OWN_INIT:
        if rule.start != 1.0:
            parameter.mul_(rule.start)
    elif rule.role is Role.OUTPUT_BIAS:
        parameter.zero_()
    elif init == "keep":
        size = float(parameter.square().mean().sqrt())
        if size > 0:
            parameter.mul_(rule.std / size)
            return rule.std / size
    elif is_blank or parameter.any():  # zero stays zero, unless nothing was given any numbers yet
        # Drawn where the generator lives, so that one seed gives one network on every device.
        device = parameter.device if generator is None else generator.device
        drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype, device=device)
        parameter.copy_(drawn.mul_(rule.std))
    return None


def _check(gamma0: float, scheme: str, gain: float | str, init: str, depth: str | None) -> None:
    if scheme not in SCHEMES:
        raise InvalidInputError(
            "`scheme` must name a scaling.", got=repr(scheme), remedy='"mean_field", "ntk" or "standard"'
        )
    if init not in ("normal", "keep", "untouched"):
        raise InvalidInputError(
            "`init` must name a way to draw weights.", got=repr(init), remedy='"normal", "keep" or "untouched"'
        )
    require_number("gamma0", gamma0, at_least=SMALLEST, remedy='gamma0=0.01, or scheme="ntk"')
    require_gain(gain)
    if scheme != "mean_field" and gamma0 != 1.0:
        raise InvalidInputError(
            f'With scheme="{scheme}", gamma0 must be left out; it is 1/sqrt(width).',
            got=f"gamma0={gamma0}",
            remedy='scheme="mean_field"',
        )
    if depth is not None and depth not in DEPTHS:
        raise InvalidInputError(
            "`depth` must be what residual branches are multiplied by.",
            got=repr(depth),
            remedy=" or ".join(f'"{name}"' for name in DEPTHS),
        )
    if scheme == "standard" and depth is not None:
        raise InvalidInputError(
            'With scheme="standard", `depth` must be left out, as weights stay as they are.',
            remedy='scheme="mean_field"',
        )
    if depth is not None and init == "untouched":
        raise InvalidInputError(
            'With init="untouched", `depth` must be left out, as its multiplier would be in the weights.',
            remedy='init="keep" or "normal", or leave depth= out',
        )
    if scheme == "standard" and (gain != "auto" or init != "normal"):
        raise InvalidInputError(
            'With scheme="standard", `gain` and `init` must be left out, as weights stay as they are.',
            remedy="leave gain and init at their defaults",
        )
