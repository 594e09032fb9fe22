"""infinite_width: the infinite-width twin of a model, ready to be trained by an ordinary loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import torch
from torch import Tensor, nn

from torch_dmft.architecture import Architecture, Layer, Role, Vector
from torch_dmft.architecture import describe as describe_one
from torch_dmft.architecture.facts import Weight, facts_of
from torch_dmft.architecture.groups import growing_groups
from torch_dmft.architecture.widen import has_composite_axes, materialise, widened
from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.multiplied import multiply
from torch_dmft.core.numbers import SMALLEST, require_choice, require_number, require_whole
from torch_dmft.core.random_state import random_state_kept
from torch_dmft.parameterization import ParameterRule, Plan, in_streams, mean_field, parameter_rules
from torch_dmft.parameterization.coordinate_check import built
from torch_dmft.parameterization.plan import multipliers_of
from torch_dmft.parameterization.rules import behind_ties, require_gain, with_multipliers
from torch_dmft.parameterization.start import starts_of
from torch_dmft.parameterization.uniform import UNIFORM
from torch_dmft.theory.coverage import refuse_unsupported, rows_per_sample
from torch_dmft.theory.engine.draw import Draw
from torch_dmft.theory.engine.groups import join_groups, put
from torch_dmft.theory.engine.scales import fill_scales, refuse_other_scales, refuse_other_starts
from torch_dmft.theory.tolerance import default_tolerance
from torch_dmft.uses import describe

MOST_NEURONS = 2**20
"""Of a sample: a hundred times as many as any error bar asks for."""
_TEMPLATE_WIDTH = 240
"""Width at which the model of a factory is described: small, and a multiple of most numbers of heads."""


@checked
def infinite_width(
    model_or_factory: nn.Module | Plan | Callable[[int], nn.Module],
    example_input: Tensor,
    gamma0: float = 1.0,
    neurons: int = 8192,
    *,
    gain: float | str | Mapping[str, float] = "auto",
    bias_std: Mapping[str, float] | None = None,
    uniform: Sequence[str] | AbstractSet[str] | None = None,
    law: str = "limit",
    responses: bool = True,
    tolerance: float | None = None,
    rank: int = 512,
    whole: bool = False,
    generator: torch.Generator | None = None,
) -> Plan:
    """The infinite-width twin of a model: the same module with ``neurons`` neurons per width and lazily sampled weights.

    Hidden ``nn.Linear`` layers become ``InfiniteLinear``, hidden convolutions ``InfiniteConv``, the readout
    ``InfiniteReadout``; embeddings have rows of S neurons. Everything else (activations, pooling, residual sums, norms,
    dropout, attention) is the model's own code, whose averages over neurons run over the sample; factors of scores have to
    fall like 1/width between the model and one of twice its width. Train ``plan.model`` with ``plan.param_groups(lr)`` and
    ``torch.optim.SGD``; measure it with ``Recorder(plan, probe)``.

    Of a GroupNorm a factory, or a plan made with ``wider=``, tells whether its groups grow in number or in size; else the
    number is taken to be the same at every width.

    Convolutions meet new directions with every pixel: allow for them with ``rank``. A layer that has met as many as it has
    neurons (``layer.saturated``) is that of an ordinary network of width S. Where an axis is made from others (a feature map
    that is flattened rather than averaged, a concatenation), latents are plain: errors are larger, but not biased.

    Args:
        model_or_factory: a model, the ``Plan`` of a wrapped model (whose gains and gamma0 are kept), or a function
            width -> model.
        example_input: a batch that the model accepts; its dtype (of tokens: that of the model) and its device are the twin's.
        gamma0: feature-learning strength; a plan brings its own.
        neurons: S, the sample that stands for infinity: width of the readout's input, other widths in proportion
            (for a factory, the width it is called with).
        gain: g of input and hidden weights: ``"auto"`` by the activation, a number, or a number per module path; embeddings
            have their own size.
        bias_std: standard deviation of the Gaussian initial biases per module path; biases not named start at zero.
        uniform: names of weights and biases that start as uniform numbers of their standard deviation instead of Gaussian
            ones, as those of a plan by themselves; of hidden weights it does not matter at infinite width, and is left out.
        law: ``"limit"`` (variance-reduced, for N = infinity) or ``"network"`` (exactly the law of a network of width S).
        responses: False drops the responses A and B, the gradient-independence ansatz.
        tolerance: relative part of a vector that may stay outside the sampled bases; default 1e-2 * min(1, gamma0).
        rank: room for this many directions per hidden layer and side.
        whole: keep what hidden weights learn entry by entry, S x S numbers, as Adam needs it: its steps are not linear in the
            gradient. ``plan.param_groups(lr, optimizer="adam")`` then has the rates. Where targets balance its first step may
            have no limit (``torch_dmft.theory.engine.balanced``), which ``solve`` refuses and a loop of one's own does not.
        generator: source of randomness; default a fresh one with seed 0.

    Returns:
        A ``Plan`` whose ``model`` is the twin. What is frozen in the model is frozen in the twin. The model that was given is
        left as it was, so the plan cannot be undone.

    Raises:
        UnsupportedModelError: for layers whose infinite-width law is not implemented, with every place named.
        InvalidInputError: for settings outside their range.
    """
    require_whole("neurons", neurons, at_least=16, at_most=MOST_NEURONS)
    require_whole("rank", rank, at_least=1)
    require_number("gamma0", gamma0, at_least=SMALLEST)
    require_choice("law", law, ("limit", "network"))
    for path, number in (gain if isinstance(gain, Mapping) else {"gain": gain}).items():
        require_gain(number, path)
    for path, number in (bias_std or {}).items():
        require_number(path, number, at_least=0)
    if tolerance is not None:
        require_number("tolerance", tolerance, at_least=0, below=1)
    generator = generator or torch.Generator().manual_seed(0)
    if isinstance(model_or_factory, Plan):
        gamma0 = model_or_factory.gamma0
        narrow, architecture, rules = model_or_factory.model, model_or_factory.architecture, model_or_factory.rules
        biases = {rule.path: rule.std for rule in rules if rule.role is Role.VECTOR}
        if uniform is None:
            uniform = {name for name, start in starts_of(model_or_factory, untrained=False).items() if start == UNIFORM}
    else:
        if isinstance(model_or_factory, nn.Module):
            narrow = model_or_factory
        else:
            narrow = _built(model_or_factory, _TEMPLATE_WIDTH, example_input)
        architecture = describe(narrow, example_input)
        if not isinstance(model_or_factory, nn.Module):
            doubled = _built(model_or_factory, 2 * _TEMPLATE_WIDTH, example_input)
            architecture = replace(architecture, groups=growing_groups(narrow, doubled))
        common = "auto" if isinstance(gain, Mapping) else gain
        rules = parameter_rules(architecture, narrow, gamma0=gamma0, gain=common)
        biases = {}
    if not isinstance(model_or_factory, nn.Module | Plan):
        sizes = [*architecture.parts, *(product.size for product in architecture.dot_products)]
        sizes += [module.num_groups for path, module in narrow.named_modules() if path in architecture.groups]
        unit = math.lcm(*(_TEMPLATE_WIDTH // math.gcd(_TEMPLATE_WIDTH, size) for size in sizes))
        if neurons % unit:
            raise InvalidInputError(
                "The neurons must be divisible into heads and groups.",
                got=f"{neurons} neurons",
                remedy=f"neurons={math.ceil(neurons / unit) * unit}",
            )
    initial = model_or_factory.initial if isinstance(model_or_factory, Plan) else {}
    refuse_unsupported(narrow, architecture, starts=initial)
    like = _numbers_of(narrow, example_input)
    refuse_other_starts(architecture, rules)
    # One width cannot tell how numbers depend on it, and a factor of 1 is not even seen.
    if isinstance(model_or_factory, nn.Module | Plan):
        doubled = widened(narrow, architecture, 2 * architecture.width)
        materialise(doubled, like, architecture.bare)
    other = describe_one(doubled, example_input, like=architecture)
    refuse_other_scales(architecture, other)
    positions = rows_per_sample(narrow, architecture, example_input)
    matrices = [rule for rule in rules if rule.role in (Role.INPUT, Role.HIDDEN)]
    tables = {rule.path: rule for rule in rules if rule.role is Role.EMBEDDING}
    gains = {rule.path: rule.gain for rule in matrices}
    for name, given, known in (
        ("gain", gain, [*gains]),
        ("bias_std", bias_std, [one.path for one in architecture.layers]),
    ):
        for path in given if isinstance(given, Mapping) else ():
            require_choice(f"a path of {name}", path, known)
    gains |= gain if isinstance(gain, Mapping) else {}
    gains |= {path: rule.gain for path, rule in tables.items()}
    starts = {rule.name: rule.start for rule in rules}
    if isinstance(model_or_factory, nn.Module | Plan):
        wide = widened(narrow, architecture, neurons)
    else:
        with torch.device("meta"):
            wide = built(model_or_factory, neurons)
        fill_scales(wide, architecture, like)
    if law == "limit":
        join_groups(wide, kept=architecture.groups)
    architecture, own_factors = _resized(architecture, wide), architecture.factors
    drift = {name: factor / own_factors[name] for name, factor in architecture.factors.items()}
    # Latents of an axis made from others cannot be matched to what these others know, and half a matching biases kernels.
    matched = "network" if has_composite_axes(architecture) or architecture.shares_parts else law
    multiplied = {rule.path: gains[rule.path] * rule.start * drift.get(rule.name, 1.0) for rule in matrices}
    multiplied |= {path: rule.std * drift.get(rule.name, 1.0) for path, rule in tables.items()}
    owned = {layer.path: layer.bias or "" for layer in architecture.layers}
    biases = {path: std * drift.get(owned.get(path, ""), 1.0) for path, std in biases.items()}
    biases |= {path: std * architecture.factors.get(owned[path], 1.0) for path, std in (bias_std or {}).items()}
    names = {name for layer in architecture.layers for name in (layer.weight, layer.bias) if name is not None}
    names |= architecture.bare.keys()
    for name in uniform or ():
        require_choice("a name of uniform", name, sorted(names))
    quasi = not (architecture.has_parts or architecture.groups)  # else neurons meet others of their own part
    readout = architecture.factors.get(architecture.readout.weight, 1.0) / (gamma0 * architecture.width)
    draw = Draw(matched, generator, like, multiplied, biases, frozenset(uniform or ()), quasi=quasi)
    for layer in architecture.layers:
        settings = {"tolerance": default_tolerance(gamma0) if tolerance is None else tolerance}
        settings |= {"responses": responses, "rank": rank, "positions": max(positions[layer.path]), "whole": whole}
        module = wide.get_submodule(layer.path)
        put(wide, module, draw.layer(layer, module, readout, settings))
    stds = {rule.name: rule.std for rule in rules}
    for name, vector in architecture.bare.items():
        owner, _, own = name.rpartition(".")
        rows = draw.rows(vector, wide.get_parameter(name), stds[name] * drift.get(name, 1.0))
        wide.get_submodule(owner).register_parameter(own, nn.Parameter(rows))
    materialise(wide, like)
    with torch.no_grad():
        for vector in architecture.vectors:
            if vector.place is None:
                start = starts.get(vector.name, 1.0) * drift.get(vector.name, 1.0)
                wide.get_parameter(vector.name).mul_(start)
    architecture = replace(architecture, layers=tuple(_renamed(layer) for layer in architecture.layers))
    kept = {name for name, parameter in narrow.named_parameters() if not parameter.requires_grad}
    kept |= {rule.name for rule in rules if not rule.lr}
    _freeze(wide, architecture, kept)
    depth = model_or_factory.depth if isinstance(model_or_factory, Plan) else None
    twin_rules = _rules(wide, architecture, gamma0, gains, {path: multiplied[path] for path in tables}, depth)
    architecture = with_multipliers(architecture, twin_rules, gamma0)
    multiply(wide, multipliers_of(architecture))
    origin = "theory (N=inf)" if law == "limit" else f"lazily sampled network (N={architecture.width})"
    return Plan(
        wide,
        architecture,
        twin_rules,
        scheme="mean_field",
        gamma0=gamma0,
        origin=origin,
        optimizers=("sgd", "adam", "adamw") if whole else ("sgd",),
        is_limit=law == "limit",
        depth=depth,
    )


def _built(factory: Callable[[int], nn.Module], width: int, like: Tensor) -> nn.Module:
    """A model to describe; its weights are discarded, so building it leaves the random state alone."""
    with random_state_kept({like.device}):
        model = built(factory, width).to(like.device)
    return model.to(like.dtype) if like.is_floating_point() else model  # tokens have none


def _numbers_of(model: nn.Module, example_input: Tensor) -> Tensor:
    """A tensor of the type and on the device that a twin's numbers have: those of the data, if these are no tokens."""
    if example_input.is_floating_point():
        return example_input
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return example_input.new_zeros((), dtype=dtype)


def _resized(architecture: Architecture, wide: nn.Module) -> Architecture:
    """The architecture with the sizes of a wider model of the same structure."""
    layers = []
    for layer in architecture.layers:
        facts = facts_of(wide.get_submodule(layer.path))
        assert isinstance(facts, Weight)
        layers.append(
            replace(layer, fan_in=facts.fan_in, in_features=facts.in_features, out_features=facts.out_features)
        )
    vectors = tuple(replace(v, size=wide.get_parameter(v.name).numel()) for v in architecture.vectors)
    resized = replace(architecture, layers=tuple(layers), vectors=vectors)
    return resized.folded_at(resized.width / architecture.width)


def _freeze(wide: nn.Module, architecture: Architecture, names: Collection[str]) -> None:
    """Freeze what is frozen in the model, whose names these are: of a hidden layer all that its weight is made of."""
    hidden = {f"{layer.path}.weight": layer for layer in architecture.layers if layer.role is Role.HIDDEN}
    for name in names:
        parts = (f"{hidden[name].path}.core", f"{hidden[name].path}.initial_scale") if name in hidden else (name,)
        for part in parts:
            wide.get_parameter(part).requires_grad_(False)


def _renamed(layer: Layer) -> Layer:
    """The name of the parameter that is trained instead of a hidden weight: the layer's ``core``."""
    return replace(layer, weight=f"{layer.path}.core") if layer.role is Role.HIDDEN else layer


def _rules(
    model: nn.Module,
    architecture: Architecture,
    gamma0: float,
    gains: Mapping[str, float],
    tables: Mapping[str, float],
    depth: str | None,
) -> tuple[ParameterRule, ...]:
    """Scaling rules of the twin's parameters; the scale of the initial weights decays like the weights themselves."""
    known: dict[str, tuple[Layer | Vector, Role]] = {}
    for layer in architecture.layers:
        if layer.multiplier is None:  # else the weight has the role of its other use
            known[layer.weight] = (layer, layer.role)
        if layer.role is Role.HIDDEN:
            known[f"{layer.path}.initial_scale"] = (layer, layer.role)
        if layer.bias is not None:
            known[layer.bias] = (layer, Role.OUTPUT_BIAS if layer.role is Role.READOUT else Role.VECTOR)
    known |= {vector.name: (vector, vector.role) for vector in architecture.vectors}
    rules = []
    for name, parameter in model.named_parameters():
        owner, role = known[name]
        is_matrix = role in (Role.INPUT, Role.HIDDEN, Role.READOUT)
        fan_in = owner.fan_in if is_matrix and isinstance(owner, Layer) else 1
        gain = gains[owner.path] if role in (Role.INPUT, Role.HIDDEN, Role.EMBEDDING) else 1.0
        is_weight = name.rpartition(".")[2] in ("core", "initial_scale")
        given = f"{owner.path}.weight" if is_weight else name
        fold = architecture.factors.get(given, 1.0)
        scaling = mean_field(role, fan_in=fan_in, width=architecture.width, gamma0=gamma0, gain=gain, fold=fold)
        own = float(parameter.detach().square().mean().sqrt()) if scaling.std is None else scaling.std
        std = tables[owner.path] if role is Role.EMBEDDING else own
        scaling = in_streams(scaling, given, architecture, depth)
        rules.append(
            ParameterRule(
                name=name,
                path=owner.path,
                role=role,
                fan_in=fan_in,
                gain=gain,
                std=std,
                lr=scaling.lr,
                adam_lr=scaling.adam_lr,
                gradient=scaling.gradient,
            )
        )
    return behind_ties(rules, architecture, gamma0)
