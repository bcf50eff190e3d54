"""The paper's mini-ViT (supplementary, Table 3) as a task, on CIFAR-10 and on small digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from oialr_training.sections import CIFAR10Data, DigitsData, HeldOutData, MiniViTModel
from oialr_training.tasks.classification import Classification
from oialr_training.tasks.registry import register

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from oialr_training.data import Cut, Splits


class MiniViTTraining(Classification):
    """A mini-ViT that classifies images."""

    num_classes: ClassVar[int] = 10
    model: MiniViTModel
    data: HeldOutData

    def network(self, splits: Splits) -> nn.Module:
        """See `TrainingConfig.network`."""
        from oialr_training.models import minivit

        return minivit.build(self.model, num_classes=self.num_classes)


@register
class MiniViTCIFAR10(MiniViTTraining):
    """The paper's mini-ViT on CIFAR-10."""

    name = "minivit_cifar10"
    data: CIFAR10Data = CIFAR10Data()

    def load_data(self, folder: Path | None) -> Cut:
        """See `TrainingConfig.load_data`."""
        from oialr_training.data import cifar10

        return cifar10.load(self.data, folder, validate_on_test=self.validation == "test")


@register
class MiniViTDigits(MiniViTTraining):
    """A mini-ViT on scikit-learn's digits: the search that runs anywhere."""

    name = "minivit_digits"
    data: DigitsData = DigitsData()

    def load_data(self, folder: Path | None) -> Cut:
        """See `TrainingConfig.load_data`."""
        from oialr_training.data import digits

        return digits.load(self.data, validate_on_test=self.validation == "test")
