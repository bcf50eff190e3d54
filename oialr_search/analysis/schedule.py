"""The learning rate that a configuration asks for, without torch and timm."""

from __future__ import annotations

import math

from oialr_training.config import CosineSchedule, TrainingConfig, Type1Schedule


def learning_rate(config: TrainingConfig, num_updates: int, steps_per_epoch: int) -> float:
    """The rate of the step after so many updates."""
    match config.scheduler:
        case CosineSchedule() as cosine:
            return _cosine(config, cosine, num_updates, steps_per_epoch)
        case Type1Schedule():
            # Autoformer's: the rate itself for two epochs, then half of it in each epoch more.
            return config.optimizer.lr * 0.5 ** max(num_updates // steps_per_epoch - 1, 0)


def _cosine(
    config: TrainingConfig, cosine: CosineSchedule, num_updates: int, steps_per_epoch: int
) -> float:
    """Loshchilov & Hutter 2017 after a linear warm-up, with k-decay (Zhang & Li 2020)."""
    lr, warmup_steps = config.optimizer.lr, cosine.warmup_epochs * steps_per_epoch
    if num_updates < warmup_steps:
        return cosine.warmup_lr + (lr - cosine.warmup_lr) * num_updates / warmup_steps
    total = max(config.epochs * steps_per_epoch - warmup_steps, 1)
    done: float = num_updates - warmup_steps
    if done >= total:
        return cosine.min_lr
    k = cosine.lr_k_decay
    turn = math.pi * done**k / total**k
    return cosine.min_lr + 0.5 * (lr - cosine.min_lr) * (1 + math.cos(turn))
