"""Several objectives as one, another one for each proposal (Knowles 2006, "ParEGO").

Shapes: m points, k objectives.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from oialr_search.surrogate.individuals import Array, Individuals

SUM_SHARE = 0.05  # ρ: beside the largest of the weighted objectives


@dataclass(frozen=True, kw_only=True)
class Scalarisation:
    """One number of k objectives: the augmented Chebyshev distance."""

    ideal: Array
    """(k,): the least of each."""
    spans: Array
    """(k,): how far the ends of the front are apart."""
    weights: Array
    """(k,)"""

    def of(self, objectives: Array) -> Array:
        """(m,): the less, the better, of objectives (m, k)."""
        weighted = self.weights * (objectives - self.ideal) / self.spans
        found: Array = weighted.max(axis=1) + SUM_SHARE * weighted.sum(axis=1)
        return found


def drawn_scalarisation(known: Individuals, rng: random.Random) -> Scalarisation:
    """One with weights drawn uniformly, for objectives as they lie on the known front."""
    k = known.objectives.shape[1]
    (measured,) = np.isfinite(known.fitness).nonzero()
    if len(measured):
        measured = measured[known.violation[measured] == known.violation[measured].min()]
    objectives = known.objectives[measured] if len(measured) else np.zeros((1, k))
    ends = _ends(objectives)
    spans, widest = np.ptp(ends, axis=0), np.ptp(objectives, axis=0)
    spans = np.where(spans > 0.0, spans, widest)
    drawn = np.array([rng.expovariate(1.0) for _ in range(k)])
    return Scalarisation(
        ideal=ends.min(axis=0),
        spans=np.where(spans > 0.0, spans, 1.0),
        weights=drawn / drawn.sum(),
    )


def _ends(objectives: Array) -> Array:
    """(k, k): the best in each objective, of (m, k); with two objectives the ends of the front."""
    ends = []
    for column in objectives.T:
        best = objectives[column == column.min()]
        ends.append(best[best.sum(axis=1).argmin()])
    return np.array(ends)
