r"""The neural tangent kernel of many samples, never written out: products with it, and its largest eigenvalues.

.. math:: K v = J M J^\top v,

with J the Jacobian of all outputs by the trained parameters and M their learning rates. J^T v is one backward pass, J u one
pass of forward derivatives, both in blocks of samples: memory is that of one block and of a few copies of the parameters, and
never the square of the number of samples. The size of a block follows from the memory that it may take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp, vjp

from torch_dmft.core.arguments import checked, require_finite
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.memory import require_memory
from torch_dmft.core.numbers import require_number, require_whole
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.measurement.batch_norm import Statistics, require_choice
from torch_dmft.measurement.functional import called_with, plain_attention
from torch_dmft.measurement.ntk import refuse_lazily_sampled, trained
from torch_dmft.uses.failures import outputs_on
from torch_dmft.uses.outputs import Example, Runs, Selection, count, named_tensors, output_rows, rows

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan

Values = Mapping[str, Tensor]


@checked
class NTKOperator:
    """The NTK of a network on any number of samples, per unit of the base learning rate; see ``empirical_ntk``.

    Args:
        model: a plan or a bare module; it is left exactly as it was, and must not change while the operator is used.
        inputs: ``(sample, ...)``, or a tuple or mapping of the arguments of ``forward``, on the device of the model.
        outputs: which of the model's outputs is f, as in ``Recorder``.
        batch_norm: whose statistics BatchNorm has, ``"probe"`` (those of all inputs together) or ``"run"``.
        memory: bytes that a product may take beside what there is already, an upper bound. The default is 1 GiB.
        block: samples that are run at once, instead of as many as the memory allows.

    Attributes:
        samples: P.
        outputs: C.
        block: samples that are run at once.
        memory: the estimate of what a product takes, in bytes: of a block what a backward pass keeps of it and five times the
            largest tensor in that, two copies of the trained parameters, and a tenth more.

    Raises:
        InvalidInputError: for an infinite-width twin, outputs that are not ``(sample, output)``, or a memory that is too small
            for one sample.
        InsufficientMemoryError: if a product takes more than is free.

    Example:
        >>> kernel = NTKOperator(plan, images, memory=2**31)  # doctest: +SKIP
        >>> values, vectors = kernel.largest(10)
    """

    def __init__(
        self,
        model: Plan | nn.Module,
        inputs: Example,
        *,
        outputs: Selection | None = None,
        batch_norm: str = "probe",
        memory: int = 2**30,
        block: int | None = None,
    ) -> None:
        require_choice(batch_norm)
        require_whole("memory", memory, at_least=1)
        if block is not None:
            require_whole("block", block, at_least=1)
        module, rates = trained(model)
        refuse_lazily_sampled(module, "NTKOperator")
        self._statistics = Statistics(module, module, batch_norm)
        self._module, self._inputs = Runs(module, outputs), inputs
        self._rates = {f"model.{name}": rate for name, rate in rates.items()}
        self.samples = count(inputs)
        for name, leaf in named_tensors(inputs):
            require_finite(name, leaf)
        with self._ready(), torch.no_grad():
            outputs_on(self._module, inputs if not self.samples else rows(inputs, [0, 1][: self.samples]))
            self.outputs = self._function([0, 1][: self.samples])(self._differentiated()).shape[1]
        with self._ready():
            fixed, each = self._needs()
        fitting = (memory - fixed) // max(1, each)
        if block is None and fitting < 1:
            raise InvalidInputError(
                "The memory must be enough for one sample.",
                got=f"{memory} bytes",
                remedy=f"memory={fixed + each} or more",
            )
        self.block = min(self.samples, fitting if block is None else block)
        self.memory = fixed + self.block * each
        require_memory(
            self.memory,
            next(iter(self._differentiated().values())).device,
            what=f"A product in blocks of {self.block} samples",
            remedy=f"a smaller block= or memory=; one sample takes {(fixed + each) / 2**30:.2g} GiB",
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(P C, P C)."""
        return self.samples * self.outputs, self.samples * self.outputs

    def __matmul__(self, vector: Float[Tensor, "sample ..."]) -> Float[Tensor, "sample ..."]:
        """K v, for v of shape ``(sample, output)``, or ``(sample,)`` for one output; in the shape of v.

        Raises:
            InvalidInputError: for another shape.
        """
        if vector.numel() != self.shape[0] or len(vector) != self.samples:
            raise InvalidInputError(
                "A vector must have one number per sample and output.",
                got=f"shape {tuple(vector.shape)}",
                remedy=f"shape {(self.samples, self.outputs)}",
            )
        with self._ready():
            parameters = self._differentiated()
            v = vector.detach().to(next(iter(parameters.values()))).reshape(self.samples, self.outputs)
            gradient = {name: torch.zeros_like(value) for name, value in parameters.items()}
            for some, function in self._blocks():
                (part,) = vjp(function, parameters)[1](v[some])
                for name in parameters:
                    gradient[name] += part.pop(name)
            for name, value in gradient.items():
                value *= self._rates[name]
            products = [jvp(function, (parameters,), (gradient,))[1] for _, function in self._blocks()]
            return torch.cat(products).detach().reshape(vector.shape)

    def largest(self, number: int = 10, *, tolerance: float = 1e-4) -> tuple[Tensor, Tensor]:
        """The largest eigenvalues and their eigenvectors, by Lanczos' method.

        Args:
            number: how many, fewer than P C.
            tolerance: relative error of an eigenvalue.

        Returns:
            ``(number,)`` in falling order and ``(sample, output, number)``, in float64 on the CPU.

        Raises:
            InvalidInputError: for a number that is too large.
        """
        from scipy.sparse.linalg import LinearOperator, eigsh  # slow to import

        require_whole("number", number, at_least=1)
        require_number("tolerance", tolerance, above=0)
        if number >= self.shape[0]:
            raise InvalidInputError(
                "Lanczos' method finds fewer eigenvalues than there are.",
                got=f"{number} of {self.shape[0]}",
                remedy="torch.linalg.eigvalsh(empirical_ntk(model, inputs))",
            )
        parameter = next(iter(self._differentiated().values()))

        def product(v: np.ndarray) -> np.ndarray:
            given = torch.from_numpy(v.reshape(self.samples, self.outputs)).to(parameter)
            return (self @ given).double().cpu().numpy().reshape(-1)

        start = np.random.default_rng(0).standard_normal(self.shape[0])
        operator = LinearOperator(self.shape, matvec=product, dtype=np.float64)
        values, vectors = eigsh(operator, k=number, which="LA", v0=start, tol=tolerance)
        order = np.argsort(values)[::-1].copy()
        found = torch.from_numpy(vectors[:, order].copy()).reshape(self.samples, self.outputs, number)
        return torch.from_numpy(values[order].copy()), found

    def _needs(self) -> tuple[int, int]:
        """Bytes of a product, whatever the block, and for each sample in it."""
        parameters = {name: value.clone().requires_grad_() for name, value in self._differentiated().items()}
        own = {value.untyped_storage().data_ptr() for value in (*parameters.values(), *self._module.buffers())}

        def kept(some: list[int]) -> tuple[int, int]:
            sizes: dict[int, int] = {}

            def note(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    sizes[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                _ = self._function(some)(parameters)
            return sum(sizes.values()), max(sizes.values(), default=0)

        (one, largest), (two, _) = kept([0]), kept([0, 1][: self.samples])
        each = two - one if self.samples > 1 else one
        copies = 2 * sum(value.nbytes for value in parameters.values())
        return int(1.1 * (copies + max(0, one - each))), int(1.1 * (max(1, each) + 5 * largest))

    def _differentiated(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self._module.named_parameters() if name in self._rates}

    def _function(self, some: list[int] | Tensor) -> Callable[[Values], Tensor]:
        """The outputs of some samples as a function of the trained parameters."""
        inputs = rows(self._inputs, some)
        return lambda values: output_rows(called_with(self._module, values, inputs), count(inputs))

    def _blocks(self) -> Iterator[tuple[Tensor, Callable[[Values], Tensor]]]:
        for some in torch.arange(self.samples, device="cpu").split(self.block):
            yield some, self._function(some)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The model as it is measured."""
        with undisturbed(self._module), plain_attention(), self._statistics.set(self._module, self._inputs):
            yield
