"""What networks are measured by: mean losses and shares of hits over all batches of a part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oialr_training.data import Batches


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
