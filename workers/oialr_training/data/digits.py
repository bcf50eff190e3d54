"""scikit-learn's digits (UCI, Alpaydin & Kaynak 1998): 1,797 grey 8×8 images, 10 classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits

from oialr_training.data import LoadSettings, Splits, split_tensors
from oialr_training.sections import DigitsData

# Mean and standard deviation of all pixels, which lie in 0 ... 16.
MEAN, STD = 4.884, 6.017


def load(config: DigitsData, *, validate_on_test: bool) -> Callable[[LoadSettings], Splits]:
    """Read the images, (N, 1, 8, 8), once; see `split_tensors`.

    Raises:
        DataError: when a part would be empty.
    """
    images, labels = load_digits(return_X_y=True)
    inputs = (torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) - MEAN) / STD
    targets = torch.as_tensor(labels, dtype=torch.long)
    return split_tensors(inputs, targets, config, validate_on_test=validate_on_test)
