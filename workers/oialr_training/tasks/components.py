"""What a task hands to the training loop: network, data, criterion and measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from oialr_training.data import Batches, LoadSettings, Splits

Cut = Callable[[LoadSettings], Splits]
"""Cuts a data set that was read into batches."""
LoadData = Callable[[Path | None], Cut]
"""Reads a data set from the folder of all data."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """What a task is made of, for the training loop."""

    build_model: Callable[[], nn.Module]
    load_data: LoadData
    """Reads the data set; slow, once a process. Raises `oialr_training.data.DataError`."""
    data_settings: tuple[object, ...]
    """What the data depend on: with the same settings they need not be read again."""
    criterion: nn.Module
    measure: Callable[[nn.Module, Batches], dict[str, float]]
    """Evaluates a network in evaluation mode over all batches; its `loss` is the criterion's."""


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
