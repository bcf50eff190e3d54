"""What a result says is kept, however the evaluation ended."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from oialr_search.evaluation.files import OUTCOME_FILE, Ending, read_ending, write_record
from oialr_search.evaluation.outcomes import outcome_of, pruned_outcome
from oialr_search.space.search_file import load_search
from oialr_search.storage.records import Outcome, Status
from oialr_training.protocol import (
    EVENTS_FILE,
    Failed,
    Resources,
    Stopped,
    encode,
    write_result,
)

from ..conftest import DIGITS
from .scripted import completed, epoch

AIMS = load_search(DIGITS).aims
USED = Resources(cpu_energy_j=0.5, peak_host_memory_bytes=2**40, samples_per_s=1e5)


def test_what_was_used_is_kept_however_it_ended(tmp_path: Path) -> None:
    failed = Failed(reason="r", at=1.0, cause="training", resources=USED)
    for result in (completed(resources=USED), failed):
        outcome = outcome_of(result, AIMS, {}, [])
        assert outcome.resources == USED
        folder = tmp_path / type(result).__name__
        folder.mkdir()
        write_result(folder, result)
        read = read_ending(folder, AIMS, {}, failures=0, retries=1)
        write_record(folder / OUTCOME_FILE, Ending(outcome=outcome))
        assert read == read_ending(folder, AIMS, {}, failures=0, retries=1)
        assert read
        assert read.outcome.resources == USED


def test_the_files_tell_all_aims(tmp_path: Path) -> None:
    aims = load_search(
        DIGITS,
        [
            "search.objectives=[validation_top1, oialr.delay_steps]",
            "search.subject_to=trainable_percent <= 10",
            "search.fitness_window=2",
        ],
    ).aims
    write_result(tmp_path, completed(top1=90.0))
    told = [epoch(n) for n in (1, 2)]
    last = [e.metrics["validation_top1"] for e in told]
    (tmp_path / EVENTS_FILE).write_bytes(b"".join(map(encode, told)))
    ending = read_ending(tmp_path, aims, {"oialr.delay_steps": 40}, failures=0, retries=1)
    assert ending is not None
    assert ending.outcome.status is Status.COMPLETED
    assert ending.outcome.objectives == [100.0 - sum(last) / 2, 40.0]
    assert ending.outcome.fitness == 100.0 - sum(last) / 2
    assert ending.outcome.constraints == [2.5]
    assert ending.outcome.violation == 0.25


def test_epochs_that_are_not_known_do_not_count_as_fewer(tmp_path: Path) -> None:
    aims = load_search(DIGITS, ["search.fitness_window=2"]).aims
    write_result(tmp_path, completed())
    (tmp_path / EVENTS_FILE).write_bytes(encode(epoch(2)))
    ending = read_ending(tmp_path, aims, {}, failures=0, retries=1)
    assert ending is not None
    assert ending.outcome.status is Status.FAILED
    assert ending.outcome.reason == "validation_top1 was not measured"


@pytest.mark.parametrize(("name", "reason"), [("gpu_energy_j", "was not measured")])
def test_what_no_machine_measured_fails_with_its_name(name: str, reason: str) -> None:
    aims = load_search(DIGITS, [f"search.fitness=validation_loss * {name}"]).aims
    outcome = outcome_of(completed(), aims, {}, [])
    assert (outcome.status, outcome.reason) == (Status.FAILED, f"{name} {reason}")
    measured = dataclasses.replace(completed(), resources=Resources(gpu_energy_j=3.0))
    assert outcome_of(measured, aims, {}, []).fitness == 1.5


class TestPruned:
    """What was stopped early has come to something, too."""

    def outcome(self, *assignments: str, expected: float | None = None) -> Outcome:
        epochs = [epoch(n) for n in (1, 2)]
        return pruned_outcome(
            Stopped(epoch=2, reason="pruned"),
            epochs[-1],
            "bad",
            expected,
            load_search(DIGITS, assignments).aims,
            {},
            [e.metrics for e in epochs],
        )

    def test_one_aim_is_told_as_the_fitness_would_be(self) -> None:
        outcome = self.outcome()
        assert (outcome.status, outcome.fitness) == (Status.PRUNED, None)
        assert outcome.objectives == [80.0]
        assert self.outcome("search.fitness_window=2").objectives == [85.0]
        assert self.outcome(expected=7.0).objectives == [7.0]

    def test_several_aims_and_constraints_are_told(self) -> None:
        outcome = self.outcome(
            "search.objectives=[validation_loss, trainable_percent]",
            "search.subject_to=trainable_percent <= 10",
            expected=7.0,
        )
        assert (outcome.objectives, outcome.constraints) == ([0.5, 12.5], [2.5])
        assert outcome.violation == 0.25

    @pytest.mark.parametrize("column", ["gpu_energy_j", "duration_s"])
    def test_what_only_a_whole_training_tells_is_not_guessed(self, column: str) -> None:
        outcome = self.outcome(f"search.objectives=[validation_loss, {column}]")
        assert (outcome.objectives, outcome.constraints) == ([], [])
        assert outcome.metrics["validation_loss"] == 0.5
