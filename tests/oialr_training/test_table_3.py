"""The mini-ViT's files hold the published values (Table 3 of the supplementary)."""

from __future__ import annotations

import pytest

from oialr_training.schedules import CosineSchedule
from oialr_training.tasks import load_training, validate_training
from oialr_training.yaml_files import read_yaml

from ..conftest import CIFAR10, SEARCH_SPACES

UNTUNED = CosineSchedule(min_lr=1e-5, warmup_lr=1e-5, warmup_epochs=10, lr_k_decay=1.0)
TUNED = CosineSchedule(min_lr=8e-4, warmup_lr=8e-5, warmup_epochs=17, lr_k_decay=0.4)


@pytest.mark.parametrize(
    ("kind", "lr", "schedule"),
    [
        ("baseline", 1e-4, UNTUNED),
        ("untuned", 1e-4, UNTUNED),
        ("tuned", 2e-4, TUNED),
        ("search", 1e-4, UNTUNED),
    ],
)
def test_the_mini_vit_is_trained_as_published(
    kind: str, lr: float, schedule: CosineSchedule
) -> None:
    if kind == "search":
        content = {k: v for k, v in read_yaml(CIFAR10).items() if k not in ("search", "space")}
        config = validate_training(content, "test")
    else:
        config = load_training(SEARCH_SPACES / "training" / f"minivit_cifar10_{kind}.yaml")
    assert config.optimizer.lr == lr
    assert config.scheduler == schedule
    if kind == "baseline":
        assert config.oialr is None
        return
    oialr = config.oialr
    assert oialr is not None
    assert (oialr.delay_steps, oialr.update_frequency, oialr.cutoff_fraction) == (4000, 1000, 0.2)
    assert (oialr.full_rank_first_layer, oialr.full_rank_last_layer) == (False, True)
