"""What `screened` proposes, and the arrays that it looks at."""

from __future__ import annotations

import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oialr_search.launch.engines import (
    Engine,
    Knowledge,
    Member,
    Offspring,
    engine_for,
)
from oialr_search.launch.population import Population
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.prior import Prior
from oialr_search.space.search_file import SearchSettings
from oialr_search.storage.records import Known, Status
from oialr_search.surrogate import modelling
from oialr_search.surrogate.individuals import Individuals, middle

LR = Hyperparameter(name="lr", kind="float", low=1e-4, high=1e-1, scale="log")
DECAY = Hyperparameter(name="decay", kind="float", low=0.0, high=1.0)
EPOCHS = Hyperparameter(name="epochs", kind="int", low=1, high=40, scale="log")
NORM = Hyperparameter(name="norm", kind="choice", choices=("layer", "batch", "none"))
SPACE = (LR, DECAY, EPOCHS, NORM)

Fitness = Callable[[Mapping[str, Any]], float | None]


def valley(values: Mapping[str, Any]) -> float:
    lr, epochs = math.log10(values["lr"] / 4e-3), math.log10(values["epochs"] / 11)
    return lr**2 + (values["decay"] - 0.6) ** 2 + epochs**2 + 0.3 * (values["norm"] != "batch")


def engine(
    name: str = "screened",
    space: Sequence[Hyperparameter] = SPACE,
    prior: Mapping[str, Prior] | None = None,
) -> Engine:
    settings = SearchSettings(
        name="x", metric="m", evaluations=1, islands=1, engine=name, prior=prior or {}
    )
    return engine_for(space, settings)


def knowledge(
    individuals: Sequence[Known], space: Sequence[Hyperparameter] = SPACE, num_ranks: int = 1
) -> Knowledge:
    population = Population(2 * (len(space) + 4))
    for known in individuals:
        if known.fitness is not None:
            population.add(
                Member(individual_id=known.individual_id, genes=known.genes, fitness=known.fitness)
            )
    return Knowledge(
        island=0,
        population=population.members,
        population_size=population.size,
        individuals=Individuals(space, individuals),
        number=len(individuals),
        num_ranks=num_ranks,
    )


def known(individual_id: int, genes: Mapping[str, float], fitness: float | None) -> Known:
    status = Status.FAILED if fitness is None else Status.COMPLETED
    return Known(
        individual_id=individual_id, island=0, status=status, genes=dict(genes), fitness=fitness
    )


def search(
    fitness: Fitness, number: int, seed: int = 0, name: str = "screened",
    space: Sequence[Hyperparameter] = SPACE, prior: Mapping[str, Prior] | None = None,
) -> tuple[list[Offspring], list[Known]]:  # fmt: skip
    """One rank after the other's end."""
    proposals, individuals, proposer = [], list[Known](), engine(name, space, prior)
    for n in range(number):
        offspring = proposer.propose(knowledge(individuals, space), random.Random(f"{seed}/{n}"))
        values = {h.name: h.decode(offspring.genes[h.name]) for h in space}
        individuals.append(known(n + 1, offspring.genes, fitness(values)))
        proposals.append(offspring)
    return proposals, individuals


def drawn(number: int, fitness: Fitness = valley) -> list[Known]:
    """Individuals drawn uniformly."""
    rng, individuals = random.Random(number), []
    for n in range(1, number + 1):
        genes = {h.name: rng.random() for h in SPACE}
        values = {h.name: h.decode(genes[h.name]) for h in SPACE}
        individuals.append(known(n, genes, fitness(values)))
    return individuals


@pytest.mark.slow
def test_it_finds_in_30_evaluations_what_random_search_does_not_in_300() -> None:
    def reached(name: str, number: int) -> float:
        searches = [search(valley, number, seed, name)[1] for seed in range(5)]
        return statistics.median(min(k.fitness or 0.0 for k in found) for found in searches)

    assert reached("screened", 30) < 0.5 * reached("random", 300)


@pytest.mark.parametrize(("num_ranks", "points"), [(1, 12), (32, 32)])
def test_it_begins_with_one_latin_hypercube_over_all_ranks(num_ranks: int, points: int) -> None:
    start = [
        engine().propose(
            replace(knowledge([], num_ranks=num_ranks), number=n), random.Random(n)
        )
        for n in range(points)
    ]  # fmt: skip
    assert {offspring.origin for offspring in start} == {"start"}
    for name in ("lr", "decay"):
        parts = sorted(int(points * offspring.genes[name]) for offspring in start)
        assert parts == list(range(points))


def test_no_configuration_is_tried_twice() -> None:
    """Running and failed ones neither; when all were tried, it goes on nevertheless."""
    space = (
        replace(EPOCHS, high=4, scale="linear"),
        NORM,
        Hyperparameter(name="bias", kind="bool", choices=(False, True)),
    )

    def fitness(values: Mapping[str, Any]) -> float | None:
        return None if values["norm"] == "none" else values["epochs"] + values["bias"]

    _, individuals = search(fitness, 26, space=space)
    tried = [tuple(h.decode(i.genes[h.name]) for h in space) for i in individuals]
    assert len(set(tried[:22])) == 22
    assert len(tried) == 26

    running = [replace(i, status=Status.RUNNING, fitness=None) for i in individuals[18:22]]
    told = knowledge([*individuals[:18], *running], space)
    for n in range(30):
        genes = engine(space=space).propose(told, random.Random(n)).genes
        assert tuple(h.decode(genes[h.name]) for h in space) not in tried[:22]


def test_where_evaluations_fail_it_goes_seldom() -> None:
    def fails(values: Mapping[str, Any]) -> float | None:
        return None if values["lr"] > 1e-2 else valley(values)

    _, individuals = search(fails, 60)
    assert sum(i.fitness is None for i in individuals[30:]) <= 6


def test_nobody_goes_where_another_is_on_its_way() -> None:
    """With the same random numbers and one running, the next one is elsewhere."""
    individuals = drawn(40)
    apart = 0
    for n in range(20):
        first = engine().propose(knowledge(individuals), random.Random(n))
        goes = replace(known(41, first.genes, None), status=Status.RUNNING)
        second = engine().propose(knowledge([*individuals, goes]), random.Random(n))
        apart += first.genes != second.genes
    assert apart == 20


def test_parents_are_of_the_population_and_drawn_ones_have_none() -> None:
    proposals, _ = search(valley, 60)
    origins = {offspring.origin for offspring in proposals}
    assert origins == {"start", "random", "bred", "screened"}
    for number, offspring in enumerate(proposals):
        assert all(parent <= number for parent in offspring.parents)
        if offspring.origin in ("start", "random"):
            assert offspring.parents == ()


@pytest.mark.parametrize("number", [90, 400])
def test_the_model_never_gets_more_than_a_hundred_the_best_among_them(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []

    def fit(points: Any, values: Any, categorical: Any, **spread: Any) -> Any:
        fitted.append((points, values))
        return original(points, values, categorical, **spread)

    original = modelling.fit
    monkeypatch.setattr(modelling, "fit", fit)
    told = knowledge(drawn(number))
    for n in range(10):
        engine().propose(told, random.Random(n))
    best = told.individuals.genes[np.argsort(told.individuals.fitness)[:20]]
    assert fitted
    for points, values in fitted:
        assert len(points) == len(values) == min(number, 100)
        assert {tuple(row) for row in best} <= {tuple(row) for row in points}
        assert len({tuple(row) for row in points}) == len(points)


def test_the_worst_quarter_counts_alike() -> None:
    fitness = np.array([3.0, 1.0, 2.0, 1e9, math.inf, 4.0, 5.0, 0.0])
    values = modelling.standardised(modelling.clipped_from_above(fitness, 0.75))
    assert values.mean() == pytest.approx(0.0)
    assert values.std() == pytest.approx(1.0)
    assert values[3] == values[4] == values[6] == values.max()
    assert list(np.argsort(values)[:5]) == [7, 1, 2, 0, 5]
    assert list(modelling.standardised(np.full(3, 2.5))) == [0.0, 0.0, 0.0]


def test_its_model_narrows_down_with_the_search() -> None:
    """Where all of the best are within 1e-4, it tells them apart as it does in the whole cube."""
    space, rng = (LR, DECAY), np.random.default_rng(0)
    optimum = np.array([0.41, 0.6])

    def fitness(points: Any) -> Any:
        return ((points - optimum) ** 2 @ [1.0, 5.0]).tolist()

    near = optimum + 1e-4 * rng.uniform(-1.0, 1.0, (40, 2))
    points = np.vstack([rng.random((300, 2)), near[:20]])
    individuals = [
        known(n, {"lr": lr, "decay": decay}, value)
        for n, ((lr, decay), value) in enumerate(zip(points, fitness(points), strict=True), 1)
    ]
    model = modelling.Modelling(space).of(Individuals(space, individuals), random.Random(0)).fitness
    assert np.corrcoef(model.mean(near[20:]), fitness(near[20:]))[0, 1] > 0.98


def test_it_computes_on_one_thread_whatever_the_machine_has() -> None:
    code = (
        "from oialr_search.launch.engines.screened import ScreenedEngine;"
        "from oialr_search.space.search_file import SearchSettings;"
        "from threadpoolctl import threadpool_info;"
        "ScreenedEngine((), SearchSettings(name='x', metric='m', evaluations=1, islands=1));"
        "print({i['num_threads'] for i in threadpool_info() if i['user_api'] == 'blas'})"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "3"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.stdout == "{1}\n", run.stderr


@given(st.floats(0.0, 1.0), st.integers(1, 5), st.integers(1, 200), st.booleans())
def test_a_middle_is_what_encoding_the_value_gives(
    gene: float, low: int, width: int, log: bool
) -> None:
    integer = Hyperparameter(
        name="n", kind="int", low=low, high=low + width, scale="log" if log else "linear"
    )
    for hyperparameter in (integer, NORM, LR):
        (at_middle,) = middle(hyperparameter, np.array([gene]))
        value = hyperparameter.decode(gene)
        assert at_middle == pytest.approx(hyperparameter.encode(value), abs=1e-9)
        assert hyperparameter.decode(hyperparameter.encode(value)) == pytest.approx(value)


def test_individuals_are_the_same_in_whichever_order_they_came() -> None:
    individuals = drawn(700)
    ended = Individuals(SPACE, individuals)
    shuffled, rng = Individuals(SPACE), random.Random(1)
    order = individuals[:]
    rng.shuffle(order)
    for first in range(0, 700, 90):
        part = order[first : first + 90]
        shuffled.take(replace(k, status=Status.RUNNING, fitness=None) for k in part)
    assert np.isnan(shuffled.fitness).all()
    rng.shuffle(order)
    shuffled.take(order)
    assert list(shuffled.ids) == list(ended.ids) == list(range(1, 701))
    assert np.array_equal(shuffled.genes, ended.genes)
    assert np.array_equal(shuffled.fitness, ended.fitness)
    assert ended.include(ended.genes[0])
    assert not ended.include(ended.genes[0] + 0.5)


class TestPrior:
    """A belief moves the search, and fades."""

    def test_the_start_has_points_more_where_the_best_is_expected(self) -> None:
        def started(proposer: Engine, number: int) -> list[float]:
            told = [replace(knowledge([]), number=n) for n in range(number)]
            found = [proposer.propose(each, random.Random(0)) for each in told]
            assert {offspring.origin for offspring in found} == {"start"}
            return [offspring.genes["decay"] for offspring in found]

        start = started(engine(prior={"decay": Prior(around=0.1, within=0.01)}), 16)
        believed = [start.pop(n) for n in (12, 8, 4, 0)]
        assert all(abs(gene - 0.1) < 0.04 for gene in believed)
        assert start == started(engine(), 12)

    @pytest.mark.parametrize(
        ("number", "slope", "heeded"), [(30, 1.0, True), (30, -1.0, False), (1001, 1.0, False)]
    )
    def test_it_counts_while_little_is_known_that_speaks_for_it(
        self, number: int, slope: float, heeded: bool
    ) -> None:
        told = knowledge(drawn(number, lambda values: slope * values["decay"]))
        prior = {"decay": Prior(around=0.1, within=0.1)}
        proposals = [
            [proposer.propose(told, random.Random(n)).genes for n in range(8)]
            for proposer in (engine(), engine(prior=prior))
        ]
        assert (proposals[0] != proposals[1]) is heeded

    def test_a_right_one_helps(self) -> None:
        believed = {
            "lr": Prior(around=4e-3, factor=2.0),
            "decay": Prior(around=0.6, within=0.1),
            "epochs": Prior(around=11, factor=1.5),
            "norm": Prior(around="batch", probability=0.8),
        }

        def reached(**priors: Prior) -> float:
            found = [search(valley, 20, seed, prior=priors)[1] for seed in range(5)]
            return statistics.median(min(k.fitness or 0.0 for k in each) for each in found)

        assert reached(**believed) < 0.5 * reached()
