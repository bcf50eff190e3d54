"""Our learning rates are timm's to the last digit, at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.step_lr import StepLRScheduler

from oialr_training.config import TrainingConfig
from oialr_training.schedules import CosineSchedule
from oialr_training.tasks import load_training

from ..conftest import SEARCH_SPACES

STEPS_PER_EPOCH = 7


def timm_s(config: TrainingConfig, optimizer: torch.optim.Optimizer) -> Any:
    """Stepped per update; the cosine lasts what the warm-up leaves of the training."""
    schedule, lr = config.scheduler, config.optimizer.lr
    if not isinstance(schedule, CosineSchedule):
        return StepLRScheduler(
            optimizer, decay_t=STEPS_PER_EPOCH, decay_rate=0.5, warmup_t=STEPS_PER_EPOCH,
            warmup_lr_init=lr, warmup_prefix=True, t_in_epochs=False,
        )  # fmt: skip
    warmup_steps = schedule.warmup_epochs * STEPS_PER_EPOCH
    return CosineLRScheduler(
        optimizer, t_initial=max(config.epochs * STEPS_PER_EPOCH - warmup_steps, 1),
        lr_min=schedule.min_lr, warmup_t=warmup_steps, warmup_lr_init=schedule.warmup_lr,
        warmup_prefix=True, t_in_epochs=False, k_decay=schedule.lr_k_decay,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("minivit_cifar10_untuned", []),
        ("minivit_cifar10_tuned", []),
        ("minivit_cifar10_tuned", ["epochs=25", "scheduler.lr_k_decay=1.7"]),
        ("minivit_cifar10_tuned", ["epochs=25", "optimizer.lr=0.003", "scheduler.min_lr=0.0001"]),
        ("minivit_cifar10_baseline", ["epochs=3", "scheduler.warmup_epochs=5"]),
        ("minivit_cifar10_baseline", ["epochs=3", "scheduler.warmup_epochs=3"]),
        ("minivit_cifar10_baseline", ["epochs=3", "scheduler.warmup_epochs=0"]),
        ("minivit_cifar10_tuned", ["scheduler.warmup_epochs=0", "optimizer.lr=0.0003"]),
        ("autoformer_ettm2_96_untuned", []),
        ("autoformer_ettm2_96_tuned", []),
    ],
)
def test_the_learning_rate_is_timm_s_to_the_last_digit(file: str, changes: list[str]) -> None:
    config = load_training(SEARCH_SPACES / "training" / f"{file}.yaml", changes)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optimizer.lr)
    scheduler = timm_s(config, optimizer)
    for step in range(config.epochs * STEPS_PER_EPOCH + 3):
        used = optimizer.param_groups[0]["lr"]
        assert config.learning_rate(step, STEPS_PER_EPOCH) == used
        scheduler.step_update(step + 1)
