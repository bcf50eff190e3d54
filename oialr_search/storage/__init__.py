"""The database of searches: what was asked for, what ran, what came out.

`open_storage` gives a `Storage`; records and errors are plain Python (see `contract`).
"""

from __future__ import annotations

from pathlib import Path

from oialr_search.storage.records import (
    Claim,
    EpochRecord,
    EvaluationHistory,
    EvaluationRecord,
    IndividualHistory,
    IndividualRecord,
    IslandSummary,
    JsonValue,
    LaunchRecord,
    MigrationRecord,
    NewLaunch,
    NewMigration,
    NewSearch,
    Observation,
    Outcome,
    Progress,
    Proposal,
    RankUpdate,
    Runner,
    RunningEvaluation,
    SearchRecord,
    Status,
    Storage,
    StorageError,
    StorageUnavailable,
    individual_folder,
    utc_now,
)
from oialr_search.storage.selection import (
    Column,
    Comparison,
    Condition,
    Either,
    Every,
    FailureCount,
    IsNull,
    Not,
    OneOf,
    Operator,
    Placed,
    Rows,
    Selection,
)

__all__ = [
    "Claim",
    "Column",
    "Comparison",
    "Condition",
    "Either",
    "EpochRecord",
    "EvaluationHistory",
    "EvaluationRecord",
    "Every",
    "FailureCount",
    "IndividualHistory",
    "IndividualRecord",
    "IsNull",
    "IslandSummary",
    "JsonValue",
    "LaunchRecord",
    "MigrationRecord",
    "NewLaunch",
    "NewMigration",
    "NewSearch",
    "Not",
    "Observation",
    "OneOf",
    "Operator",
    "Outcome",
    "Placed",
    "Progress",
    "Proposal",
    "RankUpdate",
    "Rows",
    "Runner",
    "RunningEvaluation",
    "SearchRecord",
    "Selection",
    "Status",
    "Storage",
    "StorageError",
    "StorageUnavailable",
    "database_exists",
    "has_password",
    "individual_folder",
    "open_storage",
    "upgrade_storage",
    "utc_now",
]


def open_storage(url: str, *, create: bool = False, read_only: bool = False) -> Storage:
    """Open the database at a path, an `sqlite:///` URL or a `postgresql://` URL.

    With `create` a missing one is made; any number of processes may do so at once.
    """
    from oialr_search.storage.database import SqlStorage
    from oialr_search.storage.engine import open_engine

    return SqlStorage(open_engine(url, create=create, read_only=read_only))


def database_exists(url: str) -> bool:
    """Is there a database to connect to? A PostgreSQL server is taken to have it."""
    from oialr_search.storage.engine import parse_url

    parsed = parse_url(url)
    return parsed.get_backend_name() != "sqlite" or Path(parsed.database or "").exists()


def has_password(url: str) -> bool:
    """Does a database URL hold a password?"""
    from oialr_search.storage.engine import parse_url

    parsed = parse_url(url)
    return bool(parsed.password or {"password", "sslpassword"} & set(parsed.query))


def upgrade_storage(url: str) -> None:
    """Bring a database written by an older version to this one's schema."""
    from oialr_search.storage.engine import upgrade

    upgrade(url)
