"""What `Storage` promises, on both databases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, timedelta, timezone
from typing import Any

import pytest
from storage_examples import (
    HYPERPARAMETERS,
    RESOURCES,
    epoch_record,
    launched_search,
    new_launch,
    new_migration,
    new_proposal,
    new_runner,
    new_search,
    started_evaluation,
)

from oialr_search.space.given import Given
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    Claim,
    Outcome,
    Proposal,
    Status,
    StorageError,
    StorageUnavailable,
    utc_now,
)
from oialr_search.storage.selection import Selection
from oialr_training.protocol import Observation, RankUpdate, Resources

COMPLETED = Outcome(status=Status.COMPLETED, fitness=0.25, metrics={"val.top1": 0.75})
FAILED = Outcome(status=Status.FAILED, reason="CUDA out of memory", exit_signal=9)
LOST = Outcome(status=Status.LOST, reason="the worker's node went away")


class TestSearches:
    def test_a_search_is_read_back_as_it_was_written(self, storage: Storage) -> None:
        search = new_search()
        search_id = storage.create_search(search)

        found = storage.find_search("digits")

        assert found is not None
        assert (found.id, found.last_launch_at) == (search_id, None)
        assert {name: getattr(found, name) for name in vars(search)} == vars(search)
        assert abs(utc_now() - found.created_at) < timedelta(minutes=1)
        assert storage.find_search("other") is None

    def test_a_name_is_taken_once(self, storage: Storage) -> None:
        storage.create_search(new_search())
        with pytest.raises(StorageError, match="a search named `digits` exists: resume it"):
            storage.create_search(new_search(seed=1))
        assert len(storage.searches()) == 1

    def test_the_most_recently_launched_comes_first(self, storage: Storage) -> None:
        first, second, third = (storage.create_search(new_search(name=n)) for n in "abc")
        storage.start_launch(new_launch(second))
        storage.start_launch(new_launch(first))
        assert [search.id for search in storage.searches()] == [first, second, third]

    def test_a_launch_may_change_total_seed_and_settings(self, storage: Storage) -> None:
        search_id = storage.create_search(new_search(evaluations_total=3))
        settings = {"search": {"seed": 5}, "db": "postgresql://me:s3cret@host/db"}
        changed = new_search(evaluations_total=8, seed=5, settings=settings, version="9")
        storage.change_search(search_id, changed)
        assert storage.progress(search_id).total == 8
        [search] = storage.searches()
        assert (search.evaluations_total, search.seed, search.version) == (8, 5, "0.1.0")
        assert search.settings == settings | {"db": "postgresql://me:***@host/db"}

    def test_passwords_are_not_stored(self, storage: Storage) -> None:
        url = "postgresql://me:s3cret@host/db"
        search_id = storage.create_search(new_search(settings={"db": url, "x": ["a@b", 1]}))
        storage.start_launch(
            new_launch(search_id, command_line=f"run --db '{url}?password=s3cret' mail@host")
        )

        [search], [launch] = storage.searches(), storage.launches(search_id)
        assert search.settings == {"db": "postgresql://me:***@host/db", "x": ["a@b", 1]}
        assert launch.command_line == (
            "run --db 'postgresql://me:***@host/db?password=***' mail@host"
        )


class TestLaunches:
    def test_a_launch_is_read_back_and_ended(self, storage: Storage) -> None:
        launch = new_launch(storage.create_search(new_search()), git_revision="abc")
        launch_id = storage.start_launch(launch)
        [running] = storage.launches(launch.search_id)
        assert {name: getattr(running, name) for name in vars(launch)} == vars(launch)
        assert (running.id, running.ended_at, running.exit_code) == (launch_id, None, None)

        storage.end_launch(launch_id, 75)

        [ended] = storage.launches(launch.search_id)
        assert ended.exit_code == 75
        assert ended.ended_at is not None
        assert ended.ended_at >= ended.started_at

    def test_a_new_launch_gives_up_what_the_earlier_one_left(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        done, done_evaluation = started_evaluation(storage, search_id, launch_id, 0)
        storage.finish_evaluation(done_evaluation, COMPLETED)
        left, left_evaluation = started_evaluation(storage, search_id, launch_id, 1)
        other_search, other_launch = launched_search(storage, name="other")
        other, _ = started_evaluation(storage, other_search, other_launch)

        storage.start_launch(new_launch(search_id))

        statuses = [i.status for i in storage.individuals(search_id)]
        assert statuses == [Status.COMPLETED, Status.LOST]
        [evaluation] = storage.evaluations(left)
        assert (evaluation.id, evaluation.status) == (left_evaluation, Status.LOST)
        assert evaluation.reason
        assert storage.evaluations(done)[0].status is Status.COMPLETED
        assert storage.evaluations(other)[0].status is Status.RUNNING

    def test_a_launch_given_up_cannot_finish_any_more(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        individual_id, evaluation_id = started_evaluation(storage, search_id, launch_id)
        storage.start_launch(new_launch(search_id))

        assert storage.finish_evaluation(evaluation_id, COMPLETED) is False

        individual = storage.individual(individual_id)
        assert individual is not None
        assert (individual.status, individual.fitness) == (Status.LOST, None)


class TestClaims:
    def test_a_rank_of_an_earlier_launch_gets_nothing(self, storage: Storage) -> None:
        search_id, earlier = launched_search(storage)
        later = storage.start_launch(new_launch(search_id))
        with pytest.raises(StorageError, match=f"launch {later} has taken the search over"):
            storage.claim(search_id, new_proposal(), 3, new_runner(earlier))
        assert storage.claim(search_id, new_proposal(), 3, new_runner(later)) is not None

    def test_a_proposal_becomes_an_individual(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        proposal = new_proposal(3, parents=[1, 2], origin="bred")
        runner = new_runner(launch_id, device=None, search_folder="/data/größe")

        claim = storage.claim(search_id, proposal, 3, runner)

        assert claim is not None
        assert (claim.repeated, claim.failures, claim.remaining) == (False, 0, 2)
        individual, evaluation = claim.individual, claim.evaluation
        assert {name: getattr(individual, name) for name in vars(proposal)} == vars(proposal)
        assert (individual.search_id, individual.launch_id) == (search_id, launch_id)
        assert (individual.status, individual.fitness) == (Status.RUNNING, None)
        assert (individual.evaluation, individual.finished_at) == (evaluation, None)
        assert storage.individual(individual.id) == individual
        of_runner = vars(runner) | {"search_folder": None}
        assert {n: getattr(evaluation, n, None) for n in of_runner} == of_runner
        assert (evaluation.attempt, evaluation.status) == (1, Status.RUNNING)
        assert evaluation.folder == f"/data/größe/individual-{individual.id:06d}/attempt-1"
        assert evaluation.log_path == f"{evaluation.folder}/log.txt"
        assert evaluation.started_at.tzinfo is UTC
        assert (evaluation.metrics, evaluation.duration_s) == ({}, None)
        assert storage.evaluations(individual.id) == storage.unfinished(search_id) == [evaluation]

    def test_no_more_than_the_total(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        other_search, other_launch = launched_search(storage, name="other")
        for generation in range(2):
            runner = new_runner(launch_id, world_rank=generation)
            assert storage.claim(search_id, new_proposal(generation), 2, runner)
        assert storage.claim(search_id, new_proposal(2), 2, new_runner(launch_id)) is None
        assert storage.claim(search_id, new_proposal(2), 1, new_runner(launch_id)) is None
        assert len(storage.individuals(search_id)) == 2
        assert storage.claim(other_search, new_proposal(0), 1, new_runner(other_launch))

    def test_the_oldest_lost_individual_goes_first(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        first, first_evaluation = started_evaluation(storage, search_id, launch_id, 0)
        second, second_evaluation = started_evaluation(storage, search_id, launch_id, 1)
        for evaluation_id in (second_evaluation, first_evaluation):
            assert storage.finish_evaluation(evaluation_id, LOST)

        claims = [
            storage.claim(search_id, new_proposal(9), 3, new_runner(launch_id, world_rank=rank))
            for rank in range(4)
        ]

        assert claims[3] is None
        found = [
            (c.individual.id, c.evaluation.attempt, c.repeated, c.remaining) for c in claims if c
        ]
        assert found[:2] == [(first, 2, True, 2), (second, 2, True, 1)]
        assert found[2][1:] == (1, False, 0)
        again = claims[0]
        assert again
        assert again.individual.generation == 0
        assert again.individual.status is Status.RUNNING
        assert again.individual.finished_at is None
        assert again.individual.evaluation == again.evaluation
        assert again.evaluation.folder.endswith("/attempt-2")
        assert storage.individual(first) == again.individual
        assert [e.attempt for e in storage.evaluations(first)] == [1, 2]

    def test_a_runner_cut_off_gets_its_evaluation_again(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        runner = new_runner(launch_id)
        first = storage.claim(search_id, new_proposal(0), 3, runner)
        again = storage.claim(search_id, new_proposal(1), 3, runner)
        assert again == first
        assert first is not None
        other = storage.claim(search_id, new_proposal(1), 2, new_runner(launch_id, world_rank=3))
        assert other is not None
        assert other.individual.id != first.individual.id
        at_the_total = storage.claim(search_id, new_proposal(2), 2, runner)
        assert at_the_total == replace(first, remaining=0)

        storage.finish_evaluation(first.evaluation.id, FAILED, repeat=True)
        repeated = storage.claim(search_id, new_proposal(2), 2, runner)
        assert repeated is not None
        assert (repeated.evaluation.attempt, repeated.failures, repeated.repeated) == (2, 1, True)
        assert storage.claim(search_id, new_proposal(3), 2, runner) == repeated

        storage.finish_evaluation(repeated.evaluation.id, COMPLETED)
        assert storage.claim(search_id, new_proposal(3), 2, runner) is None
        relaunched = storage.start_launch(new_launch(search_id))
        lost = storage.claim(search_id, new_proposal(3), 2, new_runner(relaunched))
        assert lost is not None
        assert lost.individual.id == other.individual.id

    def test_a_repeated_individual_keeps_its_threads(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        outcomes = [FAILED, LOST, replace(FAILED, status=Status.TIMED_OUT), LOST]
        for attempt, outcome in enumerate(outcomes, start=1):
            runner = new_runner(
                launch_id, num_threads=attempt, seed=attempt, hostname=f"n{attempt}"
            )
            claim = storage.claim(search_id, new_proposal(), 1, runner)
            assert claim is not None
            assert (claim.evaluation.attempt, claim.failures) == (attempt, attempt // 2)
            assert (claim.evaluation.num_threads, claim.evaluation.seed) == (1, attempt)
            assert claim.evaluation.hostname == f"n{attempt}"
            assert storage.finish_evaluation(claim.evaluation.id, outcome, repeat=True)
        individual = storage.individual(claim.individual.id)
        assert individual is not None
        assert individual.status is Status.LOST
        statuses = [e.status for e in storage.evaluations(individual.id)]
        assert statuses == [outcome.status for outcome in outcomes]

    def test_a_hyperparameter_that_json_cannot_hold_is_refused(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        for value in (math.nan, -math.inf):
            proposal = new_proposal(hyperparameters={"optimizer.lr": value})
            with pytest.raises(StorageError, match=r"(?i)json"):
                storage.claim(search_id, proposal, 3, new_runner(launch_id))
        assert storage.individuals(search_id) == []

    def test_a_generation_is_bred_once(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        runners = [new_runner(launch_id, world_rank=rank) for rank in range(3)]
        storage.claim(search_id, new_proposal(0), 3, runners[0])
        with pytest.raises(StorageError, match=r"(?i)unique") as caught:
            storage.claim(search_id, new_proposal(0), 3, runners[1])
        assert not isinstance(caught.value, StorageUnavailable)
        storage.claim(search_id, new_proposal(0, island_rank=1), 3, runners[2])
        assert sum(storage.progress(search_id).counts.values()) == 2
        assert len(storage.individuals(search_id)) == 2


class TestEvaluations:
    def test_an_evaluation_from_start_to_end(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        claim = storage.claim(search_id, new_proposal(), 1, new_runner(launch_id))
        assert claim
        evaluation_id = claim.evaluation.id
        start = claim.evaluation.started_at.astimezone(timezone(timedelta(hours=2)))

        storage.mark_training_started(evaluation_id, start + timedelta(seconds=5), 3)
        outcome = replace(
            COMPLETED,
            metrics={"val.top1": 0.75, "val.loss": math.nan, "grad": math.inf},
            exit_code=0,
            trainable_percent=12.5,
            compression_percent=101.0,
            resources=RESOURCES,
            finished_at=start + timedelta(minutes=2),
        )
        assert storage.finish_evaluation(evaluation_id, outcome) is True
        assert storage.finish_evaluation(evaluation_id, LOST) is False

        individual = storage.individual(claim.individual.id)
        assert individual is not None
        assert (individual.status, individual.fitness) == (Status.COMPLETED, 0.25)
        assert individual.finished_at == outcome.finished_at
        done = individual.evaluation
        assert done is not None
        assert storage.evaluations(individual.id) == [done]
        assert done.metrics["val.top1"] == 0.75
        assert math.isnan(done.metrics["val.loss"])
        assert math.isnan(done.metrics["grad"])
        assert done.training_started_at == start + timedelta(seconds=5)
        assert done.training_started_at.tzinfo is UTC
        assert (done.resumed_epoch, done.log_tail) == (3, None)
        assert (done.duration_s, done.finish_number, done.exit_code) == (120.0, 1, 0)
        assert (done.trainable_percent, done.compression_percent) == (12.5, 101.0)
        assert done.resources == RESOURCES

    def test_a_failure_has_a_reason_and_no_fitness(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        individual_id, evaluation_id = started_evaluation(storage, search_id, launch_id)
        failed = replace(FAILED, log_tail="Traceback\n  größer \0 \udcff")

        with pytest.raises(StorageError, match="fitness_is_for_completed"):
            storage.finish_evaluation(evaluation_id, replace(failed, fitness=1.0))
        with pytest.raises(StorageError, match="fitness_is_for_completed"):
            storage.finish_evaluation(evaluation_id, Outcome(status=Status.COMPLETED))
        assert storage.finish_evaluation(evaluation_id, failed)

        individual = storage.individual(individual_id)
        assert individual
        assert individual.evaluation
        assert (individual.status, individual.fitness) == (Status.FAILED, None)
        assert individual.evaluation.reason == "CUDA out of memory"
        assert individual.evaluation.exit_signal == 9
        assert individual.evaluation.resources == Resources()
        assert individual.evaluation.log_tail == "Traceback\n  größer ? ?"
        assert storage.claim(search_id, new_proposal(1), 1, new_runner(launch_id)) is None

    def test_epochs_can_be_sent_twice(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        individual_id, evaluation_id = started_evaluation(storage, search_id, launch_id)

        storage.add_epoch(evaluation_id, epoch_record(2, loss=math.inf, top1=math.nan))
        storage.add_epoch(evaluation_id, epoch_record(1, loss=2.5, top1=0.5))
        storage.add_epoch(evaluation_id, epoch_record(1, loss=9.9, top1=0.5, lr=0.1))
        storage.add_epoch(evaluation_id, epoch_record(3))

        first, second = storage.epochs(evaluation_id)
        assert (first.epoch, first.step) == (1, 100)
        assert first.metrics == {"loss": 2.5, "lr": 0.1, "top1": 0.5}
        assert (second.epoch, second.step, second.metrics["loss"]) == (2, 200, math.inf)
        assert math.isnan(second.metrics["top1"])
        assert storage.evaluations(individual_id)[0].last_epoch == 3

    def test_rank_updates_can_be_sent_twice(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        _, evaluation_id = started_evaluation(storage, search_id, launch_id)
        updates = [
            RankUpdate(step=step, layer=layer, inner_rank=8, full_inner_rank=64, stability=s)
            for step, s in ((100, None), (200, 0.5))
            for layer in ("blocks.0", "blocks.1")
        ]

        storage.add_epoch(evaluation_id, epoch_record(1), updates[:3])
        again = [replace(updates[0], inner_rank=1), replace(updates[3], stability=math.nan)]
        storage.add_epoch(evaluation_id, epoch_record(1), again)
        storage.add_epoch(evaluation_id, epoch_record(2), [])

        expected = [*updates[:3], replace(updates[3], stability=None)]
        assert storage.rank_updates(evaluation_id) == expected

    def test_observations_can_be_sent_twice(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        _, evaluation_id = started_evaluation(storage, search_id, launch_id)
        observed = [
            Observation(
                step=step,
                earlier_step=earlier_step,
                layer=layer,
                stability=0.75,
                mixing_similarity=math.inf,
                relative_mixing_similarity=0.25,
            )
            for step, earlier_step in ((200, 0), (200, 100), (2**40, 0))
            for layer in ("blocks.0", "größe")
        ]

        storage.add_epoch(evaluation_id, epoch_record(1, loss=1.0), (), observed[3:])
        again = [replace(observed[5], stability=0.0), *observed[:3]]
        storage.add_epoch(evaluation_id, epoch_record(1, loss=1.0), (), again)
        assert storage.observations(evaluation_id) == observed

        unknown = replace(observed[0], step=1, mixing_similarity=math.nan)
        storage.add_epoch(evaluation_id, epoch_record(1), (), [unknown])
        assert math.isnan(storage.observations(evaluation_id)[0].mixing_similarity)

    def test_migrations_are_recorded_once_for_each_island(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        individual_id, evaluation_id = started_evaluation(storage, search_id, launch_id)
        with pytest.raises(StorageError, match="has not completed in search"):
            storage.record_migration(new_migration(search_id, individual_id, 1, 0))
        storage.finish_evaluation(evaluation_id, COMPLETED)

        accepted = [
            storage.record_migration(new_migration(search_id, individual_id, 1, t))
            for t in (0, 0, 2)
        ]

        assert accepted == [True, False, True]
        migrations = storage.migrations(search_id)
        assert [(m.source_island, m.target_island) for m in migrations] == [(1, 0), (1, 2)]
        assert {m.individual_id for m in migrations} == {individual_id}

    def test_unknown_ids_are_refused(self, storage: Storage) -> None:
        with pytest.raises(StorageError):
            storage.claim(12, new_proposal(), 3, new_runner(12))
        with pytest.raises(StorageError):
            storage.add_epoch(12, epoch_record(1, loss=1.0))
        with pytest.raises(StorageError):
            storage.finish_evaluation(12, COMPLETED)
        assert storage.individual(12) is None


class TestProgress:
    def test_counts_best_and_running(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage, evaluations_total=10)
        for generation, fitness in enumerate((0.5, 0.1, 0.1)):
            _, evaluation_id = started_evaluation(storage, search_id, launch_id, generation)
            storage.finish_evaluation(evaluation_id, replace(COMPLETED, fitness=fitness))
        running, evaluation_id = started_evaluation(storage, search_id, launch_id, 3)
        storage.add_epoch(evaluation_id, epoch_record(4, loss=1.0))
        other_search, other_launch = launched_search(storage, name="other")
        started_evaluation(storage, other_search, other_launch)

        progress = storage.progress(search_id)

        assert progress.total == 10
        assert {s: n for s, n in progress.counts.items() if n} == {
            Status.COMPLETED: 3,
            Status.RUNNING: 1,
        }
        assert set(progress.counts) == set(Status)
        best = storage.individual(progress.best_individual_id or 0)
        assert best
        assert (progress.best_fitness, best.generation) == (0.1, 1)
        [entry] = progress.running
        assert (entry.individual_id, entry.evaluation_id) == (running, evaluation_id)
        assert (entry.island, entry.island_rank, entry.world_rank) == (1, 0, 3)
        assert (entry.last_epoch, entry.attempt, entry.device) == (4, 1, "GPU-0")

    def test_an_empty_search_has_no_best(self, storage: Storage) -> None:
        search_id = storage.create_search(new_search())
        progress = storage.progress(search_id)
        assert (progress.best_fitness, progress.best_individual_id) == (None, None)
        assert not any(progress.counts.values())
        assert not progress.running

    def test_finished_evaluations_arrive_in_order_of_finishing(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        other_search, other_launch = launched_search(storage, name="other")
        ids = [started_evaluation(storage, search_id, launch_id, g)[1] for g in range(4)]
        _, other = started_evaluation(storage, other_search, other_launch)
        storage.finish_evaluation(other, COMPLETED)
        for evaluation_id in (ids[2], ids[0]):
            storage.finish_evaluation(evaluation_id, COMPLETED)

        seen = storage.finished_since(search_id)
        assert [(e.id, e.finish_number) for e in seen] == [(ids[2], 1), (ids[0], 2)]
        storage.finish_evaluation(ids[1], LOST)
        assert [e.id for e in storage.finished_since(search_id, 2)] == [ids[1]]

    def test_individuals_are_chosen_and_ordered(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        ids = []
        for generation, fitness in enumerate((0.5, 0.1, 0.3, None)):
            individual_id, evaluation_id = started_evaluation(
                storage, search_id, launch_id, generation
            )
            ids.append(individual_id)
            if fitness:
                storage.finish_evaluation(evaluation_id, replace(COMPLETED, fitness=fitness))

        def order_of(**how: Any) -> list[int]:
            return [ids.index(i.id) for i in storage.individuals(search_id, **how)]

        assert order_of() == [0, 1, 2, 3]
        assert order_of(order="fitness") == [1, 2, 0, 3]
        assert order_of(order="fitness", limit=2) == [1, 2]
        assert order_of(status=Status.RUNNING) == [3]


def test_what_one_writes_another_reads(storage: Storage, database_url: str) -> None:
    """A reader sees each commit at once and cannot write."""
    search_id, launch_id = launched_search(storage)
    with open_storage(database_url, read_only=True) as reader:
        assert reader.individuals(search_id) == []
        started_evaluation(storage, search_id, launch_id)
        [individual] = reader.individuals(search_id)
        assert individual.hyperparameters == HYPERPARAMETERS
        with pytest.raises(StorageError, match=r"read-?only"):
            reader.change_search(search_id, new_search(evaluations_total=5))


def test_closing_twice_is_fine(storage: Storage) -> None:
    storage.close()
    storage.close()


class TestTogether:
    def test_all_is_stored(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        individual_id, evaluation_id = started_evaluation(storage, search_id, launch_id)
        with storage.together():
            storage.add_epoch(evaluation_id, epoch_record(1, top1=0.5))
            storage.finish_evaluation(evaluation_id, COMPLETED)
            storage.record_migration(new_migration(search_id, individual_id, 1, 0))
        assert [epoch.epoch for epoch in storage.epochs(evaluation_id)] == [1]
        assert [m.individual_id for m in storage.migrations(search_id)] == [individual_id]

    def test_within_another_it_is_part_of_that_one(self, storage: Storage) -> None:
        _, evaluation_id = started_evaluation(storage, *launched_search(storage))

        def write() -> None:
            with storage.together():
                with storage.together():
                    storage.add_epoch(evaluation_id, epoch_record(1, top1=0.5))
                storage.add_epoch(evaluation_id, epoch_record(2, top1=0.5))
                assert [epoch.epoch for epoch in storage.epochs(evaluation_id)] == [1, 2]
                raise OSError("no more")

        with pytest.raises(OSError, match="no more"):
            write()
        assert storage.epochs(evaluation_id) == []

    def test_nothing_is_stored_where_one_call_fails(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        individual_id, evaluation_id = started_evaluation(storage, search_id, launch_id)

        def write() -> None:
            with storage.together():
                storage.add_epoch(evaluation_id, epoch_record(1, top1=0.5))
                storage.record_migration(
                    new_migration(search_id, individual_id, 1, 0)
                )  # has no fitness yet

        with pytest.raises(StorageError, match="it cannot migrate"):
            write()
        assert storage.epochs(evaluation_id) == []
        storage.add_epoch(evaluation_id, epoch_record(1, top1=0.5))
        assert len(storage.epochs(evaluation_id)) == 1


class TestQueue:
    def test_what_is_queued_goes_after_the_lost_and_before_the_proposals(
        self, storage: Storage
    ) -> None:
        search_id, launch_id = launched_search(storage)
        lost, evaluation = started_evaluation(storage, search_id, launch_id)
        assert storage.finish_evaluation(evaluation, LOST)
        queued = storage.queue(search_id, [given(0.1), given(0.2), given(0.1)])
        first, second = (number for number, _ in queued[:2])
        assert queued == [(first, True), (second, True), (first, False)]
        assert storage.progress(search_id).counts[Status.QUEUED] == 2

        claims = [
            storage.claim(search_id, new_proposal(9), 2, new_runner(launch_id, world_rank=rank))
            for rank in range(4)
        ]

        assert [c and (c.individual.id, c.repeated, c.remaining) for c in claims] == [
            (lost, True, 2), (first, True, 1), (second, True, 0), None,
        ]  # fmt: skip
        again = storage.claim(search_id, new_proposal(9), 2, new_runner(launch_id, world_rank=1))
        assert again
        assert (again.individual.id, again.evaluation.attempt, again.repeated) == (first, 1, True)
        assert again == claims[1] or again.remaining == 0
        counts = storage.progress(search_id).counts
        assert (counts[Status.QUEUED], counts[Status.RUNNING]) == (0, 3)

    def test_they_are_dealt_to_the_islands_of_the_last_launch(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        storage.queue(search_id, [given(n) for n in (1, 2, 3)])
        storage.start_launch(new_launch(search_id, num_islands=3))
        storage.queue(search_id, [given(n) for n in (4, 5)])
        found = storage.individuals(search_id)
        assert [i.hyperparameters["optimizer.lr"] for i in found] == [1, 2, 3, 4, 5]
        places = [(i.island, i.island_rank, i.generation) for i in found]
        assert places == [(0, -1, 0), (1, -1, 0), (0, -1, 1), (2, -1, 0), (1, -1, 1)]
        assert {i.status for i in found} == {Status.QUEUED}  # a new launch leaves them so
        assert [(i.origin, i.launch_id) for i in found[:1]] == [("given", launch_id)]
        assert [i.counts[Status.QUEUED] for i in storage.islands(search_id)] == [2, 2, 1]
        assert storage.next_generation(search_id, 0, 0) == 0

    def test_they_count_and_go_beyond_the_total(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        started_evaluation(storage, search_id, launch_id)
        storage.queue(search_id, [given(1)])
        storage.queue(search_id, [given(2), given(3)])
        runners = [new_runner(launch_id, world_rank=rank) for rank in range(1, 6)]
        claims = [storage.claim(search_id, new_proposal(5), 3, runner) for runner in runners]
        assert [c is not None for c in claims] == [True, True, True, False, False]
        progress = storage.progress(search_id)
        assert (progress.total, progress.expected, progress.unfinished) == (3, 4, 4)

    def test_nothing_before_the_first_launch(self, storage: Storage) -> None:
        search_id = storage.create_search(new_search())
        with pytest.raises(StorageError, match="before the first launch"):
            storage.queue(search_id, [given(1)])


def given(lr: float) -> Given:
    hyperparameters = HYPERPARAMETERS | {"optimizer.lr": lr}
    return Given(genes=dict.fromkeys(hyperparameters, 0.5), hyperparameters=hyperparameters)


class TestRepeats:
    def test_the_fitness_is_the_mean_over_seeds(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        measured = [(0.5, [0.5, 4.0], 2.0), (0.2, [0.2, 1.0], -1.0), (0.8, [0.8, 1.0], 0.5)]
        first = claimed(storage, search_id, launch_id, new_proposal(0))
        finish(storage, first, *measured[0])
        for number, outcome in enumerate(measured[1:], start=1):
            again = new_proposal(number, repeat_of=first.individual.id, seed=100 + number)
            claim = claimed(storage, search_id, launch_id, again)
            assert claim.evaluation.seed == 100 + number
            finish(storage, claim, *outcome)

        found = storage.individual(first.individual.id)

        assert found is not None
        assert found.fitness == pytest.approx(0.5)
        assert found.fitness_deviation == pytest.approx(0.3)
        assert found.objectives == pytest.approx([0.5, 2.0])
        assert found.constraints == pytest.approx([0.5])
        assert found.violation == pytest.approx(2.5 / 3)
        assert (found.num_seeds, found.seed, found.status) == (3, None, Status.COMPLETED)
        assert [e.fitness for e in storage.evaluations(found.id)] == [0.5]

    def test_they_stand_nowhere_by_themselves(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        first = claimed(storage, search_id, launch_id, new_proposal(0))
        finish(storage, first, 0.5)
        again = claimed(
            storage, search_id, launch_id, new_proposal(1, repeat_of=first.individual.id, seed=7)
        )
        finish(storage, again, 0.1)

        number = first.individual.id
        assert storage.progress(search_id).best_individual_id == number
        assert [i.id for i in storage.breeders(search_id, 0, 1, 9)] == [number]
        assert [p.individual.id for p in storage.select(search_id, Selection())] == [number]
        assert storage.values(search_id, Selection(), []) == [(number,)]
        for status in (Status.COMPLETED, None):
            found = storage.individuals(search_id, status=status, order="fitness")
            assert [i.id for i in found] == [number]
        assert [island.best_individual_id for island in storage.islands(search_id)] == [number]
        known = storage.known_after(search_id, 0)
        assert [(k.repeat_of, k.fitness) for k in known] == [(None, 0.3), (number, 0.1)]

    def test_not_twice_with_the_same_seed(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        first = claimed(storage, search_id, launch_id, new_proposal(0)).individual.id
        another = started_evaluation(storage, search_id, launch_id, 1)[0]

        def claim(generation: int, of: int, seed: int) -> bool:
            again = new_proposal(generation, repeat_of=of, seed=seed)
            runner = new_runner(launch_id, world_rank=10 + generation)
            return storage.claim(search_id, again, 99, runner) is not None

        assert [claim(2, first, 7), claim(3, first, 7)] == [True, False]
        assert [claim(4, first, 8), claim(5, another, 7)] == [True, True]
        assert [i.repeat_of for i in storage.repeats(search_id)] == [first, first, another]
        assert [i.seed for i in storage.repeats(search_id, first)] == [7, 8]

    def test_an_island_that_accepted_it_knows_the_new_mean(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        first = claimed(storage, search_id, launch_id, new_proposal(0, island=1))
        finish(storage, first, 0.5)
        bred = claimed(storage, search_id, launch_id, new_proposal(0, island=0))
        finish(storage, bred, 0.6)
        number = first.individual.id
        storage.record_migration(new_migration(search_id, number, 1, 0))
        assert [i.id for i in storage.breeders(search_id, 0, 2, 1)] == [number]
        again = new_proposal(1, island=1, repeat_of=number, seed=7)
        finish(storage, claimed(storage, search_id, launch_id, again), 0.9)
        assert [i.id for i in storage.breeders(search_id, 0, 2, 1)] == [bred.individual.id]
        assert len(storage.breeders(search_id, 0, 1, 9)) == 2

    def test_what_failed_again_changes_nothing(self, storage: Storage) -> None:
        search_id, launch_id = launched_search(storage)
        first = claimed(storage, search_id, launch_id, new_proposal(0))
        finish(storage, first, 0.5)
        again = claimed(
            storage, search_id, launch_id, new_proposal(1, repeat_of=first.individual.id, seed=7)
        )
        assert storage.finish_evaluation(again.evaluation.id, FAILED)

        found = storage.individual(first.individual.id)
        assert found is not None
        assert (found.fitness, found.num_seeds, found.fitness_deviation) == (0.5, 1, None)


def test_who_breaks_a_constraint_comes_last(storage: Storage) -> None:
    search_id, launch_id = launched_search(storage)
    numbers = []
    for generation, (fitness, excess) in enumerate([(0.1, 2.0), (0.9, -1.0), (0.2, 1.0), (0.8, 0)]):
        claim = claimed(storage, search_id, launch_id, new_proposal(generation))
        finish(storage, claim, fitness, constraint=excess)
        numbers.append(claim.individual.id)
    in_order = [numbers[n] for n in (3, 1, 2, 0)]

    assert storage.progress(search_id).best_individual_id == in_order[0]
    assert [i.id for i in storage.breeders(search_id, 0, 1, 9)] == in_order
    assert [p.individual.id for p in storage.select(search_id, Selection())] == in_order
    for status in (Status.COMPLETED, None):
        found = storage.individuals(search_id, status=status, order="fitness")
        assert [i.id for i in found] == in_order


def claimed(storage: Storage, search_id: int, launch_id: int, proposal: Proposal) -> Claim:
    claim = storage.claim(search_id, proposal, 99, new_runner(launch_id))
    assert claim is not None
    return claim


def finish(
    storage: Storage,
    claim: Claim,
    fitness: float,
    objectives: Sequence[float] = (),
    constraint: float = 0.0,
) -> None:
    outcome = Outcome(
        status=Status.COMPLETED,
        fitness=fitness,
        objectives=list(objectives),
        constraints=[constraint],
        violation=max(constraint, 0.0),
    )
    assert storage.finish_evaluation(claim.evaluation.id, outcome)
