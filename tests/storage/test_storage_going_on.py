"""A pruned individual is gone on with: handed out once, counted right, its first attempt kept."""

from __future__ import annotations

import pytest
from storage_examples import (
    epoch_record,
    launched_search,
    new_launch,
    new_proposal,
    new_runner,
    new_search,
    started_evaluation,
)

from oialr_search.storage.database import Storage
from oialr_search.storage.records import Claim, Outcome, Status

PRUNED = Outcome(status=Status.PRUNED, reason="stopped after epoch 1: bad", metrics={"epoch": 1.0})
COMPLETED = Outcome(status=Status.COMPLETED, fitness=0.5)


class Search:
    """A search of two individuals, of which the first is pruned."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.id, self.launch_id = launched_search(storage)
        started_evaluation(storage, self.id, self.launch_id, 1)
        storage.finish_evaluation(1, PRUNED)

    def claim(self, go_on: int | None, rank: int = 7, total: int = 2) -> Claim | None:
        runner = new_runner(self.launch_id, world_rank=rank)
        return self.storage.claim(self.id, new_proposal(rank), total, runner, go_on)

    def counts(self) -> dict[Status, int]:
        (island,) = self.storage.islands(self.id)
        assert self.storage.progress(self.id).counts == island.counts
        return {status: count for status, count in island.counts.items() if count}


@pytest.fixture
def search(storage: Storage) -> Search:
    return Search(storage)


def test_it_goes_on_as_another_attempt_and_the_first_stays(search: Search) -> None:
    claim = search.claim(go_on=1)
    assert claim
    assert (claim.individual.id, claim.evaluation.attempt) == (1, 2)
    assert claim.continued
    assert claim.repeated
    assert claim.remaining == 1  # the proposal was not used
    assert claim.individual.finished_at is None
    assert search.counts() == {Status.RUNNING: 1}
    first, second = search.storage.evaluations(1)
    assert (first.status, first.reason) == (Status.PRUNED, PRUNED.reason)
    assert second.num_threads == first.num_threads
    search.storage.finish_evaluation(second.id, COMPLETED)
    assert search.counts() == {Status.COMPLETED: 1}
    individual = search.storage.individual(1)
    assert individual
    assert (individual.status, individual.fitness) == (Status.COMPLETED, 0.5)


def test_one_rank_only_gets_it(search: Search) -> None:
    first, second = search.claim(go_on=1, rank=7), search.claim(go_on=1, rank=8)
    assert first
    assert second
    assert (first.individual.id, second.individual.id) == (1, 2)
    assert not second.continued
    assert not second.repeated
    assert search.counts() == {Status.RUNNING: 2}


def test_it_is_no_new_individual_and_so_goes_on_at_the_total_too(search: Search) -> None:
    claim = search.claim(go_on=1, total=1)
    assert claim
    assert (claim.individual.id, claim.remaining) == (1, 0)
    assert search.claim(go_on=1, rank=8, total=1) is None


def test_what_was_lost_comes_first(search: Search) -> None:
    _, lost = started_evaluation(search.storage, search.id, search.launch_id, 2)
    search.storage.finish_evaluation(lost, Outcome(status=Status.LOST))
    claim = search.claim(go_on=1)
    assert claim
    assert (claim.individual.id, claim.continued) == (2, False)


def test_one_that_is_not_pruned_or_of_another_search_is_not_taken(search: Search) -> None:
    running, _ = started_evaluation(search.storage, search.id, search.launch_id, 2)
    for go_on in (running, 99):
        assert search.claim(go_on=go_on, total=2) is None
    other = search.storage.create_search(new_search(name="another"))
    launch = search.storage.start_launch(new_launch(other))
    claim = search.storage.claim(other, new_proposal(1), 2, new_runner(launch), 1)
    assert claim
    assert claim.individual.id == 3


def test_one_that_is_lost_meanwhile_is_still_gone_on_with(search: Search) -> None:
    claim = search.claim(go_on=1)
    assert claim
    again = search.claim(go_on=None)  # the answer was cut off
    assert again
    assert (again.evaluation.id, again.continued) == (claim.evaluation.id, True)
    search.launch_id = search.storage.start_launch(new_launch(search.id))
    claim = search.claim(go_on=None)
    assert claim
    assert (claim.individual.id, claim.evaluation.attempt, claim.continued) == (1, 3, True)


def test_who_follows_the_search_reads_what_ended_again(search: Search) -> None:
    storage = search.storage
    number, told = storage.finished_after(search.id, None)
    assert told == []
    claim = search.claim(go_on=1)
    assert claim
    assert storage.finished_after(search.id, number) == (number, [])
    storage.add_epoch(claim.evaluation.id, epoch_record(1, loss=1.0))
    storage.finish_evaluation(claim.evaluation.id, COMPLETED)
    assert storage.finished_after(search.id, number) == (number + 1, [1])
    assert storage.finished_after(search.id, number + 1) == (number + 1, [])
