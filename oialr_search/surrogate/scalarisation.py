"""Several objectives as one, another one for each proposal (Knowles 2006, "ParEGO").

Shapes: m points, k objectives.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from oialr_search.space.pareto import pareto_front
from oialr_search.surrogate.individuals import Array, Individuals

SUM_SHARE = 0.05  # ρ: beside the largest of the weighted objectives


@dataclass(frozen=True, kw_only=True)
class Scalarisation:
    """One number of k objectives: the augmented Chebyshev distance."""

    ideal: Array
    """(k,): the least of each on the front."""
    spans: Array
    """(k,): how far the front extends."""
    weights: Array
    """(k,)"""

    def of(self, objectives: Array) -> Array:
        """(m,): the less, the better, of objectives (m, k)."""
        weighted = self.weights * (objectives - self.ideal) / self.spans
        found: Array = weighted.max(axis=1) + SUM_SHARE * weighted.sum(axis=1)
        return found


def drawn_scalarisation(known: Individuals, rng: random.Random) -> Scalarisation:
    """One with weights drawn uniformly, for objectives as they lie on the known front."""
    (measured,) = np.isfinite(known.fitness).nonzero()
    if len(measured):
        measured = measured[known.violation[measured] == known.violation[measured].min()]
    objectives = known.objectives[measured]
    front = objectives[pareto_front(objectives)]
    k = known.objectives.shape[1]
    ideal = front.min(axis=0) if len(front) else np.zeros(k)
    spans = np.ptp(front, axis=0) if len(front) else np.zeros(k)
    widest = np.ptp(objectives, axis=0) if len(front) else np.zeros(k)
    spans = np.where(spans > 0.0, spans, np.where(widest > 0.0, widest, 1.0))
    drawn = np.array([rng.expovariate(1.0) for _ in range(k)])
    return Scalarisation(ideal=ideal, spans=spans, weights=drawn / drawn.sum())
