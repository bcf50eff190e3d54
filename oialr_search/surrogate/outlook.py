"""What more evaluations may bring, by how far the best individuals lie apart.

The gain of another 50 evaluations is told in distances from the best to the fifth best: in half of
simulated searches it was between 0.15 and 2.2 of them, in the middle one 0.6, after 15 as after
150 evaluations. A Gaussian process promised 2 to 100 times what came (docs/search-quality.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from oialr_search.storage.database import Storage
from oialr_search.storage.records import Status

ENOUGH = 12
"""Completed individuals; of fewer nothing is said."""
AHEAD = 50
PLACE = 5
LOW, MIDDLE, HIGH = 0.15, 0.6, 2.2
FALL = 1.5
"""Where the best are equal, a later place takes the fifth's; the gain, in distances to the n-th
best, is as n^−1.5."""
LOOKED_AT = 40


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """By how much the best fitness may fall, in units of the fitness."""

    evaluations: int
    """How many more."""
    low: float
    """In a quarter of searches it falls by less."""
    middle: float
    """In half of them."""
    high: float
    """In three quarters."""


def outlook(storage: Storage, search_id: int) -> Outlook | None:
    """Of a search; None where little is known, or where several things are aimed at.

    It reads the best only, whatever the search has grown to.
    """
    best = storage.individuals(search_id, status=Status.COMPLETED, limit=LOOKED_AT, order="fitness")
    if len(best) < ENOUGH or any(individual.objectives for individual in best):
        return None
    valid = [i.fitness for i in best if i.fitness is not None and not i.violation]
    distance = distance_of_the_best(valid)
    if distance is None:
        return None
    most = valid[0] if valid[0] > 0.0 else distance * HIGH  # no loss falls below 0
    low, middle, high = (min(share * distance, most) for share in (LOW, MIDDLE, HIGH))
    return Outlook(evaluations=AHEAD, low=low, middle=middle, high=high)


def distance_of_the_best(fitness: Sequence[float]) -> float | None:
    """From the best to the fifth best of some in order; None where they are too few or equal."""
    for place in range(PLACE, len(fitness) + 1):
        if fitness[place - 1] > fitness[0]:
            return (fitness[place - 1] - fitness[0]) * math.pow(PLACE / place, FALL)
    return None
