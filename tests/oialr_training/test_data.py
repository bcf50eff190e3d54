"""Data sets: disjoint parts, reproducible batches, clear errors."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oialr_training.data import LoadSettings, Splits, cifar10, digits
from oialr_training.errors import DataError
from oialr_training.sections import CIFAR10Data, DigitsData

CLASSES = [f"class{n}" for n in range(10)]
CPU = torch.device("cpu")


def settings(seed: int = 1, batch_size: int = 8) -> LoadSettings:
    return LoadSettings(batch_size=batch_size, seed=seed, device=CPU, num_threads=1)


def damage(root: Path) -> None:
    """Cut one training image short."""
    image = root / "train" / "class3" / "0.png"
    image.write_bytes(image.read_bytes()[:60])


def rename_class(root: Path) -> None:
    """One class has another name among the test images."""
    (root / "test" / "class9").rename(root / "test" / "other")


def make_images(root: Path, *, per_class: int = 6, size: int = 32, classes: int = 10) -> Path:
    """An image folder with one colour a class, and noise."""
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(CLASSES[:classes]):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                pixels = noise.integers(0, 25, (size, size, 3)) + 25 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


def load_images(root: Path, validate_on_test: bool = False, **changes: object) -> Splits:
    config = CIFAR10Data(validation_fraction=0.2, **changes)  # type: ignore[arg-type]
    return cifar10.load(config, root, validate_on_test=validate_on_test)(settings())


def epoch(splits: Splits, number: int) -> torch.Tensor:
    return torch.cat([inputs for (inputs,), _ in splits.train.epoch(number)])


def rows(inputs: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in inputs.flatten(1)}


def test_the_digits_parts_are_disjoint_and_complete() -> None:
    splits = digits.load(DigitsData(), validate_on_test=False)(settings())
    parts = [
        torch.cat([inputs for (inputs,), _ in part.epoch(0)])
        for part in (splits.train, splits.validation, splits.test)
    ]
    assert [len(part) for part in parts] == [1150, 288, 359]
    train, validation, test = map(rows, parts)
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_validation_on_test_trains_on_everything_else() -> None:
    splits = digits.load(DigitsData(), validate_on_test=True)(settings())
    train = torch.cat([inputs for (inputs,), _ in splits.train.epoch(0)])
    validation, test = (
        torch.cat([inputs for (inputs,), _ in part.epoch(0)])
        for part in (splits.validation, splits.test)
    )
    assert len(train) == 1438
    assert torch.equal(validation, test)


def test_subsets_have_their_size_and_the_split_does_not_follow_the_training_seed() -> None:
    config = DigitsData(train_subset=200, test_subset=50)
    load = digits.load(config, validate_on_test=False)
    first, second = load(settings(seed=1)), load(settings(seed=2))
    assert sum(len(targets) for _, targets in first.train.epoch(0)) == 160
    assert sum(len(targets) for _, targets in first.test.epoch(0)) == 50
    for ((a,), _), ((b,), _) in zip(
        first.validation.epoch(0), second.validation.epoch(0), strict=True
    ):
        assert torch.equal(a, b)


def test_the_order_follows_seed_and_epoch() -> None:
    load = digits.load(DigitsData(train_subset=100), validate_on_test=False)
    first, again, other = load(settings(seed=1)), load(settings(seed=1)), load(settings(seed=2))
    assert torch.equal(epoch(first, 3), epoch(again, 3))
    assert not torch.equal(epoch(first, 3), epoch(first, 4))
    assert not torch.equal(epoch(first, 3), epoch(other, 3))
    assert rows(epoch(first, 3)) == rows(epoch(first, 4))


@pytest.mark.parametrize("size", [1439, 5000])
def test_a_subset_larger_than_the_data_is_refused(size: int) -> None:
    with pytest.raises(DataError, match=f"`data.train_subset` is at most.*got {size}"):
        digits.load(DigitsData(train_subset=size), validate_on_test=False)


def test_images_from_a_folder_and_from_a_tar_are_the_same(images: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(images / split, arcname=".")
    folder, tar_file = load_images(images), load_images(tmp_path)
    assert rows(epoch(folder, 1)) == rows(epoch(tar_file, 1))
    targets = torch.cat([t for _, t in folder.validation.epoch(0)])
    assert len(targets) == 12


def test_a_class_keeps_its_label_through_splitting(images: Path) -> None:
    for (inputs,), targets in load_images(images).test.epoch(0):
        red = inputs[:, 0].mean((1, 2)) * cifar10.STD[0] + cifar10.MEAN[0]
        assert torch.equal((red * 255 / 25).floor().long(), targets)


def test_augmentation_does_not_depend_on_processes_nor_on_other_random_numbers(
    images: Path,
) -> None:
    none, two = (load_images(images, num_loader_processes=n) for n in (0, 2))
    first = epoch(none, 5)
    torch.rand(7), random.random(), np.random.rand()
    assert torch.equal(first, epoch(two, 5))
    assert torch.equal(first, epoch(none, 5))
    assert not torch.equal(first, epoch(none, 6))


def test_augmentation_leaves_the_training_s_random_numbers_alone(images: Path) -> None:
    splits = load_images(images)
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = (torch.rand(1).item(), random.random(), float(np.random.rand()))
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    epoch(splits, 1)
    assert (torch.rand(1).item(), random.random(), float(np.random.rand())) == expected


def test_validation_images_are_not_augmented(images: Path) -> None:
    splits = load_images(images)
    first, second = (
        torch.cat([inputs for (inputs,), _ in splits.validation.epoch(n)]) for n in (0, 1)
    )
    assert torch.equal(first, second)


def test_the_strongest_augmentation_runs(images: Path) -> None:
    # Pillow 13 refuses what timm's strongest posterize asks for.
    splits = load_images(images, auto_augment="rand-m10-n6-inc1")
    for number in range(10):
        assert torch.isfinite(epoch(splits, number)).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root, ["no CIFAR-10 train images", "train.tar", "--data-dir"]),
        (lambda root: make_images(root, classes=7), ["10 class folders", "got 7"]),
        (lambda root: rename_class(make_images(root)), ["classes", "differ", "other"]),
        (lambda root: make_images(root, size=28), ["32×32", "28×28"]),
        (lambda root: damage(make_images(root)), ["damaged image", "class3/0.png"]),
        (lambda root: (root / "train.tar.xz").touch(), ["train.tar.xz is packed", "xz -dc"]),
        (lambda root: (root / "train.tar").write_text("no tar"), ["cannot read", "train.tar"]),
        (lambda root: (root / "cifar-10-batches-py").mkdir(), ["damaged", "cifar-10-batches-py"]),
    ],
)
def test_data_that_is_missing_or_wrong_is_one_clear_line(
    tmp_path: Path, make: object, words: list[str]
) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        load_images(tmp_path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_no_data_folder_at_all() -> None:
    with pytest.raises(DataError, match="OIALR_DATA"):
        cifar10.load(CIFAR10Data(), None, validate_on_test=False)


def test_the_real_cifar10(cifar10_dir: Path) -> None:
    config = CIFAR10Data(train_subset=500, test_subset=100, validation_fraction=0.2)
    splits = cifar10.load(config, cifar10_dir, validate_on_test=False)(settings(batch_size=100))
    (inputs,), targets = next(splits.train.epoch(1))
    assert inputs.shape == (100, 3, 32, 32)
    assert len(targets.unique()) == 10
    assert abs(inputs.mean().item()) < 0.5
    assert (splits.train.num_batches, splits.validation.num_batches) == (4, 1)
