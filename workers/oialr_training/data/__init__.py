"""Data sets: where they are, how they are split, and batches in a reproducible order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from oialr_training.errors import DataSettingsError
from oialr_training.sections import HeldOutData, SplitData

Batch = tuple[tuple[Tensor, ...], Tensor]
"""What the network's forward takes, and the targets: (B, ...) each, for a batch of B samples."""


class Batches(Protocol):
    """One part of a data set, cut into batches."""

    num_batches: int

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; the same for the same seed and epoch."""
        ...


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The three parts of a data set, as batches on the training device."""

    train: Batches
    validation: Batches
    test: Batches
    sizes: Mapping[str, int] = field(default_factory=dict)
    """What the network's own follow from, e.g. `features` and `classes`."""


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """How one training wants its batches."""

    batch_size: int
    seed: int
    device: torch.device
    num_threads: int


Cut = Callable[[LoadSettings], Splits]
"""Cuts a data set that was read into batches."""


class TensorBatches:
    """Batches of a data set that fits into the device's memory: inputs and targets, (N, ...)."""

    def __init__(
        self, inputs: Tensor, targets: Tensor, settings: LoadSettings, *, shuffle: bool
    ) -> None:
        self._inputs = inputs.to(settings.device)
        self._targets = targets.to(settings.device)
        self._settings = settings
        self._shuffle = shuffle
        self.num_batches = -(-len(inputs) // settings.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See `Batches.epoch`."""
        order = torch.arange(len(self._inputs))
        if self._shuffle:
            order = torch.randperm(len(order), generator=epoch_generator(self._settings, epoch))
        for chosen in torch.split(order.to(self._settings.device), self._settings.batch_size):
            yield (self._inputs[chosen],), self._targets[chosen]


def split_tensors(
    inputs: Tensor,
    targets: Tensor,
    config: SplitData,
    *,
    validate_on_test: bool = False,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> Cut:
    """Split inputs (N, ...) and targets (N, ...) at random into training, validation and test part.

    The function returned cuts the parts into batches.

    Raises:
        DataSettingsError: when a part would be empty.
    """
    split = torch.Generator().manual_seed(config.split_seed)
    order = torch.randperm(len(inputs), generator=split)
    num_test = round(len(inputs) * config.test_fraction)
    test, rest = order[:num_test], order[num_test:]
    test = test[test_indices(num_test, config)]
    train, held_out = held_out_indices(len(rest), config, whole=validate_on_test)
    validation = test if validate_on_test else rest[held_out]

    def batches(settings: LoadSettings) -> Splits:
        def part(indices: Tensor, *, shuffle: bool = False) -> TensorBatches:  # indices (M,)
            return TensorBatches(inputs[indices], targets[indices], settings, shuffle=shuffle)

        return Splits(
            train=part(rest[train], shuffle=True),
            validation=part(validation),
            test=part(test),
            sizes=sizes,
        )

    return batches


def epoch_generator(settings: LoadSettings, epoch: int) -> torch.Generator:
    """Random numbers of one epoch's order, apart from those of the training itself."""
    return torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)


def held_out_indices(
    num_samples: int, config: HeldOutData, *, whole: bool
) -> tuple[Tensor, Tensor]:
    """Indices of training (N,) and validation part (M,); `whole` leaves the latter empty.

    Raises:
        DataSettingsError: when one of the parts would be empty.
    """
    generator = torch.Generator().manual_seed(config.split_seed)
    order = torch.randperm(num_samples, generator=generator)
    if config.train_subset is not None:
        if config.train_subset > num_samples:
            raise DataSettingsError(
                f"`data.train_subset` is at most the {num_samples} training samples, "
                f"got {config.train_subset}"
            )
        order = order[: config.train_subset]
    num_held_out = 0 if whole else round(len(order) * config.validation_fraction)
    if not whole and not 0 < num_held_out < len(order):
        raise DataSettingsError(
            f"`data.validation_fraction` leaves a part of the {len(order)} samples empty, "
            f"got {config.validation_fraction}"
        )
    return order[num_held_out:], order[:num_held_out]


def test_indices(num_samples: int, config: HeldOutData) -> Tensor:
    """Indices (N,) of the test samples in use."""
    generator = torch.Generator().manual_seed(config.split_seed)
    return torch.randperm(num_samples, generator=generator)[: config.test_subset]
