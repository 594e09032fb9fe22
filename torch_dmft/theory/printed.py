"""By what the data and the loss of a training are told from others: their prints."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from torch_dmft.core.loss import Loss, loss_name, loss_print
from torch_dmft.core.own_arithmetic import ordinary
from torch_dmft.core.prints import data_print, printed_rows
from torch_dmft.core.training import Training
from torch_dmft.uses.outputs import Example, rows, tensors


def with_prints(training: Training, inputs: Example, targets: Tensor, loss: Loss, outputs: int) -> Training:
    """The training with prints of the data that it sees and of the loss that it lowers.

    Args:
        training: how the network is trained; a print of a loss that it has is kept.
        inputs: of all rows, training rows first.
        targets: those of the training rows, as the loss takes them.
        loss: what is lowered.
        outputs: C.
    """
    seen = printed_rows(len(targets)).to(tensors(inputs)[0].device)
    training = replace(training, data_print=data_print(len(targets), *tensors(rows(inputs, seen)), targets[seen]))
    if training.batches is not None:
        training = replace(training, batches=tuple(ordinary(batch) for batch in training.batches))
    if training.loss_print:
        return training
    print_of_loss = loss_print(loss, outputs, targets, rows=len(targets))
    return replace(training, loss=loss_name(loss), loss_print=print_of_loss)
