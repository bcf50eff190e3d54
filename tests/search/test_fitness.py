"""Metrics → fitness."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from oialr_training.errors import ConfigError
from oialr_training.protocol import Completed, Failed, Resources, write_result
from oialr_training.tasks import TASKS

from oialr_search.evaluation.files import OUTCOME_FILE, Ending, read_ending, write_record
from oialr_search.evaluation.outcomes import outcome_of
from oialr_search.evaluation.repeated_seeds import summary
from oialr_search.space.fitness import fitness_of

from ..oialr_training.margins import Margins

TASK = "minivit_digits"
COMPLETED = Completed(
    metrics={"validation_loss": 0.5},
    trainable_percent=10.0,
    compression_percent=20.0,
    device="cpu",
    duration_s=1.5,
    at=2.0,
)
USED = Resources(cpu_energy_j=0.5, peak_host_memory_bytes=2**40, samples_per_s=1e5)


def test_a_loss_is_its_own_fitness() -> None:
    assert fitness_of({"validation_loss": 0.25}, "validation_loss", TASK) == 0.25


def test_a_percentage_to_maximise_is_turned_round() -> None:
    assert fitness_of({"validation_top1": 96.0}, "validation_top1", TASK) == 4.0


def test_a_high_metric_that_is_no_percentage_is_negated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "margins", Margins)
    assert fitness_of({"validation_margin": 96.0}, "validation_margin", "margins") == -96.0
    assert fitness_of({"validation_margin": -0.5}, "validation_margin", "margins") == 0.5
    assert fitness_of({"validation_margin": math.inf}, "validation_margin", "margins") is None


def test_the_fitness_of_an_unknown_task_is_one_line() -> None:
    with pytest.raises(ConfigError, match="no metric 'validation_margin' of a task 'margins'"):
        fitness_of({"validation_margin": 1.0}, "validation_margin", "margins")


def test_no_number_is_no_fitness() -> None:
    for value in (math.nan, math.inf, -math.inf):
        assert fitness_of({"validation_loss": value}, "validation_loss", TASK) is None
    assert fitness_of({}, "validation_loss", TASK) is None


def test_what_was_used_is_kept_however_it_ended(tmp_path: Path) -> None:
    failed = Failed(reason="r", at=1.0, cause="training", resources=USED)
    for result in (replace(COMPLETED, resources=USED), failed):
        outcome = outcome_of(result, "validation_loss", TASK)
        assert outcome.resources == outcome_of(result, "validation_top1", TASK).resources == USED
        folder = tmp_path / type(result).__name__
        folder.mkdir()
        write_result(folder, result)
        read = read_ending(folder, "validation_loss", TASK, failures=0, retries=1)
        write_record(folder / OUTCOME_FILE, Ending(outcome=outcome))
        assert read == read_ending(folder, "validation_loss", TASK, failures=0, retries=1)
        assert read
        assert read.outcome.resources == USED


def test_a_summary_has_rows_for_what_was_measured() -> None:
    rows = {row["metric"]: row for row in summary([COMPLETED, replace(COMPLETED, resources=USED)])}
    assert rows["duration_s"]["seeds"] == 2
    assert (rows["samples_per_s"]["mean"], rows["samples_per_s"]["seeds"]) == (1e5, 1)
    assert not {"gpu_energy_j", "peak_gpu_memory_bytes"} & rows.keys()
