"""A hyperparameter as an axis: linear, logarithmic or of choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oialr_search.analysis.labels import number, plain
from oialr_search.storage.records import IndividualRecord, SearchRecord

APART = 0.09  # of the axis, between two ticks
LONG_NAME = 13  # characters


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
        ends = [(0.0, number(self.low)), (1.0, number(self.high))]
        between = [(self.place(v) or 0.0, number(v)) for v in inner]
        return [ends[0], *(t for t in between if APART < t[0] < 1 - APART), ends[1]]

    def choice_texts(self) -> list[str]:
        """The choices as they are read."""
        names = {True: "yes", False: "no"}
        return [plain(names[c] if isinstance(c, bool) else c) for c in self.choices]

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
    return [_axis(entry) for entry in search.space]


def _axis(entry: Mapping[str, Any]) -> Axis:
    if entry["kind"] in ("bool", "choice") or entry.get("choices"):
        return Axis(name=entry["name"], choices=entry.get("choices") or (False, True))
    log = entry.get("scale") == "log"
    return Axis(name=entry["name"], low=entry["low"], high=entry["high"], log=log)


def _same(choice: Any, value: Any) -> bool:
    """Python has True == 1."""
    return bool(choice == value) and isinstance(choice, bool) == isinstance(value, bool)
