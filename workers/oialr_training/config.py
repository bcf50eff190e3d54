"""The training configuration, typed and validated; free of torch, so that the search reads it too.

A configuration is a YAML file whose keys are the fields below; a search overrides them by dotted
path (`optimizer.lr`). `TASKS` maps each task to its configuration class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from oialr_training.errors import ConfigError, mistakes, nearest
from oialr_training.yaml_files import apply_override, in_one_line, parse_assignment, read_yaml

C = TypeVar("C", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Pair = Annotated[tuple[float, float], Field(strict=False)]


class Config(BaseModel):
    """Base of every section: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _fits_the_database(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"an integer of at most 64 bits is expected, got {value!r:.60}")
        return value


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


class ETTm2Data(Config):
    """ETTm2 (Zhou et al. 2021): its standard split, cut into overlapping windows."""

    train_subset: Annotated[int, Field(ge=1)] | None = None
    """Use so many training windows only, evenly spaced; null: all."""
    validation_subset: Annotated[int, Field(ge=1)] | None = None
    """Use so many validation windows only, evenly spaced; null: all."""
    test_subset: Annotated[int, Field(ge=1)] | None = None
    """Use so many test windows only, evenly spaced; null: all."""


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


class CosineSchedule(Config):
    """timm's cosine schedule with warm-up and k-decay, stepped per update.

    `min_lr` may exceed the learning rate: the paper's tuned mini-ViT rises after its warm-up.
    """

    name: Literal["cosine"] = "cosine"
    min_lr: Annotated[float, Field(ge=0.0)]
    """Learning rate at the end of training."""
    warmup_lr: Annotated[float, Field(ge=0.0)]
    """Learning rate at the first update."""
    warmup_epochs: Annotated[int, Field(ge=0)]
    lr_k_decay: Annotated[float, Field(gt=0.0)] = 1.0
    """Exponent of k-decay (Zhang & Li 2020); 1 is the plain cosine."""


class Type1Schedule(Config):
    """Autoformer's own: the learning rate for two epochs, then half of it in each epoch more."""

    name: Literal["type1"]


def _schedule_name(content: Any) -> Any:
    if isinstance(content, dict):
        return str(content.get("name", "cosine"))
    return getattr(content, "name", None)


# Typed by its name; without one it is a cosine.
SchedulerConfig = Annotated[
    Annotated[CosineSchedule, Tag("cosine")] | Annotated[Type1Schedule, Tag("type1")],
    Discriminator(_schedule_name),
]


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


class TrainingConfig(Config):
    """What a worker needs to train once. Subclasses add `task`, `model` and `data`."""

    metrics: ClassVar[Mapping[str, Literal["lower", "higher"]]]
    """Validation metrics of the task, and which way is better."""

    task: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of the weights, the order of the samples, augmentation and dropout."""
    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    validation: Literal["held_out", "test"] = "held_out"
    """Which samples the validation metrics are measured on; `test` as in the paper."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    """auto: bfloat16 on a GPU, off on a CPU."""
    result_epoch: Literal["last", "best"] = "last"
    """Whose network and metrics are the result: the last epoch's, or those of the epoch with the
    lowest validation loss."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """End after so many epochs without a lower validation loss; null: never."""
    num_threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of one training; null: the node's cores shared among its trainings."""
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    oialr: OIALRConfig | None
    """null: train at full rank (the baseline)."""
    observation: ObservationConfig | None = None
    """Record stability (Eq. 4) and mixing similarity (Eq. 5) of every layer; null: do not."""
    provenance: dict[str, JsonValue] | None = None
    """Where an exported configuration comes from; training ignores it."""


class ClassificationTraining(TrainingConfig):
    """What all classification tasks have."""

    metrics = {
        "validation_loss": "lower",
        "validation_top1": "higher",
        "validation_top5": "higher",
    }
    criterion: CrossEntropyConfig = CrossEntropyConfig()


class MiniViTCIFAR10(ClassificationTraining):
    """The paper's mini-ViT on CIFAR-10."""

    task: Literal["minivit_cifar10"]
    model: MiniViTModel
    data: CIFAR10Data = CIFAR10Data()


class MiniViTDigits(ClassificationTraining):
    """A mini-ViT on scikit-learn's digits: the search that runs anywhere."""

    task: Literal["minivit_digits"]
    model: MiniViTModel
    data: DigitsData = DigitsData()


class AutoformerETTm2(TrainingConfig):
    """Autoformer forecasting ETTm2; the criterion is the mean squared error."""

    metrics = {
        "validation_loss": "lower",
        "validation_mse": "lower",
        "validation_mae": "lower",
    }
    task: Literal["autoformer_ettm2"]
    seq_len: Annotated[int, Field(ge=3)] = 96
    """Time steps that the network sees."""
    label_len: Annotated[int, Field(ge=1)] = 48
    """Last of these steps, with which the decoder begins."""
    pred_len: Annotated[int, Field(ge=1)]
    """Time steps to forecast; the paper's are 96, 192, 336 and 720."""
    model: AutoformerModel
    data: ETTm2Data = ETTm2Data()
    result_epoch: Literal["last", "best"] = "best"
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = 3

    @model_validator(mode="after")
    def _enough_steps(self) -> Self:
        if self.label_len > self.seq_len:
            raise ValueError(
                f"`label_len <= seq_len` must hold, "
                f"got label_len={self.label_len}, seq_len={self.seq_len}"
            )
        for num_steps in (self.seq_len, self.label_len + self.pred_len):
            if not 1 <= int(self.model.factor * math.log(num_steps)) <= num_steps:
                raise ValueError(
                    f"1 <= int(`model.factor` · ln L) <= L must hold for L = {num_steps} steps, "
                    f"got model.factor={self.model.factor}"
                )
        return self


AnyTraining = MiniViTCIFAR10 | MiniViTDigits | AutoformerETTm2
TASKS: dict[str, type[AnyTraining]] = {
    "minivit_cifar10": MiniViTCIFAR10,
    "minivit_digits": MiniViTDigits,
    "autoformer_ettm2": AutoformerETTm2,
}


def validate(model: type[C], content: Any, source: str, prefix: str = "") -> C:
    """Build a section from parsed YAML.

    Raises:
        ConfigError: with a line for each mistake: key, rule, value and `source`.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [_explain(model, dict(mistake), prefix) for mistake in error.errors()]
        raise mistakes([f"{line} ({source})" for line in lines]) from None


def validate_training(content: Mapping[str, Any], source: str) -> AnyTraining:
    """Build the training configuration of the task that `content` names.

    Raises:
        ConfigError: see `validate`; also when the task is missing or unknown.
    """
    task = content.get("task")
    if task is None:
        raise ConfigError(f"`task` is missing; one of {', '.join(TASKS)} ({source})")
    if not isinstance(task, str) or task not in TASKS:
        hint = nearest(str(task), TASKS)
        raise ConfigError(f"unknown task {task!r:.80} for `task`{hint} ({source})")
    return validate(TASKS[task], content, source)


def load_training(path: Path, assignments: Sequence[str] = ()) -> AnyTraining:
    """Read a training configuration from a YAML file, with `path=value` overrides.

    Raises:
        ConfigError: when the file cannot be read or is wrong.
    """
    content = read_yaml(path)
    for assignment in assignments:
        apply_override(content, *parse_assignment(assignment))
    if "space" in content or "search" in content:
        raise ConfigError(
            "this is a search file, not a training configuration: "
            f"start it with `oialr-search run`, then `oialr-search export` ({in_one_line(path)})"
        )
    return validate_training(content, in_one_line(path))


def _explain(model: type[BaseModel], mistake: dict[str, Any], prefix: str) -> str:
    """One mistake that pydantic found, in one line."""
    parts, known = _follow(model, [str(part) for part in mistake["loc"]])
    key = f"`{(prefix + '.'.join(parts)).strip('.')}`"
    shown = f"{mistake['input']!r:.80}"
    match mistake["type"]:
        case "extra_forbidden":
            return f"unknown key {key}{nearest(parts[-1], known)}"
        case "missing":
            return f"{key} is missing"
        case "value_error":
            where = f" in {key}" if parts else ""
            return f"{mistake['ctx']['error']}{where}"
        case "model_type" | "model_attributes_type" | "union_tag_not_found":
            return f"{key} should be a mapping of keys to values, got {shown}"
        case "union_tag_invalid":
            name, expected = f"`{key.strip('`')}.name`", mistake["ctx"]["expected_tags"]
            return f"{name} is one of {expected}, got {mistake['input'].get('name')!r:.80}"
        case "invalid_key":
            return f"{key}: keys are text, got {shown}"
        case _:
            rule = str(mistake["msg"]).removeprefix("Input ")
            return f"{key} {rule}, got {shown}"


def _follow(model: type[BaseModel], loc: Sequence[str]) -> tuple[list[str], Mapping[str, Any]]:
    """The keys of a place that pydantic names, and the field names where the last one stands.

    Pydantic puts a tag into the place where a section is one of several; it is no key.
    """
    keys: list[str] = []
    known: Mapping[str, Any] = {}
    sections: dict[str, type[BaseModel]] = {"": model}
    for part in loc:
        if "" not in sections and part in sections:
            sections = {"": sections[part]}
            continue
        keys.append(part)
        known = sections[""].model_fields if "" in sections else {}
        sections = _sections(known[part].annotation) if part in known else {}
    return keys, known


def _sections(annotation: Any) -> dict[str, type[BaseModel]]:
    """The sections an annotation allows, by their tags; without one it is empty."""
    if get_origin(annotation) is Annotated:
        section, *metadata = get_args(annotation)
        tags = [m.tag for m in metadata if isinstance(m, Tag)]
        return {tags[0] if tags else "": found for found in _sections(section).values()}
    if isinstance(annotation, type):
        return {"": annotation} if issubclass(annotation, BaseModel) else {}
    return {k: v for part in get_args(annotation) for k, v in _sections(part).items()}
