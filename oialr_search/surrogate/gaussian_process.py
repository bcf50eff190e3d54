"""A small Gaussian process over the unit cube: what a search expects of genes it has not tried.

Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), with its equations;
Matérn 5/2 with a length for each gene, and noise as a share of the signal (the nugget). Shapes: n
points, m new points, d genes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Log-normal priors. Typical distances grow with √d, and so do the lengths that explain a function.
LOG_LENGTH_MEAN, LOG_LENGTH_DEVIATION = math.log(0.3), 1.0
LOG_NUGGET_MEAN, LOG_NUGGET_DEVIATION = math.log(1e-3), 1.5
LOG_LENGTH_BOUNDS = (math.log(0.02), math.log(50.0))
LOG_NUGGET_BOUNDS = (math.log(1e-6), math.log(1.0))
ITERATIONS = 10


@dataclass(frozen=True, kw_only=True)
class GaussianProcess:
    """The posterior given n points; the prior mean of values is 0."""

    points: Array
    """(n, d)"""
    categorical: Mask
    """(d,): are two values of the gene equal or not, and nothing between?"""
    lengths: Array
    """(d,)"""
    nugget: float
    variance: float
    factor: Array
    """(n, n): lower Cholesky factor of the correlations and the nugget."""
    weights: Array
    """(n,): inverse correlations × values."""

    def mean(self, points: Array) -> Array:
        """(m,): posterior means at points (m, d)."""
        return self._correlations(points) @ self.weights  # Eq. (2.25)

    def posterior(self, points: Array) -> tuple[Array, Array]:
        """Means (m,) and standard deviations (m,) of the noiseless values at points (m, d)."""
        across = self._correlations(points)
        solved = solve_triangular(self.factor, across.T, lower=True, check_finite=False)
        unexplained = np.maximum(1.0 - np.einsum("nm,nm->m", solved, solved), 1e-12)  # Eq. (2.26)
        return across @ self.weights, np.sqrt(self.variance * unexplained)

    def believing(self, points: Array) -> GaussianProcess:
        """As if m values more had come out at their posterior means: no mean changes by it."""
        across = self._correlations(points)
        n, m = len(self.points), len(points)
        solved = solve_triangular(self.factor, across.T, lower=True, check_finite=False)
        own = _matern(_squared_differences(points, points, self.categorical) @ self.lengths**-2)
        own[np.diag_indices(m)] += self.nugget
        factor = np.zeros((n + m, n + m))
        factor[:n, :n], factor[n:, :n] = self.factor, solved.T
        factor[n:, n:] = cholesky(own - solved.T @ solved, lower=True, check_finite=False)
        return replace(
            self,
            points=np.vstack([self.points, points]),
            factor=factor,
            weights=np.append(self.weights, np.zeros(m)),
        )

    def _correlations(self, points: Array) -> Array:
        differences = _squared_differences(points, self.points, self.categorical)
        return _matern(differences @ self.lengths**-2)


def fit(
    points: Array,
    values: Array,
    categorical: Mask,
    *,
    spread: Array | float = 1.0,
    measurements: Array | float = 1.0,
) -> GaussianProcess:
    """Lengths and nugget of points (n, d) and values (n,): the most probable, roughly.

    A few steps of L-BFGS on the logarithms; the variance at its best for the rest. `spread`: the
    width of each gene's part, (d,), that the values vary in; lengths are expected in proportion.
    `measurements`: so many each value is the mean of, (n,); the nugget is the noise of one.
    """
    n, d = points.shape
    shares = np.broadcast_to(1.0 / np.asarray(measurements), n)
    scaled = points / spread
    differences = _squared_differences(scaled, scaled, categorical)
    prior = np.append(np.full(d, LOG_LENGTH_MEAN + 0.5 * math.log(d)), LOG_NUGGET_MEAN)
    deviation = np.append(np.full(d, LOG_LENGTH_DEVIATION), LOG_NUGGET_DEVIATION)
    diagonal = np.diag_indices(n)

    def factorised(logs: Array) -> tuple[Array, Array, Array, float]:
        squared = differences @ np.exp(-2.0 * logs[:d])
        correlations = _matern(squared)
        correlations[diagonal] += math.exp(logs[d]) * shares
        factor = cholesky(correlations, lower=True, overwrite_a=True, check_finite=False)
        weights = cho_solve((factor, True), values, check_finite=False)
        return squared, factor, weights, max(float(values @ weights) / n, 1e-12)

    def negative_log_posterior(logs: Array) -> tuple[float, Array]:
        squared, factor, weights, variance = factorised(logs)
        off = (logs - prior) / deviation
        value = np.log(factor[diagonal]).sum() + 0.5 * (n * math.log(variance) + off @ off)
        inverse, _ = dpotri(factor, lower=True)  # the lower half; its double stands for both
        inner = np.tril(inverse - np.outer(weights, weights) / variance)  # Eq. (5.9)
        noise = 0.5 * math.exp(logs[d]) * (inner[diagonal] @ shares)
        root = np.sqrt(5.0 * squared)
        slopes = inner * ((5.0 / 3.0) * (1.0 + root) * np.exp(-root))
        lengths = np.exp(-2.0 * logs[:d]) * np.tensordot(slopes, differences, 2)
        return value, np.append(lengths, noise) + off / deviation

    found = minimize(
        negative_log_posterior,
        prior,
        jac=True,
        method="L-BFGS-B",
        bounds=[LOG_LENGTH_BOUNDS] * d + [LOG_NUGGET_BOUNDS],
        options={"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS},
    )
    _, factor, weights, variance = factorised(found.x)
    return GaussianProcess(
        points=points,
        categorical=categorical,
        lengths=np.exp(found.x[:d]) * spread,
        nugget=math.exp(found.x[d]),
        variance=variance,
        factor=factor,
        weights=weights,
    )


def _squared_differences(a: Array, b: Array, categorical: Mask) -> Array:
    """(m, n, d) of points (m, d) and (n, d), gene by gene; 0 or 1 for categories."""
    differences = a[:, None, :] - b[None, :, :]
    squared: Array = np.where(categorical, differences != 0.0, differences**2)
    return squared


def _matern(squared: Array) -> Array:
    """Correlations at squared distances, both of any shape; Eq. (4.17), ν = 5/2."""
    root = np.sqrt(5.0 * squared)
    correlations: Array = (1.0 + root + root**2 / 3.0) * np.exp(-root)
    return correlations
