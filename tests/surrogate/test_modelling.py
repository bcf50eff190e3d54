"""What the model of a search is made of."""

from __future__ import annotations

import math
import random

import numpy as np

from oialr_search.launch.engines.screened import by_promise
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.storage.records import Known, Status
from oialr_search.surrogate.individuals import Individuals
from oialr_search.surrogate.modelling import Modelling

X = Hyperparameter(name="x", kind="float", low=0.0, high=1.0)


def known(number: int, x: float, **changes: object) -> Known:
    values: dict[str, object] = {"status": Status.COMPLETED, "fitness": x}
    return Known(individual_id=number, island=0, genes={"x": x}, **values | changes)  # type: ignore[arg-type]


def test_a_pruned_one_counts_as_what_it_had_come_to() -> None:
    """And not as an individual that has a fitness; one that came to nothing is the worst."""
    of_all = [known(n, n / 10) for n in range(10)]
    pruned = [
        known(10, 0.05, status=Status.PRUNED, fitness=None, objectives=[0.06, 7.0]),
        known(11, 0.95, status=Status.PRUNED, fitness=None),
    ]
    individuals = Individuals((X,), [*of_all, *pruned])
    assert individuals.fitness.tolist()[-2:] == [math.inf, math.inf]
    assert individuals.modelled.tolist()[-2:] == [0.06, math.inf]
    individuals.take([known(11, 0.95)])
    assert individuals.modelled.tolist()[-2:] == [0.06, 0.95]
    means = Modelling((X,)).of(individuals, random.Random(0)).fitness.mean(individuals.genes)
    assert means[0] < means[10] < means[1]


def constrained(x: float, number: int) -> Known:
    """The fitness falls with x, which may be 0.6 at most; the more, the longer it takes."""
    excess = 10.0 * (x - 0.6)
    return known(
        number,
        x,
        fitness=-x,
        constraints=[excess],
        violation=max(excess, 0.0),
        cost_s=math.exp(3.0 * x),
    )


def test_where_a_constraint_is_met_and_what_it_costs_is_learned() -> None:
    individuals = Individuals((X,), [constrained(n / 20, n + 1) for n in range(21)])
    model = Modelling((X,), cost_aware=True).of(individuals, random.Random(0))
    points = np.array([[0.3], [0.55], [0.65], [0.9]])
    likely = np.exp(model.log_feasibility(points))
    assert (likely[:2] > 0.9).all()
    assert (likely[2:] < 0.1).all()
    assert model.cost is not None
    ((low, high),) = [model.cost.mean(np.array([[0.2], [0.8]]))]
    assert math.isclose(high - low, 3.0 * 0.6, rel_tol=0.05)
    best = by_promise(model, np.empty((0, 1)), np.array([[0.1], [0.95], [0.59], [0.4]]))
    assert best.tolist()[0] == 2
    assert best.tolist()[-1] == 1 or best.tolist()[-1] == 0


def test_while_nobody_meets_the_constraints_these_decide() -> None:
    above = [constrained(x, n) for n, x in enumerate((0.7, 0.75, 0.8, 0.85, 0.9, 1.0), start=1)]
    model = Modelling((X,)).of(Individuals((X,), above), random.Random(0))
    candidates = np.array([[0.95], [0.62], [0.8]])
    assert by_promise(model, np.empty((0, 1)), candidates).tolist() == [1, 2, 0]


def test_of_equal_promise_the_cheaper_is_tried_first() -> None:
    def costly(number: int, x: float) -> Known:
        return known(number, x, fitness=(x - 0.5) ** 2, cost_s=math.exp(5.0 * x))

    individuals = Individuals((X,), [costly(n + 1, n / 8) for n in range(9) if n != 4])
    candidates = np.array([[0.55], [0.45]])
    nobody = np.empty((0, 1))
    model = Modelling((X,), cost_aware=True).of(individuals, random.Random(0))
    assert by_promise(model, nobody, candidates).tolist() == [1, 0]
