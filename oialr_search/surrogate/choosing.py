"""Which of the individuals that were measured is best, noise apart."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.surrogate.individuals import Individuals
from oialr_search.surrogate.modelling import Modelling


def least_expected(
    known: Individuals, hyperparameters: Sequence[Hyperparameter]
) -> tuple[int, float]:
    """The id of the completed individual with the least expected fitness, and that.

    It meets all constraints as far as measured; one that does must be there.
    """
    model = Modelling(hyperparameters).of(known, random.Random(0))
    rows = model.rows
    meets = np.isfinite(known.fitness[rows]) & (known.violation[rows] <= 0.0)
    expected = np.where(meets, model.expected(), np.inf)
    best = int(np.argmin(expected))
    return int(known.ids[rows[best]]), float(expected[best])
