"""All islands' individuals as arrays, for engines that look at all of them.

Genes stand at the middle of the share of the value that they decode to: equal rows are equal
configurations, and a model sees what is trained. An individual that repeats another, with another
seed, has no row: it is part of the other's mean. Shapes: n individuals, d genes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.storage.records import Known
from oialr_search.storage.status import UNFINISHED, Status

Array = NDArray[np.float64]

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
        self._modelled = np.empty(FIRST_ROWS)
        self._num_seeds = np.empty(FIRST_ROWS)
        self._deviation = np.empty(FIRST_ROWS)
        self._repeats: dict[int, int] = {}
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
    def modelled(self) -> Array:
        """(n,): what a model is given: the fitness, of a pruned one what it had come to."""
        return self._modelled[: self._number]

    @property
    def num_seeds(self) -> Array:
        """(n,): measurements that the fitness is the mean of, 1 where there is none."""
        return self._num_seeds[: self._number]

    @property
    def deviation(self) -> Array:
        """(n,): standard deviation over seeds, NaN where there are not two."""
        return self._deviation[: self._number]

    @property
    def num_repeats(self) -> NDArray[np.int64]:
        """(n,): how many repeat each, whatever has become of them."""
        rows = np.searchsorted(self.ids, np.fromiter(self._repeats.values(), dtype=np.int64))
        return np.bincount(rows, minlength=len(self))

    def take(self, known: Iterable[Known]) -> None:
        """Take in new individuals, and what became of others."""
        known = list(known)
        self._repeats |= {k.individual_id: k.repeat_of for k in known if k.repeat_of is not None}
        individuals = sorted(
            (k for k in known if k.repeat_of is None), key=lambda k: k.individual_id
        )
        ids = np.array([individual.individual_id for individual in individuals], dtype=np.int64)
        genes = np.array([[i.genes[h.name] for h in self._hyperparameters] for i in individuals])
        genes = genes.reshape(len(ids), len(self._hyperparameters))
        measured = np.array([_measured(individual) for individual in individuals]).reshape(-1, 4)
        there = np.isin(ids, self.ids, assume_unique=True)
        rows = np.searchsorted(self.ids, ids[there])
        for column, values in zip(self._measured, measured[there].T, strict=True):
            column[rows] = values
        self._append(ids[~there], self.at_middles(genes[~there]), measured[~there])

    @property
    def _measured(self) -> tuple[Array, ...]:
        return self._fitness, self._modelled, self._num_seeds, self._deviation

    def at_middles(self, genes: Array) -> Array:
        """Genes (m, d) moved to the middles."""
        moved = np.empty_like(genes)
        for column, hyperparameter in enumerate(self._hyperparameters):
            moved[:, column] = middle(hyperparameter, genes[:, column])
        return moved

    def include(self, genes: Array) -> bool:
        """Has one of them the configuration of genes (d,), at the middles?"""
        return bool((self.genes == genes).all(axis=1).any())

    def _append(self, ids: NDArray[np.int64], genes: Array, measured: Array) -> None:
        before, self._number = self._number, self._number + len(ids)
        if self._number > len(self._ids):
            rows = 2 * self._number
            self._ids = np.resize(self._ids, rows)
            self._genes = np.resize(self._genes, (rows, self._genes.shape[1]))
            self._fitness = np.resize(self._fitness, rows)
            self._modelled = np.resize(self._modelled, rows)
            self._num_seeds = np.resize(self._num_seeds, rows)
            self._deviation = np.resize(self._deviation, rows)
        columns = (self._ids, self._genes, *self._measured)
        for column, new in zip(columns, (ids, genes, *measured.T), strict=True):
            column[before : self._number] = new
        if 0 < before < self._number and ids[0] < self._ids[before - 1]:
            order = np.argsort(self.ids)
            for column in columns:
                column[: self._number] = column[: self._number][order]


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


def _measured(known: Known) -> tuple[float, ...]:
    fitness = modelled = _fitness_of(known)
    if known.status is Status.PRUNED and known.objectives:
        modelled = known.objectives[0]
    deviation = math.nan if known.fitness_deviation is None else known.fitness_deviation
    return fitness, modelled, max(known.num_seeds, 1), deviation


def _fitness_of(known: Known) -> float:
    if known.fitness is not None:
        return known.fitness
    return math.nan if known.status in UNFINISHED else math.inf
