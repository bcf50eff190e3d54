"""The paper's mini-ViT (supplementary, Table 3) as a task, on CIFAR-10 and on small digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from oialr_training.config import CrossEntropyConfig, HeldOutData, Metric, TrainingConfig
from oialr_training.tasks.registry import register
from oialr_training.validation import Config, Fraction, Pair

if TYPE_CHECKING:
    from oialr_training.tasks.components import Components, LoadData


class MiniViTModel(Config):
    """timm's VisionTransformer, small (supplementary, Table 3)."""

    image_size: Annotated[int, Field(gt=0)]
    """Height and width of the input in pixels."""
    patch_size: Annotated[int, Field(gt=0)]
    """Height and width of a patch in pixels."""
    in_channels: Annotated[int, Field(gt=0)] = 3
    embed_dim: Annotated[int, Field(gt=0)]
    depth: Annotated[int, Field(gt=0)]
    num_heads: Annotated[int, Field(gt=0)]
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    qkv_bias: bool = False
    drop_path_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `embed_dim`, "
                f"got num_heads={self.num_heads}, embed_dim={self.embed_dim}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"`patch_size` must divide `image_size`, "
                f"got patch_size={self.patch_size}, image_size={self.image_size}"
            )
        return self


class CIFAR10Data(HeldOutData):
    """CIFAR-10 through timm's data sets and transforms."""

    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's policy string; null: none."""
    random_erasing: Fraction = 0.25
    random_erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    crop_scale: Pair = (0.8, 1.0)
    """Area of the random crop relative to the image: (smallest, largest)."""
    horizontal_flip: Fraction = 0.5
    num_loader_processes: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode and augment; null: one per CPU thread of the evaluation, none on a CPU
    device. The images do not depend on it: every sample has a random seed of its own."""


class DigitsData(HeldOutData):
    """scikit-learn's digits: 1,797 grey 8×8 images that come with the package."""

    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    test_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Part of all samples that only `oialr-search train` looks at."""


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
