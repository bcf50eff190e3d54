"""A search read from one database and restored in another is the same search, and goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from storage_examples import (
    RESOURCES,
    epoch_record,
    launched_search,
    new_launch,
    new_proposal,
    new_runner,
    new_search,
    started_evaluation,
)
from test_storage_breeding import check_counts

from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    EvaluationHistory,
    IndividualHistory,
    Outcome,
    SearchRecord,
    Status,
    StorageError,
)
from oialr_training.protocol import Observation, RankUpdate

UPDATE = RankUpdate(step=100, layer="größe", inner_rank=8, full_inner_rank=64, stability=None)
OBSERVATION = Observation(
    step=100,
    earlier_step=0,
    layer="größe",
    stability=math.inf,
    mixing_similarity=0.5,
    relative_mixing_similarity=0.25,
)


def fill(storage: Storage) -> SearchRecord:
    """Make a search that has seen everything, beside others."""
    launched_search(storage, name="earlier")
    search_id, launch_id = launched_search(storage)
    started_evaluation(storage, *launched_search(storage, name="later"))
    statuses = [Status.COMPLETED, Status.FAILED, Status.TIMED_OUT, Status.RUNNING, Status.LOST]
    for generation, status in enumerate(statuses):
        _, evaluation_id = started_evaluation(
            storage, search_id, launch_id, generation, island=generation % 2
        )
        epoch = epoch_record(1, loss=math.inf, top1=0.5)
        storage.add_epoch(evaluation_id, epoch, [UPDATE], [OBSERVATION])
        if status is not Status.RUNNING:
            outcome = Outcome(
                status=status, log_tail="end", metrics={"top1": 0.5}, resources=RESOURCES
            )
            fitness = 0.5 if status is Status.COMPLETED else None
            storage.finish_evaluation(evaluation_id, replace(outcome, fitness=fitness))
    claim = storage.claim(search_id, new_proposal(9), 9, new_runner(launch_id, world_rank=9))
    assert claim
    assert claim.evaluation.attempt == 2
    storage.end_launch(launch_id, 75)
    search = storage.find_search("digits")
    assert search
    return search


def histories(storage: Storage, search_id: int) -> Iterator[IndividualHistory]:
    for individual in storage.individuals(search_id):
        yield IndividualHistory(
            individual=individual,
            evaluations=[
                EvaluationHistory(
                    evaluation=evaluation,
                    epochs=storage.epochs(evaluation.id),
                    rank_updates=storage.rank_updates(evaluation.id),
                    observations=storage.observations(evaluation.id),
                )
                for evaluation in storage.evaluations(individual.id)
            ],
        )


def test_a_search_is_restored_as_it_was(storage: Storage, other_storage: Storage) -> None:
    search = fill(storage)
    launches = storage.launches(search.id)
    before = list(histories(storage, search.id))
    assert len(before) == 5

    other_storage.restore(search, launches, iter(before))

    assert other_storage.find_search("digits") == search
    assert other_storage.launches(search.id) == launches
    assert list(histories(other_storage, search.id)) == before
    assert other_storage.progress(search.id) == storage.progress(search.id)
    assert other_storage.islands(search.id) == storage.islands(search.id)
    check_counts(other_storage, search.id)

    launch_id = other_storage.start_launch(new_launch(search.id))
    assert launch_id == launches[-1].id + 1
    highest = max(attempt.evaluation.id for h in before for attempt in h.evaluations)
    repeated = [
        other_storage.claim(search.id, new_proposal(9), 6, new_runner(launch_id, world_rank=rank))
        for rank in range(4)
    ]
    ids = {history.individual.id for history in before}
    claims = [claim for claim in repeated if claim]
    assert [claim.repeated for claim in claims] == [True, True, False]
    assert claims[2].individual.id == max(ids) + 1
    assert [claim.evaluation.id for claim in claims] == [highest + n for n in (1, 2, 3)]
    other_storage.finish_evaluation(claims[0].evaluation.id, Outcome(status=Status.FAILED))
    check_counts(other_storage, search.id)
    assert other_storage.create_search(new_search(name="new")) == search.id + 1


def test_what_is_there_stays_and_nothing_is_added(storage: Storage, other_storage: Storage) -> None:
    search = fill(storage)
    launches = storage.launches(search.id)
    known = list(histories(storage, search.id))
    with pytest.raises(StorageError, match="cannot be restored here, its name or one of its"):
        storage.restore(search, launches, known)
    with pytest.raises(StorageError, match=r"cannot be restored here.*give an empty database"):
        storage.restore(replace(search, name="again"), launches, known)
    free = replace(search, name="again", id=99)
    with pytest.raises(StorageError, match="cannot be restored here"):
        storage.restore(free, [replace(launches[0], id=99, search_id=99)], known)
    assert {s.name for s in storage.searches()} == {"earlier", "digits", "later"}

    def cut_off() -> Iterator[IndividualHistory]:
        yield known[0]
        raise FileNotFoundError("individual-000002")

    with pytest.raises(FileNotFoundError):
        other_storage.restore(search, launches, cut_off())
    assert other_storage.searches() == []
    other_storage.restore(search, launches, known)


def test_a_restored_search_is_on_the_leaderboard(
    storage: Storage, other_storage: Storage, database_url: str
) -> None:
    search = fill(storage)
    other_storage.restore(search, storage.launches(search.id), histories(storage, search.id))
    with other_storage._engine.connect() as connection:  # type: ignore[attr-defined]
        [row] = connection.exec_driver_sql("SELECT * FROM leaderboard").mappings().all()
    assert (row["search"], row["place"], row["fitness"]) == ("digits", 1, 0.5)
    assert (row["optimizer_lr"], row["optimizer_name"]) == (0.001, "adamw")


def test_an_empty_search_is_restored(storage: Storage, other_storage: Storage) -> None:
    storage.create_search(new_search())
    [search] = storage.searches()
    other_storage.restore(search, [], [])
    assert other_storage.searches() == [search]
    search_id, launch_id = search.id, other_storage.start_launch(new_launch(search.id))
    assert started_evaluation(other_storage, search_id, launch_id)
    assert search.created_at - other_storage.searches()[0].created_at == timedelta(0)
