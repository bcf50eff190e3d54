"""The database of searches: what was asked for, what ran, what came out.

`database.Storage` is all that others need of it; `records` are plain Python. The functions here
load SQLAlchemy when they are called, not before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oialr_search.storage.database import Storage


def open_storage(url: str, *, create: bool = False, read_only: bool = False) -> Storage:
    """Open the database at a path, an `sqlite:///` URL or a `postgresql://` URL.

    With `create` a missing one is made; any number of processes may do so at once.
    """
    from oialr_search.storage.database import Storage
    from oialr_search.storage.opening import open_engine

    return Storage(open_engine(url, create=create, read_only=read_only))


def database_exists(url: str) -> bool:
    """Is there a database to connect to? A PostgreSQL server is taken to have it."""
    from oialr_search.storage.opening import parse_url

    parsed = parse_url(url)
    return parsed.get_backend_name() != "sqlite" or Path(parsed.database or "").exists()


def has_password(url: str) -> bool:
    """Does a database URL hold a password?"""
    from oialr_search.storage.opening import parse_url

    parsed = parse_url(url)
    return bool(parsed.password or {"password", "sslpassword"} & set(parsed.query))


def upgrade_storage(url: str) -> None:
    """Bring a database written by an older version to this one's schema."""
    from oialr_search.storage.opening import upgrade

    upgrade(url)
