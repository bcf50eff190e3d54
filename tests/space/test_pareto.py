"""Fronts, crowding, hypervolume, the knee: beside plain slow references."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest

from oialr_search.space.pareto import (
    best_spread,
    crowding_distances,
    hypervolume,
    knee,
    pareto_front,
)

Points = list[tuple[float, ...]]


def points(number: int, objectives: int, seed: int) -> Points:
    draw = random.Random(seed)
    return [tuple(float(draw.randrange(6)) for _ in range(objectives)) for _ in range(number)]


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_fronts_come_one_after_the_other(objectives: int, seed: int) -> None:
    found = points(30, objectives, seed)
    order, left = best_spread(found), set(range(30))
    assert sorted(order) == list(range(30))
    while left:
        front = {i for i in left if not any(dominates(found[j], found[i]) for j in left)}
        assert set(order[: len(front)]) == front
        rest = sorted(left)
        assert {rest[n] for n in pareto_front([found[i] for i in rest])} == front
        order, left = order[len(front) :], left - front


def test_on_a_front_the_ends_come_first_and_the_crowded_last() -> None:
    front = [(0.0, 10.0), (1.0, 8.9), (1.1, 8.8), (1.2, 8.7), (5.0, 4.0), (10.0, 0.0)]
    assert crowding_distances(front)[[0, 5]].tolist() == [np.inf, np.inf]
    assert crowding_distances(front)[4] == pytest.approx((8.8 + 8.7) / 10)
    assert best_spread(front) == [0, 5, 4, 3, 1, 2]
    assert best_spread([]) == []
    assert best_spread([(1.0, 1.0)] * 3) == [0, 2, 1]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_the_hypervolume_is_the_cells_that_are_dominated(objectives: int) -> None:
    for seed in range(5):
        found = points(12, objectives, seed)
        corner = [5.0] * objectives
        cells = itertools.product(*(range(5) for _ in range(objectives)))
        dominated = sum(
            any(all(x <= cell[i] for i, x in enumerate(point)) for point in found) for cell in cells
        )
        assert hypervolume(found, corner) == dominated
    assert hypervolume([], [1.0, 1.0]) == 0.0
    assert hypervolume([(2.0, 0.0), (0.5, 0.25)], [1.0, 1.0]) == 0.375


def test_the_knee_is_the_farthest_below_the_line_between_the_ends() -> None:
    front = [(0.0, 100.0), (0.2, 20.0), (0.5, 10.0), (1.0, 0.0)]
    ends = np.array(front[0]), np.array(front[-1])
    along = (ends[1] - ends[0]) / [1.0, 100.0]
    away = [
        abs(np.linalg.det([along, (np.array(point) - ends[0]) / [1.0, 100.0]])) for point in front
    ]
    assert knee(front) == int(np.argmax(away)) == 1
    assert knee([(3.0, 4.0)]) == 0
    assert knee([(1.0, 2.0), (1.0, 2.0)]) == 0
