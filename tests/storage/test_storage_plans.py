"""The database finds by index what a controller asks for; the page of plans fails without one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from storage_examples import (
    epoch_record,
    launched_search,
    new_launch,
    new_proposal,
    new_runner,
)

from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Outcome, Status, utc_now

GROWING = "(?:launches|individuals|evaluations|migrations|latest)"
COMPLETED = Outcome(status=Status.COMPLETED, fitness=0.5)
CALLS: dict[str, tuple[Callable[[Storage, int, int, int], object], set[str]]] = {
    "claim": (
        lambda s, search, launch, _: s.claim(search, new_proposal(7), 9, new_runner(launch)),
        {
            "ix_evaluations_running",
            "ix_individuals_search_id_status_id",
            "ix_launches_search_id_started_at",
        },
    ),
    "claim of a lost one": (
        lambda s, search, launch, evaluation: (
            s.finish_evaluation(evaluation, COMPLETED.__class__(status=Status.LOST)),
            s.claim(search, new_proposal(7), 9, new_runner(launch)),
        ),
        {
            "ix_evaluations_running",
            "ix_individuals_search_id_status_id",
            "ix_launches_search_id_started_at",
            "sqlite_autoindex_evaluations_1",
        },
    ),
    "claim again": (
        lambda s, search, launch, _: s.claim(
            search, new_proposal(7), 9, new_runner(launch, world_rank=0)
        ),
        {
            "ix_evaluations_running",
            "ix_individuals_search_id_status_id",
            "ix_launches_search_id_started_at",
            "sqlite_autoindex_evaluations_1",
        },
    ),
    "training started": (lambda s, _, __, e: s.mark_training_started(e, utc_now(), 0), set()),
    "epoch": (lambda s, _, __, e: s.add_epoch(e, epoch_record(1, loss=1.0)), set()),
    "finish": (lambda s, _, __, e: s.finish_evaluation(e, COMPLETED), set()),
    "launch": (
        lambda s, search, _, __: s.start_launch(new_launch(search)),
        {"ix_individuals_search_id_status_id", "sqlite_autoindex_evaluations_1"},
    ),
    "breeders": (
        lambda s, search, _, __: s.breeders(search, 0, 1, 5),
        {
            "ix_individuals_search_id_island_violation_fitness_id",
            "ix_migrations_best_first",
            "sqlite_autoindex_evaluations_1",
        },
    ),
    "known": (
        lambda s, search, _, __: s.known_after(search, 3, {1, 2}),
        {"ix_individuals_search_id_status_id"},
    ),
    "next generation": (
        lambda s, search, _, __: s.next_generation(search, 1, 0),
        {"sqlite_autoindex_individuals_1"},
    ),
    "progress": (
        lambda s, search, _, __: s.progress(search),
        {
            "ix_individuals_repeat_of",
            "ix_individuals_search_id_status_id",
            "ix_individuals_search_id_violation_fitness_id",
            "sqlite_autoindex_evaluations_1",
        },
    ),
    "islands": (
        lambda s, search, _, __: s.islands(search),
        {"ix_individuals_search_id_island_violation_fitness_id"},
    ),
    "best": (
        lambda s, search, _, __: s.individuals(
            search, status=Status.COMPLETED, limit=10, order="fitness"
        ),
        {"ix_individuals_search_id_violation_fitness_id", "sqlite_autoindex_evaluations_1"},
    ),
    "unfinished": (
        lambda s, search, _, __: s.unfinished(search),
        {"ix_individuals_search_id_status_id", "sqlite_autoindex_evaluations_1"},
    ),
    "claim of a pruned one": (
        lambda s, search, launch, evaluation: (
            s.finish_evaluation(evaluation, Outcome(status=Status.PRUNED)),
            s.claim(search, new_proposal(7), 9, new_runner(launch), 1),
        ),
        {
            "ix_evaluations_running",
            "ix_individuals_search_id_status_id",
            "ix_launches_search_id_started_at",
            "sqlite_autoindex_evaluations_1",
        },
    ),
    "confirmations": (
        lambda s, search, _, __: s.num_confirmations(search),
        {"ix_individuals_repeat_of"},
    ),
    "individuals that finished": (
        lambda s, search, _, __: s.finished_after(search, 3),
        {"ix_evaluations_launch_id_finish_number", "ix_launches_search_id_started_at"},
    ),
    "trainings": (
        lambda s, search, _, __: s.trainings(search, newest=3, best=2),
        {
            "ix_individuals_search_id_status_id",
            "ix_individuals_search_id_violation_fitness_id",
            "sqlite_autoindex_evaluations_1",
        },
    ),
    "curves": (
        lambda s, _, __, ___: s.curves([1], ["loss"]),
        {"sqlite_autoindex_evaluations_1"},
    ),
    "finished": (
        lambda s, search, _, __: s.finished_since(search, 3),
        {"ix_evaluations_launch_id_finish_number", "ix_launches_search_id_started_at"},
    ),
}


@contextmanager
def plans(storage: Storage) -> Iterator[list[str]]:
    """Collect the steps of SQLite's plan for each statement that is executed meanwhile."""
    engine: sa.Engine = storage._engine  # type: ignore[attr-defined]
    steps: list[str] = []

    def explain(
        connection: sa.Connection,
        _cursor: Any,
        sql: str,
        parameters: Any,
        _context: Any,
        many: bool,
    ) -> None:
        if re.match("(?i)select|update", sql):
            raw = connection.connection.driver_connection
            assert raw
            given = parameters[0] if many else parameters
            steps.extend(row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {sql}", given))

    sa.event.listen(engine, "before_cursor_execute", explain)
    yield steps
    sa.event.remove(engine, "before_cursor_execute", explain)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_looked_for_row_by_row(tmp_path: Path, name: str) -> None:
    call, indexes = CALLS[name]
    with open_storage(str(tmp_path / "search.db"), create=True) as storage:
        search_id, launch_id = launched_search(storage)
        runner = new_runner(launch_id, world_rank=0)
        claim = storage.claim(search_id, new_proposal(), 9, runner)
        assert claim
        with plans(storage) as steps:
            call(storage, search_id, launch_id, claim.evaluation.id)

    assert steps or not indexes
    assert [step for step in steps if re.match(rf"SCAN {GROWING}", step)] == []
    used = re.findall(rf"SEARCH {GROWING}\S* USING .*?INDEX (\w+)", "\n".join(steps))
    assert set(used) == indexes
