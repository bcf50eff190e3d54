"""All islands' individuals as arrays, for engines that look at all of them.

Genes stand at the middle of the share of the value that they decode to: equal rows are equal
configurations, and a model sees what is trained. Shapes: n individuals, d genes, k objectives,
c constraints.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.storage.records import Known, Status

Array = NDArray[np.float64]

UNFINISHED = (Status.QUEUED, Status.RUNNING, Status.LOST)
FIRST_ROWS = 256


class Individuals:
    """The individuals of a search in the order of their ids, whichever they came in."""

    def __init__(
        self, hyperparameters: Sequence[Hyperparameter], known: Iterable[Known] = ()
    ) -> None:
        self._hyperparameters = tuple(hyperparameters)
        self._number = 0
        self._ids = np.empty(FIRST_ROWS, dtype=np.int64)
        self._genes = np.empty((FIRST_ROWS, len(self._hyperparameters)))
        self._fitness = np.empty(FIRST_ROWS)
        self._cost_s = np.empty(FIRST_ROWS)
        self._violation = np.empty(FIRST_ROWS)
        self._objectives = np.empty((FIRST_ROWS, 0))
        self._constraints = np.empty((FIRST_ROWS, 0))
        self.take(known)

    def __len__(self) -> int:
        return self._number

    @property
    def ids(self) -> NDArray[np.int64]:
        """(n,): ascending."""
        return self._ids[: self._number]

    @property
    def genes(self) -> Array:
        """(n, d): at the middles."""
        return self._genes[: self._number]

    @property
    def fitness(self) -> Array:
        """(n,): NaN while the individual has not ended, infinite if it ended without."""
        return self._fitness[: self._number]

    @property
    def cost_s(self) -> Array:
        """(n,): what its attempts have taken until now."""
        return self._cost_s[: self._number]

    @property
    def violation(self) -> Array:
        """(n,): of constraints; 0 where they are met, or not known."""
        return self._violation[: self._number]

    @property
    def objectives(self) -> Array:
        """(n, k): each minimised; NaN where the fitness is no number; k = 0 where that is all."""
        return self._objectives[: self._number]

    @property
    def constraints(self) -> Array:
        """(n, c): excesses, up to 0 where met; NaN where not known."""
        return self._constraints[: self._number]

    @property
    def standing(self) -> Array:
        """(n,): the less, the better: the fitness; who breaks a constraint comes after all others.

        Among these the violation decides. NaN and infinite as the fitness is.
        """
        breaks = self.violation > 0.0
        if not breaks.any():
            return self.fitness
        met = self.fitness[np.isfinite(self.fitness) & ~breaks]
        worst = met.max() if len(met) else 0.0
        beyond = worst + np.maximum(abs(worst), 1.0) * self.violation
        return np.where(breaks & np.isfinite(self.fitness), beyond, self.fitness)

    def with_fitness(self, fitness: Array) -> Individuals:
        """The same with another fitness (n,); whoever takes in more does so here, not there."""
        changed = copy.copy(self)
        changed._fitness = fitness
        return changed

    def take(self, known: Iterable[Known]) -> None:
        """Take in new individuals, and what became of others."""
        individuals = sorted(known, key=lambda individual: individual.individual_id)
        ids = np.array([individual.individual_id for individual in individuals], dtype=np.int64)
        genes = np.array([[i.genes[h.name] for h in self._hyperparameters] for i in individuals])
        genes = genes.reshape(len(ids), len(self._hyperparameters))
        fitness = np.array([_fitness_of(individual) for individual in individuals])
        cost_s = np.array([individual.cost_s for individual in individuals])
        violation = np.array([individual.violation for individual in individuals])
        self._objectives = _widened(self._objectives, [i.objectives for i in individuals])
        self._constraints = _widened(self._constraints, [i.constraints for i in individuals])
        objectives = _table([i.objectives for i in individuals], self._objectives.shape[1])
        constraints = _table([i.constraints for i in individuals], self._constraints.shape[1])
        there = np.isin(ids, self.ids, assume_unique=True)
        rows = np.searchsorted(self.ids, ids[there])
        measured = (fitness, cost_s, violation, objectives, constraints)
        for column, values in zip(self._measured, measured, strict=True):
            column[rows] = values[there]
        new = (values[~there] for values in measured)
        self._append(ids[~there], self.at_middles(genes[~there]), *new)

    @property
    def _measured(self) -> tuple[Array, ...]:
        return self._fitness, self._cost_s, self._violation, self._objectives, self._constraints

    def at_middles(self, genes: Array) -> Array:
        """Genes (m, d) moved to the middles."""
        moved = np.empty_like(genes)
        for column, hyperparameter in enumerate(self._hyperparameters):
            moved[:, column] = middle(hyperparameter, genes[:, column])
        return moved

    def include(self, genes: Array) -> bool:
        """Has one of them the configuration of genes (d,), at the middles?"""
        return bool((self.genes == genes).all(axis=1).any())

    def _append(self, ids: NDArray[np.int64], genes: Array, *measured: Array) -> None:
        before, self._number = self._number, self._number + len(ids)
        if self._number > len(self._ids):
            self._make_room(2 * self._number)
        columns = (self._ids, self._genes, *self._measured)
        for column, new in zip(columns, (ids, genes, *measured), strict=True):
            column[before : self._number] = new
        if 0 < before < self._number and ids[0] < self._ids[before - 1]:
            order = np.argsort(self.ids)
            for column in columns:
                column[: self._number] = column[: self._number][order]

    def _make_room(self, rows: int) -> None:
        self._ids = np.resize(self._ids, rows)
        self._genes = _with_rows(self._genes, rows)
        self._fitness = _with_rows(self._fitness, rows)
        self._cost_s = _with_rows(self._cost_s, rows)
        self._violation = _with_rows(self._violation, rows)
        self._objectives = _with_rows(self._objectives, rows)
        self._constraints = _with_rows(self._constraints, rows)


def _with_rows(column: Array, rows: int) -> Array:
    return np.resize(column, (rows, *column.shape[1:]))


def _widened(column: Array, measured: Sequence[Sequence[float]]) -> Array:
    """The column as wide as what was measured, which is known only when something was."""
    width = max(map(len, measured), default=0)
    return column if width <= column.shape[1] else np.full((len(column), width), math.nan)


def _table(measured: Sequence[Sequence[float]], width: int) -> Array:
    """(m, width): NaN where nothing was measured."""
    nothing = [math.nan] * width
    return np.array([list(row) or nothing for row in measured]).reshape(len(measured), width)


def middle(hyperparameter: Hyperparameter, genes: Array) -> Array:
    """(m,): the middle of the share of each gene's value, for genes (m,); a float's is its own."""
    if hyperparameter.choices is not None:
        number = len(hyperparameter.choices)
        choices: Array = np.minimum(np.floor(genes * number), number - 1)
        return (choices + 0.5) / number
    if hyperparameter.kind == "int":
        below, above = share(hyperparameter, genes)
        return 0.5 * (below + above)
    return genes


def share(hyperparameter: Hyperparameter, genes: Array) -> tuple[Array, Array]:
    """(m,) and (m,): where the share of an integer's value begins and ends, for genes (m,)."""
    assert hyperparameter.low is not None
    assert hyperparameter.high is not None
    low, high = hyperparameter.low - 0.5, hyperparameter.high + 0.5
    log = hyperparameter.scale == "log"
    start, width = (math.log(low), math.log(high / low)) if log else (low, high - low)
    values = start + genes * width
    values = np.clip(
        np.rint(np.exp(values) if log else values), hyperparameter.low, hyperparameter.high
    )
    below, above = values - 0.5, values + 0.5
    if log:
        below, above = np.log(below), np.log(above)
    return (below - start) / width, (above - start) / width


def _fitness_of(known: Known) -> float:
    if known.fitness is not None:
        return known.fitness
    return math.nan if known.status in UNFINISHED else math.inf
