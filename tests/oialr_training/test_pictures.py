"""Pictures of classes: found in whatever order they lie, read whatever they are, and augmented."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oialr_training.data import Splits, classified_pictures
from oialr_training.errors import ConfigError, DataError, KnownError
from oialr_training.models.by_name import picture_format
from oialr_training.sections import PicturesData

from .test_data import epoch, make_images, rows, settings

WANTED = picture_format("timm/resnet18")
PIXELS = np.random.default_rng(1).integers(0, 256, (30, 40, 4)).astype(np.uint8)


def load(root: Path | None, *, on_test: bool = False, batch_size: int = 8, **data: Any) -> Splits:
    config = PicturesData(**{"img_size": 16, **data})
    cut = classified_pictures.load(config, WANTED, root, validate_on_test=on_test)
    return cut(settings(batch_size=batch_size))


def add(root: Path, part: str, *classes: str, number: int = 4) -> Path:
    """Pictures of a part, each class as bright as its name says."""
    for name in classes:
        (root / part / name).mkdir(parents=True, exist_ok=True)
        for n in range(number):
            grey = Image.new("RGB", (20 + n, 20), (25 * int(name[-1]),) * 3)
            grey.save(root / part / name / f"{n}.png")
    return root


def sizes(splits: Splits) -> list[int]:
    return [
        sum(len(targets) for _, targets in part.epoch(0))
        for part in (splits.train, splits.validation, splits.test)
    ]


def labels(splits: Splits) -> list[int]:
    """Of the validation pictures, by their brightness, which must be their class's."""
    found = [(inputs, targets) for (inputs,), targets in splits.validation.epoch(0)]
    inputs, targets = (torch.cat(part) for part in zip(*found, strict=True))
    bright = (inputs[:, 0].mean((1, 2)) * WANTED.std[0] + WANTED.mean[0]) * 255 / 25
    assert torch.equal(bright.round().long(), targets)
    return sorted(set(targets.tolist()))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), classes=4)


ODD = {
    "rgba.png": Image.fromarray(PIXELS, "RGBA"),
    "palette.png": Image.fromarray(PIXELS, "RGBA").quantize(16),
    "cmyk.jpg": Image.fromarray(PIXELS, "CMYK"),
    "deep.png": Image.fromarray(PIXELS[..., 0].astype(np.uint16) << 8),
    "deep.tiff": Image.fromarray(PIXELS[..., 0].astype(np.int32) << 8),
    "grey.webp": Image.fromarray(PIXELS[..., 0]),
    "grey-alpha.png": Image.fromarray(PIXELS[..., :2], "LA"),
    "bilevel.bmp": Image.fromarray(PIXELS[..., 0]).convert("1"),
    "lone-pixel.png": Image.fromarray(PIXELS[:1, :1, :3]),
    "long.PNG": Image.fromarray(PIXELS[:2, :, :3]),
}


@pytest.mark.parametrize("in_chans", [1, 3])
def test_pictures_of_any_mode_and_size(tmp_path: Path, in_chans: int) -> None:
    add(tmp_path, "train", "class0", "class1")
    for name, image in ODD.items():
        image.save(tmp_path / "train" / "class0" / name)
    splits = load(tmp_path, in_chans=in_chans, aa="rand-m9-mstd0.5-inc1", reprob=0.5, on_test=False)
    assert sum(sizes(splits)[:2]) == 8 + len(ODD)
    for number in range(3):
        assert epoch(splits, number).shape[1:] == (in_chans, 16, 16)
        assert epoch(splits, number).isfinite().all()


def test_of_16_bits_the_upper_ones_are_seen(tmp_path: Path) -> None:
    add(tmp_path, "train", "class0", "class4")
    add(tmp_path, "val", "class4")
    for path in (tmp_path / "val").rglob("*.png"):
        Image.fromarray(np.full((20, 20), (25 << 8) + 99, dtype=np.uint16)).save(path)
    (tmp_path / "train" / "class4").rename(tmp_path / "train" / "class1")
    (tmp_path / "val" / "class4").rename(tmp_path / "val" / "class1")
    assert labels(load(tmp_path)) == [1]


def test_a_part_without_some_classes_keeps_their_numbers(tmp_path: Path) -> None:
    add(tmp_path, "train", "class0", "class1", "class2", "class3")
    add(tmp_path, "val", "class1", "class3")
    assert labels(load(tmp_path)) == [1, 3]


def test_classes_are_counted_as_people_count(tmp_path: Path) -> None:
    add(tmp_path, "train", *(f"{n}" for n in range(11)), number=1)
    add(tmp_path, "val", "2", "10", number=1)
    (_, targets), *_ = load(tmp_path).validation.epoch(0)
    assert targets.tolist() == [2, 10]


def test_what_is_no_picture_is_passed_over(tmp_path: Path) -> None:
    add(tmp_path, "train", "class0", "class1")
    (tmp_path / "train" / "README.txt").write_text("mine")
    (tmp_path / "train" / "class0" / "Thumbs.db").write_text("x")
    (tmp_path / "train" / "class0" / "._1.png").write_text("x")
    (tmp_path / "train" / ".cache" / "deep").mkdir(parents=True)
    (tmp_path / "train" / ".cache" / "deep" / "a.png").write_text("x")
    (tmp_path / "train" / "class0" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "class0" / ".ipynb_checkpoints" / "a.png").write_text("x")
    add(tmp_path / "train" / "class0", "deeper", "class1")
    assert sum(sizes(load(tmp_path))[:2]) == 12


@pytest.mark.parametrize(
    ("parts", "on_test", "found"),
    [
        (("train",), False, [18, 2, 2]),
        (("train", "test"), False, [18, 2, 8]),
        (("train", "val"), False, [20, 4, 4]),
        (("train", "val", "test"), False, [20, 4, 8]),
        (("train", "val", "test"), True, [20, 8, 8]),
        (("train", "test"), True, [20, 8, 8]),
        (("training", "validation"), True, [20, 4, 4]),
    ],
)
def test_the_parts_follow_from_the_folders(
    tmp_path: Path, parts: tuple[str, ...], on_test: bool, found: list[int]
) -> None:
    numbers = {"t": 10, "v": 2}
    for part in parts:
        add(tmp_path, part, "class0", "class1", number=4 if part == "test" else numbers[part[0]])
    assert sizes(load(tmp_path, on_test=on_test)) == found


def test_without_test_pictures_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(add(tmp_path, "train", "class0", "class1"))
    assert "no test pictures: the test metrics are those of the validation" in caplog.text


def test_a_tar_file_is_a_folder(images: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        with tarfile.open(tmp_path / f"{part}.tar", "w") as tar:
            tar.add(images / part, arcname=part)
    assert torch.equal(epoch(load(images), 3), epoch(load(tmp_path), 3))


def test_a_folder_below_the_data(images: Path) -> None:
    assert sizes(load(images.parent, folder=images.name)) == sizes(load(images))


def test_training_and_measured_pictures_have_their_sizes(images: Path) -> None:
    splits = load(images, img_size=[16, 24], val_img_size=32)
    shapes = [next(iter(p.epoch(0)))[0][0].shape[1:] for p in (splits.train, splits.validation)]
    assert shapes == [(3, 16, 24), (3, 32, 32)]


MIXED = {"mixup": 0.8, "cutmix": 1.0}


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixed_targets_are_shares_of_two_classes(images: Path, mode: str) -> None:
    splits = load(images, batch_size=11, mixup_mode=mode, mixup_off_epoch=2, **MIXED)
    for _, targets in splits.train.epoch(1):
        assert targets.shape[1] == 4
        torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    (_, odd), *_ = splits.train.epoch(1)
    assert (odd.count_nonzero(1) <= 2).all()
    assert (odd.count_nonzero(1) == 2).any()
    assert odd[-1].count_nonzero() == 1
    (_, unmixed), *_ = splits.train.epoch(3)
    assert unmixed.shape == (11,)


def test_what_is_mixed_does_not_depend_on_processes_nor_on_other_random_numbers(
    images: Path,
) -> None:
    none, two = (load(images, num_loader_processes=n, aa="original", **MIXED) for n in (0, 2))
    first = epoch(none, 5)
    torch.manual_seed(7), np.random.seed(7)
    assert torch.equal(first, epoch(two, 5))
    assert torch.equal(first, epoch(none, 5))
    assert not torch.equal(first, epoch(none, 6))


def test_no_batch_is_of_one_picture(tmp_path: Path) -> None:
    add(tmp_path, "train", "class0", "class1")  # 8
    add(tmp_path, "val", "class0", "class1")
    splits = load(tmp_path, batch_size=7)
    assert splits.train.num_batches == 1
    assert [len(targets) for _, targets in splits.train.epoch(1)] == [7]
    assert [len(targets) for _, targets in splits.validation.epoch(1)] == [7, 1]
    assert len(rows(epoch(load(tmp_path, batch_size=1), 1))) <= 8


def cut_short(root: Path) -> None:
    path = root / "train" / "class0" / "0.png"
    path.write_bytes(path.read_bytes()[:50])


def floating(root: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(root / "train" / "class0" / "a.tiff")


def spoil(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "train" / "class0" / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (spoil("0.png", b""), ["class0/0.png", "no picture"]),
        (spoil("a.jpg", b"no picture"), ["class0/a.jpg", "no picture"]),
        (cut_short, ["class0/0.png"]),
        (floating, ["class0/a.tiff", "floating point"]),
    ],
)
def test_a_damaged_picture_is_named(
    tmp_path: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    damage(add(tmp_path, "train", "class0", "class1"))
    add(tmp_path, "val", "class0", "class1")
    with pytest.raises(DataError, match="damaged image") as caught:
        epoch(load(tmp_path), 1)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_so_it_is_in_a_loader_process(tmp_path: Path) -> None:
    cut_short(add(tmp_path, "train", "class0", "class1"))
    add(tmp_path, "val", "class0", "class1")
    with pytest.raises(DataError, match=r"^damaged image .*class0/0.png: .*") as caught:
        epoch(load(tmp_path, num_loader_processes=1), 1)
    assert "\n" not in str(caught.value)


def empty_class(root: Path) -> None:
    add(root, "train", "class0", "class1")
    (root / "train" / "class2").mkdir()


def other_class(root: Path) -> None:
    add(root, "train", "class0", "class1")
    add(root, "val", "class0", "class2")


@pytest.mark.parametrize(
    ("make", "data", "words"),
    [
        (lambda root: root, {}, ["no training images", "train.tar or train/", "data.folder"]),
        (empty_class, {}, ["no pictures in the class folder class2"]),
        (other_class, {}, ["classes", "differ", "class2"]),
        (lambda root: add(root, "train", "class0"), {}, ["two or more class folders", "got 1"]),
        (lambda root: (root / "train").mkdir(), {}, ["no class folders with pictures", ".jpeg"]),
        (lambda root: (root / "train.tar.gz").touch(), {}, ["train.tar.gz is packed"]),
        (lambda root: (root / "train.tar").write_text("x"), {}, ["cannot read", "train.tar"]),
        (
            lambda root: add(root, "train", "class0", "class1"),
            {"on_test": True},
            ["`validation: test` needs test pictures"],
        ),
        (
            lambda root: add(root, "train", "class0", "class1", "class2"),
            {"num_classes": 2},
            ["`data.num_classes` is at least the 3 classes", "got 2"],
        ),
        (
            lambda root: add(root, "train", "class0", "class1"),
            {"aa": "rnd-m9"},
            ["timm refuses", "`data.aa` = 'rnd-m9'"],
        ),
        (
            lambda root: add(root, "train", "class0", "class1"),
            {"mean": [0.1, 0.2]},
            ["`data.mean` has a value for each of 3 channels"],
        ),
        (
            lambda root: root,
            {"dataset": "cifar100"},
            ["no CIFAR-100 train images", "cifar-100-python/", "torchvision.datasets.CIFAR100"],
        ),
        (
            lambda root: add(root, "train", "class0", "class1"),
            {"dataset": "cifar10"},
            ["10 class folders are expected", "got 2"],
        ),
    ],
)
def test_what_is_wrong_with_the_data_is_one_clear_line(
    tmp_path: Path, make: Callable[[Path], object], data: dict[str, Any], words: list[str]
) -> None:
    make(tmp_path)
    with pytest.raises(KnownError) as caught:
        load(tmp_path, **data)
    assert isinstance(caught.value, DataError | ConfigError)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_no_data_folder_at_all() -> None:
    with pytest.raises(DataError, match="--data-dir or OIALR_DATA"):
        load(None)


def test_cifar10_by_its_name(tmp_path: Path) -> None:
    root = make_images(tmp_path / "cifar10")
    assert sizes(load(tmp_path, dataset="cifar10")) == sizes(load(root, dataset="cifar10"))
