"""The Gaussian process of a search: of which individuals it is made, and of what of their fitness.

Shapes: n individuals, d genes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.surrogate.gaussian_process import GaussianProcess, fit
from oialr_search.surrogate.individuals import Array, Individuals

LEAST_BEST, BEST_A_GENE, MOST_BEST = 20, 5, 50
BEST_AND_NEAREST, DRAWN = 75, 25
CLIPPED_AT = 0.75  # until there are more individuals than the model takes
LEAST_SPREAD = 1e-5
WIDTH_OF_DEVIATION = math.sqrt(12.0)  # of a uniform distribution

Indices = NDArray[np.intp]


class Modelling:
    """Makes the model of a search, whatever it has grown to."""

    def __init__(self, hyperparameters: Sequence[Hyperparameter]) -> None:
        self._num_best = min(max(BEST_A_GENE * len(hyperparameters), LEAST_BEST), MOST_BEST)
        self._least_spread = np.array([_least_spread(h) for h in hyperparameters])
        self._categorical = np.array([h.choices is not None for h in hyperparameters])

    def of(self, known: Individuals, rng: random.Random) -> GaussianProcess:
        """Of all; of many, of the best, of those near to the best, and of some of the others.

        Of many only the best are told apart, and lengths are expected as wide as these spread: so
        the model narrows down with the search, however far that goes.
        """
        chosen = np.flatnonzero(~np.isnan(known.modelled))
        if len(chosen) <= BEST_AND_NEAREST + DRAWN:
            values = standardised(known.modelled[chosen], CLIPPED_AT)
            return self._fit(known, chosen, values)
        best, others = split(chosen, known.modelled[chosen], self._num_best)
        widths = WIDTH_OF_DEVIATION * known.genes[best].std(axis=0)
        spread = np.clip(widths, self._least_spread, 1.0)
        leader = known.genes[best[np.argmin(known.modelled[best])]]
        differences = (known.genes - leader) / spread
        differences[:, self._categorical] = differences[:, self._categorical] != 0.0
        distances = np.einsum("nd,nd->n", differences, differences)
        near, others = split(others, distances[others], BEST_AND_NEAREST - len(best))
        drawn = rng.sample(range(len(others)), DRAWN)
        chosen = np.concatenate([best, near, others[drawn]])
        values = standardised(known.modelled[chosen], len(best) / len(chosen))
        return self._fit(known, chosen, values, spread)

    def _fit(
        self, known: Individuals, chosen: Indices, values: Array, spread: Array | float = 1.0
    ) -> GaussianProcess:
        return fit(
            known.genes[chosen],
            values,
            self._categorical,
            spread=spread,
            measurements=known.num_seeds[chosen],
        )


def split(rows: Indices, values: Array, number: int) -> tuple[Indices, Indices]:
    """The rows (n,) with the least values (n,), so many, and the others."""
    order = np.argpartition(values, number - 1)
    return rows[order[:number]], rows[order[number:]]


def standardised(fitness: Array, clipped_at: float) -> Array:
    """(n,): clipped at a share of all, with mean 0 and deviation 1; infinities become the worst."""
    finite = np.sort(fitness[np.isfinite(fitness)])
    worst = finite[min(math.ceil(clipped_at * len(fitness)), len(finite)) - 1]
    clipped = np.minimum(fitness, worst)
    deviation = clipped.std()
    values: Array = (clipped - clipped.mean()) / (deviation if deviation > 0 else 1.0)
    return values


def _least_spread(hyperparameter: Hyperparameter) -> float:
    """Of a gene: a step of an integer; all of a category, as nothing lies between two."""
    h = hyperparameter
    if h.choices is not None or h.low is None or h.high is None:
        return 1.0
    return 1.0 / (h.high - h.low + 1.0) if h.kind == "int" else LEAST_SPREAD
