"""A task as a user writes it: an MLP on random points, and a metric that is high and no percentage.

Free of torch until its network is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from oialr_training.config import Metric, TrainingConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from oialr_training.data import Batches, Cut, Splits


class Margins(TrainingConfig):
    """Which of three corners is nearest?"""

    name = "margins"
    metrics = (
        Metric(name="loss", label="loss"),
        Metric(name="margin", label="margin", better="higher"),
    )
    searched = TrainingConfig.searched | {"width"}
    width: Annotated[int, Field(gt=0)] = 16

    def load_data(self, folder: Path | None) -> Cut:
        """Points in the unit cube."""
        import torch

        from oialr_training.data import LoadSettings, Splits, TensorBatches

        def splits(settings: LoadSettings) -> Splits:
            points = torch.rand(96, 3, generator=torch.Generator().manual_seed(0))
            targets = points.argmax(1)
            parts = [
                TensorBatches(points[part], targets[part], settings, shuffle=part.start == 0)
                for part in (slice(0, 64), slice(64, 80), slice(80, 96))
            ]
            return Splits(train=parts[0], validation=parts[1], test=parts[2], sizes={"corners": 3})

        return splits

    def network(self, splits: Splits) -> nn.Module:
        """Three layers."""
        from torch import nn

        return nn.Sequential(
            nn.Linear(3, self.width),
            nn.ReLU(),
            nn.Linear(self.width, self.width),
            nn.ReLU(),
            nn.Linear(self.width, splits.sizes["corners"]),
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def measure(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Loss, and by how much the right output is above the mean of all; means over batches."""
        import torch

        with torch.no_grad():
            told = [(model(*inputs), targets) for inputs, targets in batches.epoch(0)]
        margins = [(y.gather(1, t[:, None])[:, 0] - y.mean(1)).mean() for y, t in told]
        losses = [self.loss(y, t) for y, t in told]
        return {
            "loss": torch.stack(losses).mean().item(),
            "margin": torch.stack(margins).mean().item(),
        }
