"""A person's belief over the unit cube, gene by gene: `search.prior` as densities and quantiles.

A number is normally distributed over its gene, cut off at the ends of its range. Shapes: m points,
d genes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.prior import Prior

Array = NDArray[np.float64]

SURE = 0.75
"""How far a belief is believed: the rest is uniform, so that no region is out of question."""


class Belief:
    """Densities relative to the uniform one, and quantiles; genes without a prior are uniform."""

    def __init__(
        self, hyperparameters: Sequence[Hyperparameter], priors: Mapping[str, Prior]
    ) -> None:
        self._known = [
            (column, h, priors[h.name])
            for column, h in enumerate(hyperparameters)
            if h.name in priors
        ]

    def quantiles(self, points: Array) -> Array:
        """(m, d): points (m, d) of a uniform distribution as they lie in the believed one."""
        moved = points.copy()
        for column, h, prior in self._known:
            if h.choices is not None:
                ends = np.cumsum(_probabilities(h, prior))
                choices = np.minimum(np.searchsorted(ends, points[:, column]), len(ends) - 1)
                moved[:, column] = (choices + 0.5) / len(ends)
            else:
                centre, deviation = _normal(h, prior)
                below, above = ndtr(-centre / deviation), ndtr((1.0 - centre) / deviation)
                shares = below + points[:, column] * (above - below)
                moved[:, column] = np.clip(centre + deviation * ndtri(shares), 0.0, 1.0)
        return moved

    def log_density(self, points: Array) -> Array:
        """(m,): of points (m, d), relative to the uniform distribution; bounded below."""
        logs = np.zeros(len(points))
        for column, h, prior in self._known:
            genes = points[:, column]
            if h.choices is not None:
                number = len(h.choices)
                rows = np.minimum((genes * number).astype(int), number - 1)
                density = _probabilities(h, prior)[rows] * number
            else:
                centre, deviation = _normal(h, prior)
                mass = ndtr((1.0 - centre) / deviation) - ndtr(-centre / deviation)
                z = (genes - centre) / deviation
                density = np.exp(-0.5 * z**2) / (math.sqrt(2.0 * math.pi) * deviation * mass)
            logs += np.log(SURE * density + 1.0 - SURE)
        return logs


def _normal(h: Hyperparameter, prior: Prior) -> tuple[float, float]:
    """Centre and standard deviation, in parts of the gene's range."""
    low, high = h.bounds
    if h.scale == "log":
        assert prior.factor is not None
        return h.encode(prior.around), math.log(prior.factor) / math.log(high / low)
    assert prior.within is not None
    return h.encode(prior.around), prior.within / (high - low)


def _probabilities(h: Hyperparameter, prior: Prior) -> Array:
    """(choices,)"""
    assert h.choices is not None
    assert prior.probability is not None
    others = (1.0 - prior.probability) / (len(h.choices) - 1)
    probabilities = np.full(len(h.choices), others)
    probabilities[h.choices.index(prior.around)] = prior.probability
    return probabilities
