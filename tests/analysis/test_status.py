"""`status`, `show` and `log`: what they say of a search that has all that there may be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from oialr_search.analysis.choosing import choose_search
from oialr_search.analysis.status import group_failures
from oialr_search.analysis.status import status as read_status
from oialr_search.space.hyperparameters import Hyperparameter, SearchSpace
from oialr_search.storage import open_storage
from oialr_search.storage.records import Outcome, Status
from oialr_search.storage.selection import FailureCount
from oialr_search.terminal.screens import _status_lines

from ..conftest import Command
from ..seen import BEGAN, RESUMED, fill
from ..storage.storage_examples import (
    epoch_record,
    launched_search,
    new_search,
    started_evaluation,
)

NOW = BEGAN + timedelta(hours=2, minutes=20)


def status_of(url: str, now: Any = NOW) -> dict[str, Any]:
    with open_storage(url, read_only=True) as storage:
        return read_status(storage, choose_search(storage, None), now)


def test_status_of_a_running_search(url: str) -> None:
    status = status_of(url)
    assert (status["begun"], status["ended"], status["remaining"]) == (12, 11, 9)
    assert (status["completed"], status["failed"], status["timed_out"]) == (8, 2, 1)
    assert status["best"]["individual"] == RESUMED
    assert status["best"]["fitness"] == 2.0
    assert [(row["island"], row["individuals"]) for row in status["islands"]] == [(0, 5), (1, 7)]
    assert [row["best_individual"] for row in status["islands"]] == [7, RESUMED]
    (rank,) = status["ranks"]
    assert (rank["world_rank"], rank["individual"], rank["device"]) == (0, 12, "cuda:0")
    assert (rank["epoch"], rank["epochs"]) == (1, 3)
    assert rank["started_at"] == "2026-01-02T05:10:00+00:00"
    assert (rank["running_s"], rank["silent_s"]) == (600.0, None)
    assert [(row["evaluations"], row["status"], row["reason"]) for row in status["failures"]] == [
        (2, "failed", "diverged"),
        (1, "lost", "its launch ended first"),
        (1, "timed_out", "over the time limit of 60 s"),
    ]


def test_epochs_that_were_not_trained_are_counted(tmp_path: Path) -> None:
    """Of each training's own, where they are searched; one that is gone on with saves none."""
    url = str(tmp_path / "search.db")
    epochs = Hyperparameter(name="epochs", kind="int", low=1, high=20)
    settings = new_search().settings
    settings = {**settings, "training": {**settings["training"], "epochs": 12}}
    with open_storage(url, create=True) as storage:
        for name, space in (("fixed", ()), ("searched", (epochs,))):
            search_id, launch_id = launched_search(
                storage, name=name, settings=settings, space=SearchSpace(space)
            )
            for number, status in enumerate(["pruned", "pruned", "failed"]):
                values = {"epochs": 5} if space else {}
                _, evaluation = started_evaluation(
                    storage, search_id, launch_id, number, hyperparameters=values
                )
                storage.add_epoch(evaluation, epoch_record(3 - number, loss=1.0))
                storage.finish_evaluation(evaluation, Outcome(status=Status(status)))
    told = []
    with open_storage(url, read_only=True) as storage:
        for name in ("fixed", "searched"):
            status = read_status(storage, choose_search(storage, name), NOW)
            told.append(status["epochs_saved"])
            screen = "".join(map(str, _status_lines(status, NOW)))
            assert f"2 individuals, which saved {told[-1]} epochs" in screen
    assert told == [9 + 10, 2 + 3]


def test_the_pace_and_the_expected_end(url: str) -> None:
    """11 endings in 140 minutes, 5 in the last hour: too few, so the whole launch counts.

    A twelfth evaluation, which was stopped, is repeated and so no ending.
    """
    status = status_of(url)
    assert status["per_hour_over_s"] == 140 * 60
    assert status["per_hour"] == pytest.approx(11 / (140 / 60))
    left = timedelta(hours=9 / status["per_hour"])
    assert status["expected_end"] == (NOW + left).isoformat(timespec="seconds")
    assert sum(row["per_hour"] for row in status["islands"]) == pytest.approx(status["per_hour"])
    assert status["last_finished_at"] == "2026-01-02T05:01:30+00:00"


def test_the_last_hour_counts_where_enough_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    fill(url)
    monkeypatch.setattr("oialr_search.analysis.status.ENOUGH", 5)
    now = BEGAN + timedelta(minutes=125)  # endings at 71.5, 81.5, ... 121.5
    assert status_of(url, now)["per_hour"] == pytest.approx(6)
    monkeypatch.setattr("oialr_search.analysis.status.MOST_FINISHES", 3)
    few = status_of(url, now)  # since the first of the three, at 101.5
    assert few["per_hour_over_s"] == pytest.approx(23.5 * 60)


def test_before_anything_has_ended_epochs_tell_the_end(tmp_path: Path) -> None:
    """Of four trainings of 10 epochs, one has done 5 in 100 s; the next has not done one yet."""
    settings = {"training": {"epochs": 10}}
    with open_storage(f"{tmp_path}/search.db", create=True) as storage:
        ids = launched_search(storage, settings=settings, evaluations_total=4)
        _, evaluation = started_evaluation(storage, *ids)
        search = choose_search(storage, None)
        begin = datetime(2026, 1, 1, tzinfo=UTC)
        storage.mark_training_started(evaluation, begin, resumed_epoch=0)
        now = begin + timedelta(seconds=100)
        assert read_status(storage, search, now)["expected_end"] is None
        for epoch in range(1, 6):
            storage.add_epoch(evaluation, epoch_record(epoch, train_loss=1.0))
        found = read_status(storage, search, now)["expected_end"]
        assert found == (now + timedelta(seconds=3.5 * 200)).isoformat()
        started_evaluation(storage, *ids, 1)  # two at a time
        found = read_status(storage, search, now)["expected_end"]
        assert found == (now + timedelta(seconds=3.5 * 200 / 2)).isoformat()


def test_an_ended_launch_has_no_expected_end(tmp_path: Path, command: Command) -> None:
    url = f"sqlite:///{tmp_path}/ended.db"
    fill(url, ended=True)
    status = status_of(url)
    assert (status["expected_end"], status["launch"]["exit_code"]) == (None, 75)
    assert status["per_hour_over_s"] == 3 * 3600
    text = command("status", "--db", url).stdout
    assert "stopped: the same command goes on" in text
    assert "with exit code 75" in text


def test_failures_are_grouped_by_their_first_part() -> None:
    texts = [
        ("RuntimeError: a", 2), ("RuntimeError: b", 3), ("diverged: x is nan after epoch 7", 1),
        ("the search was stopped after epoch 3", 1), ("the search was stopped after epoch 4", 1),
        (None, 1),
    ]  # fmt: skip
    rows = group_failures(
        [FailureCount(status=Status.FAILED, reason=text, count=n) for text, n in texts]
    )
    assert [(row["evaluations"], row["reason"]) for row in rows] == [
        (5, "RuntimeError"), (2, "the search was stopped"), (1, "diverged"), (1, "no reason given")
    ]  # fmt: skip
    assert rows[0]["example"] == "RuntimeError: b"


def test_a_searched_number_of_epochs(tmp_path: Path) -> None:
    space = SearchSpace((Hyperparameter(name="epochs", kind="int", low=1, high=9),))
    with open_storage(f"{tmp_path}/search.db", create=True) as storage:
        ids = launched_search(storage, space=space)
        started_evaluation(storage, *ids, hyperparameters={"epochs": 4})
        (rank,) = read_status(storage, choose_search(storage, None))["ranks"]
    assert rank["epochs"] == 4
