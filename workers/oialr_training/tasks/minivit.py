"""The paper's mini-ViT (supplementary, Table 3) as a task, on CIFAR-10 and on small digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oialr_training.config import Metric, TrainingConfig
from oialr_training.sections import (
    CIFAR10Data,
    CrossEntropyConfig,
    DigitsData,
    HeldOutData,
    MiniViTModel,
)
from oialr_training.tasks.registry import register

if TYPE_CHECKING:
    from oialr_training.tasks.components import Components, LoadData


class MiniViTTraining(TrainingConfig):
    """A mini-ViT that classifies images."""

    metrics = (
        Metric(name="loss", label="loss"),
        Metric(name="top1", label="top-1 (%)", better="higher", percent=True),
        Metric(name="top5", label="top-5 (%)", better="higher", percent=True),
    )
    model: MiniViTModel
    data: HeldOutData
    criterion: CrossEntropyConfig = CrossEntropyConfig()

    def _with(self, load_data: LoadData) -> Components:
        from torch import nn

        from oialr_training.models import minivit
        from oialr_training.tasks.components import Components, measure_classification

        return Components(
            build_model=lambda: minivit.build(self.model, num_classes=self.num_outputs),
            load_data=load_data,
            data_settings=(self.task, self.data, self.validation),
            criterion=nn.CrossEntropyLoss(label_smoothing=self.criterion.label_smoothing),
            measure=measure_classification,
        )


@register
class MiniViTCIFAR10(MiniViTTraining):
    """The paper's mini-ViT on CIFAR-10."""

    name = "minivit_cifar10"
    num_outputs = 10
    data: CIFAR10Data = CIFAR10Data()

    def components(self) -> Components:
        """See `TrainingConfig.components`."""
        from oialr_training.data import cifar10

        on_test = self.validation == "test"
        return self._with(lambda folder: cifar10.load(self.data, folder, validate_on_test=on_test))


@register
class MiniViTDigits(MiniViTTraining):
    """A mini-ViT on scikit-learn's digits: the search that runs anywhere."""

    name = "minivit_digits"
    num_outputs = 10
    data: DigitsData = DigitsData()

    def components(self) -> Components:
        """See `TrainingConfig.components`."""
        from oialr_training.data import digits

        on_test = self.validation == "test"
        return self._with(lambda _: digits.load(self.data, validate_on_test=on_test))
