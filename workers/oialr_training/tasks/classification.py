"""Classifying pictures as a task: of any network, and what its relatives share with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oialr_training.config import CLASSIFICATION, TrainingConfig
from oialr_training.sections import CrossEntropyConfig, NetworkModel, PicturesData
from oialr_training.tasks.registry import register

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from oialr_training.data import Batches, Cut, Splits


class Classification(TrainingConfig):
    """Pictures into classes; the criterion is the cross-entropy."""

    metrics = CLASSIFICATION
    criterion: CrossEntropyConfig = CrossEntropyConfig()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits (B, classes) and classes (B,), or their shares (B, classes)."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets, label_smoothing=self.criterion.label_smoothing)

    def measure(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """See `measure_classification`."""
        from oialr_training.tasks.measures import measure_classification

        return measure_classification(model, batches)


@register
class ImageClassification(Classification):
    """Any classifier of timm or torchvision, on any pictures."""

    name = "image_classification"
    model: NetworkModel
    data: PicturesData = PicturesData()

    def load_data(self, folder: Path | None) -> Cut:
        """See `TrainingConfig.load_data`."""
        from oialr_training.data import classified_pictures
        from oialr_training.models import by_name

        return classified_pictures.load(
            self.data,
            by_name.picture_format(self.model.name),
            folder,
            validate_on_test=self.validation == "test",
        )

    @property
    def data_settings(self) -> object:
        """The network's name, too: its pictures are as its own weights have them."""
        return super().data_settings, self.model.name

    def network(self, splits: Splits) -> nn.Module:
        """See `TrainingConfig.network`."""
        from oialr_training.data.classified_pictures import channels
        from oialr_training.models import by_name

        wanted = by_name.picture_format(self.model.name)
        return by_name.build(
            self.model,
            num_classes=splits.sizes["classes"],
            channels=channels(self.data, wanted),
            size=self.data.img_size or wanted.size,
        )
