"""What breeding asks of the database, and the counts that are kept, against slow references."""

from __future__ import annotations

import random
from collections import Counter

from storage_examples import (
    launched_search,
    new_launch,
    new_migration,
    new_proposal,
    new_runner,
    started_evaluation,
)

from oialr_search.storage.database import Storage
from oialr_search.storage.records import IndividualRecord, Outcome, Status

ENDS = [Status.COMPLETED, Status.PRUNED, Status.FAILED, Status.TIMED_OUT, Status.LOST]


def completed(fitness: float) -> Outcome:
    return Outcome(status=Status.COMPLETED, fitness=fitness, metrics={"top1": 1 - fitness})


def breeders_by_looking_at_all(
    storage: Storage, search_id: int, island: int, num_islands: int, limit: int
) -> list[IndividualRecord]:
    accepted = {
        migration.individual_id
        for migration in storage.migrations(search_id)
        if migration.target_island % num_islands == island
    }
    found = [
        individual
        for individual in storage.individuals(search_id, status=Status.COMPLETED)
        if individual.island % num_islands == island or individual.id in accepted
    ]
    return sorted(found, key=lambda i: (i.fitness or 0.0, i.id))[:limit]


def check_counts(storage: Storage, search_id: int) -> None:
    """Compare each count that is kept with what is there."""
    individuals = storage.individuals(search_id)
    for summary in storage.islands(search_id):
        own = [i for i in individuals if i.island == summary.island]
        counts = Counter(i.status for i in own)
        assert summary.counts == {status: counts[status] for status in Status}
        best = (
            min((i.fitness, i.id) for i in [*own] if i.fitness is not None)
            if any(i.fitness is not None for i in own)
            else (None, None)
        )
        assert (summary.best_fitness, summary.best_individual_id) == best
    counts = Counter(i.status for i in individuals)
    progress = storage.progress(search_id)
    assert progress.counts == {status: counts[status] for status in Status}
    finished = storage.finished_since(search_id)
    assert [e.finish_number for e in finished] == list(range(1, len(finished) + 1))
    assert storage.last_finish_number(search_id) == len(finished)
    unfinished = storage.unfinished(search_id)
    assert {e.id for e in unfinished} == {e.evaluation_id for e in progress.running}
    assert len(unfinished) == counts[Status.RUNNING]


def test_breeders_are_the_fittest_of_an_island(storage: Storage) -> None:
    rng = random.Random(1)
    search_id, launch_id = launched_search(storage)
    launched_search(storage, name="other")
    for generation in range(40):
        individual_id, evaluation_id = started_evaluation(
            storage, search_id, launch_id, generation, island=rng.randrange(5)
        )
        if rng.random() < 0.2:
            storage.finish_evaluation(evaluation_id, Outcome(status=Status.FAILED))
            continue
        storage.finish_evaluation(evaluation_id, completed(rng.randrange(8) / 8))
        for _ in range(rng.randrange(3)):
            target = rng.randrange(7)
            storage.record_migration(new_migration(search_id, individual_id, 0, target))

    for num_islands in (1, 2, 5, 7):
        for island in range(num_islands):
            for limit in (1, 6, 100):
                asked = (search_id, island, num_islands, limit)
                found = storage.breeders(*asked)
                assert found == breeders_by_looking_at_all(storage, *asked)
    assert {summary.island for summary in storage.islands(search_id)} == set(range(7))


def test_an_island_without_breeders(storage: Storage) -> None:
    search_id, launch_id = launched_search(storage)
    assert storage.breeders(search_id, 0, 1, 10) == []
    assert storage.islands(search_id) == []
    started_evaluation(storage, search_id, launch_id, island=3)
    assert storage.breeders(search_id, 0, 1, 10) == []
    [summary] = storage.islands(search_id)
    assert (summary.island, summary.best_fitness, summary.best_individual_id) == (3, None, None)
    assert summary.counts == dict.fromkeys(Status, 0) | {Status.RUNNING: 1}


def test_generations_go_on_by_rank(storage: Storage) -> None:
    search_id, launch_id = launched_search(storage)
    assert storage.next_generation(search_id, 1, 0) == 0
    for generation in (0, 1, 5):
        started_evaluation(storage, search_id, launch_id, generation)
    assert storage.next_generation(search_id, 1, 0) == 6
    assert storage.next_generation(search_id, 1, 1) == 0
    assert storage.next_generation(search_id, 0, 0) == 0


def test_whatever_happens_the_counts_are_right(storage: Storage) -> None:
    rng = random.Random(2)
    search_id, launch_id = launched_search(storage)
    other_search, other_launch = launched_search(storage, name="other")
    started_evaluation(storage, other_search, other_launch)
    for generation in range(60):
        island = rng.randrange(3)
        proposal = new_proposal(generation, island=island, island_rank=0)
        runner = new_runner(launch_id, world_rank=rng.randrange(4))
        claim = storage.claim(search_id, proposal, 20, runner)
        if claim and rng.random() < 0.7:
            status = rng.choice(ENDS)
            outcome = Outcome(
                status=status, fitness=rng.random() if status is Status.COMPLETED else None
            )
            repeat = status is not Status.COMPLETED and rng.random() < 0.5
            assert storage.finish_evaluation(claim.evaluation.id, outcome, repeat=repeat)
            assert not storage.finish_evaluation(claim.evaluation.id, outcome, repeat=repeat)
        if rng.random() < 0.05:
            launch_id = storage.start_launch(new_launch(search_id))
        if generation % 10 == 9:
            check_counts(storage, search_id)
    check_counts(storage, search_id)
    assert sum(storage.progress(search_id).counts.values()) == 20
    assert storage.progress(other_search).counts[Status.RUNNING] == 1
