"""The paper's trainings of pictures: the published values, and that each of them trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from oialr_training.protocol import Completed, Epoch
from oialr_training.tasks import load_training, validate_training
from oialr_training.tasks.classification import ImageClassification
from oialr_training.tasks.minivit import MiniViTCIFAR10
from oialr_training.yaml_files import read_yaml

from ..conftest import SEARCH_SPACES
from .test_data import make_images
from .test_pictures import add
from .trained import train_here

TRAININGS = SEARCH_SPACES / "training"
IMAGENET = ("vit_b_16", "resnetrs101", "resnet50", "vgg16")
CIFAR10 = ("vgg16", "resnet18")
FILES = [f"{n}_imagenet.yaml" for n in IMAGENET] + [f"{n}_cifar10.yaml" for n in CIFAR10]
TWO_STEPS = [
    "epochs=1", "batch_size=4", "scheduler.warmup_epochs=0", "device=cpu", "num_threads=1",
    "oialr.delay_steps=1", "oialr.update_frequency=1", "oialr.cutoff_fraction=0.9",
    "data.num_loader_processes=0",
]  # fmt: skip


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_is_trained_as_published(name: str) -> None:
    """Table 1 of the supplementary."""
    config = load_training(TRAININGS / f"{name}_imagenet.yaml")
    assert isinstance(config, ImageClassification)
    assert (config.epochs, config.batch_size) == (125, 1024)
    schedule = config.scheduler.model_dump()
    assert schedule == {
        "name": "cosine", "min_lr": 1e-5, "warmup_lr": 1e-5, "lr_k_decay": 1.0, "warmup_epochs": 10,
    }  # fmt: skip
    assert config.optimizer.lr == 1e-3
    assert config.criterion.label_smoothing == 0.1
    data, oialr = config.data, config.oialr
    assert (data.aa, data.reprob, data.remode) == ("rand-m15-mstd0.5-inc1", 0.25, "pixel")
    assert (data.crop_pct, data.scale, data.img_size) == (0.9, (0.08, 1.0), (160, 160))
    assert data.train_interpolation == "random"
    assert data.val_img_size == ((224, 224) if name == "resnetrs101" else None)
    dropout = {"vit_b_16": {"dropout": 0.1}, "resnetrs101": {"drop_rate": 0.25}}
    assert config.model.args == dropout.get(name, {})
    assert oialr is not None
    assert (oialr.delay_steps, oialr.update_frequency) == (25_000, 1000)
    assert (oialr.cutoff_fraction, oialr.layer_fraction) == (0.1, 0.1)
    assert (oialr.full_rank_first_layer, oialr.full_rank_last_layer) == (False, True)


@pytest.mark.parametrize("name", CIFAR10)
def test_cifar10_is_trained_as_the_mini_vit(name: str) -> None:
    """Table 3 of the supplementary, whose values for all trainings have the mini-ViT's file."""
    ours = load_training(TRAININGS / f"{name}_cifar10.yaml")
    theirs = load_training(TRAININGS / "minivit_cifar10_untuned.yaml")
    assert isinstance(ours, ImageClassification)
    assert isinstance(theirs, MiniViTCIFAR10)
    for field in ("epochs", "batch_size", "optimizer", "scheduler", "criterion", "oialr"):
        assert getattr(ours, field) == getattr(theirs, field)
    data, other = ours.data, theirs.data
    assert (data.aa, data.reprob, data.remode) == (
        other.auto_augment, other.random_erasing, other.random_erasing_mode,
    )  # fmt: skip
    assert (data.scale, data.train_interpolation) == (other.crop_scale, other.interpolation)
    assert data.crop_pct == 1.0


def test_the_search_for_vgg16_is_around_its_training() -> None:
    content = read_yaml(SEARCH_SPACES / "vgg16_cifar10.yaml")
    del content["search"], content["space"]
    content["validation"] = "test"
    found = validate_training(content, "test")
    assert found == load_training(TRAININGS / "vgg16_cifar10.yaml")


@pytest.mark.parametrize("file", FILES)
def test_every_number_says_where_it_is_from(file: str) -> None:
    body = (TRAININGS / file).read_text().partition("task:")[2].splitlines()
    for line in body:
        if re.search(r": *[\[\d]|: (true|false)\b", line):
            assert "#" in line or line.startswith("  std: [0.2470"), line


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_it_trains_converts_and_updates_its_bases(file: str, tmp_path: Path) -> None:
    changes = list(TWO_STEPS)
    if file.endswith("imagenet.yaml"):
        add(tmp_path, "train", "class0", "class1")
        add(tmp_path, "val", "class0", "class1", number=2)
    else:
        make_images(tmp_path, per_class=1)
        changes[1] = "batch_size=5"
    if file.startswith("vgg16"):
        # The SVD of the first, 4096 × 25088, takes minutes.
        changes.append("oialr.keep_dense=[classifier.0, classifier.3]")
    config = load_training(TRAININGS / file, changes)
    events, trained = train_here(config.model_dump(mode="json"), tmp_path)
    (epoch,) = (event for event in events if isinstance(event, Epoch))
    assert epoch.step == 2
    assert max(update.step for update in epoch.rank_updates) == 2
    assert any(u.inner_rank < u.full_inner_rank for u in epoch.rank_updates)
    assert trained is not None
    assert isinstance(events[-1], Completed)
    assert trained.completed.trainable_percent < 100
