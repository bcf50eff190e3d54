"""A search's space as Optuna's distributions, and what of an individual fits them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from oialr_search.space.hyperparameters import Hyperparameter, SearchSpace
from oialr_search.storage.records import IndividualRecord

Space = dict[str, BaseDistribution]


def space_of(space: SearchSpace) -> Space:
    """A search's space by name."""
    return {h.name: _distribution(h) for h in space.hyperparameters}


def _distribution(hyperparameter: Hyperparameter) -> BaseDistribution:
    """A hyperparameter of the search's space as Optuna has it."""
    if hyperparameter.choices is not None:
        return CategoricalDistribution(hyperparameter.choices)
    (low, high), log = hyperparameter.bounds, hyperparameter.scale == "log"
    if hyperparameter.kind == "int":
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def widened(space: Space, found: Sequence[Mapping[str, Any]]) -> Space:
    """The space with room for what was trained outside it: all trials share its distributions."""
    wide = dict(space)
    for name, distribution in space.items():
        values = [params[name] for params in found if name in params]
        if not values:
            continue
        if isinstance(distribution, CategoricalDistribution):
            others = [value for value in set(values) if value not in distribution.choices]
            if others:
                choices = (*distribution.choices, *sorted(others, key=str))
                wide[name] = CategoricalDistribution(choices)
        elif isinstance(distribution, FloatDistribution | IntDistribution):
            wider = copy.copy(distribution)
            wider.low = min(distribution.low, *values)
            wider.high = max(distribution.high, *values)
            wide[name] = wider
    return wide if wide != space else space


def params_of(record: IndividualRecord, space: Space) -> dict[str, Any]:
    """The hyperparameters that a trial can have as its own."""
    given = record.hyperparameters
    return {n: given[n] for n, d in space.items() if n in given and _fits(given[n], d)}


def _fits(value: Any, distribution: Any) -> bool:
    """Can a distribution of this kind, however wide, hold the value?"""
    # Not isinstance: Optuna's classes are abstract ones, with which it takes long.
    kind = type(value)
    if type(distribution) is CategoricalDistribution:
        return kind in (bool, int, float, str)
    if kind is not int and (type(distribution) is IntDistribution or kind is not float):
        return False
    return math.isfinite(value) and (value > 0 or not distribution.log)
