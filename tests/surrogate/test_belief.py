"""A belief over the cube: densities and quantiles belong together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.prior import Prior
from oialr_search.surrogate.belief import SURE, Belief

LR = Hyperparameter(name="lr", kind="float", low=1e-4, high=1e-1, scale="log")
DECAY = Hyperparameter(name="decay", kind="float", low=0.0, high=1.0)
NORM = Hyperparameter(name="norm", kind="choice", choices=("layer", "batch", "none"))
BELIEF = Belief(
    (LR, DECAY, NORM),
    {"lr": Prior(around=1e-3, factor=2.0), "norm": Prior(around="batch", probability=0.8)},
)


def test_quantiles_are_distributed_as_believed() -> None:
    points = BELIEF.quantiles(np.random.default_rng(0).random((20_000, 3)))
    logs = np.log([LR.decode(gene) for gene in points[:, 0]])
    assert np.exp(np.median(logs)) == pytest.approx(1e-3, rel=0.05)
    assert (np.abs(logs - math.log(1e-3)) < math.log(2.0)).mean() == pytest.approx(0.683, abs=0.01)
    assert points[:, 1].mean() == pytest.approx(0.5, abs=0.01)
    assert points[:, 1].std() == pytest.approx(math.sqrt(1 / 12), abs=0.01)
    norms = [NORM.decode(gene) for gene in points[:, 2]]
    assert norms.count("batch") / len(norms) == pytest.approx(0.8, abs=0.01)
    assert norms.count("none") / len(norms) == pytest.approx(0.1, abs=0.01)


def test_quantiles_stay_in_the_cube() -> None:
    at_the_end = Belief((LR,), {"lr": Prior(around=1e-1, factor=5.0)})
    points = at_the_end.quantiles(np.array([[0.0], [0.5], [1.0]]))
    assert points[0, 0] == pytest.approx(0.0, abs=1e-3)
    assert 0.5 < points[1, 0] < points[2, 0] <= 1.0


def test_the_density_is_one_over_the_cube_and_never_nothing() -> None:
    points = np.random.default_rng(1).random((200_000, 3))
    densities = np.exp(BELIEF.log_density(points))
    assert densities.mean() == pytest.approx(1.0, abs=0.02)
    assert densities.min() >= (1.0 - SURE) ** 2
    at_the_end = Belief((LR,), {"lr": Prior(around=1e-1, factor=5.0)})
    assert np.exp(at_the_end.log_density(points[:, :1])).mean() == pytest.approx(1.0, abs=0.02)
    best = BELIEF.log_density(np.array([[LR.encode(1e-3), 0.3, 0.5]]))
    assert best[0] >= BELIEF.log_density(points).max() - 1e-3
