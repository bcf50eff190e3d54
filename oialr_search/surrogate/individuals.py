"""All islands' individuals as arrays, for engines that look at all of them.

Genes stand at the middle of the share of the value that they decode to: equal rows are equal
configurations, and a model sees what is trained. An individual that repeats another, with another
seed, has no row: it is part of the other's mean. Shapes: n individuals, d genes,
k objectives, c constraints.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oialr_search.space.hyperparameters import Hyperparameter, is_among
from oialr_search.storage.records import Known
from oialr_search.storage.status import UNFINISHED, Status

Array = NDArray[np.float64]

FIRST_ROWS = 256
FIGURES = ("fitness", "modelled", "num_seeds", "deviation", "cost_s", "violation")
LISTS = ("objectives", "constraints")
NOWHERE = 0.5  # where a gene stands that does not count


class Individuals:
    """The individuals of a search in the order of their ids, whichever they came in."""

    def __init__(
        self, hyperparameters: Sequence[Hyperparameter], known: Iterable[Known] = ()
    ) -> None:
        self._hyperparameters = tuple(hyperparameters)
        self._number = 0
        self._columns: dict[str, Any] = {
            "ids": np.empty(FIRST_ROWS, dtype=np.int64),
            "genes": np.empty((FIRST_ROWS, len(self._hyperparameters))),
            **{name: np.empty(FIRST_ROWS) for name in FIGURES},
            **{name: np.empty((FIRST_ROWS, 0)) for name in LISTS},
        }
        self._repeats: dict[int, int] = {}
        self.take(known)

    def __len__(self) -> int:
        return self._number

    @property
    def ids(self) -> NDArray[np.int64]:
        """(n,): ascending."""
        ids: NDArray[np.int64] = self._columns["ids"][: self._number]
        return ids

    @property
    def genes(self) -> Array:
        """(n, d): at the middles."""
        return self._column("genes")

    @property
    def fitness(self) -> Array:
        """(n,): NaN while the individual has not ended, infinite if it ended without."""
        return self._column("fitness")

    @property
    def modelled(self) -> Array:
        """(n,): what a model is given: the fitness, of a pruned one what it had come to."""
        return self._column("modelled")

    @property
    def num_seeds(self) -> Array:
        """(n,): measurements that the fitness is the mean of, 1 where there is none."""
        return self._column("num_seeds")

    @property
    def deviation(self) -> Array:
        """(n,): standard deviation over seeds, NaN where there are not two."""
        return self._column("deviation")

    @property
    def cost_s(self) -> Array:
        """(n,): what its attempts have taken until now."""
        return self._column("cost_s")

    @property
    def violation(self) -> Array:
        """(n,): of constraints; 0 where they are met, or not known."""
        return self._column("violation")

    @property
    def objectives(self) -> Array:
        """(n, k): each minimised, NaN where not known; of a pruned one what it had come to.

        Where the fitness is the only one, only pruned ones have it here.
        """
        return self._column("objectives")

    @property
    def constraints(self) -> Array:
        """(n, c): excesses, up to 0 where met; NaN where not known."""
        return self._column("constraints")

    @property
    def standing(self) -> Array:
        """(n,): the less, the better: as modelled; who breaks a constraint comes after all others.

        Among these the violation decides.
        """
        values, breaks = self.modelled, self.violation > 0.0
        if not breaks.any():
            return values
        met = values[np.isfinite(values) & ~breaks]
        worst = met.max() if len(met) else 0.0
        beyond = worst + np.maximum(abs(worst), 1.0) * self.violation
        return np.where(breaks & np.isfinite(values), beyond, values)

    def aiming_at(self, values: Array) -> Individuals:
        """The same as they are now, with other values (n,) in place of their fitness.

        Those that are NaN change nothing: who has not ended, and who ended without, stay so.
        """
        changed = copy.copy(self)
        known = np.isfinite(values)
        changed._columns = self._columns | {
            "fitness": np.where(known & np.isfinite(self.fitness), values, self.fitness),
            "modelled": np.where(known, values, self.modelled),
        }
        return changed

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
        figures = np.array([_figures(individual) for individual in individuals])
        figures = figures.reshape(len(ids), len(FIGURES))
        measured = dict(zip(FIGURES, figures.T, strict=True))
        for name in LISTS:
            measured[name] = self._table(name, [getattr(i, name) for i in individuals])
        there = np.isin(ids, self.ids, assume_unique=True)
        rows = np.searchsorted(self.ids, ids[there])
        for name, values in measured.items():
            self._columns[name][rows] = values[there]
        new = {name: values[~there] for name, values in measured.items()}
        self._append({"ids": ids[~there], "genes": self.at_middles(genes[~there]), **new})

    def at_middles(self, genes: Array) -> Array:
        """Genes (m, d) moved to the middles."""
        moved = np.empty_like(genes)
        for column, hyperparameter in enumerate(self._hyperparameters):
            moved[:, column] = middle(hyperparameter, genes[:, column])
        moved[~self.counting(genes)] = NOWHERE
        return moved

    def counting(self, genes: Array) -> NDArray[np.bool_]:
        """(m, d): which genes (m, d) count, by what `when` says of their hyperparameters."""
        columns = {h.name: column for column, h in enumerate(self._hyperparameters)}
        counts: dict[str, NDArray[np.bool_]] = {}

        def of(h: Hyperparameter) -> NDArray[np.bool_]:
            if h.name not in counts:
                found = np.ones(len(genes), dtype=bool)
                for name, wanted in h.when:
                    other = self._hyperparameters[columns[name]]
                    assert other.choices is not None
                    numbers = [n for n, c in enumerate(other.choices) if is_among(c, wanted)]
                    found &= of(other) & np.isin(chosen(other, genes[:, columns[name]]), numbers)
                counts[h.name] = found
            return counts[h.name]

        table = [of(h) for h in self._hyperparameters]
        return np.stack(table, axis=1) if table else np.ones(genes.shape, dtype=bool)

    def include(self, genes: Array) -> bool:
        """Has one of them the configuration of genes (d,), at the middles?"""
        return bool((self.genes == genes).all(axis=1).any())

    def _column(self, name: str) -> Array:
        column: Array = self._columns[name][: self._number]
        return column

    def _table(self, name: str, measured: Sequence[Sequence[float]]) -> Array:
        """(m, width): NaN where nothing was measured; how wide is known once something was."""
        width = max(map(len, measured), default=0)
        if width > self._columns[name].shape[1]:
            self._columns[name] = np.full((len(self._columns["ids"]), width), math.nan)
        nothing = [math.nan] * self._columns[name].shape[1]
        table = np.array([list(row) or nothing for row in measured])
        return table.reshape(len(measured), len(nothing))

    def _append(self, new: Mapping[str, Any]) -> None:
        before, self._number = self._number, self._number + len(new["ids"])
        if self._number > len(self._columns["ids"]):
            rows = 2 * self._number
            self._columns = {
                name: np.resize(column, (rows, *column.shape[1:]))
                for name, column in self._columns.items()
            }
        for name, values in new.items():
            self._columns[name][before : self._number] = values
        ids = self.ids
        if 0 < before < self._number and ids[before] < ids[before - 1]:
            order = np.argsort(ids)
            for column in self._columns.values():
                column[: self._number] = column[: self._number][order]


def middle(hyperparameter: Hyperparameter, genes: Array) -> Array:
    """(m,): the middle of the share of each gene's value, for genes (m,); a float's is its own."""
    if hyperparameter.choices is not None:
        return (chosen(hyperparameter, genes) + 0.5) / len(hyperparameter.choices)
    if hyperparameter.unit is not None:
        below, above = share(hyperparameter, genes)
        return 0.5 * (below + above)
    return genes


def chosen(hyperparameter: Hyperparameter, genes: Array) -> Array:
    """(m,): the number of the choice that each gene (m,) stands for."""
    assert hyperparameter.choices is not None
    number = len(hyperparameter.choices)
    choices: Array = np.minimum(np.floor(genes * number), number - 1)
    return choices


def share(hyperparameter: Hyperparameter, genes: Array) -> tuple[Array, Array]:
    """(m,) and (m,): where the share of a number apart begins and ends, for genes (m,)."""
    unit, (least, most) = hyperparameter.unit, hyperparameter.bounds
    assert unit is not None
    half = unit / 2
    low, high = least - half, most + half
    log = hyperparameter.scale == "log"
    start, width = (math.log(low), math.log(high / low)) if log else (low, high - low)
    values = start + genes * width
    values = np.exp(values) if log else values
    if hyperparameter.step is None:
        values = np.clip(np.rint(values), least, most)
    else:
        values = np.clip(np.rint((values - least) / unit) * unit + least, least, most)
    below, above = values - half, values + half
    if log:
        below, above = np.log(below), np.log(above)
    return (below - start) / width, (above - start) / width


def _figures(known: Known) -> tuple[float, ...]:
    """In the order of FIGURES."""
    fitness = modelled = _fitness_of(known)
    if known.status is Status.PRUNED and known.objectives:
        modelled = known.objectives[0]
    deviation = math.nan if known.fitness_deviation is None else known.fitness_deviation
    measurements = max(known.num_seeds, 1)
    return fitness, modelled, measurements, deviation, known.cost_s, known.violation


def _fitness_of(known: Known) -> float:
    if known.fitness is not None:
        return known.fitness
    return math.nan if known.status in UNFINISHED else math.inf
