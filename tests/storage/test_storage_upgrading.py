"""A database of revision 0002, filled by SQL, keeps all it has through upgrade and downgrade."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from storage_examples import new_launch, new_proposal, new_runner
from test_storage_breeding import breeders_by_looking_at_all, check_counts

import oialr_search.storage.migrations
from oialr_search.storage import open_storage, upgrade_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Outcome, Status, StorageError
from oialr_search.storage.schema import REVISION_TABLE
from oialr_training.protocol import Resources

AT = "2025-03-01 12:00:00.250000"
GENES = '{"optimizer.lr": 0.5}'
SPACE = '[{"name": "optimizer.lr", "kind": "float"}]'
ROWS: dict[str, list[tuple[Any, ...]]] = {
    "searches": [
        (3, "digits", "minivit_digits", "top1", '{"größe": [1, null]}', SPACE, '["top1"]', 2**40,
         9, "0.1.0", AT, 4),
        (5, "other", "minivit_digits", "top1", "{}", SPACE, "[]", 1, 9, "0.1.0", AT, 1),
    ],
    "launches": [
        (2, 3, AT, None, None, 4, 2, "node1", "run", "{}", None),
        (4, 3, AT, AT, 75, 2, 2, "node1", "run", '{"torch": "2.9"}', "abc"),
        (7, 5, AT, None, None, 1, 1, "node2", "run", "{}", None),
    ],
    "individuals": [
        (n, search, launch, island, 0, n, "[]", "random", GENES, '{"optimizer.lr": 0.001}', status,
         fitness, AT, None if status in ("running", "lost") else AT)
        for n, search, launch, island, status, fitness in [
            (11, 3, 2, 0, "completed", 0.5),
            (12, 3, 2, 1, "completed", 0.25),
            (13, 3, 2, 1, "failed", None),
            (14, 3, 4, 0, "lost", None),
            (15, 3, 4, 1, "running", None),
            (16, 3, 4, 0, "running", None),
            (17, 5, 7, 0, "completed", 0.75),
        ]
    ],
    "islands": [
        (3, 0, 0, 1, 1, 0, 0, 0, 1),
        (3, 1, 0, 1, 1, 0, 1, 0, 0),
        (3, 6, 0, 0, 0, 0, 0, 0, 0),
        (5, 0, 0, 0, 1, 0, 0, 0, 0),
    ],
    "evaluations": [
        (n, individual, attempt, launch, status, reason, None, None, "node1", None, 2, 7, 1, AT, AT,
         0, AT if finish_number else None, finish_number, "/f", "/f/log", 3, fitness,
         '{"top1": null}', 10.5, None, "end", 0.5, None, 2**40, None, 1e5)
        for n, individual, attempt, launch, status, reason, finish_number, fitness in [
            (21, 11, 1, 2, "lost", "Größe 'x'", 1, None),
            (22, 11, 2, 2, "completed", None, 2, 0.5),
            (23, 12, 1, 2, "completed", None, 4, 0.25),
            (24, 13, 1, 2, "failed", "diverged", 3, None),
            (25, 14, 1, 4, "lost", "its launch ended first", None, None),
            (26, 15, 1, 4, "running", None, None, None),
            (27, 17, 1, 7, "completed", None, 1, 0.75),
        ]
    ],
    "migrations": [(31, 3, 12, 1, 0, AT, 0.25), (32, 3, 11, 0, 6, AT, 0.5)],
    "metrics": [(22, 1, "top1", 10, 0.5), (22, 2, "top1", 20, None), (26, 1, "größe", 10, 1e300)],
    "rank_updates": [(22, 10, "blocks.0", 3, 64, None), (22, 20, "blocks.0", 2, 64, 0.5)],
    "observations": [(22, 20, 10, "blocks.0", 0.5, 0.75), (22, 30, 10, "blocks.0", None, None)],
}  # fmt: skip
RENAMED = {"mixing_similarity": "relative_mixing_similarity"}


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def migrate(connection: sa.Connection, how: Any, revision: str) -> None:
    config = Config()
    folder = Path(oialr_search.storage.migrations.__file__).parent
    config.set_main_option("script_location", str(folder))
    config.attributes["connection"] = connection
    how(config, revision)


def columns_of(connection: sa.Connection) -> dict[str, list[str]]:
    inspector = sa.inspect(connection)
    return {table: [c["name"] for c in inspector.get_columns(table)] for table in ROWS}


def rows_of(connection: sa.Connection, columns: dict[str, list[str]]) -> dict[str, list[Any]]:
    """Return the rows as the driver gives them, without our types."""
    return {
        table: [
            tuple(row)
            for row in connection.exec_driver_sql(
                f"SELECT {', '.join(names)} FROM {table} ORDER BY {', '.join(names[:3])}"
            )
        ]
        for table, names in columns.items()
    }


@pytest.fixture
def old_url(database_url: str) -> str:
    """A filled database of revision 0002."""
    if database_url.startswith("sqlite"):
        Path(database_url.removeprefix("sqlite:///")).touch()
    with connected(database_url) as connection:
        migrate(connection, command.upgrade, "0002")
        for table, names in columns_of(connection).items():
            for row in ROWS[table]:
                places = ", ".join(
                    "%s" if connection.dialect.name != "sqlite" else "?" for _ in row
                )
                connection.exec_driver_sql(
                    f"INSERT INTO {table} ({', '.join(names)}) VALUES ({places})", row
                )
        if connection.dialect.name == "postgresql":
            for table in ("searches", "launches", "individuals", "evaluations", "migrations"):
                sql = f"SELECT setval('{table}_id_seq', max(id)) FROM {table}"
                connection.exec_driver_sql(sql)
    return database_url


def test_everything_survives(old_url: str) -> None:
    with connected(old_url) as connection:
        columns = columns_of(connection)
        before = rows_of(connection, columns)
    assert {table: len(rows) for table, rows in before.items()} == {
        table: len(rows) for table, rows in ROWS.items()
    }
    with pytest.raises(StorageError, match="run `oialr-search upgrade"):
        open_storage(old_url)

    upgrade_storage(old_url)

    with connected(old_url) as connection:
        renamed = [RENAMED.get(name, name) for name in columns["observations"]]
        assert rows_of(connection, {**columns, "observations": renamed}) == before
    with open_storage(old_url) as storage:
        look_around(storage)
    with connected(old_url) as connection:
        connection.exec_driver_sql("DROP VIEW leaderboard")
        connection.exec_driver_sql("DROP VIEW lineage")
        migrate(connection, command.downgrade, "0002")
        assert columns_of(connection) == columns
        assert rows_of(connection, columns) == before
    upgrade_storage(old_url)
    with open_storage(old_url) as storage:
        look_around(storage)
        go_on(storage)


def look_around(storage: Storage) -> None:
    """Check what this version reads."""
    launches = {e.id: e.launch_id for n in range(11, 18) for e in storage.evaluations(n)}
    assert launches == {21: 2, 22: 2, 23: 2, 24: 2, 25: 4, 26: 4, 27: 7}
    counts = {summary.island: summary.counts for summary in storage.islands(3)}
    none = dict.fromkeys(Status, 0)
    assert counts == {
        0: none | {Status.COMPLETED: 1, Status.LOST: 1, Status.RUNNING: 1},
        1: none | {Status.COMPLETED: 1, Status.FAILED: 1, Status.RUNNING: 1},
        6: none,
    }
    assert [e.id for e in storage.finished_since(3)] == [21, 22, 24, 23]
    for island in (0, 1):
        asked = (3, island, 2, 9)
        assert storage.breeders(*asked) == breeders_by_looking_at_all(storage, *asked)
    assert [b.id for b in storage.breeders(3, 0, 2, 9)] == [12, 11]
    [evaluation] = storage.evaluations(15)
    assert evaluation.resources == Resources(
        gpu_energy_j=0.5, peak_host_memory_bytes=2**40, samples_per_s=1e5
    )
    first, second = storage.observations(22)
    assert (first.stability, first.relative_mixing_similarity) == (0.5, 0.75)
    assert math.isnan(first.mixing_similarity)
    assert math.isnan(second.relative_mixing_similarity)


def go_on(storage: Storage) -> None:
    """Resume the search where its last launch was killed."""
    launch_id = storage.start_launch(new_launch(3))
    check_counts(storage, 3)
    claims = [
        storage.claim(3, new_proposal(99), 7, new_runner(launch_id, world_rank=rank))
        for rank in range(5)
    ]
    taken = [(c.individual.id, c.evaluation.attempt, c.repeated) for c in claims if c]
    assert taken == [(14, 2, True), (15, 2, True), (16, 1, True), (18, 1, False)]
    assert claims[0]
    storage.finish_evaluation(
        claims[0].evaluation.id, Outcome(status=Status.COMPLETED, fitness=0.125)
    )
    check_counts(storage, 3)
    assert storage.last_finish_number(3) == 5


def test_a_damaged_database_is_left_as_it_is(old_url: str) -> None:
    if not old_url.startswith("sqlite"):
        pytest.skip("PostgreSQL always watches its foreign keys")
    with connected(old_url) as connection:
        connection.exec_driver_sql("DELETE FROM searches WHERE id = 5")
    with pytest.raises(StorageError, match="belongs to a row of searches that is not there"):
        upgrade_storage(old_url)
    with connected(old_url) as connection:
        [version] = connection.exec_driver_sql(f"SELECT version_num FROM {REVISION_TABLE}").one()
        assert version == "0002"
        assert RENAMED.keys() <= {*columns_of(connection)["observations"]}
