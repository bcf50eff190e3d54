"""The leaderboard view, asked as a user asks it: with plain SQL."""

from __future__ import annotations

import math
import shutil
import sqlite3
import subprocess
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from storage_examples import (
    HYPERPARAMETERS,
    SPACE,
    launched_search,
    new_proposal,
    new_runner,
    new_search,
    space_of,
    started_evaluation,
)

from oialr_search.space.hyperparameters import SearchSpace
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.leaderboard import all_columns, objective
from oialr_search.storage.records import Outcome, Status, StorageError
from oialr_search.storage.selection import Comparison, Selection

FIXED = [
    "search", "place", "individual_id", "fitness", "deviation", "seeds", "trainable_percent",
    "compression_percent",
    "island", "island_rank", "generation", "duration_s",
]  # fmt: skip


def ask(url: str, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the columns and the rows that a user's client would show."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            cursor = connection.execute(sql)
            return [column[0] for column in cursor.description], cursor.fetchall()
    with psycopg.connect(url) as connection:
        answer = connection.execute(sql)
        return [column.name for column in answer.description or ()], answer.fetchall()


def complete(
    storage: Storage, ids: tuple[int, int], generation: int, fitness: float, **outcome: Any
) -> int:
    """Evaluate one individual to the end and return its id."""
    hyperparameters = outcome.pop("hyperparameters", HYPERPARAMETERS)
    individual_id, evaluation_id = started_evaluation(
        storage, *ids, generation, hyperparameters=hyperparameters
    )
    done = Outcome(status=Status.COMPLETED, fitness=fitness, **outcome)
    storage.finish_evaluation(evaluation_id, done)
    return individual_id


def test_an_empty_leaderboard_can_be_asked(storage: Storage, database_url: str) -> None:
    assert ask(database_url, "SELECT * FROM leaderboard") == (FIXED, [])


def test_hyperparameters_and_metrics_are_typed_columns(storage: Storage, database_url: str) -> None:
    ids = launched_search(storage)
    complete(storage, ids, 0, 0.5, metrics={"val.top1": 0.5, "val.loss": math.nan})
    claim = storage.claim(ids[0], new_proposal(1), 10, new_runner(ids[1]))
    assert claim
    start = claim.evaluation.started_at
    storage.finish_evaluation(
        claim.evaluation.id,
        Outcome(
            status=Status.COMPLETED,
            fitness=0.25,
            metrics={"val.top1": 0.75, "val.loss": 1},
            trainable_percent=12.5,
            compression_percent=50.0,
            finished_at=start + timedelta(seconds=90.5),
        ),
    )

    columns, [best, second] = ask(database_url, "SELECT * FROM leaderboard LIMIT 5")

    hyperparameters = [
        "optimizer_lr", "oialr_delay_steps", "oialr_full_rank_first", "optimizer_name"
    ]  # fmt: skip
    assert columns == [*FIXED, *hyperparameters, "val_top1", "val_loss"]
    assert best == (
        "digits", 1, claim.individual.id, 0.25, None, 1, 12.5, 50.0, 1, 0, 1,
        pytest.approx(90.5, abs=0.002), 0.001, 100, True, "adamw", 0.75, 1.0,
    )  # fmt: skip
    assert [type(value) for value in best[12:14]] == [float, int]
    assert type(best[17]) is float
    assert second[1] == 2
    assert second[-2:] == (0.5, None)
    found = ask(database_url, "SELECT place FROM leaderboard WHERE optimizer_lr < 0.01 LIMIT 1")[1]
    assert found == [(1,)]


def test_two_searches_of_different_spaces(storage: Storage, database_url: str) -> None:
    digits = launched_search(storage)
    complete(storage, digits, 0, 0.3)
    space = space_of(
        {"name": "model.width", "kind": "int"},
        {"name": "oialr.delay_steps", "kind": "float"},
        {"name": "optimizer.lr", "kind": "choice", "choices": [1, 0.5]},
        {"name": "optimizer.name", "kind": "choice", "choices": [False, True]},
        {"name": "patch", "kind": "choice", "choices": [4, "auto"]},
    )
    other = launched_search(storage, name="ettm2", space=space, metric_names=["val.mse"])
    values = {
        "model.width": 64,
        "oialr.delay_steps": 1.5,
        "optimizer.lr": 1,
        "optimizer.name": True,
        "patch": 4,
    }
    complete(storage, other, 0, 0.9, metrics={"val.mse": 0.9}, hyperparameters=values)
    complete(storage, other, 1, 0.8, metrics={"val.mse": 0.8}, hyperparameters=values)

    columns, rows = ask(database_url, "SELECT * FROM leaderboard")

    assert columns[len(FIXED) :] == [
        "optimizer_lr", "oialr_delay_steps", "oialr_full_rank_first", "optimizer_name",
        "model_width", "patch", "val_top1", "val_loss", "val_mse",
    ]  # fmt: skip
    places = [(row[0], row[1], row[3]) for row in rows]
    assert places == [("ettm2", 1, 0.8), ("ettm2", 2, 0.9), ("digits", 1, 0.3)]
    assert rows[0][12:14] == (1.0, 1.5)
    assert rows[0][14] is None
    assert rows[0][16:] == (64, "4", None, None, 0.8)
    assert rows[2][12:] == (0.001, 100.0, True, "adamw", None, None, None, None, None)


def test_only_completed_individuals_with_their_last_attempt(
    storage: Storage, database_url: str
) -> None:
    ids = launched_search(storage)
    individual_id, evaluation_id = started_evaluation(storage, *ids)
    storage.finish_evaluation(evaluation_id, Outcome(status=Status.LOST, metrics={"val.top1": 0.1}))
    assert ask(database_url, "SELECT * FROM leaderboard")[1] == []
    claim = storage.claim(ids[0], new_proposal(), 3, new_runner(ids[1]))
    assert claim
    storage.finish_evaluation(
        claim.evaluation.id,
        Outcome(status=Status.COMPLETED, fitness=0.1, metrics={"val.top1": 0.9}),
    )
    for generation, status in enumerate((Status.FAILED, Status.PRUNED, Status.TIMED_OUT), 1):
        _, evaluation_id = started_evaluation(storage, *ids, generation)
        storage.finish_evaluation(evaluation_id, Outcome(status=status))

    found = ask(database_url, "SELECT individual_id, val_top1 FROM leaderboard")[1]
    assert found == [(individual_id, 0.9)]


def test_equal_fitness_keeps_the_older_first(storage: Storage, database_url: str) -> None:
    ids = launched_search(storage)
    expected = [complete(storage, ids, generation, 0.5) for generation in range(3)]
    rows = ask(database_url, "SELECT place, individual_id FROM leaderboard")[1]
    assert rows == list(enumerate(expected, 1))
    assert [i.id for i in storage.individuals(ids[0], order="fitness")] == expected


@pytest.mark.parametrize(
    "name",
    ['lr" FROM x; --', "lr'", "lr-decay", "", ".lr", "lr.", "a..b", "0.lr", "größe", "a b", "a\n"],
)
def test_names_that_are_no_identifiers(storage: Storage, name: str) -> None:
    bad_space = new_search(space=space_of({"name": name, "kind": "float"}))
    for search in (bad_space, new_search(metric_names=[name])):
        with pytest.raises(StorageError, match="is no name for a column: use letters"):
            storage.create_search(search)
    assert storage.searches() == []


def test_keywords_and_long_names(storage: Storage, database_url: str) -> None:
    names = ["select", "Order", "a" * 63]
    storage.create_search(
        new_search(space=space_of(*({"name": n, "kind": "float"} for n in names)))
    )
    assert ask(database_url, "SELECT * FROM leaderboard")[0][len(FIXED) :][:3] == names
    too_long = space_of({"name": "a" * 64, "kind": "float"})
    with pytest.raises(StorageError, match="is too long for a column: 63 at most"):
        storage.create_search(new_search(name="long", space=too_long))


@pytest.mark.parametrize("name", ["optimizer_lr", "Optimizer.LR", "fitness", "Place"])
def test_hyperparameters_do_not_share_a_column(
    storage: Storage, database_url: str, name: str
) -> None:
    storage.create_search(new_search())
    before = ask(database_url, "SELECT * FROM leaderboard")
    [added] = space_of({"name": name, "kind": "float"}).hyperparameters
    clash = new_search(name="clash", space=SearchSpace((*SPACE.hyperparameters, added)))
    with pytest.raises(StorageError, match=f"`{name}` would share the leaderboard column"):
        storage.create_search(clash)
    assert storage.find_search("clash") is None
    assert ask(database_url, "SELECT * FROM leaderboard") == before


def test_a_metric_whose_name_is_taken_gets_a_prefix(storage: Storage, database_url: str) -> None:
    names = ["trainable_percent", "optimizer.lr", "loss"]
    ids = launched_search(storage, metric_names=names)
    complete(storage, ids, 0, 0.5, metrics={"trainable_percent": 7.0, "optimizer.lr": 8.0})
    sql = "SELECT metric_trainable_percent, metric_optimizer_lr, loss, optimizer_lr"
    assert ask(database_url, f"{sql} FROM leaderboard")[1] == [(7.0, 8.0, None, 0.001)]


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="no sqlite3 program")
def test_the_sqlite3_program_shows_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "search.db"
    with open_storage(str(path), create=True) as storage:
        ids = launched_search(storage)
        for generation in range(2):
            complete(storage, ids, generation, 0.5 - generation / 4)
        out = subprocess.run(
            ["sqlite3", "-header", str(path), "select * from leaderboard limit 1"],
            capture_output=True,
            text=True,
            check=True,
        )
    header, row = out.stdout.splitlines()
    shown = dict(zip(header.split("|"), row.split("|"), strict=True))
    assert (shown["place"], shown["fitness"]) == ("1", "0.25")
    assert (shown["optimizer_lr"], shown["optimizer_name"]) == ("0.001", "adamw")


def test_a_whole_number_written_as_a_float_does_not_break_the_view(
    storage: Storage, database_url: str
) -> None:
    ids = launched_search(storage)
    complete(storage, ids, 0, 0.5, hyperparameters=HYPERPARAMETERS | {"oialr.delay_steps": 100.0})
    assert ask(database_url, "SELECT oialr_delay_steps FROM leaderboard")[1] == [(100,)]


def test_aims_of_a_search_are_columns(storage: Storage, database_url: str) -> None:
    """The violation of constraints, and objectives that are no column of their own."""
    settings = {
        "search": {
            "objectives": ["validation_top1:max", "2 * trainable_percent", "duration_s"],
            "subject_to": ["trainable_percent <= 10"],
        }
    }
    ids = launched_search(storage, settings=settings)
    fair = complete(storage, ids, 0, 5.0, objectives=[5.0, 10.0, 1.0], constraints=[-5.0])
    good = complete(
        storage, ids, 1, 1.0, objectives=[1.0, 40.0, 2.0], constraints=[10.0], violation=1.0
    )
    columns, rows = ask(database_url, "SELECT * FROM leaderboard ORDER BY place")
    assert columns[:6] == [*FIXED[:4], "violation", "objective_2"]
    assert [row[1:6] for row in rows] == [(1, fair, 5.0, 0.0, 10.0), (2, good, 1.0, 1.0, 40.0)]
    search = storage.searches()[0]
    assert {n for n in all_columns(search) if "objective" in n or "viol" in n} == {
        "violation",
        "objective_2",
    }
    wanted = Selection(where=Comparison(objective(1), "<=", 10.0))
    assert [placed.individual.id for placed in storage.select(search.id, wanted)] == [fair]
