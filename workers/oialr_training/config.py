"""What every training configuration has, typed and validated; free of torch, so that the search
reads it too.

A configuration is a YAML file whose keys are the fields below and those that its task adds
(`oialr_training.tasks`); a search overrides them by dotted path (`optimizer.lr`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, JsonValue

from oialr_training.schedules import SchedulerConfig
from oialr_training.sections import ObservationConfig, OIALRConfig, OptimizerConfig
from oialr_training.validation import Config

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from oialr_training.data import Batches, Cut, Splits


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


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """All that the trainings of a search report: kept with the search, so that who reads it need
    not know its task."""

    searched: tuple[Metric, ...]
    """By which a search may judge; each epoch has them."""
    each_epoch: tuple[Metric, ...] = ()
    """What each epoch has besides."""
    at_the_end: tuple[Metric, ...] = ()
    """What only a result has."""

    @property
    def names(self) -> list[str]:
        """Of those by which a search may judge."""
        return [metric.name for metric in self.searched]

    @property
    def epoch_names(self) -> list[str]:
        """Of all that an epoch has."""
        return [metric.name for metric in (*self.searched, *self.each_epoch)]

    def find(self, name: str) -> Metric | None:
        """The metric of a name; None: there is none."""
        all_of_them = (*self.searched, *self.each_epoch, *self.at_the_end)
        return next((metric for metric in all_of_them if metric.name == name), None)


OF_ALL_TASKS = (
    Metric(name="train_loss", label="training loss"),
    Metric(name="lr", label="learning rate"),
    Metric(name="trainable_percent", label="trainable parameters (% of full rank)", percent=True),
    Metric(name="compression_percent", label="compression (% of full rank)"),
)


CLASSIFICATION = (
    Metric(name="loss", label="loss"),
    Metric(name="top1", label="top-1 (%)", better="higher", percent=True),
    Metric(name="top5", label="top-5 (%)", better="higher", percent=True),
)
"""What `measure_classification` measures."""


class TaskConfig(Config):
    """What the search knows of whatever a worker evaluates; a subclass is a task."""

    name: ClassVar[str]
    """The task's, by which a file names it, where it is not named by its module and class."""

    any_name: ClassVar[bool] = False
    """May a search vary whatever it names? Else what has a field in the configuration."""
    searched: ClassVar[frozenset[str]] = frozenset({"epochs"})
    """Fields that a search may vary, or parts of them; the others would change what the metric
    means, or where the training runs."""

    @property
    @abstractmethod
    def reported(self) -> Metrics:
        """What the search hears of an evaluation."""

    def lacking(self, given: Collection[str] = ()) -> list[str]:
        """Names of what an evaluation needs, that has no value here and is not `given` one."""
        return []

    @property
    def command_line(self) -> str | None:
        """What is run, for people and shells; None: no program of a user's own."""
        return None

    task: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of all that is random in a training: weights, order of the samples, augmentation."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """How many it has at most; null: not known."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of one training; null: the node's cores shared among its trainings."""
    provenance: dict[str, JsonValue] | None = None
    """Where an exported configuration comes from; training ignores it."""


class TrainingConfig(TaskConfig):
    """What a worker needs to train a network once; a subclass is a task that does so
    (`oialr_training.tasks`)."""

    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What `measure` measures, a `loss` first. Reported and searched as
    `validation_loss`, `test_loss` and so on."""
    searched: ClassVar[frozenset[str]] = frozenset(
        {"epochs", "batch_size", "model", "data", "optimizer", "scheduler", "criterion", "oialr"}
    )

    # What follows imports torch, and is called in the worker only.

    @abstractmethod
    def load_data(self, folder: Path | None) -> Cut:
        """Read the data set, below the folder of all data; slow, so done once a process.

        Raises:
            DataError: when it is missing or is not what it should be.
        """

    @abstractmethod
    def network(self, splits: Splits) -> nn.Module:
        """A new network for data that were cut so; called again for the best epoch's."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(): the mean criterion over a batch, for outputs and targets (B, ...)."""

    @abstractmethod
    def measure(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """The `metrics` of a network in evaluation mode over all batches."""

    def training_step(
        self, model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor
    ) -> Tensor:
        """(): what is differentiated for a batch of inputs and targets, (B, ...) each."""
        return self.loss(model(*inputs), targets)

    @property
    def data_settings(self) -> object:
        """What the data depend on: with equal ones they need not be read again."""
        return self.task, self.validation, getattr(self, "data", None)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The rate of the optimiser step that follows `step` steps."""
        return self.scheduler.rate(step, self.optimizer.lr, self.epochs, steps_per_epoch)

    @classmethod
    def all_metrics(cls) -> Metrics:
        """What is reported of each training of this task."""
        validation, test = (
            tuple(
                replace(metric, name=f"{part}_{metric.name}", label=f"{part} {metric.label}")
                for metric in cls.metrics
            )
            for part in ("validation", "test")
        )
        return Metrics(searched=validation, each_epoch=OF_ALL_TASKS, at_the_end=test)

    @property
    def reported(self) -> Metrics:
        """See `TaskConfig.reported`."""
        return self.all_metrics()

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    validation: Literal["held_out", "test"] = "held_out"
    """Which samples the validation metrics are measured on; `test` as in the paper."""
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    """auto: bfloat16 on a GPU, off on a CPU."""
    result_epoch: Literal["last", "best"] = "last"
    """Whose network and metrics are the result: the last epoch's, or those of the epoch with the
    lowest validation loss."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """End after so many epochs without a lower validation loss; null: never."""
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    oialr: OIALRConfig | None
    """null: train at full rank (the baseline)."""
    observation: ObservationConfig | None = None
    """Record stability (Eq. 4) and mixing similarity (Eq. 5) of every layer; null: do not."""
