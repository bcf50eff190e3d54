"""`status`, `show` and `log`: what they say of a search that has all that there may be."""

from __future__ import annotations

import json
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from oialr_search.analysis.individual import story as read_story
from oialr_search.analysis.leaderboard import choose_search
from oialr_search.analysis.status import group_failures
from oialr_search.analysis.status import status as read_status
from oialr_search.storage import open_storage
from oialr_search.storage.records import Status, StorageError
from oialr_search.storage.selection import FailureCount
from oialr_search.terminal.screens import duration

from ..conftest import Command
from ..storage.storage_examples import (
    launched_search,
    new_search,
    started_evaluation,
)
from .conftest import BEGAN, RESUMED, fill

NOW = BEGAN + timedelta(hours=2, minutes=20)


def status_of(url: str, now: Any = NOW) -> dict[str, Any]:
    with open_storage(url, read_only=True) as storage:
        return read_status(storage, choose_search(storage, None), now)


def story_of(url: str, individual: int) -> dict[str, Any]:
    with open_storage(url, read_only=True) as storage:
        return read_story(storage, individual, ["--db", url])


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


def test_the_pace_and_the_expected_end(url: str) -> None:
    """12 endings in 140 minutes, 5 in the last hour: too few, so the whole launch counts."""
    status = status_of(url)
    assert status["per_hour_over_s"] == 140 * 60
    assert status["per_hour"] == pytest.approx(12 / (140 / 60))
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


def test_an_ended_launch_has_no_expected_end(tmp_path: Path, command: Command) -> None:
    url = f"sqlite:///{tmp_path}/ended.db"
    fill(url, ended=True)
    status = status_of(url)
    assert (status["expected_end"], status["launch"]["exit_code"]) == (None, 75)
    assert status["per_hour_over_s"] == 3 * 3600
    text = command("status", "--db", url).stdout
    assert "stopped: the same command goes on" in text
    assert "with exit code 75" in text


def test_the_status_command(seen_urls: dict[str, str], command: Command) -> None:
    options = ["status", "--db", seen_urls["postgresql"]]
    text = command(*options).stdout
    assert "\x1b" not in text
    for words in (
        "seen: minivit_digits, validation_top1",
        "12 of 20 begun: 8 completed, 1 running, 2 failed, 1 timed out",
        "individual 5, fitness 2, 40 % trainable",
        "evaluations an hour",
        "1 of 3",
        "diverged: train_loss is",
    ):
        assert words in text
    assert "\nisland,individuals,running" in "\n" + command(*options, "--format", "csv").stdout


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (7505, "2 h 5 min"),
     (90000, "1 d 1 h"), (-3, "0 s")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_story_says_where_an_individual_comes_from(url: str) -> None:
    story = story_of(url, 7)
    assert [(p["individual"], p["fitness"], p["island"]) for p in story["parents"]] == [
        (2, 3.0, 1), (5, 2.0, 1)
    ]  # fmt: skip
    assert story["parents"][1]["differences"] == {"optimizer.lr": 0.01}
    assert story["parents"][0]["differences"] == {
        "optimizer.lr": 0.001, "oialr.delay_steps": 200, "oialr.full_rank_first": True
    }  # fmt: skip
    assert story["new_values"] == ["optimizer.lr"]
    assert story["hyperparameters"]["oialr.delay_steps"] == 500
    assert story["search_file"] == {
        "optimizer.lr": 0.01, "oialr.delay_steps": 7, "oialr.full_rank_first": False,
        "optimizer.name": "adamw",
    }  # fmt: skip


def test_the_story_says_how_it_trained(url: str) -> None:
    story = story_of(url, RESUMED)
    first, second = story["evaluations"]
    assert (first["status"], first["reason"]) == ("lost", "its launch ended first")
    assert (second["status"], second["resumed_epoch"], second["epochs"]) == ("completed", 1, 3)
    assert second["course"]["validation_loss"] == {
        "first": 3.0, "best": 0.5, "best_epoch": 2, "last": 1.0, "last_epoch": 3
    }  # fmt: skip
    assert second["course"]["validation_top1"]["best"] == 92.0  # higher is better
    assert second["inner_ranks"] == {"blocks.9.fc": [64, 32, 16], "blocks.10.fc": [64, 32, 16]}
    assert list(second["inner_ranks"]) == ["blocks.9.fc", "blocks.10.fc"]
    assert second["files"] is None
    export, train = map(shlex.split, story["train_again"])
    assert export == [
        "oialr-search", "export", "--individual", "5", "-o", "individual-5.yaml", "--db", url
    ]  # fmt: skip
    assert train == ["oialr-search", "train", "individual-5.yaml", "--data-dir", "/data"]


def test_the_story_says_why_it_failed(url: str) -> None:
    (failed,) = story_of(url, 9)["evaluations"]
    assert failed["reason"] == "diverged: train_loss is nan after epoch 1"
    assert failed["log_tail"].endswith("Traceback")
    assert failed["course"]["train_loss"]["first"] is None
    assert story_of(url, 11)["evaluations"][0]["exit_signal_name"] == "SIGKILL"
    with pytest.raises(StorageError, match="no individual 99"):
        story_of(url, 99)


def test_show_for_people(seen_urls: dict[str, str], command: Command) -> None:
    options = ["--db", seen_urls["postgresql"]]
    text = command("show", "7", *options).stdout
    rows = [line.split() for line in text.splitlines()]
    assert ["optimizer.lr", "0.0001", "0.001", "0.01", "0.01", "1e-05", "to", "0.1"] in rows
    assert ["oialr.delay_steps", "500", "200", "same", "7", "0", "to", "1000"] in rows
    assert ["validation_loss", "3", "0.5", "2", "1", "3"] in rows
    failed = command("show", "9", *options).stdout
    assert "loss [/nan]" in failed  # no markup, no colours of the worker's
    assert "\x1b" not in failed
    assert "(not on this machine)" in failed
    again = [line for line in text.splitlines() if "oialr-search export" in line]
    assert again == [f"  oialr-search export --individual 7 -o individual-7.yaml "
                     f"--db {shlex.quote(seen_urls['postgresql'])}"]  # fmt: skip


def test_show_for_programs(seen_urls: dict[str, str], command: Command) -> None:
    options = ["show", "9", "--db", seen_urls["sqlite"], "--format"]
    read = json.loads(command(*options, "json").stdout)
    assert read == yaml.safe_load(command(*options, "yaml").stdout)
    expected = story_of(seen_urls["sqlite"], 9)
    assert read == json.loads(json.dumps(expected))


def test_log(seen_urls: dict[str, str], command: Command) -> None:
    options = ["--db", seen_urls["sqlite"]]
    end = command("log", "9", *options)
    assert end.stdout.endswith("Traceback\n")
    assert end.stderr.startswith("warning: /nowhere/individual-000009/attempt-1/log.txt of node1")
    for arguments, words in (
        (["log", "1"], "and the database has no end of it"),
        (["log", "1", "--attempt", "2"], "individual 1 has no attempt 2"),
    ):
        result = command(*arguments, *options, check=False)
        assert result.returncode == 78
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_password_is_in_no_command_that_is_told(tmp_path: Path, command: Command) -> None:
    from oialr_search.cli import _database_options

    assert _database_options("postgresql://me:secret@host/db", Path("searches")) == []
    assert _database_options("postgresql://me@host/db", Path("searches")) == [
        "--db", "postgresql://me@host/db"
    ]  # fmt: skip
    assert _database_options(None, Path("searches")) == []
    assert _database_options(None, Path("a b")) == ["--search-dir", "a b"]


def test_a_searched_number_of_epochs(tmp_path: Path) -> None:
    space = [{"name": "epochs", "kind": "int", "low": 1, "high": 9}]
    with open_storage(f"{tmp_path}/search.db", create=True) as storage:
        ids = launched_search(storage, space=space)
        started_evaluation(storage, *ids, hyperparameters={"epochs": 4})
        (rank,) = read_status(storage, choose_search(storage, None))["ranks"]
    assert rank["epochs"] == 4


def test_a_search_without_individuals(kind: str, new_url: Any, command: Command) -> None:
    url = new_url(kind)
    with open_storage(url, create=True) as storage:
        empty = command("status", "--db", url, check=False)
        assert empty.returncode == 78
        assert empty.stderr == "error: the database holds no search yet\n"
        storage.create_search(new_search())
    text = command("status", "--db", url).stdout
    assert "0 of 3 begun" in text
    assert "unknown: nothing has ended yet" in text
    assert "no such individual" in command("leaderboard", "--db", url).stdout
