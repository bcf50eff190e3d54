"""What constraints, several objectives and costs make of the choice of the next individual.

Shapes: n individuals, m points, d genes, k objectives, c constraints.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from oialr_search.space.pareto import pareto_front
from oialr_search.surrogate.gaussian_process import GaussianProcess
from oialr_search.surrogate.individuals import Array, Individuals

SUM_SHARE = 0.05  # ρ: beside the largest of the weighted objectives


@dataclass(frozen=True, kw_only=True)
class Scalarisation:
    """One number of k objectives: the augmented Chebyshev distance (Knowles 2006, "ParEGO")."""

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


def excesses_to_model(excesses: Array) -> Array:
    """(n,): of one constraint, so that the boundary stays at 0 and no excess is far away."""
    middle = float(np.median(np.abs(excesses)))
    found: Array = np.arcsinh(excesses / (middle if middle > 0.0 else 1.0))
    return found


def log_feasibility(models: Sequence[GaussianProcess], points: Array) -> Array:
    """(m,): logarithm of the probability that points (m, d) meet all c constraints."""
    logs = np.zeros(len(points))
    for model in models:
        mean, deviation = model.posterior(points)
        logs += log_ndtr(-mean / deviation)
    return logs


FEASIBLE = math.log(0.5)
"""Who meets all constraints at least as likely as not."""
