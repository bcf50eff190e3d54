"""The training loop: one configuration, trained and validated epoch by epoch with OIALR."""

from __future__ import annotations

import copy
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.step_lr import StepLRScheduler
from torch import nn

from workers.config import (
    AnyTraining,
    CosineSchedule,
    OIALRConfig,
    TrainingConfig,
    Type1Schedule,
)
from workers.data import Batches, LoadSettings, Splits
from workers.oialr import OIALR, NotFiniteError, OIALRSettings
from workers.protocol import Completed, Epoch, Event, RankUpdate, Started
from workers.tasks import Task


class DivergedError(Exception):
    """The loss is no longer a finite number."""


class DeviceError(Exception):
    """The device asked for is not there."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, ready to start: everything that its configuration decides."""

    config: AnyTraining
    task: Task
    splits: Splits
    model: nn.Module
    optimizer: torch.optim.AdamW
    scheduler: Scheduler
    oialr: OIALR | None
    device: torch.device
    total_steps: int
    num_parameters: int
    """Trainable parameters before any conversion."""


def device_of(config: TrainingConfig) -> torch.device:
    """The device of a training.

    Raises:
        DeviceError: when a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise DeviceError("no GPU is visible for `device`, got 'cuda'")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def load_settings(config: TrainingConfig) -> LoadSettings:
    """How this training wants its batches."""
    return LoadSettings(
        batch_size=config.batch_size,
        seed=config.seed,
        device=device_of(config),
        num_threads=config.num_threads or os.cpu_count() or 1,
    )


def set_up(config: AnyTraining, task: Task, load: Callable[[LoadSettings], Splits]) -> Training:
    """Seed all generators, then build the network and what trains it."""
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    device = device_of(config)
    splits = load(load_settings(config))
    model = task.build_model().to(device)
    num_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
    )
    oialr = None
    if config.oialr is not None:
        oialr = OIALR(model, optimizer, OIALRSettings(**config.oialr.model_dump()))
    return Training(
        config=config,
        task=task,
        splits=splits,
        model=model,
        optimizer=optimizer,
        scheduler=build_scheduler(config, optimizer, splits.train.num_batches),
        oialr=oialr,
        device=device,
        total_steps=config.epochs * splits.train.num_batches,
        num_parameters=num_parameters,
    )


def build_scheduler(
    config: TrainingConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> Scheduler:
    """The learning-rate schedule, stepped per update."""
    match config.scheduler:
        case CosineSchedule() as cosine:
            warmup_steps = cosine.warmup_epochs * steps_per_epoch
            return CosineLRScheduler(
                optimizer,
                # The cosine lasts what the warm-up leaves of the training.
                t_initial=max(config.epochs * steps_per_epoch - warmup_steps, 1),
                lr_min=cosine.min_lr,
                warmup_t=warmup_steps,
                warmup_lr_init=cosine.warmup_lr,
                warmup_prefix=True,
                t_in_epochs=False,
                k_decay=cosine.lr_k_decay,
            )
        case Type1Schedule():
            return StepLRScheduler(
                optimizer,
                decay_t=steps_per_epoch,
                decay_rate=0.5,
                # Halved after each epoch but the first, which is a warm-up at the rate itself.
                warmup_t=steps_per_epoch,
                warmup_lr_init=config.optimizer.lr,
                warmup_prefix=True,
                t_in_epochs=False,
            )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training that reached its end."""

    completed: Completed
    model: nn.Module
    """The network that the metrics are of."""


def train(
    training: Training, report: Callable[[Event], None], *, evaluate_test: bool = False
) -> Trained:
    """Train to the end; `report` is handed an event at the start and after each epoch.

    Raises:
        DivergedError: when the training loss is no finite number, or the result's validation loss.
    """
    config, started = training.config, time.time()
    report(
        Started(
            at=started,
            total_steps=training.total_steps,
            parameters=training.num_parameters,
            layers=describe_layers(training),
            warnings=settings_without_effect(training),
        )
    )
    keep_best = config.result_epoch == "best"
    best = _Best(training.model, keep_model=keep_best)
    for epoch in range(1, config.epochs + 1):
        metrics, updates = _run_epoch(training, epoch)
        step = epoch * training.splits.train.num_batches
        report(Epoch(epoch=epoch, step=step, metrics=metrics, rank_updates=updates))
        metrics = {"epoch": float(epoch), **metrics}  # a result says of which epoch it is
        _require_finite("train_loss", metrics)
        if not keep_best:
            _require_finite("validation_loss", metrics)
        best.compare(metrics)
        if best.epochs_since >= (config.early_stopping_patience or math.inf):
            break
    if keep_best:
        metrics = best.metrics or metrics
        _require_finite("validation_loss", metrics)
    if evaluate_test:
        test = _evaluate(training, best.model, training.splits.test)
        metrics = metrics | {f"test_{name}": value for name, value in test.items()}
    finished = time.time()
    completed = Completed(
        metrics=metrics,
        trainable_percent=metrics["trainable_percent"],
        compression_percent=metrics["compression_percent"],
        device=_device_name(training.device),
        duration_s=finished - started,
        at=finished,
    )
    return Trained(completed=completed, model=best.model)


class _Best:
    """The epoch with the lowest validation loss so far; one whose loss is no number is never it."""

    def __init__(self, model: nn.Module, *, keep_model: bool) -> None:
        self._trained_model = model
        self._keep_model = keep_model
        self.model = model
        """A copy of the network as it was then, if it is to be kept."""
        self.metrics: dict[str, float] = {}
        self.epochs_since = 0

    def compare(self, metrics: dict[str, float]) -> None:
        """Take in the latest epoch."""
        lowest = self.metrics.get("validation_loss", math.inf)
        if not metrics["validation_loss"] < lowest:
            self.epochs_since += 1
            return
        self.metrics, self.epochs_since = metrics, 0
        if self._keep_model:
            self.model = copy.deepcopy(self._trained_model)


def _run_epoch(training: Training, epoch: int) -> tuple[dict[str, float], list[RankUpdate]]:
    """Train and validate; the metrics and the basis updates of the epoch."""
    started = time.perf_counter()
    train_loss, lr, updates = _train_epoch(training, epoch)
    validation = _evaluate(training, training.model, training.splits.validation)
    return {
        "train_loss": train_loss,
        **{f"validation_{name}": value for name, value in validation.items()},
        "lr": lr,
        "epoch_s": time.perf_counter() - started,
        "trainable_percent": trainable_percent(training),
        "compression_percent": compression_percent(training),
    }, updates


def _require_finite(name: str, metrics: Mapping[str, float]) -> None:
    if not math.isfinite(metrics[name]):
        epoch = int(metrics["epoch"])
        raise DivergedError(f"diverged: {name} is {metrics[name]} after epoch {epoch}")


def trainable_percent(training: Training) -> float:
    """Trainable parameters as % of the full-rank network's."""
    return training.oialr.trainable_percent if training.oialr else 100.0


def compression_percent(training: Training) -> float:
    """All parameters as % of the full-rank network's; can pass 100 %."""
    return training.oialr.compression_percent if training.oialr else 100.0


def describe_layers(training: Training) -> str:
    """Which layers stay dense, and why."""
    if training.oialr is None:
        return "full rank throughout"
    dense = [f"{name} ({reason})" for name, reason in training.oialr.dense_layers.items()]
    return f"all become low-rank but {', '.join(dense) or 'none'}"


def settings_without_effect(training: Training) -> list[str]:
    """A sentence for each setting that this training never comes to use."""
    config, warnings = training.config, []
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu and config.device == "auto" and training.device.type == "cpu":
        warnings.append(f"training on the CPU: torch cannot use the visible GPU {gpu}")
    warnings += _oialr_without_effect(config.oialr, training.total_steps) if config.oialr else []
    schedule = config.scheduler
    if isinstance(schedule, CosineSchedule) and schedule.warmup_epochs >= config.epochs:
        warnings.append(
            f"the warm-up never ends: `scheduler.warmup_epochs` = "
            f"{schedule.warmup_epochs}, the training has {config.epochs} epochs"
        )
    if config.validation == "test" and getattr(config.data, "validation_subset", None):
        warnings.append("`data.validation_subset` has no effect: `validation` is `test`")
    return warnings


def _oialr_without_effect(config: OIALRConfig, total_steps: int) -> list[str]:
    name = "delay_steps" if config.delay_steps else "update_frequency"
    first_update = config.delay_steps or config.update_frequency
    if first_update <= total_steps:
        return []
    consequence = "OIALR never starts" if config.full_rank_warmup else "inner ranks are never cut"
    return [f"{consequence}: `oialr.{name}` = {first_update}, the training has {total_steps} steps"]


def _train_epoch(training: Training, epoch: int) -> tuple[float, float, list[RankUpdate]]:
    """Mean training loss of the epoch, its last learning rate, and its basis updates."""
    training.model.train()
    total_loss, num_samples = torch.zeros((), device=training.device), 0
    updates: list[RankUpdate] = []
    lr, num_updates = math.nan, (epoch - 1) * training.splits.train.num_batches
    for inputs, targets in training.splits.train.epoch(epoch):
        training.optimizer.zero_grad()
        with _autocast(training):
            loss = training.task.criterion(training.model(*inputs), targets)
        loss.backward()
        training.optimizer.step()
        total_loss += loss.detach() * len(targets)
        num_samples += len(targets)
        num_updates += 1
        if training.oialr:
            updates += _oialr_step(training.oialr, num_updates)
        lr = training.optimizer.param_groups[0]["lr"]
        training.scheduler.step_update(num_updates)
    return total_loss.item() / num_samples, lr, updates


def _oialr_step(oialr: OIALR, num_updates: int) -> list[RankUpdate]:
    try:
        return [RankUpdate(**asdict(update)) for update in oialr.step()]
    except NotFiniteError as error:
        raise DivergedError(f"diverged: {error}") from None
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        # The SVD of a matrix that is finite, but barely.
        raise DivergedError(f"diverged: step {num_updates}: {error}") from None


def _evaluate(training: Training, model: nn.Module, batches: Batches) -> dict[str, float]:
    model.eval()
    with _autocast(training):
        return training.task.measure(model, batches)


def _autocast(training: Training) -> torch.autocast:
    choice = training.config.autocast
    enabled = choice == "bfloat16" or (choice == "auto" and training.device.type == "cuda")
    return torch.autocast(training.device.type, dtype=torch.bfloat16, enabled=enabled)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
