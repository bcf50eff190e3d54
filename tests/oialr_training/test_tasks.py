"""What every task promises, those that come along and one as a user writes it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from oialr_training.config import TrainingConfig
from oialr_training.data import LoadSettings, Splits
from oialr_training.errors import ConfigError
from oialr_training.protocol import Epoch
from oialr_training.tasks import TASKS, known_metrics, load_training, register, validate_training

from ..conftest import SEARCH_SPACES
from . import margins
from .margins import Margins
from .process import digits
from .test_data import make_images
from .test_networks_by_name import PICTURES
from .trained import told, train_here

TRAININGS = SEARCH_SPACES / "training"
MARGINS = {
    "task": "margins",
    "epochs": 3,
    "batch_size": 16,
    "optimizer": {"lr": 0.01},
    "scheduler": {"min_lr": 0.001, "warmup_lr": 0.001, "warmup_epochs": 1},
    "oialr": {"delay_steps": 5, "update_frequency": 3, "cutoff_fraction": 0.1},
}
SMALL_CIFAR10 = [
    "epochs=2", "batch_size=30", "model.embed_dim=24", "model.depth=1", "model.num_heads=3",
    "oialr.delay_steps=2", "oialr.update_frequency=2", "scheduler.warmup_epochs=1", "device=cpu",
]  # fmt: skip
SMALL_ETTM2 = [
    "epochs=2", "pred_len=24", "model.d_model=32", "model.d_ff=64", "model.encoder_layers=1",
    "data.train_subset=64", "data.validation_subset=32", "data.test_subset=32",
    "oialr.delay_steps=2", "oialr.update_frequency=2",
]  # fmt: skip


def as_content(config: TrainingConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


SMALL = {
    "margins": MARGINS,
    "minivit_digits": digits(epochs=2),
    "image_classification": PICTURES,
    "minivit_cifar10": as_content(
        load_training(TRAININGS / "minivit_cifar10_untuned.yaml", SMALL_CIFAR10)
    ),
    "autoformer_ettm2": as_content(
        load_training(TRAININGS / "autoformer_ettm2_96_tuned.yaml", SMALL_ETTM2)
    ),
}


@pytest.fixture(autouse=True)
def user_s_task() -> Iterator[None]:
    """One more task is registered, and no list was edited."""
    register(Margins)
    yield
    del TASKS["margins"]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data for all tasks, invented."""
    folder = make_images(tmp_path_factory.mktemp("data"))
    dates = pd.date_range("2016-07-01", periods=57_600, freq="15min")
    waves = {
        name: [math.sin(row / (10 + place)) for row in range(len(dates))]
        for place, name in enumerate(["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"])
    }
    table = pd.DataFrame({"date": dates.strftime("%Y-%m-%d %H:%M:%S"), **waves})
    table.to_csv(folder / "ETTm2.csv", index=False, float_format="%.3f")
    return folder


def test_every_task_is_tried_below() -> None:
    networks = {name for name, task in TASKS.items() if issubclass(task, TrainingConfig)}
    assert SMALL.keys() == networks


@pytest.mark.parametrize("name", SMALL)
class TestTask:
    """The contract."""

    def test_it_says_what_it_measures(self, name: str) -> None:
        task = TASKS[name]
        assert task.name == name
        loss, *others = task.metrics
        assert (loss.name, loss.better) == ("loss", "lower")
        assert len({metric.name for metric in task.metrics}) == len(others) + 1
        for metric in task.metrics:
            for part in ("validation", "test"):
                reported = known_metrics(name).find(f"{part}_{metric.name}")
                assert reported is not None
                assert reported.label == f"{part} {metric.label}"
                assert (reported.better, reported.percent) == (metric.better, metric.percent)
            assert metric.label
            # Better is a lower fitness.
            better, worse = (2.0, 1.0) if metric.better == "higher" else (1.0, 2.0)
            assert metric.fitness(better) < metric.fitness(worse)

    def test_its_configuration_reads_back_what_it_writes(self, name: str) -> None:
        config = validate_training(SMALL[name], "test")
        assert type(config) is TASKS[name]
        written = json.loads(json.dumps(as_content(config)))
        assert validate_training(written, "test") == config
        with pytest.raises(ConfigError, match="unknown key `widht`"):
            validate_training(written | {"widht": 3}, "test")

    def test_its_parts_fit_together(self, name: str, data_dir: Path) -> None:
        config = validate_training(SMALL[name], "test")
        settings = LoadSettings(batch_size=8, seed=1, device=torch.device("cpu"), num_threads=1)
        splits = config.load_data(data_dir)(settings)
        model = config.network(splits)
        for part in (splits.train, splits.validation, splits.test):
            inputs, targets = next(iter(part.epoch(1)))
            assert len(targets) <= 8
            outputs = model(*inputs)
            assert outputs.shape[0] == len(targets)
            assert config.loss(outputs, targets).shape == ()
            loss = config.training_step(model, inputs, targets)
            assert loss.shape == ()
            loss.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        model.eval()
        measured = config.measure(model, splits.validation)
        assert list(measured) == [metric.name for metric in config.metrics]
        assert all(map(math.isfinite, measured.values()))

    def test_its_data_are_read_once_and_shared_by_equal_settings(
        self, name: str, data_dir: Path
    ) -> None:
        config = validate_training(SMALL[name], "test")
        other_seed = validate_training({**SMALL[name], "seed": 7}, "test")
        assert config.data_settings == other_seed.data_settings
        load = config.load_data(data_dir)
        assert same_order(load(settings_of(1)), load(settings_of(1)))
        assert not same_order(load(settings_of(1)), load(settings_of(2)))

    def test_it_trains_with_oialr_to_the_same_digits(self, name: str, data_dir: Path) -> None:
        content = {**SMALL[name], "num_threads": 1}
        (first, trained), (second, _) = (train_here(content, data_dir) for _ in range(2))
        assert told(first) == told(second)
        assert trained is not None
        reported = {n for event in first if isinstance(event, Epoch) for n in event.metrics}
        assert set(TASKS[name].all_metrics().names) <= reported
        assert trained.completed.trainable_percent < 100


def settings_of(seed: int) -> LoadSettings:
    return LoadSettings(batch_size=8, seed=seed, device=torch.device("cpu"), num_threads=1)


def same_order(first: Splits, second: Splits) -> bool:
    """Of the training samples."""
    pairs = zip(first.train.epoch(1), second.train.epoch(1), strict=True)
    return all(torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_a_configuration_is_read_without_torch() -> None:
    """What the search imports, and a user's task."""
    code = (
        "import json, runpy, sys\n"
        "import oialr_training.protocol, oialr_training.schedules\n"
        "from oialr_training.tasks import register, validate_training\n"
        f"register(runpy.run_path({margins.__file__!r})['Margins'])\n"
        "[validate_training(c, 'test') for c in json.load(sys.stdin)]\n"
        "print({'torch', 'timm', 'numpy', 'pandas', 'oialr'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(list(SMALL.values())),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "set()"


def test_an_unknown_task_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'margin' .*did you mean `margins`"):
        validate_training(MARGINS | {"task": "margin"}, "test")


def test_two_tasks_of_one_name_are_refused() -> None:
    class Another(Margins):
        pass

    with pytest.raises(ConfigError, match="two tasks are called margins"):
        register(Another)
