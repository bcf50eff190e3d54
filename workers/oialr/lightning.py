"""OIALR for the Trainer of Lightning."""

from typing import Any

from lightning.pytorch import Callback

from oialr.basis_update import BasisUpdate
from oialr.checkpoints import CallbackTraining, refuse_several_processes
from oialr.errors import OIALRError
from oialr.oialr import OIALR
from oialr.plain_modules import export
from oialr.settings import OIALRSettings


class OIALRCallback(Callback):  # type: ignore[misc]
    """Trains a LightningModule with OIALR; the clock counts its optimiser steps.

        Trainer(callbacks=[OIALRCallback(settings)]).fit(module, loader)

    A checkpoint's `state_dict` is that of the dense module, for `load_from_checkpoint`;
    `fit(..., ckpt_path=...)` goes on from what this callback keeps in it. One optimiser and one
    process only.
    """

    def __init__(self, settings: OIALRSettings) -> None:
        """Begin when the training does."""
        self.settings = settings
        self.updates: list[BasisUpdate] = []
        """All basis updates so far."""
        self._training: CallbackTraining | None = None
        self._stored: dict[str, Any] | None = None

    @property
    def oialr(self) -> OIALR:
        """What trains; an error before the training has begun."""
        return self._begun.oialr

    @property
    def _begun(self) -> CallbackTraining:
        if self._training is None:
            raise OIALRError("the training has not begun")
        return self._training

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the module, or go on from a checkpoint."""
        refuse_several_processes(trainer.world_size)
        if len(trainer.optimizers) != 1:
            raise OIALRError(
                f"OIALRCallback takes one optimiser, this module has {len(trainer.optimizers)}"
            )
        self._training = CallbackTraining(pl_module, trainer.optimizers[0], self.settings)
        if self._stored is not None:
            self._training.load_state_dict(self._stored)
            self._stored = None

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Count a step, if the batch was the last of one; convert and update when it is time."""
        if trainer.global_step > self.oialr.steps:
            self.updates += self.oialr.step()

    def state_dict(self) -> dict[str, Any]:
        """What to go on from."""
        return self._training.state_dict() if self._training else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what to go on from until the training starts."""
        self._stored = state_dict or None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Make Lightning's own part of a checkpoint that of a dense module."""
        if self._training:
            checkpoint["state_dict"] = export(pl_module).state_dict()
            if "optimizer_states" in checkpoint:
                checkpoint["optimizer_states"] = [self._training.dense_optimizer_state]
