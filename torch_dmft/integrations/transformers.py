"""A recorder in the loop of Hugging Face's ``Trainer``: ``pip install 'torch_dmft[transformers]'``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.measurement import Recorder

FILE = "recorder.pt"
"""Name of the recorder's state in a checkpoint's folder."""


class RecorderCallback(TrainerCallback):
    """Attaches a recorder to the optimizer of a ``transformers.Trainer`` for as long as it trains.

    The recorder is made before training. Its state is saved as ``recorder.pt`` in every checkpoint's folder, and a trainer that
    resumes from a folder takes it from there.

    Args:
        recorder: records; ``recorder.trajectory()`` after ``train``.

    Example:
        >>> recorder = Recorder(model, Probe(tokens), every=10)  # doctest: +SKIP
        >>> trainer = transformers.Trainer(model, args, callbacks=[RecorderCallback(recorder)], ...)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    @checked
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._attached = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach; after a resumption go on from the checkpoint.

        Raises:
            InvalidInputError: if the trainer resumes and the recorder's state is not in the checkpoint.
        """
        if state.global_step and not self.recorder.step:
            path = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / FILE
            if not path.exists():
                raise InvalidInputError(
                    "The trainer resumes, and the recorder knows nothing of the steps before.",
                    got=f"step {state.global_step}, no {path}",
                    remedy="keep the checkpoints in `output_dir`, or recorder.load_state_dict(torch.load(...)) before train()",
                )
            self.recorder.load_state_dict(torch.load(path, weights_only=True))
        optimizer: Optimizer = kwargs["optimizer"]
        self._attached.enter_context(self.recorder.attach(optimizer))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the recorder's state beside the model's."""
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.recorder.state_dict(), folder / FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go."""
        self._attached.close()
