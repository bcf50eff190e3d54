"""Who breeds on an island, and what is known of everyone."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oialr_search.launch.engines import Member
from oialr_search.launch.population import AllIndividuals, ParetoPopulation, Population
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.pareto import best_spread
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Outcome, Status

from ..storage.storage_examples import launched_search, new_proposal, new_runner, started_evaluation

LR = Hyperparameter(name="optimizer.lr", kind="float", low=1e-5, high=1e-1)


def member(individual_id: int, fitness: float) -> Member:
    return Member(individual_id=individual_id, genes={"optimizer.lr": 0.5}, fitness=fitness)


def test_a_known_individual_is_not_taken_in_again() -> None:
    island = Population(6)
    assert island.add(member(7, 1.0))
    assert not island.add(member(7, 1.0))


def test_who_is_measured_again_has_the_new_mean_and_an_older_one_changes_nothing() -> None:
    island = Population(3)
    for number, fitness in ((1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)):
        island.add(member(number, fitness))
    again = replace(member(1, 3.5), num_seeds=2)
    assert not island.add(again)
    assert not island.add(member(1, 1.0))
    assert [m.individual_id for m in island.members] == [2, 3, 1]
    assert island.add(member(5, 3.2))
    assert island.add(replace(again, fitness=0.5, num_seeds=3))
    assert island.emissary(random.Random(1)) == replace(again, fitness=0.5, num_seeds=3)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5)), unique_by=lambda pair: pair[0]),
    st.randoms(use_true_random=False),
    st.integers(2, 6),
)
def test_who_was_crowded_out_never_comes_back(
    individuals: list[tuple[int, int]], order: random.Random, size: int
) -> None:
    """However often it visits; the fittest stay, of equals those with the lower number."""
    members = [member(number, float(fitness)) for number, fitness in individuals]
    island = Population(size)
    taken_in: set[int] = set()
    for visitor in order.choices(members, k=4 * len(members)) if members else []:
        if island.add(visitor):
            assert visitor.individual_id not in taken_in
            taken_in.add(visitor.individual_id)
    for visitor in members:
        if island.add(visitor):
            assert visitor.individual_id not in taken_in
    best = sorted(members, key=lambda m: (m.fitness, m.individual_id))[:size]
    assert list(island.members) == best
    assert island.emissary(random.Random(1)) == (best[0] if best else None)


def test_everyone_is_known_and_only_what_changed_is_read_again(tmp_path: Path) -> None:
    with open_storage(str(tmp_path / "search.db"), create=True) as storage:
        search_id, launch_id = launched_search(storage, evaluations_total=9)
        asked: list[tuple[int, set[int]]] = []
        everyone = AllIndividuals(search_id, (LR,))

        class Recording:
            finished_after = storage.finished_after

            def known_after(self, search_id: int, last: int, again: set[int]) -> Any:
                asked.append((last, set(again)))
                return storage.known_after(search_id, last, again)

        def look() -> dict[int, float | None]:
            """None for those that have not ended."""
            recording: Storage = Recording()  # type: ignore[assignment]
            known = everyone.look(recording)
            fitness = np.where(np.isnan(known.fitness), None, known.fitness)
            return dict(zip(known.ids.tolist(), fitness, strict=True))

        assert look() == {}
        evaluations = dict(started_evaluation(storage, search_id, launch_id, n) for n in range(3))
        assert look() == dict.fromkeys((1, 2, 3))
        done = Outcome(status=Status.COMPLETED, fitness=2.5)
        storage.finish_evaluation(evaluations[1], done)
        storage.finish_evaluation(evaluations[2], Outcome(status=Status.FAILED), repeat=True)
        assert look() == {1: 2.5, 2: None, 3: None}
        storage.finish_evaluation(evaluations[3], Outcome(status=Status.TIMED_OUT))
        again = storage.claim(search_id, new_proposal(7), 9, new_runner(launch_id))
        assert again is not None
        storage.finish_evaluation(again.evaluation.id, Outcome(status=Status.FAILED))
        assert look() == look() == {1: 2.5, 2: math.inf, 3: math.inf}
        assert asked == [(0, set()), (0, set()), (3, {1, 2, 3}), (3, {2, 3}), (3, set())]
        assert everyone.number == 3


def test_a_repeat_that_has_completed_says_whose_mean_is_new(tmp_path: Path) -> None:
    with open_storage(str(tmp_path / "search.db"), create=True) as storage:
        search_id, launch_id = launched_search(storage, evaluations_total=9)
        everyone = AllIndividuals(search_id, (LR,))
        done = Outcome(status=Status.COMPLETED, fitness=2.0)
        numbers = []
        for generation, of in enumerate((None, None, 1, 1)):
            numbers.append(
                started_evaluation(storage, search_id, launch_id, generation, repeat_of=of, seed=of)
                if generation < 3
                else started_evaluation(storage, search_id, launch_id, 3, repeat_of=of, seed=9)
            )
            storage.finish_evaluation(numbers[0][1], done)
            known = everyone.look(storage)
        assert (known.fitness[0], known.ids.tolist(), everyone.number) == (2.0, [1, 2], 4)
        storage.finish_evaluation(numbers[2][1], replace(done, fitness=4.0))
        assert everyone.look(storage).fitness[0] == 3.0
        storage.finish_evaluation(numbers[3][1], Outcome(status=Status.FAILED))
        known = everyone.look(storage)
        assert (known.fitness[0], known.num_seeds[0], known.num_repeats[0]) == (3.0, 2, 2)
        resumed = AllIndividuals(search_id, (LR,)).look(storage)
        for name in ("ids", "fitness", "num_seeds", "deviation", "num_repeats"):
            assert getattr(resumed, name).tolist()[0] == getattr(known, name).tolist()[0]


def aimed(number: int, *objectives: float, violation: float = 0.0) -> Member:
    return Member(
        individual_id=number,
        genes={"lr": 0.5},
        fitness=objectives[0],
        objectives=objectives,
        violation=violation,
    )


def taken(size: int, members: Iterable[Member]) -> ParetoPopulation:
    population = ParetoPopulation(size)
    for one in members:
        population.add(one)
    return population


def test_with_several_objectives_front_after_front_breeds_whatever_the_order_they_came_in() -> None:
    draw = random.Random(3)
    everyone = [
        aimed(n, draw.random(), draw.random(), violation=draw.choice((0.0, 0.0, draw.random())))
        for n in range(1, 200)
    ]
    first = taken(8, everyone)
    met = sorted((m for m in everyone if not m.violation), key=lambda m: m.standing)
    order = best_spread([m.objectives for m in met])
    assert list(first.members) == [met[n] for n in order[:8]]
    for _ in range(5):
        draw.shuffle(everyone)
        assert taken(8, everyone).members == first.members
    assert len(first._members) < 60


def test_who_breaks_no_constraint_dominates_who_breaks_one() -> None:
    population = taken(3, [aimed(1, 0.0, 0.0, violation=0.2), aimed(2, 9.0, 9.0)])
    assert [m.individual_id for m in population.members] == [2, 1]
    assert not population.add(aimed(2, 9.0, 9.0))
    assert population.emissary(random.Random(1)) == aimed(2, 9.0, 9.0)
    assert ParetoPopulation(3).emissary(random.Random(1)) is None


def test_anyone_of_the_front_migrates() -> None:
    front = [aimed(n, float(n), -float(n)) for n in range(1, 6)]
    population = taken(4, [*front, aimed(9, 9.0, 9.0)])
    sent = [population.emissary(random.Random(n)) for n in range(60)]
    assert {m.individual_id for m in sent if m} == {1, 2, 3, 4, 5}
