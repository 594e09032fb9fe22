r"""With which statistics BatchNorm is measured: those of the probe, or those that the run has gathered.

In train mode BatchNorm couples the samples of a batch, and in eval mode it has the running averages of the run, which are 0 and
1 before the first step and lag behind afterwards. Kernels need independent samples, so that statistics are constants, and a
choice of them is needed:

- ``"probe"``: mean and variance over the probe's training rows, as a batch of train mode has them. Their outputs are then those
  of the network in train mode with these rows as the batch. Derivatives by the statistics are left out.
- ``"run"``: the running averages, as in eval mode.

Norms that stand in eval mode while the model is in train mode are frozen by the user, and keep their running averages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.listed import listed
from torch_dmft.core.threads import of_this_thread
from torch_dmft.core.torch_private import BatchNormBase, modules_of
from torch_dmft.uses.failures import outputs_on
from torch_dmft.uses.outputs import Example, copied

CHOICES = ("probe", "run")


def require_choice(batch_norm: object) -> None:
    """Refuse anything but the two choices.

    Raises:
        InvalidInputError: for anything else.
    """
    if batch_norm not in CHOICES:
        raise InvalidInputError(
            "batch_norm says whose statistics BatchNorm is measured with.",
            got=repr(batch_norm),
            remedy='batch_norm="probe", as in train mode on the probe, or "run", the running averages',
        )


def norms_in(model: nn.Module) -> dict[str, BatchNormBase]:
    """The BatchNorms of a model by their paths."""
    return {path: module for path, module in modules_of(model) if isinstance(module, BatchNormBase)}


class Statistics:
    """The statistics that BatchNorm is measured with; made while the modules are in the modes in which they are trained.

    Args:
        model: tells by its mode which norms are frozen.
        run: the module that is measured, with the model inside.
        batch_norm: ``"probe"`` or ``"run"``.

    Attributes:
        notes: what is to be known of them, in words.
    """

    def __init__(self, model: nn.Module, run: nn.Module, batch_norm: str) -> None:
        norms = norms_in(run)
        frozen = {path for path, norm in norms.items() if model.training and not norm.training}
        # Without running averages eval mode takes those of the batch, whatever is chosen.
        self._of_probe = {
            path: norm
            for path, norm in norms.items()
            if (batch_norm == "probe" and path not in frozen) or norm.running_mean is None
        }
        self.notes: tuple[str, ...] = tuple(self._told(norms, frozen, batch_norm))

    def _told(self, norms: dict[str, BatchNormBase], frozen: set[str], batch_norm: str) -> Iterator[str]:
        others = {path: norm for path, norm in norms.items() if path not in self._of_probe}
        fresh = [
            p for p, norm in others.items() if norm.num_batches_tracked is not None and not norm.num_batches_tracked
        ]
        if fresh:
            yield f"BatchNorm that has seen no batch yet is measured with mean 0 and variance 1 ({listed(fresh)})"
        if frozen and batch_norm == "probe":
            yield f"BatchNorm in eval mode while the model is in train mode keeps its running averages ({listed(frozen)})"
        if batch_norm == "run" and self._of_probe:
            yield f"BatchNorm without running averages is measured with those of the probe ({listed(self._of_probe)})"

    @contextmanager
    def set(self, run: nn.Module, inputs: Example) -> Iterator[None]:
        """Run the body with these statistics. The model is in eval mode, and buffers are put back elsewhere (``undisturbed``).

        Args:
            run: the module that is measured.
            inputs: the probe.
        """
        if not self._of_probe:
            yield
            return
        found: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in self._of_probe}
        with ExitStack() as stack:
            for norm in self._of_probe.values():
                if norm.running_mean is None:
                    stack.callback(setattr, norm, "running_mean", None)
                    stack.callback(setattr, norm, "running_var", None)
            with self._hooked(lambda path, x: _kept(found[path], _statistics(x))):
                outputs_on(run, copied(inputs))
            used: Counter[str] = Counter()

            def known(path: str, x: Tensor) -> tuple[Tensor, Tensor]:
                used[path] += 1
                return found[path][min(used[path], len(found[path])) - 1]

            stack.callback(run.register_forward_pre_hook(of_this_thread(lambda *_: used.clear())).remove)
            with self._hooked(known):
                yield

    @contextmanager
    def _hooked(self, statistics: Callable[[str, Tensor], tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Give every norm its statistics before each use: mean and variance, by its path and what it is given."""

        def take(path: str, norm: BatchNormBase, args: tuple[Any, ...]) -> None:
            # Not in place: a norm that is used several times has others for each use.
            norm.running_mean, norm.running_var = statistics(path, args[0])

        with ExitStack() as hooks:
            for path, norm in self._of_probe.items():
                hooks.callback(norm.register_forward_pre_hook(of_this_thread(partial(take, path))).remove)
            yield


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel, as train mode takes them."""
    x = x.detach()
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean = x.mean(axes, keepdim=True)
    return mean.flatten(), (x - mean).square_().mean(axes)  # Tensor.var over several axes takes ten times as long


def _kept(many: list[tuple[Tensor, Tensor]], one: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    many.append(one)
    return one
