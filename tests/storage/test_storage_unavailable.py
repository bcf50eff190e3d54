"""A database that goes away and comes back: a call says so; later the same object works again."""

from __future__ import annotations

import re
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from postgres_server import PostgresServer, started_server
from storage_examples import (
    epoch_record,
    launched_search,
    new_launch,
    new_proposal,
    new_runner,
    new_search,
    started_evaluation,
)

from oialr_search.storage import open_storage, opening
from oialr_search.storage.database import Storage
from oialr_search.storage.errors import storage_errors
from oialr_search.storage.opening import LIBPQ_OPTIONS
from oialr_search.storage.records import Outcome, Status, StorageError, StorageUnavailable

COMPLETED = Outcome(status=Status.COMPLETED, fitness=0.25)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with started_server() as server:
        yield server


@pytest.fixture
def private_url(server: PostgresServer, request: pytest.FixtureRequest) -> str:
    name = re.sub(r"\W", "_", request.node.name)[-60:]
    server.execute(f"CREATE DATABASE {name}")
    return server.url_of("postgres", name)


class TestPostgresql:
    @pytest.mark.parametrize("mode", ["fast", "immediate"])
    def test_a_server_that_stops_and_starts_again(
        self, server: PostgresServer, private_url: str, mode: str
    ) -> None:
        with open_storage(private_url, create=True) as storage:
            search_id, launch_id = launched_search(storage)
            individual_id, evaluation_id = started_evaluation(storage, search_id, launch_id)
            server.stop(mode)
            for _ in range(2):
                with pytest.raises(StorageUnavailable):
                    storage.add_epoch(evaluation_id, epoch_record(1, loss=1.0))
                with pytest.raises(StorageUnavailable):
                    storage.progress(search_id)
                with pytest.raises(StorageUnavailable):
                    open_storage(private_url)
            server.start()
            storage.add_epoch(evaluation_id, epoch_record(1, loss=1.0))
            assert storage.finish_evaluation(evaluation_id, COMPLETED)
            assert storage.progress(search_id).best_individual_id == individual_id

    def test_idle_connections_that_the_server_ends(
        self, server: PostgresServer, private_url: str
    ) -> None:
        with open_storage(private_url, create=True) as storage:
            search_id, launch_id = launched_search(storage)
            assert server.end_connections() >= 1
            _, evaluation_id = started_evaluation(storage, search_id, launch_id)
            assert server.end_connections() >= 1
            assert storage.progress(search_id).counts[Status.RUNNING] == 1
            assert server.end_connections() >= 1
            assert storage.finish_evaluation(evaluation_id, COMPLETED)

    def test_a_connection_ended_in_the_middle_of_a_call(
        self, server: PostgresServer, private_url: str
    ) -> None:
        with (
            open_storage(private_url, create=True) as storage,
            ThreadPoolExecutor(max_workers=1) as pool,
        ):
            search_id, launch_id = launched_search(storage)
            with psycopg.connect(private_url) as other:
                other.execute("SELECT * FROM searches FOR UPDATE")
                claim = [search_id, new_proposal(), 3, new_runner(launch_id)]
                future = pool.submit(storage.claim, *claim)
                while not server.end_connections("wait_event_type = 'Lock'"):
                    assert not future.done()
                with pytest.raises(StorageUnavailable, match="terminating connection"):
                    future.result()
            assert storage.individuals(search_id) == []
            assert storage.claim(*claim)
            assert len(storage.individuals(search_id)) == 1

    def test_waiting_longer_than_the_users_own_option_says(
        self, server: PostgresServer, private_url: str
    ) -> None:
        with (
            open_storage(private_url, create=True) as storage,
            open_storage(f"{private_url}&options=-c lock_timeout%3D50ms") as impatient,
        ):
            search_id, launch_id = launched_search(storage)
            with psycopg.connect(private_url) as other:
                other.execute("SELECT * FROM searches FOR UPDATE")
                with pytest.raises(StorageUnavailable, match="lock timeout"):
                    impatient.start_launch(new_launch(search_id))
            assert impatient.start_launch(new_launch(search_id)) > launch_id

    def test_roles_passwords_and_databases(self, server: PostgresServer) -> None:
        server.execute("CREATE ROLE guest LOGIN PASSWORD 's3cret' CONNECTION LIMIT 1")
        server.execute("CREATE DATABASE guests OWNER guest")
        server.demand_passwords_of("guest")
        guest = server.url_of("guest:s3cret", "guests")
        for url in (guest.replace("s3cret", "wr0ng"), guest.replace("/guests", "/missing")):
            for create in (False, True):
                with pytest.raises(StorageError) as caught:
                    open_storage(url, create=create)
                assert not isinstance(caught.value, StorageUnavailable)
                assert "s3cret" not in str(caught.value)
                assert "wr0ng" not in str(caught.value)
        open_storage(guest, create=True).close()
        with psycopg.connect(guest), pytest.raises(StorageUnavailable, match="too many") as full:
            open_storage(guest)
        assert "s3cret" not in str(full.value)
        with open_storage(guest) as storage:
            assert storage.searches() == []


class TestSqlite:
    def test_locked_by_another_process_for_too_long(self, tmp_path: Path) -> None:
        path = tmp_path / "search.db"
        with open_storage(f"sqlite:///{path}?timeout=0.1", create=True) as storage:
            search_id, launch_id = launched_search(storage)
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StorageUnavailable, match="database is locked"):
                    started_evaluation(storage, search_id, launch_id)
                assert storage.individuals(search_id) == []
                other.execute("ROLLBACK")
            started_evaluation(storage, search_id, launch_id)
            assert len(storage.individuals(search_id)) == 1

    @pytest.mark.parametrize("option", ["timeout=soon", "timeout=-1", "mode=ro", "timeout=1&x=2"])
    def test_options_that_are_none(self, tmp_path: Path, option: str) -> None:
        with pytest.raises(StorageError, match="knows `\\?timeout=SECONDS` only"):
            open_storage(f"sqlite:///{tmp_path}/search.db?{option}", create=True)

    def test_a_full_disk(self, tmp_path: Path) -> None:
        with open_storage(str(tmp_path / "search.db"), create=True) as storage:
            search_id, launch_id = launched_search(storage)
            long = new_search(name="long", settings={"text": "x" * 3_000_000})
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
            try:
                with pytest.raises(StorageUnavailable, match="disk"):
                    storage.create_search(long)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert storage.find_search("long") is None
            started_evaluation(storage, search_id, launch_id)
            assert storage.create_search(long) > search_id

    def test_a_reader_in_another_process_blocks_nobody(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(opening, "WAL_LIMIT_BYTES", 500_000)
        path, log = tmp_path / "search.db", tmp_path / "search.db-wal"
        with open_storage(f"sqlite:///{path}?timeout=0.1", create=True) as storage:
            script = (
                "import sqlite3, sys\n"
                "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
                "connection.execute('BEGIN'); print(connection.execute(\n"
                "    'SELECT count(*) FROM searches').fetchone()[0], flush=True)\n"
                "sys.stdin.readline()"
            )
            reader = subprocess.Popen(
                [sys.executable, "-c", script, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert reader.stdout
            assert reader.stdout.readline() == "0\n"
            for number in range(10):
                text = "x" * 1_000_000
                storage.create_search(new_search(name=f"s{number}", settings={"text": text}))
            assert log.stat().st_size > 10_000_000
            reader.communicate("\n")
            for number in range(3):
                storage.create_search(new_search(name=f"t{number}"))
            assert log.stat().st_size <= 500_000


def _dbapi(error: Exception, sqlstate: str | None = None) -> Callable[[], None]:
    def fail() -> None:
        if sqlstate:
            error.sqlstate = sqlstate  # type: ignore[attr-defined]
        raise sa.exc.DBAPIError.instance("SELECT 1", {}, error, psycopg.Error)

    return fail


@pytest.mark.parametrize(
    ("fail", "passes"),
    [
        (_dbapi(psycopg.OperationalError("FATAL: the database system is starting up")), True),
        (_dbapi(psycopg.OperationalError("FATAL: sorry, too many clients already")), True),
        (_dbapi(psycopg.OperationalError("connection refused")), True),
        (_dbapi(psycopg.OperationalError("the connection is lost")), True),
        (_dbapi(psycopg.InterfaceError("connection already closed")), True),
        (_dbapi(psycopg.errors.ConnectionTimeout("connection timeout expired")), True),
        (_dbapi(psycopg.errors.DeadlockDetected("deadlock detected")), True),
        (_dbapi(psycopg.errors.SerializationFailure("could not serialize")), True),
        (_dbapi(psycopg.errors.DiskFull("No space left on device")), True),
        (_dbapi(psycopg.errors.QueryCanceled("statement timeout")), True),
        (_dbapi(psycopg.errors.AdminShutdown("terminating connection")), True),
        (_dbapi(psycopg.errors.CannotConnectNow("starting up")), True),
        (_dbapi(psycopg.errors.UniqueViolation("duplicate key")), False),
        (_dbapi(psycopg.errors.ReadOnlySqlTransaction("read-only transaction")), False),
        (_dbapi(psycopg.errors.UndefinedTable("no such table")), False),
        (_dbapi(psycopg.OperationalError('FATAL: role "me" does not exist')), False),
        (_dbapi(psycopg.ProgrammingError("invalid connection option")), False),
    ],
)
def test_what_may_pass(fail: Callable[[], None], passes: bool) -> None:
    url = sa.engine.make_url("postgresql://me:s3cret@host/db")
    with pytest.raises(StorageError) as caught, storage_errors(url):
        fail()
    assert isinstance(caught.value, StorageUnavailable) is passes


def test_the_users_own_connection_options_win(
    new_postgres_database: Callable[[], str],
) -> None:
    url = new_postgres_database()
    with open_storage(f"{url}&keepalives_idle=99&connect_timeout=3", create=True) as storage:
        parameters = _connection_parameters(storage)
    defaults = {name: str(value) for name, value in LIBPQ_OPTIONS.items()}
    expected = defaults | {"keepalives_idle": "99", "connect_timeout": "3"}
    assert {name: parameters[name] for name in expected} == expected


def _connection_parameters(storage: Storage) -> dict[str, str]:
    with storage._engine.connect() as connection:  # type: ignore[attr-defined]
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        pairs = driver.pgconn.info
        return {i.keyword.decode(): i.val.decode() for i in pairs if i.val is not None}
