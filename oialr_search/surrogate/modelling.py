"""The Gaussian process of a search: of which individuals it is made, and of what of their fitness.

Shapes: n individuals, d genes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.surrogate.gaussian_process import GaussianProcess, fit
from oialr_search.surrogate.individuals import Array, Individuals

LEAST_BEST, BEST_A_GENE, MOST_BEST = 20, 5, 50
BEST_AND_NEAREST, DRAWN = 75, 25
CLIPPED_AT = 0.75  # until there are more individuals than the model takes
LEAST_SPREAD = 1e-5
LEAST_COST_S = 1e-3
FEASIBLE = math.log(0.5)
"""Logarithm of the probability from which on genes are taken to meet all constraints."""
WIDTH_OF_DEVIATION = math.sqrt(12.0)  # of a uniform distribution

Indices = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is believed of genes that were not tried; all posteriors of the same individuals."""

    fitness: GaussianProcess
    rows: Indices
    """Of the individuals that the fitness is modelled of."""
    centre: float
    scale: float
    """One of the model's units, in the fitness's; the model's 0 is the centre."""
    constraints: Sequence[GaussianProcess] = ()
    """Of each one's excess; above 0 it is not met."""
    cost: GaussianProcess | None = None
    """Of the logarithm of the seconds, relative to the mean; None: it does not count."""

    def expected(self) -> Array:
        """(n,): the fitness that is expected of its own individuals, noise apart."""
        return self.centre + self.scale * self.fitness.mean(self.fitness.points)

    def log_feasibility(self, points: Array) -> Array:
        """(m,): logarithm of the probability that points (m, d) meet all constraints."""
        logs = np.zeros(len(points))
        for constraint in self.constraints:
            mean, deviation = constraint.posterior(points)
            logs += log_ndtr(-mean / deviation)
        return logs


class Modelling:
    """Makes the model of a search, whatever it has grown to."""

    def __init__(
        self, hyperparameters: Sequence[Hyperparameter], *, cost_aware: bool = False
    ) -> None:
        self._cost_aware = cost_aware
        self._num_best = min(max(BEST_A_GENE * len(hyperparameters), LEAST_BEST), MOST_BEST)
        self._least_spread = np.array([_least_spread(h) for h in hyperparameters])
        self._categorical = np.array([h.choices is not None for h in hyperparameters])

    def of(self, known: Individuals, rng: random.Random) -> Model:
        """Of all; of many, of the best, of those near to the best, and of some of the others.

        Of many only the best are told apart, and lengths are expected as wide as these spread: so
        the model narrows down with the search, however far that goes.
        """
        (chosen,) = (~np.isnan(known.modelled)).nonzero()
        if len(chosen) <= BEST_AND_NEAREST + DRAWN:
            return self._model(known, chosen, CLIPPED_AT)
        standing = known.standing
        best, others = split(chosen, standing[chosen], self._num_best)
        widths = WIDTH_OF_DEVIATION * known.genes[best].std(axis=0)
        spread = np.clip(widths, self._least_spread, 1.0)
        leader = known.genes[best[np.argmin(standing[best])]]
        differences = (known.genes - leader) / spread
        differences[:, self._categorical] = differences[:, self._categorical] != 0.0
        distances = np.einsum("nd,nd->n", differences, differences)
        near, others = split(others, distances[others], BEST_AND_NEAREST - len(best))
        drawn = rng.sample(range(len(others)), DRAWN)
        chosen = np.concatenate([best, near, others[drawn]])
        return self._model(known, chosen, len(best) / len(chosen), spread)

    def _model(
        self,
        known: Individuals,
        chosen: Indices,
        clipped_at: float,
        spread: Array | float = 1.0,
    ) -> Model:
        def fitted(rows: Indices, values: Array) -> GaussianProcess:
            return fit(
                known.genes[rows],
                values,
                self._categorical,
                spread=spread,
                measurements=known.num_seeds[rows],
            )

        measured = chosen[np.isfinite(known.constraints[chosen]).all(axis=1)]
        excesses = known.constraints[measured]
        completed = chosen[np.isfinite(known.fitness[chosen])]
        costs = np.log(np.maximum(known.cost_s[completed], LEAST_COST_S))
        clipped = clipped_from_above(known.modelled[chosen], clipped_at)
        return Model(
            fitness=fitted(chosen, standardised(clipped)),
            rows=chosen,
            centre=float(clipped.mean()),
            scale=float(clipped.std()),
            constraints=[fitted(measured, without_far_ones(column)) for column in excesses.T],
            cost=fitted(completed, costs - costs.mean()) if self._cost_aware else None,
        )


def split(rows: Indices, values: Array, number: int) -> tuple[Indices, Indices]:
    """The rows (n,) with the least values (n,), so many, and the others."""
    order = np.argpartition(values, number - 1)
    return rows[order[:number]], rows[order[number:]]


def clipped_from_above(fitness: Array, share: float) -> Array:
    """(n,): the worst are as good as the last of a share of all; infinities are among the worst."""
    finite = np.sort(fitness[np.isfinite(fitness)])
    worst = finite[min(math.ceil(share * len(fitness)), len(finite)) - 1]
    return np.minimum(fitness, worst)


def standardised(fitness: Array) -> Array:
    """(n,): with mean 0 and deviation 1."""
    deviation = fitness.std()
    values: Array = (fitness - fitness.mean()) / (deviation if deviation > 0 else 1.0)
    return values


def without_far_ones(excesses: Array) -> Array:
    """(n,): of one constraint, drawn together so that 0 stays where it is."""
    middle = float(np.median(np.abs(excesses)))
    values: Array = np.arcsinh(excesses / (middle if middle > 0.0 else 1.0))
    return values


def _least_spread(hyperparameter: Hyperparameter) -> float:
    """Of a gene: a step of numbers apart; all of a category, as nothing lies between two."""
    h = hyperparameter
    if h.choices is not None or h.low is None or h.high is None:
        return 1.0
    return LEAST_SPREAD if h.unit is None else h.unit / (h.high - h.low + h.unit)
