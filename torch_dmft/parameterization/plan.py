"""Plan: a model with its scaling, its parameter groups, and undo."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_dmft.architecture import Architecture, Attribute
from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.grid import Grid
from torch_dmft.core.loss import Loss
from torch_dmft.core.multiplied import multiplied, multiply
from torch_dmft.core.numbers import require_choice, require_number
from torch_dmft.core.sight import require_whole_plan
from torch_dmft.core.spread import assign, reshard, whole
from torch_dmft.parameterization.grouping import check_optimizers
from torch_dmft.parameterization.muon import MuonGroups, muon_groups
from torch_dmft.parameterization.notes import notes_of
from torch_dmft.parameterization.optimizer import NAMES, param_groups
from torch_dmft.parameterization.rules import ParameterRule
from torch_dmft.parameterization.saved import read, refuse_other, saved
from torch_dmft.parameterization.scheme import DEPTHS, SCHEMES
from torch_dmft.parameterization.table import as_table
from torch_dmft.parameterization.wrapping import Wrapping
from torch_dmft.uses.outputs import Selection

if TYPE_CHECKING:
    from torch_dmft.measurement.probe import Probe
    from torch_dmft.measurement.suggested_rate import SuggestedRate

_COLUMNS = 80


@checked
class Plan:
    """A model, what it is made of, and one scaling rule for every parameter.

    The NTK per unit of the base rate eta is K = sum over parameters p of multipliers[p] J_p J_p^T.

    Attributes:
        model: the scaled model.
        architecture: what it is made of.
        rules: one rule for every parameter.
        scheme: "mean_field", "ntk" or "standard".
        gamma0: the richness that enters theory: 1/sqrt(width) for the schemes "ntk" and "standard".
        optimizers: names that ``param_groups`` takes; an infinite-width twin stands for SGD, a whole one for Adam, too.
        is_limit: whether the model is an infinite-width twin, whose neurons are samples and no width.
        drawn: a few entries of every parameter as they were when the plan was made, by name; {} if nothing was drawn.
        rescaled: what weights that were kept were multiplied by, by name.
        depth: what residual branches are multiplied by, "1/sqrt(L)" or "1/L"; None for 1.
        wrapping: how it was made, so that other instances of the model can be wrapped alike.
        learns_by: the learning rule at work and its rho, see ``learning_rule``.
        is_undone: whether ``undo`` was called, so that nothing that is said here is true of the model any more.
        origin: what legends call this model: ``"network (N=512)"``, ``"network (32 channels)"`` if the readout reads flattened
            images of so many, or ``"theory (N=inf)"`` for an infinite-width twin.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        rules: tuple[ParameterRule, ...],
        *,
        scheme: str = "mean_field",
        gamma0: float = 1.0,
        initial: Mapping[str, Tensor] | None = None,
        origin: str | None = None,
        optimizers: tuple[str, ...] = NAMES,
        is_limit: bool = False,
        drawn: Mapping[str, Tensor] | None = None,
        before: Sequence[Attribute] = (),
        multiplied_before: Mapping[str, float] | None = None,
        rescaled: Mapping[str, float] | None = None,
        depth: str | None = None,
        wrapping: Wrapping | None = None,
    ) -> None:
        """Put a plan together; ``initial`` and what was before hold what ``undo`` brings back, None if it cannot."""
        require_choice("scheme", scheme, SCHEMES)
        require_number("gamma0", gamma0, above=0)
        if depth is not None:
            require_choice("depth", depth, DEPTHS)
        self.model = model
        self.architecture = architecture
        self.rules = rules
        self.scheme = scheme
        self.gamma0 = gamma0
        self.origin = _called(architecture) if origin is None else origin
        self.optimizers = optimizers
        self.is_limit = is_limit
        self.wrapping = Wrapping() if wrapping is None else wrapping
        self.drawn = dict(drawn or {})
        self.rescaled = dict(rescaled or {})
        self.depth = depth
        self.is_undone = False
        self.learns_by: tuple[str, float] = ("gradient", 0.0)
        self._initial = initial
        self._before = tuple(before)
        self._multiplied_before = dict(multiplied_before or {})

    @property
    def width(self) -> int:
        """N_L, the fan-in of the readout."""
        return self.architecture.width

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """Parameters and buffers as they were before the model was scaled, by name; {} if that is not known any more."""
        return self._initial or {}

    @property
    def multipliers(self) -> dict[str, float]:
        """The SGD learning rate of every parameter in units of the base rate, by parameter name."""
        return {rule.name: rule.lr for rule in self.rules}

    @property
    def functions(self) -> tuple[str, ...]:
        """Activation and gain behind every weight but the readout, such as ``"relu, gain 1.4"``; () where gains are not set."""
        if self.scheme == "standard":
            return ()
        gains = {rule.name: rule.gain for rule in self.rules}
        layers = [layer for layer in self.architecture.layers if layer is not self.architecture.readout]
        return tuple(function_of(layer.activation or "linear", gains[layer.weight]) for layer in layers)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed about the model, changed in it beside its weights, or has no limit, in words."""
        return notes_of(self)

    def rule(self, name: str) -> ParameterRule:
        """The rule of the parameter with this name.

        Raises:
            InvalidInputError: if the name is unknown.
        """
        for rule in self.rules:
            if rule.name == name:
                return rule
        raise InvalidInputError(
            "Unknown parameter.", got=repr(name), remedy=f"one of {', '.join(rule.name for rule in self.rules)}"
        )

    @overload
    def param_groups(  # type: ignore[overload-overlap]
        self,
        lr: float,
        *,
        optimizer: Literal["muon"],
        weight_decay: float = ...,
        eps: float = ...,
        adamw_lr: float | None = ...,
        adjust_lr_fn: str | None = ...,
        matrices: Sequence[str] | None = ...,
    ) -> MuonGroups: ...

    @overload
    def param_groups(
        self, lr: float, *, optimizer: str = ..., weight_decay: float = ..., eps: float = ...
    ) -> list[dict[str, Any]]: ...

    def param_groups(
        self,
        lr: float,
        *,
        optimizer: str = "sgd",
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        adamw_lr: float | None = None,
        adjust_lr_fn: str | None = None,
        matrices: Sequence[str] | None = None,
    ) -> list[dict[str, Any]] | MuonGroups:
        """Parameter groups for an optimizer of torch.optim; momentum, betas and schedulers are as ever.

        SGD moves the unit form by eta gamma0^2 N_L times the gradient and decays it by the factor 1 - eta lambda in a
        step; AdamW and Muon decay it by the same factor. Adam puts the decay into the gradient before normalising it: lambda
        is then the strength of the same penalty, lambda / (2 gamma0^2 N_L) |theta|^2 in unit form, but its effect depends
        on width, so prefer AdamW. Frozen parameters (``requires_grad=False`` when the plan was made) are left out.

        With "muon" hidden matrices, whose both axes are widths by the traced roles, are Muon's; embeddings, readouts, biases,
        norms and all else are AdamW's: ``muon, adamw = plan.param_groups(lr, optimizer="muon")``, then
        ``torch.optim.Muon(muon), torch.optim.AdamW(adamw)``. Features then move alike at every width with either
        ``adjust_lr_fn`` (``torch_dmft.parameterization.muon`` derives it).

        Args:
            lr: the base learning rate eta, of order 1 in the width.
            optimizer: "sgd", "adam", "adamw" or "muon".
            weight_decay: lambda, of order 1 in the width; it acts on every parameter.
            eps: Adam's eps for gradients of order 1; each group gets it in units of its own gradients.
            adamw_lr: of "muon", the base rate of what AdamW trains; default ``lr``.
            adjust_lr_fn: of "muon", the scale of ``torch.optim.Muon``, "original" or "match_rms_adamw"; it is in the groups.
            matrices: of "muon", names of the weights that Muon gets; default all hidden matrices.

        Returns:
            Groups with ``name``, ``params``, ``lr``, ``weight_decay`` and for Adam ``eps``; with "muon" two such lists,
            ``(muon, adamw)``. A scheduler that takes absolute rates needs one for each group:
            ``OneCycleLR(optimizer, max_lr=[group["lr"] for group in groups], ...)``.

        Raises:
            InvalidInputError: if the optimizer is unknown, or cannot train a twin; if Muon is to have what is no hidden matrix.
        """
        if optimizer in NAMES and optimizer not in self.optimizers:
            raise InvalidInputError(
                "This infinite-width twin must be trained with an optimizer that is linear in the gradients.",
                got=repr(optimizer),
                remedy=f"one of {', '.join(self.optimizers)}: it knows weights in other coordinates; whole=True for Adam",
            )
        require_whole_plan(self)
        reshard(self.model)
        of_muon = {"adamw_lr": adamw_lr, "adjust_lr_fn": adjust_lr_fn, "matrices": matrices}
        if optimizer == "muon":
            decays = {"weight_decay": weight_decay, "eps": eps}
            return muon_groups(self.model, self.rules, lr, scheme=self.scheme, **decays, **of_muon)  # type: ignore[arg-type]
        for name, value in of_muon.items():
            if value is not None:
                raise InvalidInputError(
                    f"`{name}` is a setting of Muon.",
                    got=f"{name}={value!r} with optimizer={optimizer!r}",
                    remedy=f'optimizer="muon", or leave out {name}',
                )
        return param_groups(self.model, self.rules, lr, optimizer, weight_decay, eps)

    def check_optimizers(self, *optimizers: Optimizer) -> None:
        """Refuse optimizers that do not train the model as the plan says: call it once they are built.

        Every trained parameter must be stepped by one of them, at the plan's rate for SGD, Adam, AdamW or Muon and one base
        rate within each, and Muon, torch's or another one's, must have hidden matrices only. Optimizers and the frameworks
        around them take groups silently, also those that they ignore.

        Args:
            *optimizers: all that train the model.

        Raises:
            InvalidInputError: naming every parameter that is left out, stepped twice, misplaced or off its rate.

        Example:
            >>> muon, adamw = plan.param_groups(0.02, optimizer="muon")  # doctest: +SKIP
            >>> plan.check_optimizers(torch.optim.Muon(muon), torch.optim.AdamW(adamw))
        """
        check_optimizers(self.model, self.rules, optimizers, self.scheme)

    def suggest_lr(
        self,
        probe: Probe,
        *,
        loss: Loss | None = None,
        optimizer: str = "sgd",
        fraction: float = 0.5,
        outputs: Selection | None = None,
    ) -> SuggestedRate:
        """A base learning rate from the curvature of the loss at the model as it is now.

        Args:
            probe: inputs and targets; the rate is that of full batches of its training rows.
            loss: ``loss(outputs, targets) -> scalar``; default as in ``Recorder``.
            optimizer: "sgd": a fraction of the rate 2 / lambda_max(K H) at which training becomes unstable; "adam", "adamw",
                "muon" (with AdamW at the same base rate, as ``param_groups``): of the rate at which the first step lowers the
                loss most.
            fraction: of that rate; smaller batches and momentum need a smaller one.
            outputs: which of the model's outputs is f, as in ``Recorder``.

        Returns:
            The rate: ``float()`` of it, ``.lr``, or print it for what it rests on.

        Raises:
            InvalidInputError: without targets, or for a loss without curvature.

        Example:
            >>> rate = plan.suggest_lr(Probe(inputs, targets))  # doctest: +SKIP
            >>> optimizer = SGD(plan.param_groups(rate.lr))
        """
        from torch_dmft.measurement.suggested_rate import suggested_rate  # one floor up, taken only when it is called

        with whole(self.model):
            return suggested_rate(self, probe, loss=loss, optimizer=optimizer, fraction=fraction, outputs=outputs)

    @torch.no_grad()
    def undo(self) -> None:
        """Bring back, bit for bit, what the model was before it was scaled, also after training: parameters, buffers, scales.

        Raises:
            InvalidInputError: if it was undone already, or the plan was made without a way back.
        """
        if self._initial is None:
            raise InvalidInputError(
                "Only a plan that parameterize() made can be undone, and only once.",
                got="a plan after plan.undo()" if self.is_undone else "a plan without a way back",
                remedy="call parameterize(model, ...) first",
            )
        reshard(self.model)
        tensors = dict(_tensors(self.model))
        for name, before in self._initial.items():
            assign(tensors[name], before)
        set_attributes(self.model, self._before)
        multiply(self.model, self._multiplied_before)
        self._initial, self._before, self.is_undone = None, (), True

    def state_dict(self) -> dict[str, Any]:
        """The scaling as plain numbers and strings, to be saved beside the model's own state_dict."""
        return {**saved(self), "multiplied": multipliers_of(self.architecture)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a scaling saved by ``state_dict``; weights come from the model's own checkpoint.

        Raises:
            InvalidInputError: if it was saved for other parameters, or by another version of the format.
        """
        rules, drawn = read(state)
        refuse_other(rules, self.rules)
        self.rules, self.scheme, self.gamma0 = rules, state["scheme"], float(state["gamma0"])
        numbers = state.get("multiplied", {})
        layers = tuple(
            replace(layer, multiplier=replace(layer.multiplier, number=numbers.get(layer.multiplier.path, 1.0)))
            if layer.multiplier is not None
            else layer
            for layer in self.architecture.layers
        )
        self.architecture = replace(self.architecture, layers=layers)
        if multiplied(self.model) or numbers:
            multiply(self.model, numbers)
        self.depth, self.drawn = state.get("depth"), drawn

    def __repr__(self) -> str:
        count = len(self.rules)
        return (
            f"<Plan of {self.origin!r}: {self.scheme}, gamma0 {self.gamma0:.4g}, {count} parameter{'s' * (count != 1)}>"
        )

    def __rich__(self) -> Grid:
        title = f"{self.scheme}, gamma0 = {self.gamma0:.4g}, width = {self.width}"
        return as_table(title, self.rules, own_init=self.scheme == "standard")

    def __str__(self) -> str:
        said = [textwrap.fill(f"{note}.", _COLUMNS) for note in self.notes]
        return "\n".join([self.__rich__().text(_COLUMNS), *said])

    def _repr_html_(self) -> str:
        """The table for a notebook."""
        return self.__rich__().html()


def _called(architecture: Architecture) -> str:
    """The name of a network by its width; flattened images make no network wide."""
    made = [layer for layer in architecture.layers if layer.out_axis is not None]
    flattened = made and architecture.width not in {layer.out_features for layer in made} and made[-1].kind == "conv"
    return f"network ({made[-1].out_features} channels)" if flattened else f"network (N={architecture.width})"


def multipliers_of(architecture: Architecture) -> dict[str, float]:
    """The modules whose output a plan multiplies, by path, and by what."""
    found = [layer.multiplier for layer in architecture.layers if layer.multiplier is not None]
    return {one.path: one.number for one in found if one.number != 1.0}


def set_attributes(model: nn.Module, attributes: Iterable[Attribute]) -> None:
    """Give modules their numbers."""
    for one in attributes:
        setattr(model.get_submodule(one.path), one.name, one.value)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def function_of(activation: str, gain: float) -> str:
    """An activation and a gain in words, which are equal for equal functions: gains of frozen weights scatter by their draw."""
    return f"{activation}, gain {gain:.2g}"
