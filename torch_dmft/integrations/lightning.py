"""A recorder in Lightning's loop: ``pip install 'torch_dmft[lightning]'``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from torch_dmft.core.arguments import checked
from torch_dmft.measurement import Indexed, Recorder


class RecorderCallback(Callback):
    """Attaches a recorder to the optimizers of a ``lightning.Trainer`` for as long as it fits.

    The recorder is made before training, from the plan that ``configure_optimizers`` takes its groups from. Its state goes
    into Lightning's checkpoints. If the training set is wrapped in ``torch_dmft.Indexed``, whose batches are
    ``(rows, batch)``, the rows of every step are noted too.

    Args:
        recorder: records; ``recorder.trajectory()`` after ``fit``.

    Example:
        >>> module = Classifier()  # a LightningModule with self.plan = parameterize(self.model, inputs)  # doctest: +SKIP
        >>> recorder = Recorder(module.plan, Probe(inputs, targets), every=10)  # doctest: +SKIP
        >>> lightning.Trainer(callbacks=[RecorderCallback(recorder)]).fit(module, loader)  # doctest: +SKIP
    """

    @checked
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._attached = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
        self._attached.enter_context(self.recorder.attach(*trainer.optimizers))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the rows of a batch that knows them."""
        if isinstance(getattr(trainer.train_dataloader, "dataset", None), Indexed):
            self.recorder.batch(batch[0])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go."""
        self._attached.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go; what was recorded stays."""
        self._attached.close()

    def state_dict(self) -> dict[str, Any]:
        """The recorder's, for Lightning's checkpoints."""
        return self.recorder.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from Lightning's checkpoint."""
        self.recorder.load_state_dict(state_dict)
