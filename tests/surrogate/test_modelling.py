"""What the model of a search is made of."""

from __future__ import annotations

import math
import random

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
