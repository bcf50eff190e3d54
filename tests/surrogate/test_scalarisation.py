"""Several objectives as one number."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np

from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.pareto import pareto_front
from oialr_search.storage.records import Known, Status
from oialr_search.surrogate.individuals import Individuals
from oialr_search.surrogate.scalarisation import SUM_SHARE, Scalarisation, drawn_scalarisation

X = Hyperparameter(name="x", kind="float", low=0.0, high=1.0)


def known(number: int, *objectives: float, violation: float = 0.0) -> Known:
    return Known(
        individual_id=number,
        island=0,
        status=Status.COMPLETED,
        genes={"x": 0.5},
        fitness=objectives[0],
        objectives=objectives,
        violation=violation,
    )


def test_it_is_the_augmented_chebyshev_distance() -> None:
    aim = Scalarisation(
        ideal=np.array([1.0, 10.0]), spans=np.array([2.0, 5.0]), weights=np.array([0.25, 0.75])
    )
    (value,) = aim.of(np.array([[5.0, 12.5]]))
    assert math.isclose(value, 0.5 + SUM_SHARE * (0.5 + 0.375))


def test_it_is_drawn_over_the_front_of_those_that_meet_the_constraints() -> None:
    draw = random.Random(1)
    points = [(draw.random(), 100.0 * draw.random()) for _ in range(50)]
    individuals = Individuals((X,), [known(n, *point) for n, point in enumerate(points, 1)])
    individuals.take([known(90, -5.0, -5.0, violation=0.1)])
    front = np.array([points[n] for n in pareto_front(points)])
    aims = [drawn_scalarisation(individuals, random.Random(n)) for n in range(200)]
    for aim in aims:
        assert np.allclose(aim.ideal, front.min(axis=0))
        assert np.allclose(aim.spans, np.ptp(front, axis=0))
        assert math.isclose(aim.weights.sum(), 1.0)
    shares = np.array([aim.weights[0] for aim in aims])
    assert np.allclose(np.quantile(shares, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.1)


def test_where_nothing_or_one_is_measured_it_is_a_number_all_the_same() -> None:
    running = Known(individual_id=1, island=0, status=Status.RUNNING, genes={"x": 1}, fitness=None)
    pruned = replace(known(2, 1.0, 3.0), status=Status.PRUNED, fitness=None)
    for others in ([pruned], [known(2, 1.0, 3.0)], [known(2, 1.0, 3.0), known(3, 1.0, 3.0)]):
        individuals = Individuals((X,), [running, *others])
        aim = drawn_scalarisation(individuals, random.Random(0))
        seen = individuals.aiming_at(aim.of(individuals.objectives))
        assert np.isnan(seen.fitness[0])
        assert np.isfinite(seen.modelled[1:]).all()


def test_what_a_pruned_one_had_come_to_counts_in_the_model_only() -> None:
    pruned = Known(
        individual_id=2,
        island=0,
        status=Status.PRUNED,
        genes={"x": 0.1},
        fitness=None,
        objectives=[2.0, 3.0],
    )
    individuals = Individuals((X,), [known(1, 1.0, 3.0), pruned])
    seen = individuals.aiming_at(np.array([7.0, 8.0]))
    assert seen.fitness.tolist() == [7.0, math.inf]
    assert seen.modelled.tolist() == [7.0, 8.0]
    assert individuals.fitness.tolist() == [1.0, math.inf]


def test_who_breaks_a_constraint_stands_behind_all_others() -> None:
    values = {1: (3.0, 0.0), 2: (-9.0, 0.1), 3: (-10.0, 0.5), 4: (5.0, 0.0)}
    individuals = Individuals(
        (X,), [known(n, value, violation=violation) for n, (value, violation) in values.items()]
    )
    assert np.argsort(individuals.standing).tolist() == [0, 3, 1, 2]
