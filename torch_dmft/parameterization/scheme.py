"""The scaling rules: from a parameter's role to its initial size, learning rate and weight decay.

Unit form: every weight is m times a matrix of entries N(0, 1), the base learning rate is eta, and every unit-form
parameter moves with the rate eta gamma0^2 N_L, where N_L is the fan-in of the readout. Here the multiplier m is folded
into the initial size and the learning rates, so nothing is added to the forward pass:

    role          m                      SGD rate / eta        Adam rate / eta    size of the gradient
    input         g / sqrt(fan_in)       m^2 gamma0^2 N_L      gamma0 / fan_in    1 / (gamma0 N_L)
    hidden        g / sqrt(fan_in)       m^2 gamma0^2 N_L      gamma0 / fan_in    1 / (gamma0 N_L)
    readout       1 / (gamma0 fan_in)    m^2 gamma0^2 N_L      1 / fan_in         1
    vector        own init kept          gamma0^2 N_L          gamma0             1 / (gamma0 N_L)
    embedding     g, own init kept       m^2 gamma0^2 N_L      g gamma0           1 / (gamma0 N_L)
    output bias   0                      1                     1                  1
    code          g / fan_in             m^2 gamma0^2 N_L      gamma0 / fan_in    1 / gamma0
    inner         g, own init kept       g^2 gamma0^2          g gamma0           1 / gamma0
    outer         own init kept          1                     1                  1

A *code* is read from a width, is none, and is followed by widths (an inner code, a rank, a gate): c = W h with few outputs.
What follows needs df/dc = O(1/gamma0), and the layers before need df/dh = W^T df/dc = O(1/(gamma0 N)), as all inside a
mean-field network do. So the entries of W are O(1/N), and c starts at zero like 1/sqrt(N), as every average of N independent
numbers does; it moves by O(gamma0) with dW = eta m^2 gamma0^2 N_L h df/dc. With entries O(1/sqrt(N)), c would start at O(1),
but send gradients of order 1/sqrt(N) to the layers before it, which then move by O(sqrt(N)) with SGD. Where all that reads
the code starts at zero (LoRA), c = 0 would be a saddle, as neither side has a gradient: if nothing before it is trained, the
initial size there is g / sqrt(fan_in), at the same rates. *Inner* and *outer* parameters have no width on either side, with
and without widths behind them; each df/dtheta is O(1/gamma0) and O(1), so a step that moves features by O(gamma0), or outputs
by O(1), needs these rates.

The g of an embedding, an inner one too, is the size that its rows have; of other inner parameters it is 1. Transformers
draw them with 0.02 and normalise them: at a rate without m^2, and the base rate at which the other weights learn, they would
grow to many times their size in a few steps.

The output bias has no width on either side: df/db = 1, so with the rate eta it adds 1 to the NTK, which is O(1) in the
width and in gamma0 like every other part. It starts at zero, as the output itself does in the limit.

A *tied* weight makes features and reads out: the embedding that is the last layer of a language model as well, the encoder
whose transpose decodes. Its entries are m times numbers omega of size one as its first use has it, m = g for an embedding and
g / sqrt(fan_in) for an input weight, and the readout is multiplied by 1/(m gamma0 N_L) in the forward pass, f = omega h /
(gamma0 N_L), as that of an untied weight. Both uses then hold at the rates of the first one. SGD moves omega by eta gamma0^2
N_L times a gradient that is O(1/(gamma0 N_L)) through the features, as of any weight before them, and h / (gamma0 N_L) through
the readout: by O(gamma0) in sum, which moves the features by O(gamma0), and f by domega . h / (gamma0 N_L) = eta h.h / N_L =
O(1), as an untied readout does. Adam moves omega by O(gamma0), which gives the same. The two gradients are of one size. Where
the forward pass multiplies the readout already, by d^-1/2 in T5, what comes before it holds the inverse, or the multiplier
does. A bias within what is multiplied moves b by dtheta times the multiplier, and has the rates of an output bias over its
square (SGD) and over it (Adam). At the start f is not 0 in the limit where the features contain the token's own row, as those
of a residual stream do: omega.omega / (gamma0 N_L) = 1/gamma0. Without the multiplier, to fine-tune a pretrained model, steps
are as large as both uses allow: the smaller of the rates of the first use and of a readout, which are equal at the richness
gamma0 = 1/(m N_L) that the model has by itself.

Biases keep their own init. PyTorch draws the bias of nn.Linear from U(-k, k), k = 1/sqrt(fan_in): behind a width this
vanishes in the limit and changes kernels by O(1/N), like all corrections to the limit; behind the data it stays.

Folds. Where the forward pass multiplies by a number c that depends on the width, the model that has a limit is the one with
a multiplier fold = 1/c on one of its parameters: theta' = fold theta stands in the forward pass. A step of SGD moves theta by
its rate r times dL/dtheta = fold dL/dtheta', so that theta' moves by fold^2 r dL/dtheta'; one of Adam, whose steps have the
size of the rate whatever the gradient is, by fold r; gradients by theta' are larger by 1/fold, and Adam's eps with them.
Decay is lambda eta / rate for both, which multiplies theta and theta' by the same factor in a step. Which parameters hold a
number, and to which power, is found in ``torch_dmft.uses.folds``.

Depth. A residual stream h_{k+1} = h_k + a b_k(h_k), k = 1..L, keeps its size in L for a = L^-alpha with alpha = 1/2 (branches
of independent weights add up like a random walk) or alpha = 1 (an ODE in k/L). With g = df/dh = O(1/(gamma0 N)) along the
stream, the unit-form gradient of a parameter in a branch is a (db/dtheta)^T g, and a step moves the stream by
a (db/dtheta) dtheta in each of L branches, all in one direction. With SGD at the rate c times that of the tables above the sum
is L a^2 c = O(1), so c = L^(2 alpha - 1); with Adam, whose steps have one size, it is L a c = O(1), so c = L^(alpha - 1). The
multiplier a is folded into the parameters that b ends with (the last weight and its bias, or the gain and shift of a norm layer
behind it), which changes their rates by a^2 with SGD and a with Adam, and their gradient by 1/a:

    part of the stream       start       SGD rate            Adam rate        size of the gradient
    in a branch              1           L^(2 alpha - 1)     L^(alpha - 1)    L^-alpha
    ends a branch            L^-alpha    1/L                 1/L              1
    between branches         1           1/L                 1/L              1

each times what the role has. In a branch that is 1 and 1/sqrt(L) for alpha = 1/2, L and 1 for alpha = 1. *Between* branches are
the norm layers that the stream itself passes after every sum (BERT): there are L of them, each of which moves the stream. What
comes before the first branch and behind the last keeps its rates. If n branches share a parameter inside of them (a table of
relative positions), their gradients add up like sqrt(n) or, once trained, like n, and L/n stands in the place of L: its share
in a step is n/L. Weight decay needs nothing: it is lambda eta / rate, so that a step multiplies every parameter by
1 - eta lambda at every depth. With alpha = 1/2 a branch's own steps move the features inside of it by O(1/sqrt(L)), so that it
is linear in its weights, while with alpha = 1 they move them by O(1).

Sources: Bordelon, Noci, Li, Hanin, Pehlevan 2023 (1/sqrt(L), SGD); Yang, Yu, Zhu, Hayou 2023 (Depth-muP: Adam at 1/sqrt(L));
Bordelon, Chaudhry, Pehlevan 2024 and Dey et al. 2025 (CompleteP: 1/L, with Adam's eps and weight decay).

"ntk" is "mean_field" with gamma0 = 1/sqrt(N_L), the lazy scaling. "standard" is PyTorch's own: nothing is changed, one
learning rate for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch_dmft.architecture import Part, Role

SCHEMES = ("mean_field", "ntk", "standard")

DEPTHS = {"1/sqrt(L)": 0.5, "1/L": 1.0}
"""What a residual branch is multiplied by, and alpha."""


@dataclass(frozen=True)
class Scaling:
    """What a scheme gives one parameter.

    Attributes:
        std: initial standard deviation m; None if the parameter keeps its own init.
        lr: SGD learning rate in units of the base rate eta.
        adam_lr: Adam learning rate in units of eta.
        gradient: size of its gradient in width, depth and gamma0; Adam's eps scales with it.
        start: what its own init is multiplied by, if it keeps that.
    """

    std: float | None
    lr: float
    adam_lr: float
    gradient: float
    start: float = 1.0

    def folded(self, fold: float) -> Scaling:
        """With a number in the parameter that the forward pass lacks: theta' = fold theta, and both move alike."""
        std = None if self.std is None else self.std * fold
        return Scaling(std, self.lr * fold**2, self.adam_lr * fold, self.gradient / fold, self.start * fold)


def mean_field(
    role: Role,
    *,
    fan_in: int,
    width: int,
    gamma0: float = 1.0,
    gain: float = 1.0,
    fold: float = 1.0,
    is_read_by_zeros: bool = False,
) -> Scaling:
    """The mean-field (maximal update) scaling at richness gamma0; see the table of the module.

    Args:
        role: the parameter's role.
        fan_in: inputs per neuron, kernel taps included; vectors and embeddings ignore it.
        width: N_L, the fan-in of the readout.
        gamma0: richness; gamma0 -> 0 is the lazy limit.
        gain: the forward multiplier g of input and hidden weights, and the size of embeddings.
        fold: what the parameter is multiplied with beside: a number that the forward pass lacks, such as 1/sqrt(d) of scores.
        is_read_by_zeros: of a code, whether the weights that read it start at zero.

    Returns:
        The scaling.
    """
    found = _plain(role, fan_in, width, gamma0, gain)
    if is_read_by_zeros and found.std is not None:
        found = replace(found, std=found.std * math.sqrt(fan_in))
    return found if fold == 1.0 else found.folded(fold)


def tied_multiplier(std: float, *, gamma0: float, width: int) -> float:
    """What a readout is multiplied by whose weight makes features as well: 1/(m gamma0 N_L).

    Args:
        std: m, the size of the weight; 1 stands for that of a weight of zeros.
        gamma0: richness.
        width: N_L.
    """
    return 1 / ((std or 1.0) * gamma0 * width)


def tied_as_it_is(scaling: Scaling, *, width: int, present: float = 1.0) -> Scaling:
    """The scaling of a weight that makes features and reads out where the readout is not multiplied: the smaller rates.

    Args:
        scaling: what it has by its first use.
        width: N_L.
        present: what the forward pass multiplies the readout by.
    """
    readout = _plain(Role.READOUT, width, width, 1.0, 1.0).folded(1 / present)
    return replace(
        scaling,
        lr=min(scaling.lr, readout.lr),
        adam_lr=min(scaling.adam_lr, readout.adam_lr),
        gradient=max(scaling.gradient, readout.gradient),
    )


def behind(scaling: Scaling, multiplier: float) -> Scaling:
    """The scaling of an output bias that is multiplied as well."""
    return scaling.folded(1 / multiplier)


def at_depth(scaling: Scaling, part: Part, *, branches: int, alpha: float, shared: int = 1) -> Scaling:
    """The scaling of a parameter of a residual stream whose branches are multiplied by L^-alpha; see the table of the module.

    Args:
        scaling: what it has where branches are not scaled.
        part: where it stands to the stream.
        branches: L, the number of branches.
        alpha: 1/2 or 1.
        shared: n, how many branches share a parameter inside of them.

    Returns:
        The scaling, with the multiplier in the parameters that end branches.
    """
    if part is Part.BETWEEN:
        return replace(scaling, lr=scaling.lr / branches, adam_lr=scaling.adam_lr / branches)
    count = branches / shared
    multiplier = count**-alpha
    inside = replace(
        scaling,
        lr=scaling.lr * count ** (2 * alpha - 1),
        adam_lr=scaling.adam_lr * count ** (alpha - 1),
        gradient=scaling.gradient * multiplier,
    )
    return inside.folded(multiplier) if part is Part.END else inside


def _plain(role: Role, fan_in: int, width: int, gamma0: float, gain: float) -> Scaling:
    unit_rate = gamma0**2 * width
    inside = 1 / (gamma0 * width)
    match role:
        case Role.INPUT | Role.HIDDEN:
            std = gain / math.sqrt(fan_in)
            return Scaling(std, std**2 * unit_rate, gamma0 / fan_in, inside)
        case Role.READOUT:
            std = 1 / (gamma0 * fan_in)
            return Scaling(std, std**2 * unit_rate, 1 / fan_in, 1.0)
        case Role.VECTOR:
            return Scaling(None, unit_rate, gamma0, inside)
        case Role.EMBEDDING:
            return Scaling(None, gain**2 * unit_rate, gain * gamma0, inside)
        case Role.OUTPUT_BIAS:
            return Scaling(0.0, 1.0, 1.0, 1.0)
        case Role.CODE:
            std = gain / fan_in
            return Scaling(std, std**2 * unit_rate, gamma0 / fan_in, 1 / gamma0)
        case Role.INNER:
            return Scaling(None, gain**2 * gamma0**2, gain * gamma0, 1 / gamma0)
        case Role.OUTER:
            return Scaling(None, 1.0, 1.0, 1.0)


STANDARD = Scaling(std=None, lr=1.0, adam_lr=1.0, gradient=1.0)
"""PyTorch's own parameterization: own init, one learning rate."""


def effective_gamma0(scheme: str, gamma0: float, width: int) -> float:
    """gamma0 as it enters theory: 1/sqrt(N_L) for the schemes "ntk" and "standard", whose gamma does not grow."""
    return gamma0 if scheme == "mean_field" else 1 / math.sqrt(width)
