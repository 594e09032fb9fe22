r"""Which parameters can hold the numbers that the forward pass lacks or has too many of, and how much each.

A forward pass that multiplies features by c(N), beside what its weights do, is put right by a multiplier 1/c on a parameter
theta whose output carries the factor. The multiplier is *folded*: theta' = theta / c, with rates that move both alike
(``Scaling.folded``), so that training is that of the model with the multiplier written into it.

Scales are products of powers, so that the conditions of ``torch_dmft.uses.balance`` are linear in the logarithms x of what
parameters are multiplied by, with the powers a of the parameters in the scale of each tensor:

.. math:: \log c_i + \sum_\theta a_{i \theta} x_\theta = 0.

A packed weight of queries, keys and values is an example. With scores q.k / sqrt(d) the first condition is
(1/2) log d + 2 x_qkv = 0, as both factors of the product are made by it: x_qkv = -(1/4) log d. The values are then too small
by d^(-1/4); they are averaged by attention, which is linear in them, and what the output projection adds to the stream has
the scale x_qkv + x_out = 0: x_out = (1/4) log d. The biases of the first are multiplied like their weight, as
what is added has to have one scale, and that of the second is not.

Any solution trains as any other: where functions are homogeneous, features between a weight and the place where its scale
matters can be multiplied by a number that is divided by further on. Solutions with few parameters are looked for, nearest to
the places of the factors; conditions hold at every use of a parameter, so that one that is used elsewhere, too, is taken only
where that agrees.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch_dmft.uses.balance import Condition, Imbalance, conditions
from torch_dmft.uses.scale import Scale
from torch_dmft.uses.steps import Step

Folds = Mapping[str, tuple[float, float]]
"""The logarithms of what parameters are multiplied by, at both widths."""

_MOST = 6
"""Parameters that make up for one factor; weight and bias of a packed projection and the weight behind it are three."""


@dataclass(frozen=True, eq=False)
class Balance:
    """What makes the scales of one model the same at two widths.

    Attributes:
        made: for every imbalance that parameters can make up for, what these are multiplied by.
        left: what stays unbalanced, each cause once.
        steps: of both widths.
        outputs: the logarithm of what the outputs are multiplied by at both widths, where they have a multiplier of their own.
    """

    made: Sequence[tuple[Folds, Imbalance]]
    left: Sequence[Imbalance]
    steps: tuple[Sequence[Step], Sequence[Step]]
    outputs: tuple[float, float] = (0.0, 0.0)

    @property
    def folds(self) -> Folds:
        """The logarithms of what all parameters are multiplied by."""
        return {name: held for folds, _ in self.made for name, held in folds.items()}

    def shift(self, scale: Scale, which: int) -> float:
        """The logarithm of what a tensor is multiplied by where parameters make up for the numbers of the forward pass.

        Args:
            scale: that of the tensor.
            which: of the model (0) or of the other one (1).
        """
        folds, causes = self.folds, {n for _, found in self.made for n in found.causes}
        held = math.fsum(power * folds[name][which] for name, power in scale.weights.items() if name in folds)
        return held + math.fsum(power * self.steps[which][n].log for n, power in scale.numbers.items() if n in causes)


def balance(
    steps: Sequence[Step],
    others: Sequence[Step],
    *,
    is_free: Callable[[str], bool] = lambda name: True,
    is_multiplied: bool = False,
) -> Balance:
    """What parameters have to hold for the scales of one model to be the same at two widths.

    Args:
        steps: of the model.
        others: of the model at the other width, in the same order.
        is_free: whether a parameter is taken before others (frozen ones keep their values).
        is_multiplied: whether the outputs have a multiplier of their own, which makes up for what is missing there.
    """
    every = conditions(steps, others)
    of_outputs = [one for one in every if is_multiplied and one.is_of_outputs]
    all_of_them = [one for one in every if one not in of_outputs]
    search = _Search(all_of_them, is_free)
    folds: dict[str, tuple[float, float]] = {}
    made: list[tuple[Folds, Imbalance]] = []
    left: dict[frozenset[int], Imbalance] = {}
    for condition in all_of_them:
        if condition.is_met(folds) or any(known <= condition.causes for known in left):
            continue
        found = search.repaired(condition, folds)
        if found is None:
            left[condition.causes] = Imbalance.of(condition, steps, others)
        else:
            folds |= found
            made.append((found, Imbalance.of(condition, steps, others)))
    outputs = of_outputs[0].rest(folds) if of_outputs else (0.0, 0.0)
    return Balance(made, list(left.values()), (steps, others), outputs)


class _Search:
    """Looks for parameters that make up for what is missing."""

    def __init__(self, all_of_them: Sequence[Condition], is_free: Callable[[str], bool]) -> None:
        self._all, self._is_free = all_of_them, is_free
        self._by_name: dict[str, list[Condition]] = defaultdict(list)
        for condition in all_of_them:
            for name in condition.weights:
                self._by_name[name].append(condition)

    def repaired(self, condition: Condition, before: Folds) -> Folds | None:
        """What as few parameters as possible are multiplied by for a condition to be met, and all others of this cause.

        What was met before is met still; what has another cause has its turn.
        """
        alike = [one for one in self._all if one.causes and one.causes <= condition.causes]
        for anywhere in (False, True):
            for most in range(1, _MOST + 1):
                found = self._try(condition, alike, before, {}, most, anywhere=anywhere)
                if found is not None:
                    return found
        return None

    def _try(
        self,
        condition: Condition,
        alike: Sequence[Condition],
        before: Folds,
        new: Folds,
        most: int,
        *,
        anywhere: bool,
    ) -> Folds | None:
        rest = condition.rest({**before, **new})
        # The parameters multiplied with last, and only if these do not do those before them.
        names = dict.fromkeys(
            (*condition.candidates, *(condition.weights if anywhere and condition.candidates else ()))
        )
        usable = [name for name in names if name in condition.weights and name not in {**before, **new}]
        for name in sorted(usable, key=lambda name: not self._is_free(name)):
            power = condition.weights[name]
            more = {**new, name: (-rest[0] / power, -rest[1] / power)}
            folds = {**before, **more}
            touched = (one for changed in more for one in self._by_name[changed] if one.is_met(before))
            broken = next((one for one in (*alike, *touched) if not one.is_met(folds)), None)
            if broken is None:
                return more
            found = self._try(broken, alike, before, more, most - 1, anywhere=anywhere) if most > 1 else None
            if found is not None:
                return found
        return None
