"""A hyperparameter as an axis: linear, logarithmic or of choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oialr_search.analysis.labels import plain
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.storage.records import IndividualRecord, SearchRecord
from oialr_search.terminal.values import number, shown

APART = 0.09  # of the axis, between two ticks
LONG_NAME = 13  # characters
DIGITS = 3  # of a tick


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Where the values of one hyperparameter lie between 0 and 1."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: Sequence[Any] = ()

    @property
    def title(self) -> str:
        """The last part of the dotted path, over several lines where it is long."""
        name = plain(self.name.rpartition(".")[2])
        return name if len(name) < LONG_NAME else name.replace("_", "_<br>")

    def value_of(self, individual: IndividualRecord) -> Any:
        """An individual's value; a choice by its number."""
        value = individual.hyperparameters.get(self.name)
        if not self.choices:
            return value
        return next((n for n, c in enumerate(self.choices) if _same(c, value)), None)

    def place(self, value: Any) -> float | None:
        """Where a value lies."""
        if value is None:
            return None
        if self.choices:
            return float(value / max(len(self.choices) - 1, 1))
        if self.log:
            return (math.log(value) - math.log(self.low)) / (
                math.log(self.high) - math.log(self.low)
            )
        return float((value - self.low) / (self.high - self.low))

    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts: both ends and, between them, what has room."""
        if self.choices:
            return [
                (n / max(len(self.choices) - 1, 1), text)
                for n, text in enumerate(self.choice_texts())
            ]
        inner = self._decades() if self.log else self._fifths()
        ends = [(0.0, number(self.low, DIGITS)), (1.0, number(self.high, DIGITS))]
        between = [(self.place(v) or 0.0, number(v, DIGITS)) for v in inner]
        return [ends[0], *(t for t in between if APART < t[0] < 1 - APART), ends[1]]

    def choice_texts(self) -> list[str]:
        """The choices as they are read."""
        return [plain(shown(choice)) for choice in self.choices]

    def _decades(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        return [10.0**n for n in range(first, last + 1) if self.low < 10.0**n < self.high]

    def _fifths(self) -> list[float]:
        """Round numbers, about five."""
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [n * step for n in range(first, last + 1)]


def axes_of(search: SearchRecord) -> list[Axis]:
    """The hyperparameters of a search, in the order of its file."""
    return [_axis(hyperparameter) for hyperparameter in search.space.hyperparameters]


def _axis(h: Hyperparameter) -> Axis:
    if h.choices is not None:
        return Axis(name=h.name, choices=h.choices)
    low, high = h.bounds
    return Axis(name=h.name, low=low, high=high, log=h.scale == "log")


def _same(choice: Any, value: Any) -> bool:
    """Python has True == 1."""
    return bool(choice == value) and isinstance(choice, bool) == isinstance(value, bool)
