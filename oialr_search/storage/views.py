"""The SQL views: `leaderboard` of completed individuals, `lineage` of parents and children.

The leaderboard's columns depend on the searches in the database: it is made anew with each one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from oialr_search.storage.leaderboard import (
    COMPRESSION,
    DEVIATION,
    DOTTED_NAME,
    DURATION,
    FITNESS,
    GENERATION,
    INDIVIDUAL,
    ISLAND,
    ISLAND_RANK,
    PLACE,
    SEARCH,
    SEEDS,
    TRAINABLE,
    leaderboard,
    of_aims,
    of_hyperparameters,
    of_metrics,
)
from oialr_search.storage.reading import read_space
from oialr_search.storage.records import StorageError
from oialr_search.storage.schema import searches
from oialr_search.storage.selection import Column, Selection

MAX_COLUMN_LENGTH = 63  # PostgreSQL cuts longer names silently

FIXED_COLUMNS = (
    SEARCH, PLACE, replace(INDIVIDUAL, name="individual_id"), FITNESS, DEVIATION, SEEDS, TRAINABLE,
    COMPRESSION, ISLAND, ISLAND_RANK, GENERATION, DURATION,
)  # fmt: skip
# An individual's own parents as rows (number, id); no two databases take a JSON list apart alike.
PARENTS = {
    "sqlite": "json_each(c.parents) x",
    "postgresql": "json_array_elements_text(c.parents) WITH ORDINALITY x(value, key)",
}
NUMBER = {"sqlite": "x.key + 1", "postgresql": "x.key"}


def drop_views(connection: sa.Connection) -> None:
    """Drop both views, so that the tables below them can change."""
    for name in ("leaderboard", "lineage"):
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")


def create_views(connection: sa.Connection) -> None:
    """Make both views."""
    _create_leaderboard(connection)
    _create_lineage(connection)


def renew_leaderboard(connection: sa.Connection) -> None:
    """Give the leaderboard the columns of all searches that there are now."""
    connection.exec_driver_sql("DROP VIEW leaderboard")
    _create_leaderboard(connection)


def _create_leaderboard(connection: sa.Connection) -> None:
    """Make the view with the columns of all searches in the database."""
    stored = connection.execute(
        sa.select(*searches.c["name", "space", "metric_names", "settings"]).order_by(searches.c.id)
    ).all()
    hyperparameters = of_hyperparameters(read_space(s.name, s.space) for s in stored)
    metrics = of_metrics(name for search in stored for name in search.metric_names)
    aims = of_aims(search.settings for search in stored)
    columns = _named([*FIXED_COLUMNS[:4], *aims, *FIXED_COLUMNS[4:]], hyperparameters)
    columns = _named(columns, metrics, prefix="metric_")
    query = leaderboard(columns, Selection(), None, connection.dialect.name)
    text = query.compile(connection, compile_kwargs={"literal_binds": True})
    connection.exec_driver_sql(f"CREATE VIEW leaderboard AS\n{text}")


def _named(known: Sequence[Column], added: Sequence[Column], prefix: str = "") -> list[Column]:
    """Give columns names that SQL can have, with a prefix where one is known already."""
    taken = {column.name.lower() for column in known}
    columns = {column.name.lower(): column for column in known}
    for column in added:
        if not DOTTED_NAME.fullmatch(column.name):
            raise StorageError(
                f"`{column.name}` is no name for a column: use letters, digits, _ and ."
            )
        name = column.name.replace(".", "_")
        if name.lower() in taken:
            name = prefix + name
        if name.lower() in columns:
            raise StorageError(
                f"`{column.name}` would share the leaderboard column `{name}` with another: "
                "rename one"
            )
        if len(name) > MAX_COLUMN_LENGTH:
            raise StorageError(
                f"`{column.name}` is too long for a column: {MAX_COLUMN_LENGTH} at most"
            )
        columns[name.lower()] = replace(column, name=name)
    return list(columns.values())


def _create_lineage(connection: sa.Connection) -> None:
    """Make the view; it is the same for all searches."""
    dialect = connection.dialect.name
    connection.exec_driver_sql(
        "CREATE VIEW lineage AS\nSELECT\n"
        "  s.name AS search,\n"
        "  c.search_id,\n"
        "  c.id AS individual_id,\n"
        f"  {NUMBER[dialect]} AS parent_number,\n"
        "  CAST(x.value AS INTEGER) AS parent_id,\n"
        "  c.origin,\n"
        "  c.island,\n"
        "  c.generation,\n"
        "  c.fitness,\n"
        "  p.island AS parent_island,\n"
        "  p.generation AS parent_generation,\n"
        "  p.fitness AS parent_fitness,\n"
        "  p.fitness - c.fitness AS gain\n"
        "FROM individuals c\n"
        "JOIN searches s ON s.id = c.search_id\n"
        f"CROSS JOIN {PARENTS[dialect]}\n"
        "LEFT JOIN individuals p ON p.id = CAST(x.value AS INTEGER)"
    )
