"""Conditions between hyperparameters, known before a training: `search.constraints`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oialr_search.space.expressions import Bound, parse_bounds
from oialr_search.space.hyperparameters import SearchSpace, Value, with_hyperparameters
from oialr_training.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What holds in every training configuration that is tried."""

    bounds: tuple[Bound, ...]
    training: Mapping[str, Any]
    """The file's own values."""

    def broken(self, hyperparameters: Mapping[str, Value]) -> str | None:
        """The first that does not hold, as people write it.

        One that names what has no number there, since it is null, holds.
        """
        if not self.bounds:
            return None
        columns = dict(_numbers(with_hyperparameters(self.training, hyperparameters)))
        for bound in self.bounds:
            names = (*bound.low.names, *bound.high.names)
            if all(name in columns for name in names) and not bound.met(columns):
                return bound.text
        return None

    def met(self, hyperparameters: Mapping[str, Value]) -> bool:
        """Do all hold?"""
        return self.broken(hyperparameters) is None


def constraints_of(
    texts: Sequence[str], training: Mapping[str, Any], space: SearchSpace, source: str
) -> Constraints:
    """Read the conditions over all numbers of a training configuration, searched or not.

    Raises:
        ConfigError: when one cannot be read, or names no number.
    """
    searched = [
        h.name
        for h in space.hyperparameters
        if h.choices is None
        or any(isinstance(c, int | float) and not isinstance(c, bool) for c in h.choices)
    ]
    known = list(dict.fromkeys([*searched, *(name for name, _ in _numbers(training))]))
    try:
        bounds = [
            bound
            for text in texts
            for bound in parse_bounds(text, known, "search.constraints", strict=True)
        ]
    except ConfigError as error:
        raise ConfigError(f"{error} ({source})") from None
    return Constraints(bounds=tuple(bounds), training=training)


def _numbers(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value
