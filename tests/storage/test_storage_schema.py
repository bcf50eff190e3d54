"""The migrations lead to the tables of `schema`, and everything in them is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import oialr_search.storage.migrations
from oialr_search.storage.database import Storage
from oialr_search.storage.schema import METADATA, REVISION, REVISION_TABLE
from oialr_search.storage.schema_page import page

URL_OF_DRIVER = ("postgresql://", "postgresql+psycopg://")


def test_migrating_gives_the_schema(storage: Storage, database_url: str) -> None:
    engine = sa.create_engine(database_url.replace(*URL_OF_DRIVER))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"version_table": REVISION_TABLE, "target_metadata": METADATA},
        )
        assert compare_metadata(context, METADATA) == []
    engine.dispose()


def test_migrating_gives_the_checks(storage: Storage, database_url: str) -> None:
    """Alembic does not compare CHECK constraints, so make the tables directly beside them."""
    engine = sa.create_engine(database_url.replace(*URL_OF_DRIVER))
    migrated = _checks(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP VIEW leaderboard")
        connection.exec_driver_sql("DROP VIEW lineage")
        METADATA.drop_all(connection)
        METADATA.create_all(connection)
    assert migrated == _checks(engine)
    assert {name for name, *_ in migrated["individuals"]} == {
        "ck_individuals_fitness_is_for_completed",
        "ck_individuals_status",
    }
    engine.dispose()


def test_the_revision_is_the_last_migration() -> None:
    config = Config()
    folder = Path(oialr_search.storage.migrations.__file__).parent
    config.set_main_option("script_location", str(folder))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def test_every_column_is_explained() -> None:
    unexplained = [str(c) for t in METADATA.tables.values() for c in t.c if not c.comment]
    assert unexplained == []


def _checks(engine: sa.Engine) -> dict[str, list[tuple[Any, ...]]]:
    inspector = sa.inspect(engine)
    return {
        table: sorted((c["name"], c["sqltext"]) for c in inspector.get_check_constraints(table))
        for table in METADATA.tables
    }


def test_the_page_says_what_the_schema_says() -> None:
    path = Path(__file__).parents[2] / "docs" / "database.md"
    assert path.read_text() == page(), (
        "run python -m oialr_search.storage.schema_page > docs/database.md"
    )
