"""Batches of pictures, augmented and mixed by timm.

Each training picture is augmented with random numbers of its own, drawn from (seed, epoch,
position), and each batch mixed with its own, so that neither the number of loader processes nor
anything else that draws random numbers changes what the network sees.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from oialr_training.data import Batch, LoadSettings, epoch_generator
from oialr_training.data.pictures import Pictures
from oialr_training.errors import DataError
from oialr_training.parent_death import die_with

Transform = Callable[[Image.Image], Tensor]
Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Inputs (B, ...), targets (B,) and the epoch → inputs, and targets (B,) or (B, classes)."""


class PictureBatches:
    """Batches of pictures, (B, channels, height, width), and (B,) classes, unmixed."""

    def __init__(
        self,
        pictures: Pictures,
        transform: Transform,
        settings: LoadSettings,
        *,
        mode: str = "RGB",
        shuffle: bool = False,
        num_loader_processes: int = 0,
        mix: Mix | None = None,
        lone_last: bool = True,
    ) -> None:
        """`lone_last`: may the last batch be of one picture, on which batch norm cannot train?"""
        size = settings.batch_size
        count = len(pictures.targets)
        self._settings = settings
        self._num_pictures = count - (not lone_last and count > 1 and count % size == 1 < size)
        self.num_batches = -(-self._num_pictures // size)
        self._shuffle = shuffle
        self._total = count
        self._mix = mix
        self._sampler = _EpochSampler()
        self._loader = DataLoader(
            _Transformed(pictures, transform, mode),
            batch_size=size,
            sampler=self._sampler,
            num_workers=num_loader_processes,
            persistent_workers=shuffle and num_loader_processes > 0,
            worker_init_fn=partial(_start_loader_process, os.getpid()),
            collate_fn=_collate,
            pin_memory=settings.device.type == "cuda",
            # A generator of its own: the loader draws from it instead of the training's.
            generator=torch.Generator().manual_seed(settings.seed),
        )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See `oialr_training.data.Batches.epoch`.

        Raises:
            DataError: when a picture is damaged.
        """
        generator = epoch_generator(self._settings, epoch)
        order = torch.arange(self._total)
        if self._shuffle:
            order = torch.randperm(self._total, generator=generator)
        seeds = torch.randint(2**32, (self._total,), generator=generator)
        self._sampler.order = order[: self._num_pictures]
        self._sampler.seeds = seeds
        mix_seeds = torch.randint(2**32, (self.num_batches,), generator=generator).tolist()
        device = self._settings.device
        for number, batch in enumerate(self._loader):
            if isinstance(batch, DataError):
                raise batch
            inputs, targets = (part.to(device, non_blocking=True) for part in batch)
            if self._mix:
                with _SeededRandomness(mix_seeds[number]):
                    inputs, targets = self._mix(inputs, targets, epoch)
            yield (inputs,), targets


def num_processes(wanted: int | None, settings: LoadSettings) -> int:
    """How many loader processes a configuration means."""
    if wanted is not None:
        return wanted
    return 0 if settings.device.type == "cpu" else settings.num_threads


def mixing(*, num_classes: int, off_epoch: int, **settings: Any) -> Mix | None:
    """timm's mixup and CutMix by `Mixup`'s arguments; None where both are off.

    A batch of an odd number leaves its last picture as it is.
    """
    if not (settings["mixup_alpha"] or settings["cutmix_alpha"] or settings["cutmix_minmax"]):
        return None
    mixup = Mixup(  # type: ignore[no-untyped-call]
        **settings, label_smoothing=0.0, num_classes=num_classes
    )

    def mix(inputs: Tensor, targets: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        even = len(inputs) - len(inputs) % 2
        if (off_epoch and epoch > off_epoch) or not even:
            return inputs, targets
        mixed, soft = mixup(inputs[:even], targets[:even])
        if even == len(inputs):
            return mixed, soft
        last = one_hot(targets[even:], num_classes)
        return torch.cat([mixed, inputs[even:]]), torch.cat([soft, last.to(soft)])

    return mix


def _start_loader_process(parent: int, _: int) -> None:
    # torch's own watch over the parent looks every five seconds, and not while an image decodes.
    die_with(parent)


class _EpochSampler(Sampler[tuple[int, int]]):
    """(index, seed of its augmentation) for each picture of the coming epoch."""

    def __init__(self) -> None:
        self.order = self.seeds = torch.empty(0, dtype=torch.long)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.order.tolist(), self.seeds.tolist(), strict=False)

    def __len__(self) -> int:
        return len(self.order)


class _Transformed(Dataset[Any]):
    """Pictures as the network takes them, (channels, height, width) each, with their classes.

    A damaged one's error is in its place: raised in a loader process, it would become a traceback.
    """

    def __init__(self, pictures: Pictures, transform: Transform, mode: str) -> None:
        self._pictures = pictures
        self._transform = transform
        self._mode = mode

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, int] | DataError:
        index, seed = sample
        try:
            image = self._pictures.image(index, self._mode)
        except DataError as error:
            return error
        with _SeededRandomness(seed):
            return self._transform(image), int(self._pictures.targets[index])


def _collate(samples: list[Any]) -> Any:
    damaged = next((sample for sample in samples if isinstance(sample, DataError)), None)
    return damaged or default_collate(samples)


class _SeededRandomness:
    """Within it, the three generators that timm draws from start at one seed."""

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
