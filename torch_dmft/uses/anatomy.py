"""What a model is made of, as far as one watched pass tells: its products, and the parameters that are none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from torch_dmft.architecture import Architecture, Layer, Role, Vector
from torch_dmft.core.torch_private import parameters_of
from torch_dmft.uses.forms import Product


@dataclass(frozen=True)
class Names:
    """How the products of a model are called.

    Attributes:
        aliases: for every parameter all the names it has, that of ``named_parameters`` first.
    """

    aliases: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, model: nn.Module) -> Names:
        """The names in a model."""
        primary = {id(parameter): name for name, parameter in parameters_of(model).items()}
        aliases: dict[str, list[str]] = {name: [name] for name in primary.values()}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name not in aliases[primary[id(parameter)]]:
                aliases[primary[id(parameter)]].append(name)
        return cls({name: tuple(several) for name, several in aliases.items()})

    def layers(self, products: Iterable[Product]) -> dict[tuple[object, ...], str]:
        """A name for every layer, by its key, in order.

        A module's own weight goes by the module's path, any other parameter by its name; a matrix that is made of several
        parameters goes by the path of the module that multiplies with it.
        """
        named: dict[tuple[object, ...], str] = {}
        for product in products:
            key = self.key(product)
            if key not in named:
                base, number = self._base(product), 1
                while (name := base if number == 1 else f"{base}[{number}]") in named.values():
                    number += 1
                named[key] = name
        return named

    def key(self, product: Product) -> tuple[object, ...]:
        """Equal for the uses of one layer."""
        return self._base(product), product.names, product.kind, product.features()

    def _base(self, product: Product) -> str:
        path = product.use.path
        if len(product.names) > 1:
            return path or min(product.names).removesuffix(".weight")
        (name,) = product.names
        chosen = next((alias for alias in self.aliases[name] if alias.rpartition(".")[0] == path), name)
        return chosen.removesuffix(".weight")


def anatomy(model: nn.Module, products: Sequence[Product], last: Product, outputs: int) -> Architecture:
    """The architecture of a model that was watched.

    Roles are known of the readout alone, which is the last product that the outputs depend on; which axes are widths is not.

    Args:
        model: the model.
        products: the products of one pass, in order.
        last: the last one that the outputs depend on.
        outputs: how many numbers it returns per sample.
    """
    names = Names.of(model)
    own = dict(model.named_parameters())
    first: dict[tuple[object, ...], Product] = {}
    for product in products:
        first.setdefault(names.key(product), product)
    layers = []
    taken: set[str] = set()
    for key, name in names.layers(products).items():
        product = first[key]
        into, out, fan_in = product.features()
        role = Role.EMBEDDING if product.kind == "embedding" else Role.HIDDEN
        weight = min(product.names)
        bias = _bias(weight, own)
        bias = None if bias in taken else bias
        layers.append(
            Layer(
                path=name,
                kind=product.kind,
                role=Role.READOUT if key == names.key(last) else role,
                weight=weight,
                bias=bias,
                fan_in=fan_in,
                in_features=into,
                out_features=out,
                taps=math.prod(product.weight.shape[2:]) if product.kind == "conv" else 1,
            )
        )
        taken |= {weight} if bias is None else {weight, bias}
    vectors = tuple(
        Vector(name.rpartition(".")[0], name, parameter.numel(), None)
        for name, parameter in own.items()
        if name not in taken
    )
    return Architecture(tuple(layers), vectors, is_chain=False, row_independent=True, outputs=outputs, is_traced=False)


def _bias(weight: str, own: Mapping[str, object]) -> str | None:
    """The bias that goes with a weight, by its name."""
    owner, dot, leaf = weight.rpartition(".")
    candidate = f"{owner}{dot}{leaf.replace('weight', 'bias')}"
    return candidate if candidate != weight and candidate in own else None
