"""The sections of a training configuration, typed; free of torch.

What all tasks share comes first, then data sets and models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from oialr_training.validation import Config, Fraction, Pair


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0.0)]
    """Learning rate after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    betas: Pair = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0.0)] = 1e-8

    @model_validator(mode="after")
    def _betas_in_range(self) -> Self:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"`betas` must lie in [0, 1), got {self.betas}")
        return self


class CrossEntropyConfig(Config):
    """Cross-entropy; the validation loss has no label smoothing."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class OIALRConfig(Config):
    """OIALR's hyperparameters; `oialr.OIALRSettings` explains each at length."""

    delay_steps: Annotated[int, Field(ge=0)]
    """d: optimiser steps of full-rank training before the conversion."""
    update_frequency: Annotated[int, Field(ge=1)]
    """ν: optimiser steps between basis updates ("stability frequency" in the supplementary)."""
    cutoff_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]
    """β: singular values under this fraction of the largest are cut."""
    layer_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """α: each update takes this fraction of the layers more, from the last one on."""
    growing_window: bool = True
    """False: each update takes all layers; `layer_fraction` then has no effect."""
    full_rank_warmup: bool = True
    """False: the network is low-rank from the first step, whatever the delay."""
    full_rank_first_layer: bool = False
    full_rank_last_layer: bool = False
    last_layer: Literal["last_converted", "classifier"] = "last_converted"
    """What "last layer" means; the paper's printed figures fit `last_converted`."""
    keep_dense: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Names of further layers that stay dense."""
    fused_projections: Literal["together", "apart"] = "together"
    """Decompose a fused q, k, v weight as one matrix (the authors) or as three."""
    min_dim: Annotated[int, Field(ge=1)] = 2
    """Layers whose smaller dimension is under it stay dense."""
    max_aspect_ratio: Annotated[float, Field(gt=1.0)] = 10.0
    """Layers at least this elongated stay dense."""
    max_cut_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """At most this part of the inner rank is cut in one update."""
    min_inner_rank_fraction: Fraction = 0.01
    """The inner rank never falls under this fraction of the full rank."""
    optimizer_state: Literal["rotate", "cut", "reset"] = "rotate"
    """The optimiser's moments at conversion and updates: taken into the new bases, or zeroed and
    sliced (the authors), or zeroed; its step counts always stay."""


class ObservationConfig(Config):
    """How the bases of all layers are watched, also at full rank; changes no result."""

    interval_steps: Annotated[int, Field(ge=1)]
    """Optimiser steps between two instants; each takes an SVD of every weight, a low-rank one's
    of its Σ."""
    lags: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)] = (
        1,
    )
    """An instant is compared with those so many instants before."""


class HeldOutData(Config):
    """What every data set has: a validation part held out of the training set."""

    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Part of the (sub)set of training samples held out for validation."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the split, apart from `seed` so that repeated trainings share their split."""
    train_subset: Annotated[int, Field(ge=2)] | None = None
    """Use so many training samples only (validation included); null: all."""
    test_subset: Annotated[int, Field(ge=1)] | None = None
    """Use so many test samples only; null: all."""


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


# What the arguments of a network would say that stands elsewhere.
_ELSEWHERE = {
    **dict.fromkeys(("pretrained", "weights", "weights_backbone"), "model.pretrained"),
    **dict.fromkeys(("checkpoint_path", "pretrained_cfg"), "model.pretrained"),
    **dict.fromkeys(("pretrained_cfg_overlay", "cache_dir"), "model.pretrained"),
    "num_classes": "data.num_classes",
    "in_chans": "data.in_chans",
    **dict.fromkeys(("img_size", "image_size", "input_size"), "data.img_size"),
}


def _height_and_width(value: Any) -> Any:
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or min(sides) < 1:
        raise ValueError(f"a number of pixels is expected, or [height, width], got {value!r:.60}")
    return tuple(sides)


_PIXELS: Mapping[str, Any] = {"type": "integer", "minimum": 1}
_SIDES = {"type": "array", "prefixItems": [_PIXELS, _PIXELS], "minItems": 2, "maxItems": 2}
Size = Annotated[
    tuple[int, int],
    BeforeValidator(_height_and_width),
    WithJsonSchema({"anyOf": [_PIXELS, _SIDES]}),
]
Channels = Annotated[tuple[float, ...], Field(strict=False, min_length=1, max_length=3)]


class NetworkModel(Config):
    """Any classifier of timm or torchvision, by its name."""

    name: Annotated[str, Field(pattern=r"^(timm|torchvision)/[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    """`timm/vit_small_patch16_224`, `torchvision/resnet50`."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of its constructor, e.g. `drop_path_rate`; they can be searched."""
    pretrained: str | None = None
    """Checkpoint to begin with: safetensors, or what `torch.save` wrote of weights; its last layer
    is left out where the classes are others. A path from where the command runs; null: none."""

    @field_validator("args")
    @classmethod
    def _said_elsewhere(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in value.keys() & _ELSEWHERE.keys():
            raise ValueError(f"`model.args.{name}` is `{_ELSEWHERE[name]}`")
        if value.get("features_only"):
            raise ValueError("`model.args.features_only` leaves no classifier")
        return value


class PicturesData(HeldOutData):
    """Pictures of classes; the augmentation is timm's, its keys those of timm's train script."""

    dataset: Literal["images", "cifar10", "cifar100"] = "images"
    """images: `train/CLASS/`, `val/CLASS/`, `test/CLASS/` or `train.tar` and so on. Without `val`
    a part of the training pictures is held out; without `test` the validation pictures are it."""
    folder: str = "."
    """Where these are, below the folder of all data."""
    img_size: Size | None = None
    """Pixels: of squares, or [height, width]; null: as the network's own weights have it."""
    val_img_size: Size | None = None
    """Of pictures that are measured, not trained with; null: `img_size`."""
    in_chans: Literal[1, 3] | None = None
    """Channels: 1 makes the pictures grey; null: as the network's own weights have it."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Outputs of the network; null: as many as there are classes."""
    mean: Channels | None = None
    """Of a channel where 1 is the brightest; null: the network's own, as what follows."""
    std: Channels | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] | None = None
    """Of pictures that are measured."""
    crop_pct: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Which part of a picture's shorter side is measured."""
    crop_mode: Literal["center", "squash", "border"] | None = None

    no_aug: bool = False
    """Only resize and crop when training, too."""
    train_crop_mode: Literal["rrc", "rkrc", "rkrr"] = "rrc"
    scale: Pair | None = None
    """Area of the random crop relative to the picture: (smallest, largest); null: timm's."""
    ratio: Pair | None = None
    """Its width to its height; null: timm's."""
    train_interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    hflip: Fraction = 0.5
    vflip: Fraction = 0.0
    color_jitter: Annotated[float, Field(ge=0.0)] = 0.4
    """Has no effect with `aa`, as in timm."""
    color_jitter_prob: Fraction | None = None
    grayscale_prob: Fraction = 0.0
    gaussian_blur_prob: Fraction = 0.0
    aa: str | None = None
    """Policy of AutoAugment, RandAugment or AugMix: `original`, `rand-m9-mstd0.5-inc1`."""
    reprob: Fraction = 0.0
    """Of erasing a part of the picture."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    recount: Annotated[int, Field(ge=1)] = 1
    mixup: Annotated[float, Field(ge=0.0)] = 0.0
    """α of mixup (Zhang et al. 2018); 0: none."""
    cutmix: Annotated[float, Field(ge=0.0)] = 0.0
    """α of CutMix (Yun et al. 2019); 0: none."""
    cutmix_minmax: Pair | None = None
    """Sides of CutMix's patch relative to the picture, in place of α."""
    mixup_prob: Fraction = 1.0
    """Of either of them, for a batch (or what `mixup_mode` says)."""
    mixup_switch_prob: Fraction = 0.5
    """Of CutMix where both are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    mixup_off_epoch: Annotated[int, Field(ge=0)] = 0
    """No mixup or CutMix after so many epochs; 0: they stay."""
    num_loader_processes: Annotated[int, Field(ge=0)] | None = None
    """As CIFAR10Data's."""

    @model_validator(mode="before")
    @classmethod
    def _smoothing_is_the_criterion_s(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and "smoothing" in content:
            raise ValueError("label smoothing is `criterion.label_smoothing`: no `smoothing`")
        return content


class SplitData(HeldOutData):
    """A data set that comes in one piece: a test part is split off, too."""

    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    test_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Part of all samples that only `oialr-search train` looks at."""


class DigitsData(SplitData):
    """scikit-learn's digits: 1,797 grey 8×8 images that come with the package."""


class AutoformerModel(Config):
    """Autoformer (Wu et al. 2021) of the supplementary's Table 5."""

    d_model: Annotated[int, Field(gt=0)]
    """Width of the hidden states."""
    d_ff: Annotated[int, Field(gt=0)]
    """Width of the feed-forward layers."""
    num_heads: Annotated[int, Field(gt=0)]
    """Must divide `d_model`; changes no result, as all heads share their delays and weights."""
    encoder_layers: Annotated[int, Field(gt=0)]
    decoder_layers: Annotated[int, Field(gt=0)]
    factor: Annotated[int, Field(gt=0, le=100)] = 1
    """c: the attention takes the int(c · ln L) strongest delays of L time steps."""
    moving_average: Annotated[int, Field(gt=0)] = 25
    """Time steps over which the trend is averaged; odd."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.d_model % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `d_model`, "
                f"got num_heads={self.num_heads}, d_model={self.d_model}"
            )
        if self.moving_average % 2 == 0:
            raise ValueError(f"`moving_average` must be odd, got {self.moving_average}")
        return self


class ETTm2Data(Config):
    """ETTm2 (Zhou et al. 2021): its standard split, cut into overlapping windows."""

    train_subset: Annotated[int, Field(ge=1)] | None = None
    """Use so many training windows only, evenly spaced; null: all."""
    validation_subset: Annotated[int, Field(ge=1)] | None = None
    """Use so many validation windows only, evenly spaced; null: all."""
    test_subset: Annotated[int, Field(ge=1)] | None = None
    """Use so many test windows only, evenly spaced; null: all."""
