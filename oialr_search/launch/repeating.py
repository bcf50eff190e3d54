"""Racing: who is measured again, with another seed, while the search runs.

The leader is measured until it has as many seeds as it may have, then those who may still pass it:
whose mean, less its standard error, is below the leader's mean. The deviation of one measurement is
pooled over all that have been repeated. So what is bad is soon left alone (Maron and Moore 1994,
"Hoeffding races"), and what was only lucky does not lead for long.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from oialr_search.space.repeats import RepeatSettings
from oialr_search.surrogate.individuals import Individuals

BEGINS_AT = 12
"""Individuals that have completed: before, there is no leader worth the name."""


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """An individual to be measured again."""

    individual_id: int
    number: int
    """Of the repeat: 1, 2, ... for one individual."""


def next_repeat(known: Individuals, settings: RepeatSettings, num_ranks: int = 1) -> Repeat | None:
    """Who is to be measured again now, if anyone: a pure function of what is known."""
    num_repeats = known.num_repeats
    total = int(num_repeats.sum())
    (completed,) = np.isfinite(known.fitness).nonzero()
    if len(completed) < max(BEGINS_AT, num_ranks):
        return None
    if total + 1 > settings.share * (len(known) + total + 1):
        return None
    means, open_ = known.standing[completed], num_repeats[completed] + 1 < settings.seeds
    leader = int(np.argmin(means))
    if open_[leader]:
        chosen = leader
    else:
        least = means - pooled_deviation(known) / np.sqrt(known.num_seeds[completed])
        least[~open_] = math.inf
        chosen = int(np.argmin(least))
        if not least[chosen] < means[leader]:
            return None
    row = completed[chosen]
    return Repeat(individual_id=int(known.ids[row]), number=int(num_repeats[row]) + 1)


def pooled_deviation(known: Individuals) -> float:
    """The standard deviation of one measurement, over all that have two or more."""
    more = known.num_seeds - 1.0
    repeated = more > 0
    if not repeated.any():
        return 0.0
    variances = known.deviation[repeated] ** 2
    return math.sqrt(float(more[repeated] @ variances) / float(more[repeated].sum()))


def seed_of(first: int, number: int) -> int:
    """The training seed of a repeat, from that of the first one: the same wherever it is asked."""
    digest = hashlib.sha256(f"{first}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
