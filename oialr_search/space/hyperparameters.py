"""The search space: hyperparameters ↔ genes in the unit cube.

Propulate sees floats in [0, 1] only: its own integer, categorical and log-scale genes are faulty
or missing, and a gene's type would be that of its first bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from oialr_training.errors import ConfigError

if TYPE_CHECKING:
    pass

Value = float | int | bool | str | None
Kind = Literal["float", "int", "bool", "choice"]


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """One searched value of the training configuration."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # when it is read back

    name: str
    """Dotted path into the training configuration."""
    kind: Kind
    low: float | int | None = None
    high: float | int | None = None
    scale: Literal["linear", "log"] = "linear"
    choices: tuple[Value, ...] | None = None
    step: float | int | None = None
    """Between two neighbouring values where it is given."""
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    """Other hyperparameters and the values with which this one counts."""

    @property
    def unit(self) -> float | int | None:
        """Between two neighbouring numbers; None where they are continuous, or choices."""
        return 1 if self.step is None and self.kind == "int" else self.step

    @property
    def bounds(self) -> tuple[float | int, float | int]:
        """Lowest and highest value, where there are no choices."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def decode(self, gene: float) -> Value:
        """The value of a gene in [0, 1]; each choice and each number apart has an equal share."""
        if self.choices is not None:
            return self.choices[min(int(gene * len(self.choices)), len(self.choices) - 1)]
        low, high = self.bounds
        unit = self.unit
        if unit is not None:
            # Half a unit beyond both ends, so that rounding treats all numbers alike.
            value = self._interpolate(gene, low - unit / 2, high + unit / 2)
            if self.step is None:
                return min(max(round(value), int(low)), int(high))
            steps = min(max(round((value - low) / unit), 0), round((high - low) / unit))
            found = exact(low) + steps * exact(unit)
            return int(found) if self.kind == "int" else float(found)
        return min(max(self._interpolate(gene, low, high), low), high)

    def encode(self, value: Value) -> float:
        """The gene of a value: of a choice or a number apart, the middle of its share."""
        if self.choices is not None:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        low, high = self.bounds
        assert isinstance(value, int | float)
        if self.unit is not None:
            half = self.unit / 2
            low, high = low - half, high + half
            ends = (self._position(end, low, high) for end in (value - half, value + half))
            return sum(ends) / 2
        return self._position(value, low, high)

    def _position(self, value: float, low: float, high: float) -> float:
        if self.scale == "log":
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    def _interpolate(self, gene: float, low: float, high: float) -> float:
        if self.scale == "log":
            return math.exp(math.log(low) + gene * (math.log(high) - math.log(low)))
        return low + gene * (high - low)


@dataclass(frozen=True)
class SearchSpace:
    """All hyperparameters of a search, in the order of the file."""

    hyperparameters: tuple[Hyperparameter, ...]

    def decode(self, genes: Mapping[str, float]) -> dict[str, Value]:
        """Genes → hyperparameters, those that count."""
        return self.counting({h.name: h.decode(genes[h.name]) for h in self.hyperparameters})

    def counting(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Those of the values whose `when` is met."""
        of = {h.name: h for h in self.hyperparameters}

        def counts(name: str) -> bool:
            return name in values and all(
                counts(other) and is_among(values[other], wanted) for other, wanted in of[name].when
            )

        return {name: value for name, value in values.items() if counts(name)}

    def as_json(self) -> list[dict[str, Any]]:
        """What the database keeps of the space."""
        return [asdict(h) for h in self.hyperparameters]

    @classmethod
    def from_json(cls, content: Any, source: str) -> SearchSpace:
        """Read what `as_json` gave, in this version or an earlier one.

        Raises:
            ConfigError: when this version does not know all of it.
        """
        try:
            return cls(_STORED.validate_python(content))
        except ValidationError as error:
            key = ".".join(map(str, ("space", *error.errors()[0]["loc"])))
            raise ConfigError(f"`{key}`: {error.errors()[0]['msg']} ({source})") from None


_STORED = TypeAdapter(tuple[Hyperparameter, ...])


def with_hyperparameters(
    training: Mapping[str, Any], hyperparameters: Mapping[str, Value]
) -> dict[str, Any]:
    """The training configuration with the values at their dotted paths; a new mapping."""
    result = dict(training)
    for path, value in hyperparameters.items():
        section, keys = result, path.split(".")
        for key in keys[:-1]:
            inner = section.get(key) or {}
            if not isinstance(inner, Mapping):
                raise ConfigError(f"`{path}`: `{key}` is a value without keys, got {inner!r:.60}")
            section[key] = dict(inner)
            section = section[key]
        section[keys[-1]] = value
    return result


def is_among(value: Value, values: Sequence[Value]) -> bool:
    """Is it one of them? True is not 1."""
    return any(v == value and isinstance(v, bool) == isinstance(value, bool) for v in values)


def exact(value: float) -> Decimal:
    """The number as it is written."""
    return Decimal(str(value))
