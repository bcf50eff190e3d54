"""CIFAR-10 (Krizhevsky 2009), read and augmented by timm.

The images are decoded once into memory (150 MB at most). Each training sample is augmented with
random numbers of its own, drawn from (seed, epoch, position), so that neither the number of loader
processes nor anything else that draws random numbers changes what the network sees.
"""

from __future__ import annotations

import os
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.dataset_factory import create_dataset
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from oialr_training.data import (
    Batch,
    LoadSettings,
    Splits,
    epoch_generator,
    held_out_indices,
    test_indices,
)
from oialr_training.errors import DataError
from oialr_training.parent_death import die_with
from oialr_training.sections import CIFAR10Data

IMAGE_SIZE = 32
NUM_CLASSES = 10
# Mean and standard deviation of the 50,000 training images, a channel.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TORCHVISION_FOLDER = "cifar-10-batches-py"
SPLIT_NAMES = {"train": ("train", "training"), "test": ("test", "val", "validation")}


def load(
    config: CIFAR10Data, data_dir: Path | None, *, validate_on_test: bool
) -> Callable[[LoadSettings], Splits]:
    """Find, decode and split the images; the function returned cuts them into batches.

    Raises:
        DataError: when they are missing or are no CIFAR-10.
    """
    train_set, test_set = _open(data_dir, "train"), _open(data_dir, "test")
    if _classes(train_set) != _classes(test_set):
        odd = sorted(set(_classes(train_set)) ^ set(_classes(test_set)))
        raise DataError(f"the classes of training and test images differ in {data_dir}: {odd}")
    train, held_out = held_out_indices(len(train_set), config, whole=validate_on_test)
    train_images = _decode(train_set, train)
    test_images = _decode(test_set, test_indices(len(test_set), config))
    validation_images = test_images if validate_on_test else _decode(train_set, held_out)

    def batches(settings: LoadSettings) -> Splits:
        return Splits(
            train=ImageBatches(train_images, config, settings, training=True),
            validation=ImageBatches(validation_images, config, settings, training=False),
            test=ImageBatches(test_images, config, settings, training=False),
        )

    return batches


@dataclass(frozen=True)
class DecodedImages:
    """Images in memory."""

    pixels: Tensor
    """(N, 32, 32, 3) bytes."""
    classes: Tensor
    """(N,) class numbers."""


class ImageBatches:
    """Batches of decoded images, (B, 3, 32, 32) and (B,) classes; for training, augmented."""

    def __init__(
        self, images: DecodedImages, config: CIFAR10Data, settings: LoadSettings, *, training: bool
    ) -> None:
        self._settings = settings
        self._num_images = len(images.classes)
        self.num_batches = -(-self._num_images // settings.batch_size)
        self._training = training
        processes = config.num_loader_processes
        if processes is None:
            processes = 0 if settings.device.type == "cpu" else settings.num_threads
        self._sampler = _EpochSampler()
        self._loader = DataLoader(
            _Transformed(images, _transform(config, training=training)),
            batch_size=settings.batch_size,
            sampler=self._sampler,
            num_workers=processes if training else 0,
            persistent_workers=training and processes > 0,
            worker_init_fn=partial(_start_loader_process, os.getpid()),
            pin_memory=settings.device.type == "cuda",
            # A generator of its own: the loader draws from it instead of the training's.
            generator=torch.Generator().manual_seed(settings.seed),
        )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See `oialr_training.data.Batches.epoch`."""
        generator = epoch_generator(self._settings, epoch)
        order = torch.arange(self._num_images)
        if self._training:
            order = torch.randperm(self._num_images, generator=generator)
        seeds = torch.randint(2**32, (self._num_images,), generator=generator)
        self._sampler.samples = list(zip(order.tolist(), seeds.tolist(), strict=True))
        device = self._settings.device
        for inputs, targets in self._loader:
            yield (inputs.to(device, non_blocking=True),), targets.to(device, non_blocking=True)


def _start_loader_process(parent: int, _: int) -> None:
    # torch's own watch over the parent looks every five seconds, and not while an image decodes.
    die_with(parent)


class _EpochSampler(Sampler[tuple[int, int]]):
    """(index, seed of its augmentation) for each image of the coming epoch."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)


class _Transformed(Dataset[tuple[Tensor, int]]):
    """Images as the network takes them, (3, 32, 32) each, with their classes."""

    def __init__(self, images: DecodedImages, transform: Callable[[Image.Image], Tensor]) -> None:
        self._images = images
        self._transform = transform

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = sample
        image = Image.fromarray(self._images.pixels[index].numpy())
        with _SeededRandomness(seed):
            return self._transform(image), int(self._images.classes[index])


class _SeededRandomness:
    """Within it, the three generators that timm's transforms draw from start at one seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._saved = (random.getstate(), np.random.get_state(), torch.get_rng_state())
        random.seed(self._seed)
        np.random.seed(self._seed)
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        python_state, numpy_state, torch_state = self._saved
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def _transform(config: CIFAR10Data, *, training: bool) -> Callable[[Image.Image], Tensor]:
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


def _open(data_dir: Path | None, split: str) -> Any:
    """timm's data set of one split, in whichever form it is found."""
    advice = (
        'get CIFAR-10 with `python -c "import torchvision; '
        "torchvision.datasets.CIFAR10('DIR', download=True)\"` and name DIR "
        "by --data-dir or OIALR_DATA"
    )
    if data_dir is None:
        raise DataError(f"no data folder given for CIFAR-10: {advice}")
    roots = (data_dir, data_dir / "cifar10")
    for root in roots:
        if (root / TORCHVISION_FOLDER).is_dir():
            try:
                return create_dataset("torch/cifar10", root=str(root), split=split)
            except RuntimeError as error:
                raise DataError(f"damaged data in {root / TORCHVISION_FOLDER}: {error}") from None
        for name in SPLIT_NAMES[split]:
            if (root / f"{name}.tar").is_file():
                return _open_images(root / f"{name}.tar")
            if (root / name).is_dir():
                return _open_images(root / name)
        packed = root / f"{split}.tar.xz"
        if packed.is_file():
            raise DataError(
                f"{packed} is packed: unpack it once, `xz -dc {packed} > DIR/{split}.tar`, "
                "and name DIR by --data-dir or OIALR_DATA"
            )
    names = ", ".join(
        [TORCHVISION_FOLDER + "/", *(f"{name}.tar or {name}/" for name in SPLIT_NAMES[split])]
    )
    places = " and ".join(str(root) for root in roots)
    raise DataError(f"no CIFAR-10 {split} images: looked for {names} in {places}; {advice}")


def _open_images(root: Path) -> Any:
    try:
        images = create_dataset("", root=str(root), search_split=False)
    except (RuntimeError, OSError, ValueError, tarfile.TarError) as error:
        raise DataError(f"cannot read the images in {root}: {error}") from None
    if len(_classes(images)) != NUM_CLASSES:
        raise DataError(
            f"{NUM_CLASSES} class folders are expected in {root}, got {len(_classes(images))}"
        )
    return images


def _classes(images: Any) -> dict[str, int]:
    """Class names and numbers; timm's readers of folders and of tar files differ in the name."""
    holder = getattr(images, "reader", images)
    classes: dict[str, int] = getattr(holder, "class_to_idx", None) or holder.class_name_to_idx
    return classes


def _decode(images: Any, indices: Tensor) -> DecodedImages:
    """Those of the images that (N,) indices name."""
    pixels = np.empty((len(indices), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    classes = torch.empty(len(indices), dtype=torch.long)
    for position, index in enumerate(indices.tolist()):
        image, classes[position] = _sample(images, index)
        if image.size != (IMAGE_SIZE, IMAGE_SIZE):
            shown = f"{image.size[0]}×{image.size[1]}"
            raise DataError(f"CIFAR-10 images are 32×32, got {shown} for image {index}")
        pixels[position] = np.asarray(image)
    return DecodedImages(torch.from_numpy(pixels), classes)


def _sample(images: Any, index: int) -> tuple[Image.Image, int]:
    """One image and its class; timm's data set would put its neighbour in a damaged one's place."""
    reader = getattr(images, "reader", None)
    if reader is None:
        image, target = images[index]
        return image, target
    try:
        file, target = reader[index]
        return Image.open(file).convert("RGB"), target
    except (OSError, tarfile.TarError) as error:
        name = reader.filename(index, absolute=True)
        raise DataError(f"damaged image {name}: {error}") from None
