"""The training loop with OIALR, on the digits."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import oialr_training.training
from oialr import OIALRSettings
from oialr_training.errors import DivergedError
from oialr_training.models import minivit
from oialr_training.protocol import Epoch, Event, Progressed, Started
from oialr_training.sections import OIALRConfig
from oialr_training.tasks import load_training, validate_training
from oialr_training.tasks.measures import measure_classification
from oialr_training.tasks.minivit import MiniViTDigits
from oialr_training.training import Training, set_up, train, visible_device
from oialr_training.yaml_files import read_yaml

from ..conftest import DIGITS, SEARCH_SPACES

BASELINE = SEARCH_SPACES / "training" / "minivit_cifar10_baseline.yaml"


def config(**changes: Any) -> MiniViTDigits:
    content = {k: v for k, v in read_yaml(DIGITS).items() if k not in ("search", "space")}
    content["model"] |= {"depth": 2, "embed_dim": 32}
    content["data"] |= {"train_subset": 500}
    content["oialr"] |= {"delay_steps": 15, "update_frequency": 13, "layer_fraction": 0.5}
    content |= {"epochs": 4, "num_threads": 1}
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = content
        for name in sections:
            section = section[name]
        section[key] = value
    trained = validate_training(content, "test")
    assert isinstance(trained, MiniViTDigits)
    return trained


def prepare(trained: MiniViTDigits) -> Training:
    return set_up(trained, trained.load_data(None))


def run(trained: MiniViTDigits) -> tuple[Training, list[Event]]:
    training, events = prepare(trained), list[Event]()
    train(training, events.append)
    return training, events


def epochs(events: list[Event]) -> list[Epoch]:
    return [event for event in events if isinstance(event, Epoch)]


def test_loss_falls_and_the_network_becomes_low_rank_after_the_delay() -> None:
    training, events = run(config())
    assert training.splits.train.num_batches == 13
    history = epochs(events)
    assert history[-1].metrics["train_loss"] < history[0].metrics["train_loss"]
    assert [e.metrics["trainable_percent"] == 100.0 for e in history] == [True, False, False, False]
    updates = [update for event in history for update in event.rank_updates]
    # d, d + ν, d + 2ν; 9 of the 10 layers convert, of which the window takes half, then all.
    assert sorted({update.step for update in updates}) == [15, 28, 41]
    assert [sum(u.step == step for u in updates) for step in (15, 28, 41)] == [5, 9, 9]
    assert all(update.inner_rank <= update.full_inner_rank for update in updates)
    assert any(update.inner_rank < update.full_inner_rank for update in updates)


def test_the_baseline_stays_at_full_rank() -> None:
    _, events = run(config(oialr=None))
    for event in epochs(events):
        assert event.metrics["trainable_percent"] == event.metrics["compression_percent"] == 100.0
        assert not event.rank_updates


def test_the_same_seed_gives_the_same_digits_and_another_does_not() -> None:
    losses = [epochs(run(config(seed=seed))[1])[-1].metrics["train_loss"] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_the_learning_rate_follows_the_schedule_per_update() -> None:
    """Warm-up from warmup_lr to lr, then k-decay over what the warm-up leaves; it may rise."""
    trained = config(
        oialr=None,
        optimizer__lr=3e-4,
        scheduler__min_lr=8e-4,
        scheduler__warmup_lr=1e-4,
        scheduler__warmup_epochs=1,
        scheduler__lr_k_decay=0.34,
    )
    training, rates = prepare(trained), list[float]()
    training.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    train(training, lambda event: None)
    warm, rest = 13, 39
    for number, rate in enumerate(rates):
        if number < warm:
            expected = 1e-4 + number * (3e-4 - 1e-4) / warm
        else:
            decay = math.cos(math.pi * (number - warm) ** 0.34 / rest**0.34)
            expected = 8e-4 + 0.5 * (3e-4 - 8e-4) * (1 + decay)
        assert rate == pytest.approx(expected, rel=1e-9)
    assert rates[-1] > rates[warm]


def test_a_diverging_training_says_so() -> None:
    for section in ({"oialr": None}, {}):
        training = prepare(config(optimizer__lr=1e30, **section))
        with pytest.raises(DivergedError, match="diverged"):
            train(training, lambda event: None)


def test_a_training_that_moves_says_so_from_all_its_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(isinstance(event, Progressed) for event in run(config())[1])
    monkeypatch.setattr(oialr_training.training, "PROGRESS_INTERVAL_S", 0.0)
    events = list[Event]()
    train(prepare(config(epochs=2)), events.append, evaluate_test=True)
    steps = [event.step for event in events if isinstance(event, Progressed)]
    assert steps == sorted(steps)
    assert set(steps) == set(range(1, 27))
    validation = [step for step in steps if step in (13, 26)]
    assert len(validation) > 2  # once of training, more of validation and test


def test_settings_without_effect_are_told() -> None:
    _, events = run(config(epochs=1, oialr__delay_steps=500, scheduler__warmup_epochs=3))
    (started,) = [event for event in events if isinstance(event, Started)]
    assert len(started.warnings) == 2
    assert "`oialr.delay_steps` = 500" in started.warnings[0]
    assert "`scheduler.warmup_epochs` = 3" in started.warnings[1]


def test_evaluation_counts_right() -> None:
    class Fixed(torch.nn.Module):
        """Class k's logit is highest for inputs k; second best k + 1, and so on."""

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            distance = (torch.arange(10) - inputs[:, :1]) % 10
            return -distance.float()

    class Once:
        num_batches = 1

        def epoch(self, number: int) -> Any:
            inputs = torch.arange(10.0)[:, None]
            # Places of the targets among the guesses: 1, 2, ..., 10.
            yield (inputs,), (torch.arange(10) + torch.arange(10)) % 10

    metrics = measure_classification(Fixed(), Once())
    assert metrics["top1"] == 10.0
    assert metrics["top5"] == 50.0
    normaliser = math.log(sum(math.exp(-k) for k in range(10)))
    assert metrics["loss"] == pytest.approx(sum(k + normaliser for k in range(10)) / 10, rel=1e-6)


def test_three_classes_have_a_top_five() -> None:
    class Once:
        num_batches = 1

        def epoch(self, number: int) -> Any:
            yield (torch.eye(3),), torch.tensor([0, 1, 1])

    metrics = measure_classification(torch.nn.Identity(), Once())
    assert metrics["top1"] == pytest.approx(200 / 3)
    assert metrics["top5"] == 100.0


@pytest.mark.parametrize(
    ("visible", "device", "named"),
    [
        (None, "cpu", "cpu"),
        ("3", "cpu", "cpu"),  # a GPU that torch cannot use
        (None, "cuda", "cuda:0"),
        ("3", "cuda", "cuda:3"),
        ("GPU-0a1b", "cuda:0", "cuda:GPU-0a1b"),
        ("3, 5", "cuda:1", "cuda:5"),
    ],
)
def test_a_device_is_told_as_it_was_made_visible(
    visible: str | None, device: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_device(torch.device(device)) == named


def test_the_configuration_has_the_library_s_settings_with_its_defaults() -> None:
    ours = OIALRConfig(delay_steps=1, update_frequency=1, cutoff_fraction=0.5).model_dump()
    theirs = OIALRSettings(delay_steps=1, update_frequency=1, cutoff_fraction=0.5)
    assert ours == dataclasses.asdict(theirs)


def test_the_paper_s_mini_vit_has_its_size() -> None:
    trained = load_training(BASELINE)
    with torch.device("meta"):
        model = minivit.build(trained.model, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 42_684_682


@pytest.mark.parametrize("name", ["baseline", "untuned", "tuned"])
def test_the_paper_s_configurations_run(name: str, cifar10_dir: Path) -> None:
    path = BASELINE.with_name(f"minivit_cifar10_{name}.yaml")
    small = ["model.embed_dim=48", "model.depth=1", "model.num_heads=3", "batch_size=64"]
    small += ["data.train_subset=200", "data.test_subset=100", "epochs=2", "num_threads=1"]
    oialr = ["oialr.delay_steps=2", "oialr.update_frequency=2", "scheduler.warmup_epochs=1"]
    trained = load_training(path, small + (oialr if name != "baseline" else []))
    training = set_up(trained, trained.load_data(cifar10_dir))
    completed = train(training, lambda event: None, evaluate_test=True).completed
    assert completed.metrics["test_top1"] == completed.metrics["validation_top1"]
    assert (completed.trainable_percent == 100.0) == (name == "baseline")
