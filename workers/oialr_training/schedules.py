"""Learning-rate schedules: typed settings by name, each with its rate at a step; free of torch.

The training sets the rate that `TrainingConfig.learning_rate` tells, the plots draw it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from oialr_training.validation import Config


class CosineSchedule(Config):
    """timm's cosine schedule with warm-up and k-decay, stepped per update.

    `min_lr` may exceed the learning rate: the paper's tuned mini-ViT rises after its warm-up.
    """

    name: Literal["cosine"] = "cosine"
    min_lr: Annotated[float, Field(ge=0.0)]
    """Learning rate at the end of training."""
    warmup_lr: Annotated[float, Field(ge=0.0)]
    """Learning rate at the first update."""
    warmup_epochs: Annotated[int, Field(ge=0)]
    lr_k_decay: Annotated[float, Field(gt=0.0)] = 1.0
    """Exponent of k-decay (Zhang & Li 2020); 1 is the plain cosine."""

    def rate(self, step: int, lr: float, epochs: int, steps_per_epoch: int) -> float:
        """Loshchilov & Hutter 2017 after a linear warm-up, with k-decay (Zhang & Li 2020).

        To the last digit what timm's scheduler gives.
        """
        warmup_steps = self.warmup_epochs * steps_per_epoch
        if step < warmup_steps:
            return self.warmup_lr + step * ((lr - self.warmup_lr) / warmup_steps)
        if step == 0:
            return lr
        # The cosine lasts what the warm-up leaves of the training.
        total = max(epochs * steps_per_epoch - warmup_steps, 1)
        done, k = step - warmup_steps, self.lr_k_decay
        if done >= total:
            return self.min_lr
        turn = math.pi * done**k / total**k
        return self.min_lr + 0.5 * (lr - self.min_lr) * (1 + math.cos(turn))


class Type1Schedule(Config):
    """Autoformer's own: the learning rate for two epochs, then half of it in each epoch more."""

    name: Literal["type1"]

    def rate(self, step: int, lr: float, epochs: int, steps_per_epoch: int) -> float:
        """Halved after each epoch but the first, however many there are."""
        return lr * 0.5 ** max(step // steps_per_epoch - 1, 0)


def _schedule_name(content: Any) -> Any:
    if isinstance(content, dict):
        return str(content.get("name", "cosine"))
    return getattr(content, "name", None)


# Typed by its name; without one it is a cosine.
SchedulerConfig = Annotated[
    Annotated[CosineSchedule, Tag("cosine")] | Annotated[Type1Schedule, Tag("type1")],
    Discriminator(_schedule_name),
]
