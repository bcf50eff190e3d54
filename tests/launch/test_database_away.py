"""The database goes away and comes back: trainings go on, and all is stored exactly once."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from oialr_search.evaluation.devices import WorkerSettings
from oialr_search.evaluation.worker_process import worker_environment

from ..conftest import Command
from ..storage.postgres_server import PostgresServer, started_server
from .faults import (
    database_of,
    evaluations,
    faulty,
    finish,
    folder_of,
    has_said,
    of_folder,
    run_line,
    wait_until,
)

pytestmark = pytest.mark.slow  # each launch costs seconds of imports


@pytest.fixture(scope="module")
def shared_server() -> Iterator[PostgresServer]:
    with started_server() as server:
        yield server


@pytest.fixture
def server(shared_server: PostgresServer) -> PostgresServer:
    """The server, running and empty."""
    shared_server.start()
    shared_server.execute("drop schema public cascade; create schema public")
    return shared_server


def on(server: PostgresServer, command: Command) -> Command:
    """Commands whose database is on the server."""
    return replace(command, environment=command.environment | {"OIALR_SEARCH_DB": server.url})


def stored(server: PostgresServer) -> list[dict[str, Any]]:
    """All evaluations, and how many epochs of each."""
    names = ("individual_id", "attempt", "status", "epochs")
    rows = server.execute(
        "select individual_id, attempt, status, (select count(*) from metrics "
        "where evaluation_id = evaluations.id and name = 'train_loss') "
        "from evaluations order by individual_id, attempt"
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def outcomes(command: Command) -> int:
    return len(list(folder_of(command).glob("individual-*/attempt-*/outcome.json")))


def test_a_server_that_restarts_is_waited_for(server: PostgresServer, command: Command) -> None:
    """Stopped with both ranks in their training, and until both have ended that."""
    paused = {f"{n}/1": ("pause", 0) for n in (1, 2)}
    process = on(server, faulty(command, paused)).start(*run_line(4), ranks=2)
    for individual in (1, 2):
        wait_until(has_said(command, individual, 1, "started"), process)
    connections = "select count(*) from pg_stat_activity where datname = current_database()"
    [[number]] = server.execute(connections)
    assert number <= 2 * 2 + 1  # and this one
    server.stop("fast")
    wait_until(lambda: outcomes(command) == 2, process)
    server.start()
    code, output = finish(process)
    assert code == 0, output
    rows = stored(server)
    assert [(row["individual_id"], row["attempt"]) for row in rows] == [(n, 1) for n in range(1, 5)]
    assert {row["status"] for row in rows} == {"completed"}
    assert {row["epochs"] for row in rows} == {4}
    lines = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert len([line for line in lines if "the database is away" in line]) == 1
    assert any("the database is back" in line for line in lines)


def test_connections_cut_while_they_rest_disturb_nobody(
    server: PostgresServer, command: Command
) -> None:
    process = on(server, faulty(command, {"1/1": ("pause", 0)})).start(*run_line(2))
    wait_until(has_said(command, 1, 1, '"epoch"'), process)
    assert server.end_connections()
    code, output = finish(process)
    assert code == 0, output
    assert {(row["status"], row["epochs"]) for row in stored(server)} == {("completed", 4)}


def test_stopped_while_the_database_is_away(server: PostgresServer, command: Command) -> None:
    """What has ended meanwhile is taken in by the next launch, not computed again."""
    command = on(server, command)
    process = faulty(command, {"1/1": ("pause", 0)}).start(*run_line(2), "--grace", "3s", ranks=2)
    wait_until(has_said(command, 1, 1, "started"), process)
    wait_until(has_said(command, 2, 1, "started"), process)
    server.stop("fast")
    wait_until(lambda: outcomes(command) == 2, process)
    begun = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    code, output = finish(process)
    assert time.monotonic() - begun < 3 + 20
    assert code == 75, output
    assert "the folders have what it lacks" in output
    assert not of_folder(command)
    server.start()
    assert {row["status"] for row in stored(server)} == {"running"}
    command(*run_line(2), ranks=2)
    rows = stored(server)
    assert [(row["individual_id"], row["attempt"]) for row in rows] == [(1, 1), (2, 1)]
    assert {(row["status"], row["epochs"]) for row in rows} == {("completed", 4)}


def test_a_locked_file_is_waited_for(command: Command) -> None:
    """Somebody else writes to the SQLite file, for longer than a call waits."""
    url = f"sqlite:///{database_of(command)}?timeout=0.5"
    process = faulty(command, {"1/1": ("pause", 0)}).start(*run_line(2), "--db", url)
    wait_until(has_said(command, 1, 1, "started"), process)
    other = sqlite3.connect(database_of(command), timeout=60, isolation_level=None)
    other.execute("begin exclusive")
    wait_until(lambda: outcomes(command) == 1, process)
    other.execute("rollback")
    other.close()
    code, output = finish(process)
    assert code == 0, output
    assert "warning: the database is away since" in output
    assert "locked" in output
    assert "warning: the database is back" in output
    rows = evaluations(command)
    assert [(row["individual_id"], row["attempt"]) for row in rows] == [(1, 1), (2, 1)]
    assert {(row["status"], row["last_epoch"]) for row in rows} == {("completed", 4)}


SECRET = "s3cr3t-w0rd"


def test_a_password_is_nowhere_to_be_seen(server: PostgresServer, command: Command) -> None:
    url = server.url.replace("postgres@", f"postgres:{SECRET}@")
    command = faulty(command, {"1/1": ("pause", 0)})
    secret = {"OIALR_SEARCH_DB": url, "PGPASSWORD": SECRET}
    process = replace(command, environment=command.environment | secret).start(*run_line(1))
    wait_until(has_said(command, 1, 1, '"epoch"'), process)
    workers = [p for p in of_folder(command) if "oialr_training" in p.cmdline()]
    assert workers
    for worker in workers:
        assert SECRET not in str(worker.environ())
    assert SECRET not in str([p.cmdline() for p in of_folder(command)])
    code, output = finish(process)
    assert code == 0, output
    assert SECRET not in output
    seen = [path for path in command.folder.rglob("*") if path.is_file()]
    assert folder_of(command) / "search.json" in seen
    assert folder_of(command) / "launch-000001.json" in seen
    assert not [path for path in seen if SECRET.encode() in path.read_bytes()]
    tables = server.execute("select tablename from pg_tables where schemaname = 'public'")
    assert len(tables) > 5
    for (table,) in tables:
        assert SECRET not in str(server.execute(f"select row_to_json(t)::text from {table} t"))


@pytest.mark.parametrize("host", ["nowhere.invalid", "/nowhere"])
def test_a_password_is_not_told_when_there_is_no_such_server(command: Command, host: str) -> None:
    url = f"postgresql://user:{SECRET}@/name?host={host}"
    away = replace(command, environment=command.environment | {"OIALR_SEARCH_DB": url})
    result = away(*run_line(1), check=False)
    assert result.returncode == 75  # it may yet come
    assert SECRET not in result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: postgresql://user:***@/name")


@pytest.mark.parametrize("option", [["--db"], ["--db="]])
def test_a_password_on_the_command_line_is_refused(command: Command, option: list[str]) -> None:
    url = f"postgresql://user:{SECRET}@host/name"
    arguments = [*option, url] if option == ["--db"] else [option[0] + url]
    for line in ([*run_line(1), *arguments], ["import", ".", *arguments], ["status", *arguments]):
        result = command(*line, check=False)
        assert result.returncode == 78
        assert SECRET not in result.stdout + result.stderr
        (told,) = result.stderr.splitlines()
        assert "OIALR_SEARCH_DB" in told
    assert not list(command.folder.iterdir())


def test_a_worker_inherits_no_password() -> None:
    environment = {"OIALR_SEARCH_DB": "postgresql://", "PGPASSWORD": SECRET, "HOME": "/root"}
    kept = worker_environment(environment, WorkerSettings(gpu=None, num_threads=1))
    assert kept["HOME"] == "/root"
    assert not {"OIALR_SEARCH_DB", "PGPASSWORD"} & set(kept)
