"""Configurations that a person names to be evaluated: a point of the space each.

What a file or another search does not say is the search file's own value. A number outside its
range is moved to the nearest end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from oialr_search.space.constraints import Constraints
from oialr_search.space.hyperparameters import (
    Hyperparameter,
    SearchSpace,
    Value,
    with_hyperparameters,
)
from oialr_training.config import TaskConfig
from oialr_training.errors import ConfigError, mistakes
from oialr_training.validation import Config
from oialr_training.yaml_files import in_one_line, read_yaml

MISSING = object()


class BestOf(Config):
    """The best individuals of another search in the same database."""

    search: str
    """Its name."""
    best: Annotated[int, Field(ge=1)] = 1
    """So many of them."""


class OfFile(Config):
    """A training configuration, e.g. an exported one."""

    file: str
    """Its path, relative to the search file."""


def _kind(entry: Any) -> str | None:
    if isinstance(entry, BestOf | OfFile):
        return type(entry).__name__
    if isinstance(entry, Mapping):
        return "BestOf" if "search" in entry else "OfFile" if "file" in entry else None
    return "file" if entry == "file" else None


Start = Annotated[
    Annotated[Literal["file"], Tag("file")]
    | Annotated[BestOf, Tag("BestOf")]
    | Annotated[OfFile, Tag("OfFile")],
    Discriminator(
        _kind,
        custom_error_type="start",
        custom_error_message="is `file`, `{search: NAME, best: NUMBER}` or `{file: PATH}`",
    ),
]
"""`file`: the search file's own values at the searched paths."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """A configuration to evaluate."""

    genes: Mapping[str, float]  # each in [0, 1]
    hyperparameters: Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How what is named becomes a point of a search's space."""

    space: SearchSpace
    training: TaskConfig
    """The search file's, for what is not named."""
    constraints: Constraints

    @property
    def names(self) -> set[str]:
        """The paths that are searched."""
        return {h.name for h in self.space.hyperparameters}

    def given(self, values: Mapping[str, Any], source: str) -> tuple[Given, list[str]]:
        """The point of values by path, and a line for each that was moved into its range.

        Raises:
            ConfigError: with a line for each value that the space cannot have, or when they are
                not valid together.
        """
        from oialr_training.tasks import validate_training

        own = self.training.model_dump(mode="json")
        named = values_in(own, self.space) | dict(values)
        found, wrong = dict[str, Value](), dict[str, str]()
        for h in self.space.hyperparameters:
            try:
                found[h.name] = _fitting(h, named.get(h.name), source)
            except ConfigError as error:
                wrong[h.name] = str(error)
        hyperparameters = self.space.counting(found)
        names = [h.name for h in self.space.hyperparameters]
        counting = self.space.counting({name: found.get(name) for name in names})
        lines = [line for name, line in wrong.items() if name in counting]
        if lines:
            raise mistakes(lines)
        moved = [
            f"`{name}` = {named[name]} moved to {value} ({source})"
            for name, value in hyperparameters.items()
            if value != named.get(name)
        ]
        validate_training(with_hyperparameters(own, hyperparameters), source)
        broken = self.constraints.broken(hyperparameters)
        if broken is not None:
            raise ConfigError(f"`search.constraints`: {broken} does not hold ({source})")
        genes = {
            h.name: min(max(h.encode(hyperparameters[h.name]), 0.0), 1.0)
            if h.name in hyperparameters
            else 0.5
            for h in self.space.hyperparameters
        }
        return Given(genes=genes, hyperparameters=hyperparameters), moved

    def of_file(self, path: Path) -> tuple[dict[str, Any], str]:
        """What a training configuration says of the searched paths, and its source.

        Raises:
            ConfigError: when it cannot be read, or says nothing of them.
        """
        values, source = values_in(read_yaml(path), self.space), in_one_line(path)
        if not values:
            raise ConfigError(f"nothing that is searched has a value there ({source})")
        return values, source


def values_in(content: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """What nested mappings have at the paths of a space."""
    found = {}
    for h in space.hyperparameters:
        value: Any = content
        for key in h.name.split("."):
            value = value.get(key, MISSING) if isinstance(value, Mapping) else MISSING
        if value is not MISSING and (value is not None or None in (h.choices or ())):
            found[h.name] = value
    return found


def _fitting(h: Hyperparameter, value: Any, source: str) -> Value:
    """The value itself, a number within its range.

    Raises:
        ConfigError: when it is of no such kind, or no such choice.
    """
    if h.choices is not None:
        for choice in h.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        raise ConfigError(
            f"`{h.name}` is one of {', '.join(map(str, h.choices))}, got {value!r:.60} ({source})"
        )
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ConfigError(f"`{h.name}` is a number, got {value!r:.60} ({source})")
    if h.kind == "int" and not (isinstance(value, int) or whole):
        raise ConfigError(f"`{h.name}` is an integer, got {value!r:.60} ({source})")
    low, high = h.bounds
    within = min(max(value, low), high)
    if h.step is not None:
        return h.decode(h.encode(within))
    return int(within) if h.kind == "int" else float(within)
