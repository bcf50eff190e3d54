"""Databases to test on: an SQLite file, and a real PostgreSQL server started for the session."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage

sys.path.insert(0, str(Path(__file__).parent))  # for storage_examples and postgres_server

from postgres_server import PostgresServer, started_server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[tuple[PostgresServer, list[str]]]:
    """A server, and the names of its empty databases."""
    with started_server() as server:
        yield server, []


@pytest.fixture
def new_postgres_database(
    postgres_server: tuple[PostgresServer, list[str]],
) -> Iterator[Callable[[], str]]:
    """A function that gives empty PostgreSQL databases by their URLs."""
    server, empty = postgres_server
    given: list[str] = []

    def create() -> str:
        if not empty:
            [[number]] = server.execute("SELECT count(*) FROM pg_database")
            server.execute(f"CREATE DATABASE search_{number}")
            empty.append(f"search_{number}")
        given.append(empty.pop())
        return server.url_of("postgres", given[-1])

    yield create
    server.end_connections()
    for name in given:  # emptying takes a fraction of the time of creating
        with psycopg.connect(server.url_of("postgres", name)) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        empty.append(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """A function that gives databases that do not exist yet (SQLite) or are empty (PostgreSQL)."""
    if request.param == "sqlite":
        numbers = itertools.count()
        return lambda: f"sqlite:///{tmp_path}/search{next(numbers) or ''}.db"
    create: Callable[[], str] = request.getfixturevalue("new_postgres_database")
    return create


@pytest.fixture
def database_url(new_database_url: Callable[[], str]) -> str:
    """A database that does not exist yet (SQLite) or is empty (PostgreSQL)."""
    return new_database_url()


@pytest.fixture
def storage(database_url: str) -> Iterator[Storage]:
    """A new database, open for writing."""
    with open_storage(database_url, create=True) as storage:
        yield storage


@pytest.fixture
def other_storage(new_database_url: Callable[[], str]) -> Iterator[Storage]:
    """Another new database of the same kind."""
    with open_storage(new_database_url(), create=True) as storage:
        yield storage
