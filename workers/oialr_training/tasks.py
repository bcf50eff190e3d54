"""A task's name → its network, data, criterion and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from oialr_training.config import AnyTraining, AutoformerETTm2, MiniViTCIFAR10, MiniViTDigits
from oialr_training.data import Batches, LoadSettings, Splits

Cut = Callable[[LoadSettings], Splits]
"""Cuts a data set that was read into batches."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the training loop needs to know of a task."""

    build_model: Callable[[], nn.Module]
    load_data: Callable[[Path | None], Cut]
    """Reads the data set; slow, once a process. Raises `oialr_training.data.DataError`."""
    data_settings: tuple[object, ...]
    """What the data depend on: with the same settings they need not be read again."""
    criterion: nn.Module
    measure: Callable[[nn.Module, Batches], dict[str, float]]
    """Evaluates a network in evaluation mode over all batches; its `loss` is the criterion's."""


def task_of(config: AnyTraining) -> Task:
    """The task of a training configuration."""
    # Imported by task: each brings libraries that the other tasks need not load.
    match config:
        case AutoformerETTm2():
            return _forecast(config)
        case MiniViTCIFAR10(data=cifar10_data):
            from oialr_training.data import cifar10

            return _classification(
                config,
                lambda folder: cifar10.load(
                    cifar10_data, folder, validate_on_test=config.validation == "test"
                ),
            )
        case MiniViTDigits(data=digits_data):
            from oialr_training.data import digits

            return _classification(
                config,
                lambda _: digits.load(digits_data, validate_on_test=config.validation == "test"),
            )


def _classification(
    config: MiniViTCIFAR10 | MiniViTDigits, load_data: Callable[[Path | None], Cut]
) -> Task:
    from oialr_training.models import minivit

    return Task(
        build_model=lambda: minivit.build(config.model, num_classes=10),
        load_data=load_data,
        data_settings=(config.task, config.data, config.validation),
        criterion=nn.CrossEntropyLoss(label_smoothing=config.criterion.label_smoothing),
        measure=measure_classification,
    )


def _forecast(config: AutoformerETTm2) -> Task:
    from oialr_training.data import ettm2
    from oialr_training.models.autoformer import Autoformer

    lengths = {
        "seq_len": config.seq_len,
        "label_len": config.label_len,
        "pred_len": config.pred_len,
    }
    return Task(
        build_model=lambda: Autoformer(
            config.model,
            num_series=len(ettm2.COLUMNS),
            num_time_features=ettm2.NUM_TIME_FEATURES,
            label_len=config.label_len,
            pred_len=config.pred_len,
        ),
        load_data=lambda folder: ettm2.load(
            config.data,
            folder,
            **lengths,
            validate_on_test=config.validation == "test",
        ),
        data_settings=(config.task, config.data, config.validation, *lengths.values()),
        criterion=nn.MSELoss(),
        measure=measure_forecast,
    )


@torch.no_grad()
def measure_classification(model: nn.Module, batches: Batches) -> dict[str, float]:
    """Mean cross-entropy (without label smoothing), top-1 and top-5 accuracy in percent."""
    loss, top1, top5, num_samples = 0.0, 0, 0, 0
    for inputs, targets in batches.epoch(0):
        logits = model(*inputs).float()
        loss += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        hits = _top_hits(logits, targets, k=5)
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.sum())
        num_samples += len(targets)
    return {
        "loss": loss / num_samples,
        "top1": 100.0 * top1 / num_samples,
        "top5": 100.0 * top5 / num_samples,
    }


def _top_hits(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """(batch, min(k, classes)): is the j-th best guess the target?"""
    return logits.topk(min(k, logits.shape[1]), dim=1).indices == targets[:, None]


@torch.no_grad()
def measure_forecast(model: nn.Module, batches: Batches) -> dict[str, float]:
    """Mean squared and absolute error over all windows, steps and series, standardised."""
    totals, num_values = torch.zeros(2, dtype=torch.float64), 0
    for inputs, targets in batches.epoch(0):
        error = (model(*inputs).float() - targets).double()
        totals = totals.to(error.device) + torch.stack([error.square().sum(), error.abs().sum()])
        num_values += targets.numel()
    mse, mae = (totals / num_values).tolist()
    return {"loss": mse, "mse": mse, "mae": mae}
