"""The Gaussian process against its formulas written out, point by point."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from oialr_search.surrogate import gaussian_process
from oialr_search.surrogate.gaussian_process import Array, GaussianProcess, fit

CATEGORICAL = np.array([False, False, True])


def data(number: int, seed: int = 0) -> tuple[Array, Array]:
    """Points (number, 3), the last gene a category, and values (number,)."""
    rng = np.random.default_rng(seed)
    points = rng.random((number, 3))
    points[:, 2] = (np.floor(3 * points[:, 2]) + 0.5) / 3
    values = np.sin(5 * points[:, 0]) + (points[:, 2] > 0.5) + 0.01 * rng.standard_normal(number)
    return points, (values - values.mean()) / values.std()


def correlation(a: Array, b: Array, lengths: Array) -> float:
    """Rasmussen and Williams, Eq. (4.17) with ν = 5/2."""
    squared = sum(
        (float(x != y) if category else (x - y) ** 2) / length**2
        for x, y, category, length in zip(a, b, CATEGORICAL, lengths, strict=True)
    )
    r = math.sqrt(squared)
    return (1 + math.sqrt(5) * r + 5 * r**2 / 3) * math.exp(-math.sqrt(5) * r)


def plain_posterior(model: GaussianProcess, values: Array, at: Array) -> tuple[float, float]:
    """Eqs. (2.25) and (2.26)."""
    points, number = model.points, len(model.points)
    matrix = np.array([[correlation(a, b, model.lengths) for b in points] for a in points])
    inverse = np.linalg.inv(matrix + model.nugget * np.eye(number))
    across = np.array([correlation(at, b, model.lengths) for b in points])
    variance = model.variance * (1.0 - across @ inverse @ across)
    return float(across @ inverse @ values), math.sqrt(variance)


def test_the_posterior_is_the_one_of_the_book() -> None:
    points, values = data(25)
    model = fit(points, values, CATEGORICAL)
    new, _ = data(5, seed=1)
    means, deviations = model.posterior(new)
    assert model.mean(new) == pytest.approx(means)
    for at, mean, deviation in zip(new, means, deviations, strict=True):
        assert plain_posterior(model, values, at) == pytest.approx((mean, deviation), rel=1e-4)


def test_it_predicts_and_knows_which_genes_matter() -> None:
    points, values = data(60)
    model = fit(points[:40], values[:40], CATEGORICAL)
    assert np.corrcoef(model.mean(points[40:]), values[40:])[0, 1] > 0.98
    assert model.lengths[1] > 5 * model.lengths[0]


def test_what_happens_in_a_small_part_is_as_clear_as_in_the_whole_cube() -> None:
    points, values = data(40)
    spread = np.array([1e-3, 1e-3, 1.0])
    whole, part = fit(points, values, CATEGORICAL), fit(points * spread, values, CATEGORICAL,
                                                        spread=spread)  # fmt: skip
    new, _ = data(5, seed=1)
    assert part.lengths == pytest.approx(whole.lengths * spread)
    for mine, theirs in zip(part.posterior(new * spread), whole.posterior(new), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_mean_of_many_measurements_is_believed_more_than_one() -> None:
    """Each as much as it would be if its measurements were points of their own."""
    points, values = data(30)
    values = values + np.random.default_rng(3).normal(0.0, 0.5, 30)
    alone = fit(points, values, CATEGORICAL)
    measurements = np.ones(30)
    measurements[0] = 1000.0
    surer = fit(points, values, CATEGORICAL, measurements=measurements)
    assert abs(surer.mean(points)[0] - values[0]) < 0.1 * abs(alone.mean(points)[0] - values[0])
    assert surer.posterior(points)[1][0] < 0.2 * alone.posterior(points)[1][0]


def test_its_gradient_is_the_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    minimised = []

    def caught(function, start, **settings):  # type: ignore[no-untyped-def]
        minimised.append((function, start))
        return minimize(function, start, **settings)

    monkeypatch.setattr(gaussian_process, "minimize", caught)
    fit(*data(20), CATEGORICAL, measurements=np.arange(1.0, 21.0))
    [(function, start)] = minimised
    at = start + 0.2
    for index, slope in enumerate(function(at)[1]):
        step = 1e-5 * np.eye(len(at))[index]
        difference = (function(at + step)[0] - function(at - step)[0]) / 2e-5
        assert slope == pytest.approx(difference, rel=1e-5, abs=1e-6)


def test_believing_changes_no_mean_and_makes_surer() -> None:
    points, values = data(25)
    model = fit(points, values, CATEGORICAL)
    new, _ = data(30, seed=2)
    believing = model.believing(new[:4])
    means, before = model.posterior(new)
    again, after = believing.posterior(new)
    assert again == pytest.approx(means)
    assert (after <= before + 1e-9).all()
    assert after[:4].max() < 0.2 * before[:4].max()


def test_points_that_repeat_and_values_that_do_not_differ_are_borne() -> None:
    points = np.full((30, 3), 0.5)
    model = fit(points, np.zeros(30), CATEGORICAL)
    means, deviations = model.believing(points[:3]).posterior(points)
    assert means == pytest.approx(0.0)
    assert np.isfinite(deviations).all()
