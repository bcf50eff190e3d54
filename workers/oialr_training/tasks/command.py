"""Any program as a task: a command line, whose placeholders are the hyperparameters.

    command: python train.py --lr {optimizer.lr} --seed {seed}
    metrics: {validation_loss: lower, accuracy: {better: higher, percent: true}}
    space:
      optimizer.lr: {low: 1.0e-4, high: 1.0e-1, scale: log}

What the program is told and how it reports: `oialr_training.command_trainer`. Free of torch.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from oialr_training.config import Metric, Metrics, TaskConfig
from oialr_training.protocol import Resources
from oialr_training.tasks.registry import register
from oialr_training.validation import Config

Scalar = bool | int | float | str

# `{{` and `}}` stand for one brace.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{(?P<name>[^\s{}]+)\}|[{}]")
_METRIC_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
OF_FIELDS = ("seed", "epochs", "num_threads")
OF_WORKER = ("python", "folder", "state_dir")
"""Placeholders that only the worker fills: its interpreter, the folders of the attempt and of the
state that the next attempt finds."""
NO_METRICS = {"epoch", "step", "stops", "duration_s", *(field.name for field in fields(Resources))}


class MetricConfig(Config):
    """How a metric is read; a text is its `better`."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})

    better: Literal["lower", "higher"] = "lower"
    percent: bool = False
    """Is 100 the most that it can be? What is higher then has the fitness 100 − itself."""
    label: str | None = None
    """What people read for it; null: its name."""

    @model_validator(mode="before")
    @classmethod
    def _direction_alone(cls, content: Any) -> Any:
        return {"better": content} if isinstance(content, str) else content


@register
class CommandTraining(TaskConfig):
    """A program of one's own, which reports its metrics; keys without a meaning here are values of
    placeholders."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]

    name = "command"
    any_name: ClassVar[bool] = True
    task: str = "command"
    command: str | Annotated[tuple[str, ...], Field(strict=False)]
    """The program and its arguments: split as a shell would, or a list; never through a shell."""
    metrics: Annotated[dict[str, MetricConfig], Field(min_length=1)]
    """What it reports, and which way is better: `lower`, `higher`, or with percent and label."""

    @field_validator("metrics")
    @classmethod
    def _names_of_columns(cls, metrics: dict[str, MetricConfig]) -> dict[str, MetricConfig]:
        for name in metrics:
            if not _METRIC_NAME.fullmatch(name) or name in NO_METRICS:
                why = "is something else" if name in NO_METRICS else "letters, digits and _"
                raise ValueError(f"no metric is called {name!r:.80} ({why})")
        return metrics

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            words = self.words
        except ValueError as error:
            raise ValueError(f"`command` cannot be split: {error}") from None
        if not words or not words[0]:
            raise ValueError("`command` names no program")
        used = self.placeholders
        for name in used:
            if inner := next((other for other in used if other.startswith(f"{name}.")), None):
                raise ValueError(f"`command`: `{name}` cannot be a value and have `{inner}`")
        for name, value in self.values.items():
            if name not in used:
                raise ValueError(f"`{name}` is used nowhere in `command`")
            if not isinstance(value, Scalar):
                raise ValueError(f"`{name}` is a number, text or bool, got {value!r:.80}")
        return self

    @property
    def words(self) -> list[str]:
        """The command line with its placeholders."""
        return shlex.split(self.command) if isinstance(self.command, str) else list(self.command)

    @property
    def placeholders(self) -> list[str]:
        """Their names."""
        names = [name for word in self.words for name in _names_in(word)]
        return list(dict.fromkeys(names))

    @property
    def values(self) -> dict[str, Any]:
        """What the placeholders stand for, as far as it is given, by dotted name."""
        return _flat(self.__pydantic_extra__)

    @property
    def reported(self) -> Metrics:
        """See `TaskConfig.reported`."""
        return Metrics(
            searched=tuple(
                Metric(
                    name=name,
                    label=metric.label or name.replace("_", " ") + " (%)" * metric.percent,
                    better=metric.better,
                    percent=metric.percent,
                )
                for name, metric in self.metrics.items()
            )
        )

    def lacking(self, given: Collection[str] = ()) -> list[str]:
        """See `TaskConfig.lacking`."""
        of_fields = [name for name in OF_FIELDS if getattr(self, name) is not None]
        known = {*self.values, *of_fields, "num_threads", *OF_WORKER, *given}
        return [name for name in self.placeholders if name not in known]

    def filled(self, of_worker: Mapping[str, str]) -> list[str]:
        """The arguments, program first; what nothing fills stays as it is.

        Numbers stand in them as Python writes them, booleans as `true` and `false`.
        """
        of_fields = {name: getattr(self, name) for name in OF_FIELDS}
        given = {name: value for name, value in of_fields.items() if value is not None}
        known = {**given, **self.values, **of_worker}
        return [_filled(word, known) for word in self.words]

    @property
    def command_line(self) -> str:
        """The command line for people and shells, as far as it is filled here."""
        return shlex.join(self.filled({"python": "python"}))


def _names_in(word: str) -> list[str]:
    names = []
    for found in _PLACEHOLDER.finditer(word):
        if found["name"]:
            names.append(found["name"])
        elif len(found[0]) == 1:
            raise ValueError(
                f"{word!r:.80} has a single {found[0]!r}: `{{name}}` is a placeholder, "
                "`{{` and `}}` stand for braces"
            )
    return names


def _filled(word: str, known: Mapping[str, Scalar]) -> str:
    def put(found: re.Match[str]) -> str:
        name = found["name"]
        if not name:
            return found[0][0]
        return as_argument(known[name]) if name in known else found[0]

    return _PLACEHOLDER.sub(put, word)


def as_argument(value: Scalar) -> str:
    """A value as it stands in a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flat(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Values by dotted name.

    Raises:
        ValueError: when a key has a dot itself.
    """
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if "." in key:
            section, _, rest = key.partition(".")
            raise ValueError(f"`{path}{key}` is written `{section}: {{{rest}: ...}}`")
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat
