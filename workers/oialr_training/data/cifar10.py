"""CIFAR-10 (Krizhevsky 2009) as the mini-ViT sees it: decoded once into memory (150 MB at most)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor

from oialr_training.data import Cut, LoadSettings, Splits, held_out_indices, test_indices
from oialr_training.data.picture_batches import PictureBatches, Transform, num_processes
from oialr_training.data.pictures import (
    DecodedPictures,
    Pictures,
    as_trained,
    find,
    of_torchvision,
)
from oialr_training.errors import DataError
from oialr_training.sections import CIFAR10Data

IMAGE_SIZE = 32
# Mean and standard deviation of the 50,000 training images, a channel.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# dataset → its folder as torchvision unpacks it, and its classes
CIFAR = {"cifar10": ("cifar-10-batches-py", 10), "cifar100": ("cifar-100-python", 100)}


def load(config: CIFAR10Data, data_dir: Path | None, *, validate_on_test: bool) -> Cut:
    """Find, decode and split the images; the function returned cuts them into batches.

    Raises:
        DataError: when they are missing or are no CIFAR-10.
    """
    train_set = open_cifar(data_dir, "cifar10", "train")
    test_set = as_trained(open_cifar(data_dir, "cifar10", "test"), train_set, data_dir)
    train, held_out = held_out_indices(len(train_set.targets), config, whole=validate_on_test)
    train_images = _decode(train_set, train)
    test_images = _decode(test_set, test_indices(len(test_set.targets), config))
    validation_images = test_images if validate_on_test else _decode(train_set, held_out)

    def batches(settings: LoadSettings) -> Splits:
        measured = _transform(config, training=False)
        return Splits(
            train=PictureBatches(
                train_images,
                _transform(config, training=True),
                settings,
                shuffle=True,
                num_loader_processes=num_processes(config.num_loader_processes, settings),
            ),
            validation=PictureBatches(validation_images, measured, settings),
            test=PictureBatches(test_images, measured, settings),
        )

    return batches


def _transform(config: CIFAR10Data, *, training: bool) -> Transform:
    """32×32 image → (3, 32, 32), standardised."""
    shared: dict[str, Any] = {"input_size": IMAGE_SIZE, "mean": MEAN, "std": STD}
    if not training:
        return create_transform(**shared, is_training=False, crop_pct=1.0)  # type: ignore[no-any-return]
    return create_transform(  # type: ignore[no-any-return]
        **shared,
        is_training=True,
        scale=config.crop_scale,
        hflip=config.horizontal_flip,
        auto_augment=config.auto_augment,
        interpolation=config.interpolation,
        re_prob=config.random_erasing,
        re_mode=config.random_erasing_mode,
        re_count=1,
    )


def open_cifar(data_dir: Path | None, dataset: str, part: str) -> Any:
    """The pictures of the `train` or `test` part of `cifar10` or `cifar100`, as they are found.

    Raises:
        DataError: when there are none, or they are of another number of classes.
    """
    folder, num_classes = CIFAR[dataset]
    name = dataset.upper().replace("CIFAR", "CIFAR-")
    advice = (
        f'get {name} with `python -c "import torchvision; '
        f"torchvision.datasets.{dataset.upper()}('DIR', download=True)\"` and name DIR "
        "by --data-dir or OIALR_DATA"
    )
    if data_dir is None:
        raise DataError(f"no data folder given for {name}: {advice}")
    roots = (data_dir, data_dir / dataset)
    names = ("train", "training") if part == "train" else ("test", "val", "validation")
    for root in roots:
        if (root / folder).is_dir():
            return of_torchvision(root / folder, dataset, part)
        if images := find([root], part, names):
            if len(images.classes) != num_classes:
                raise DataError(
                    f"{num_classes} class folders are expected in {images.root}, "
                    f"got {len(images.classes)}"
                )
            return images
    shown = ", ".join([f"{folder}/", *(f"{name}.tar or {name}/" for name in names)])
    places = " and ".join(str(root) for root in roots)
    raise DataError(f"no {name} {part} images: looked for {shown} in {places}; {advice}")


def _decode(images: Pictures, indices: Tensor) -> DecodedPictures:
    """Those of the images that (N,) indices name."""
    pixels = np.empty((len(indices), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for position, index in enumerate(indices.tolist()):
        image = images.image(index, "RGB")
        if image.size != (IMAGE_SIZE, IMAGE_SIZE):
            shown = f"{image.size[0]}×{image.size[1]}"
            raise DataError(f"CIFAR-10 images are 32×32, got {shown} for image {index}")
        pixels[position] = np.asarray(image)
    return DecodedPictures(torch.from_numpy(pixels), images.targets[indices], images.classes)
