"""Trains a network in the worker process itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from oialr_training.config import TrainingConfig
from oialr_training.data import Cut
from oialr_training.errors import ConfigError, DataError
from oialr_training.protocol import Completed, Evaluate, Event, Resources, Stop
from oialr_training.resources import Meter
from oialr_training.state import StateFile
from oialr_training.trainer import Trainer
from oialr_training.training import Training, require_metrics, set_up, train
from oialr_training.whole_files import written_whole

CHECKPOINT_FILE = "checkpoint.safetensors"


class NetworkTrainer(Trainer[TrainingConfig]):
    """Keeps the data from one configuration to the next, where it wants the same."""

    def __init__(self, data_dir: Path | None) -> None:
        self._data_dir = data_dir
        self._data_settings: object = None
        self._cut: Cut | None = None
        self._meter = Meter()

    def prepare(self, config: TrainingConfig) -> None:
        """Load the data; one tiny step and one SVD: the first of each loads libraries and starts
        threads."""
        training = self._set_up(config)
        inputs, targets = next(iter(training.splits.train.epoch(0)))
        two = tuple(part[:2] for part in inputs)
        loss = config.training_step(training.model, two, targets[:2])
        _require_loss(config, loss)
        loss.backward()  # type: ignore[no-untyped-call]
        training.optimizer.step()
        require_metrics(training)
        torch.linalg.svd(torch.rand(4, 4, device=training.device))
        Meter().start(training.device)  # opens NVML

    def evaluate(
        self,
        config: TrainingConfig,
        request: Evaluate,
        report: Callable[[Event], None],
        stops: Sequence[Stop],
    ) -> Completed:
        """See `Trainer.evaluate`."""
        trained = train(
            self._set_up(config),
            report,
            evaluate_test=request.evaluate_test,
            state_file=_state_file(request),
            stop=lambda: stops[0].reason if stops else None,
            meter=self._meter,
        )
        if request.save_checkpoint:
            _save_checkpoint(trained.model, Path(request.folder) / CHECKPOINT_FILE)
        return trained.completed

    def resources(self) -> Resources:
        """See `Trainer.resources`."""
        return self._meter.read()

    def forget(self, request: Evaluate) -> None:
        """See `Trainer.forget`."""
        if state_file := _state_file(request):
            state_file.delete()

    def _set_up(self, config: TrainingConfig) -> Training:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        if self._cut is None or config.data_settings != self._data_settings:
            try:
                self._cut = config.load_data(self._data_dir)
            except OSError as error:
                raise DataError(f"cannot read {self._data_dir}: {error.strerror}") from None
            self._data_settings = config.data_settings
        return set_up(config, self._cut)


def _state_file(request: Evaluate) -> StateFile | None:
    return StateFile(Path(request.state_file)) if request.state_file else None


def _require_loss(config: TrainingConfig, loss: object) -> None:
    """See that what a task's loss gives before the first step can be differentiated.

    Raises:
        ConfigError: when it cannot.
    """
    if not isinstance(loss, Tensor):
        got = type(loss).__name__
    elif loss.shape != ():
        got = f"shape {tuple(loss.shape)}"
    elif not loss.requires_grad:
        got = "one without a gradient"
    elif not loss.isfinite():
        got = f"{loss.item()} before the first step"
    else:
        return
    raise ConfigError(
        f"the loss of the task {config.task} is a finite tensor of shape () with a gradient, "
        f"got {got}"
    )


def _save_checkpoint(model: nn.Module, path: Path) -> None:
    """Dense weights, which the network loads as it is built, without OIALR."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from oialr import export

    try:
        with written_whole(path) as aside:
            save_file({k: v.contiguous() for k, v in export(model).state_dict().items()}, aside)
    except (SafetensorError, OSError) as error:
        raise OSError(f"cannot write {path}: {error}") from None
