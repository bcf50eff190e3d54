"""OIALR for the Trainer of Hugging Face transformers."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from oialr.basis_update import BasisUpdate
from oialr.checkpoints import CallbackTraining, refuse_several_processes
from oialr.errors import OIALRError
from oialr.oialr import OIALR
from oialr.plain_modules import export
from oialr.settings import OIALRSettings

STATE_FILE = "oialr.pt"
OPTIMIZER_FILE = "optimizer.pt"


class OIALRCallback(TrainerCallback):  # type: ignore[misc]
    """Trains the Trainer's model with OIALR; the clock counts its optimiser steps.

        Trainer(model, args, train_dataset=data, callbacks=[OIALRCallback(settings)]).train()

    A checkpoint's model is dense, for `from_pretrained`; `train(resume_from_checkpoint=True)` goes
    on from the file `oialr.pt` beside it. One process only.
    """

    def __init__(self, settings: OIALRSettings) -> None:
        """Begin when the training does."""
        self.settings = settings
        self.updates: list[BasisUpdate] = []
        """All basis updates so far."""
        self._training: CallbackTraining | None = None

    @property
    def oialr(self) -> OIALR:
        """What trains; an error before the training has begun."""
        return self._begun.oialr

    @property
    def _begun(self) -> CallbackTraining:
        if self._training is None:
            raise OIALRError("the training has not begun")
        return self._training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the model, or go on from a checkpoint."""
        refuse_several_processes(args.world_size)
        if args.load_best_model_at_end:
            raise OIALRError(
                "`load_best_model_at_end` would load a dense model into a low-rank one: load the"
                " best checkpoint by `from_pretrained`"
            )
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])  # accelerate's
        self._training = CallbackTraining(kwargs["model"], optimizer, self.settings)
        if state.global_step:
            path = self._folder(args, state) / STATE_FILE
            if not path.is_file():
                raise OIALRError(f"there is no {path} to go on from")
            self._training.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step; convert and update bases when it is time."""
        self.updates += self.oialr.step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what to go on from, and make the Trainer's own files those of a dense model."""
        folder = self._folder(args, state)
        if args.save_only_model:
            export(self._begun.model).save_pretrained(folder)  # type: ignore[operator]
            return
        torch.save(self._begun.state_dict(), folder / STATE_FILE)
        torch.save(self._begun.dense_optimizer_state, folder / OPTIMIZER_FILE)
        export(self._begun.model).save_pretrained(folder)  # type: ignore[operator]

    @staticmethod
    def _folder(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"
