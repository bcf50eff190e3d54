"""A task's name → its network, data, criterion and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from workers.config import AnyTraining, MiniViTCIFAR10, MiniViTDigits
from workers.data import Batches, LoadSettings, Splits


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the training loop needs to know of a task."""

    build_model: Callable[[], nn.Module]
    load_data: Callable[[Path | None], Callable[[LoadSettings], Splits]]
    """Reads the data set (slow, once a process) → a function that cuts it into batches.
    Raises `workers.data.DataError`."""
    criterion: nn.Module
    measure: Callable[[nn.Module, Batches], dict[str, float]]
    """Evaluates a network in evaluation mode over all batches."""


def task_of(config: AnyTraining) -> Task:
    """The task of a training configuration."""
    # Imported here: each data set brings a library that the other tasks need not load.
    from workers.models import minivit

    validate_on_test = config.validation == "test"
    match config:
        case MiniViTCIFAR10(data=cifar10_data):
            from workers.data import cifar10

            def load_data(data_dir: Path | None) -> Callable[[LoadSettings], Splits]:
                return cifar10.load(cifar10_data, data_dir, validate_on_test=validate_on_test)

        case MiniViTDigits(data=digits_data):
            from workers.data import digits

            def load_data(data_dir: Path | None) -> Callable[[LoadSettings], Splits]:
                return digits.load(digits_data, validate_on_test=validate_on_test)

    return Task(
        build_model=lambda: minivit.build(config.model, num_classes=10),
        load_data=load_data,
        criterion=nn.CrossEntropyLoss(label_smoothing=config.criterion.label_smoothing),
        measure=measure_classification,
    )


@torch.no_grad()
def measure_classification(model: nn.Module, batches: Batches) -> dict[str, float]:
    """Mean cross-entropy (without label smoothing), top-1 and top-5 accuracy in percent."""
    loss, top1, top5, num_samples = 0.0, 0, 0, 0
    for inputs, targets in batches.epoch(0):
        logits = model(inputs).float()
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
    """(batch, k): is the j-th best guess the target?"""
    return logits.topk(k, dim=1).indices == targets[:, None]
