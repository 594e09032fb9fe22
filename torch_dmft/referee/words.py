"""A fault in words: what it makes, as which power, the setting as it is, and as it would have to be."""

from __future__ import annotations

from torch_dmft.referee.blame import DECAY, EPS, INITIAL, RATE, SCALE, Fault
from torch_dmft.referee.measure import Measured
from torch_dmft.referee.roles import Role


def sentence(fault: Fault, measured: Measured) -> str:
    """What is wrong and what mends it."""
    return f"{fault.name} ({fault.role}): {_what(fault)} {_remedy(fault, measured)}"


def _what(fault: Fault) -> str:
    power = f"N^{fault.exponent:+.2f}" + (f" ±{fault.reach:.2f}" if 0 < fault.reach < 10 else "")
    way = "grows" if fault.exponent > 0 else "vanishes"
    since = f"from step {fault.step} on"
    if fault.setting == INITIAL and fault.role is Role.READOUT and fault.exponent > 0:
        return f"its initial size is too large by {power}: an average over neurons starts as N^-1/2, this as N^0."
    if fault.setting == SCALE:
        return f"the scores are sums over d that start too large, by {power}: they are not divided by d."
    if fault.setting == INITIAL:
        return f"its initial size is wrong: what it puts out {way} as {power} at the start."
    if fault.setting == EPS:
        return f"eps is not small beside its gradients: what it adds {way} as {power}, {since}."
    if fault.setting == DECAY:
        return f"its decay is wrong: the part of it that decay undoes in a step {way} as {power}."
    return f"its rate is wrong: what it adds {way} as {power}, {since}."


_NAMES = {INITIAL: "initial size", RATE: "rate", EPS: "eps", DECAY: "weight decay"}


def _remedy(fault: Fault, measured: Measured) -> str:
    order = sorted(range(len(measured.widths)), key=measured.widths.__getitem__)
    narrow, wide = measured.widths[order[0]], measured.widths[order[-1]]
    power = f"{fault.mends:+g}"
    if fault.setting == SCALE:
        return "Divide them by d, or by sqrt(d d_0) to keep them as they are at the narrowest width."
    first, last = fault.values[order[0]], fault.values[order[-1]]
    mended = last * (wide / narrow) ** fault.mends
    return (
        f"Its {_NAMES[fault.setting]} is {first:.3g} at N = {narrow} and {last:.3g} at N = {wide}; "
        f"times (N/{narrow})^{power} it is {mended:.3g} there."
    )
