"""What every training configuration has, typed and validated; free of torch, so that the search
reads it too.

A configuration is a YAML file whose keys are the fields below and those that its task adds
(`oialr_training.tasks`); a search overrides them by dotted path (`optimizer.lr`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from oialr_training.schedules import SchedulerConfig
from oialr_training.validation import Config, Fraction, Pair

if TYPE_CHECKING:
    from oialr_training.tasks.components import Components


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure that a training reports."""

    name: str
    label: str
    """What people read for it, with its unit."""
    better: Literal["lower", "higher"] = "lower"
    percent: bool = False
    """Is 100 the most that it can be?"""

    def fitness(self, value: float) -> float:
        """What a search minimises: the value itself, 100 − a high percentage, or −value."""
        if self.better == "lower":
            return value
        return 100.0 - value if self.percent else -value

    def fitness_label(self, name: str) -> str:
        """How the fitness is made of what is called `name`."""
        if self.better == "lower":
            return name
        return f"100 − {name}" if self.percent else f"−{name}"


OF_ALL_TASKS = (
    Metric(name="train_loss", label="training loss"),
    Metric(name="lr", label="learning rate"),
    Metric(name="trainable_percent", label="trainable parameters (% of full rank)", percent=True),
    Metric(name="compression_percent", label="compression (% of full rank)"),
)


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


class TrainingConfig(Config):
    """What a worker needs to train once; a subclass is a task (`oialr_training.tasks`)."""

    name: ClassVar[str]
    """The task's, by which a file names it."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What `Components.measure` measures, a `loss` first. Reported and searched as
    `validation_loss`, `test_loss` and so on."""
    num_outputs: ClassVar[int]
    """The last dimension of the network's outputs: classes, or series."""

    searched: ClassVar[frozenset[str]] = frozenset(
        {"epochs", "batch_size", "model", "data", "optimizer", "scheduler", "criterion", "oialr"}
    )
    """Fields that a search may vary, or parts of them; the others would change what the metric
    means, or where the training runs."""

    @abstractmethod
    def components(self) -> Components:
        """Network, data, criterion and measure; imports torch, so called in the worker only."""

    @classmethod
    def metric(cls, reported: str) -> Metric | None:
        """The metric that is reported under a name; None: there is none."""
        known = {metric.name: metric for metric in OF_ALL_TASKS}
        for part in ("validation", "test"):
            known |= {f"{part}_{metric.name}": metric for metric in cls.metrics}
        return known.get(reported)

    @classmethod
    def validation_metrics(cls) -> list[str]:
        """The names under which a search may choose its metric."""
        return [f"validation_{metric.name}" for metric in cls.metrics]

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
