"""The training loop: one configuration, trained and validated epoch by epoch with OIALR."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from workers.config import AnyTraining, TrainingConfig
from workers.data import Batches, LoadSettings, Splits
from workers.oialr import OIALR, OIALRSettings
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
    scheduler: CosineLRScheduler
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
    total_steps = config.epochs * splits.train.num_batches
    warmup_steps = config.scheduler.warmup_epochs * splits.train.num_batches
    scheduler = CosineLRScheduler(
        optimizer,
        # The cosine lasts what the warm-up leaves of the training.
        t_initial=max(total_steps - warmup_steps, 1),
        lr_min=config.scheduler.min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=config.scheduler.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
        k_decay=config.scheduler.lr_k_decay,
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
        scheduler=scheduler,
        oialr=oialr,
        device=device,
        total_steps=total_steps,
        num_parameters=num_parameters,
    )


def train(
    training: Training, report: Callable[[Event], None], *, evaluate_test: bool = False
) -> Completed:
    """Train to the end; `report` is handed an event at the start and after each epoch.

    Raises:
        DivergedError: when the training or validation loss is no finite number.
    """
    started = time.time()
    report(
        Started(
            at=started,
            total_steps=training.total_steps,
            parameters=training.num_parameters,
            warnings=settings_without_effect(training),
        )
    )
    metrics: dict[str, float] = {}
    for epoch in range(1, training.config.epochs + 1):
        epoch_started = time.perf_counter()
        train_loss, updates = _train_epoch(training, epoch)
        validation = _evaluate(training, training.splits.validation)
        metrics = {
            "train_loss": train_loss,
            **{f"validation_{name}": value for name, value in validation.items()},
            "lr": training.optimizer.param_groups[0]["lr"],
            "epoch_s": time.perf_counter() - epoch_started,
            "trainable_percent": trainable_percent(training),
            "compression_percent": compression_percent(training),
        }
        step = epoch * training.splits.train.num_batches
        report(Epoch(epoch=epoch, step=step, metrics=metrics, rank_updates=updates))
        for name in ("train_loss", "validation_loss"):
            if not math.isfinite(metrics[name]):
                raise DivergedError(f"diverged: {name} is {metrics[name]} after epoch {epoch}")
    if evaluate_test:
        test = _evaluate(training, training.splits.test)
        metrics |= {f"test_{name}": value for name, value in test.items()}
    finished = time.time()
    return Completed(
        metrics=metrics,
        trainable_percent=trainable_percent(training),
        compression_percent=compression_percent(training),
        device=_device_name(training.device),
        duration_s=finished - started,
        at=finished,
    )


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
    if config.oialr is not None and config.oialr.delay_steps >= training.total_steps:
        warnings.append(
            f"OIALR never starts: `oialr.delay_steps` = {config.oialr.delay_steps}, "
            f"the training has {training.total_steps} steps"
        )
    if config.scheduler.warmup_epochs >= config.epochs:
        warnings.append(
            f"the warm-up never ends: `scheduler.warmup_epochs` = "
            f"{config.scheduler.warmup_epochs}, the training has {config.epochs} epochs"
        )
    return warnings


def _train_epoch(training: Training, epoch: int) -> tuple[float, list[RankUpdate]]:
    """Mean training loss of the epoch, and the basis updates that fell into it."""
    training.model.train()
    total_loss, num_samples = torch.zeros((), device=training.device), 0
    updates: list[RankUpdate] = []
    num_updates = (epoch - 1) * training.splits.train.num_batches
    for inputs, targets in training.splits.train.epoch(epoch):
        training.optimizer.zero_grad()
        with _autocast(training):
            loss = training.task.criterion(training.model(inputs), targets)
        loss.backward()
        training.optimizer.step()
        total_loss += loss.detach() * len(targets)
        num_samples += len(targets)
        num_updates += 1
        if training.oialr:
            updates += _oialr_step(training.oialr, num_updates)
        training.scheduler.step_update(num_updates)
    return total_loss.item() / num_samples, updates


def _oialr_step(oialr: OIALR, num_updates: int) -> list[RankUpdate]:
    try:
        return [RankUpdate(**asdict(update)) for update in oialr.step()]
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        # The SVD of a matrix that is no longer finite.
        raise DivergedError(f"diverged: step {num_updates}: {error}") from None


def _evaluate(training: Training, batches: Batches) -> dict[str, float]:
    training.model.eval()
    with _autocast(training):
        return training.task.measure(training.model, batches)


def _autocast(training: Training) -> torch.autocast:
    choice = training.config.autocast
    enabled = choice == "bfloat16" or (choice == "auto" and training.device.type == "cuda")
    return torch.autocast(training.device.type, dtype=torch.bfloat16, enabled=enabled)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
