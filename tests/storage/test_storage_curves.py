"""The curves that stopping rules compare: which are chosen, and what is read of them."""

from __future__ import annotations

from storage_examples import (
    HYPERPARAMETERS,
    epoch_record,
    launched_search,
    new_proposal,
    new_runner,
    started_evaluation,
)

from oialr_search.storage.database import Storage
from oialr_search.storage.records import Curve, Outcome, Status
from oialr_training.protocol import RankUpdate

OUTCOMES = {
    "C": Outcome(status=Status.COMPLETED, fitness=1.0),
    "P": Outcome(status=Status.PRUNED),
    "F": Outcome(status=Status.FAILED),
    "L": Outcome(status=Status.LOST),
}


def fill(storage: Storage, statuses: str) -> tuple[int, int]:
    """Individuals 1, 2, ... of a search, whose evaluations have the same ids; R runs."""
    search_id, launch_id = launched_search(storage)
    for number, letter in enumerate(statuses, start=1):
        started_evaluation(storage, search_id, launch_id, number)
        if letter != "R":
            storage.finish_evaluation(number, OUTCOMES[letter])
    return search_id, launch_id


def update(step: int, inner_rank: int) -> RankUpdate:
    return RankUpdate(
        step=step, layer="head", inner_rank=inner_rank, full_inner_rank=8, stability=None
    )


def test_the_newest_of_each_status_and_the_best_are_listed(storage: Storage) -> None:
    search_id, _ = fill(storage, "CCCCPPPRRRF")
    storage_of = [number for number, *_ in storage.trainings(search_id, newest=2, best=0)]
    assert storage_of == [3, 4, 6, 7, 9, 10]
    listed = storage.trainings(search_id, newest=2, best=1)
    assert listed == [
        (1, Status.COMPLETED, 1),
        (3, Status.COMPLETED, 3),
        (4, Status.COMPLETED, 4),
        (6, Status.PRUNED, 6),
        (7, Status.PRUNED, 7),
        (9, Status.RUNNING, 9),
        (10, Status.RUNNING, 10),
    ]
    assert storage.trainings(search_id + 1, newest=2, best=1) == []


def test_a_curve_is_of_the_latest_attempt(storage: Storage) -> None:
    search_id, launch_id = fill(storage, "L")
    storage.add_epoch(1, epoch_record(1, loss=9.0))
    claim = storage.claim(search_id, new_proposal(2), 100, new_runner(launch_id))
    assert claim
    latest = claim.evaluation.id
    storage.add_epoch(latest, epoch_record(1, loss=0.5, top1=50.0), [update(90, 8)])
    storage.add_epoch(latest, epoch_record(2, loss=float("nan")), [update(150, 5), update(120, 5)])
    assert storage.trainings(search_id, newest=2, best=1) == [(1, Status.RUNNING, latest)]
    (curve,) = storage.curves([1], ["top1", "lr"])
    assert curve == Curve(
        individual_id=1,
        status=Status.RUNNING,
        evaluation_id=latest,
        genes=dict.fromkeys(HYPERPARAMETERS, 0.5),
        hyperparameters=HYPERPARAMETERS,
        epochs=[epoch_record(1, top1=50.0)],
        fitness=None,
        first_truncation=120,
    )
    (curve,) = storage.curves([1], ["loss"])
    assert [epoch.step for epoch in curve.epochs] == [100, 200]


def test_what_has_no_epoch_has_no_curve_yet(storage: Storage) -> None:
    fill(storage, "R")
    (curve,) = storage.curves([1], ["loss"])
    assert (curve.epochs, curve.first_truncation) == ([], None)
    assert storage.curves([], ["loss"]) == []
