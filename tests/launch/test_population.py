"""Who breeds on an island, and what is known of everyone."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oialr_search.launch.engines import Member
from oialr_search.launch.population import AllIndividuals, Population
from oialr_search.space.hyperparameters import Hyperparameter
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
    assert island.best() == (best[0] if best else None)


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
