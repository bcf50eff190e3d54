"""scikit-learn's digits (UCI, Alpaydin & Kaynak 1998): 1,797 grey 8×8 images, 10 classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from oialr_training.data import LoadSettings, Splits, TensorBatches, held_out_indices, test_indices
from oialr_training.sections import DigitsData

# Mean and standard deviation of all pixels, which lie in 0 ... 16.
MEAN, STD = 4.884, 6.017


def load(config: DigitsData, *, validate_on_test: bool) -> Callable[[LoadSettings], Splits]:
    """Read the images once; the function returned cuts them into batches.

    Raises:
        DataError: when a part would be empty.
    """
    images, labels = load_digits(return_X_y=True)
    inputs = (torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) - MEAN) / STD
    targets = torch.as_tensor(labels, dtype=torch.long)
    split = torch.Generator().manual_seed(config.split_seed)
    order = torch.randperm(len(inputs), generator=split)
    num_test = round(len(inputs) * config.test_fraction)
    test, rest = order[:num_test], order[num_test:]
    test = test[test_indices(num_test, config)]
    train, held_out = held_out_indices(len(rest), config, whole=validate_on_test)
    validation = test if validate_on_test else rest[held_out]

    def batches(settings: LoadSettings) -> Splits:
        # (N,) indices → inputs (B, 1, 8, 8), targets (B,)
        def part(indices: Tensor, *, shuffle: bool = False) -> TensorBatches:
            return TensorBatches(inputs[indices], targets[indices], settings, shuffle=shuffle)

        return Splits(
            train=part(rest[train], shuffle=True), validation=part(validation), test=part(test)
        )

    return batches
