"""The SQL views: `leaderboard` of completed individuals, `lineage` of parents and children.

The leaderboard's columns depend on the searches in the database: it is made anew with each one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from oialr_search.storage.records import StorageError
from oialr_search.storage.schema import searches

DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
MAX_COLUMN_LENGTH = 63  # PostgreSQL cuts longer names silently

FIXED_COLUMNS = {
    "search": "s.name",
    "place": "p.place",
    "individual_id": "i.id",
    "fitness": "i.fitness",
    "trainable_percent": "e.trainable_percent",
    "compression_percent": "e.compression_percent",
    "island": "i.island",
    "island_rank": "i.island_rank",
    "generation": "i.generation",
}
# Read from the index alone, and in order before the wide rows are looked up one by one: with a
# LIMIT, PostgreSQL then decodes the JSON of so many rows only.
PLACES = (
    "SELECT id, search_id, "
    "ROW_NUMBER() OVER (PARTITION BY search_id ORDER BY fitness, id) AS place "
    "FROM individuals WHERE fitness IS NOT NULL ORDER BY search_id DESC, place"
)
SQL_TYPES = {
    frozenset({"float"}): "REAL",
    frozenset({"float", "int"}): "REAL",
    frozenset({"int"}): "INTEGER",
    frozenset({"bool"}): "BOOLEAN",
}
DURATION_S = {
    "sqlite": "ROUND((julianday(e.finished_at) - julianday(e.started_at)) * 86400, 3)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM e.finished_at - e.started_at) AS DOUBLE PRECISION)",
}
EXTRACTS = {
    "sqlite": {
        sql_type: f"""CAST(json_extract({{json}}, '$."{{name}}"') AS {sql_type})"""
        for sql_type in ("REAL", "INTEGER", "BOOLEAN", "TEXT")
    },
    "postgresql": {
        "REAL": "CAST({json} ->> '{name}' AS DOUBLE PRECISION)",
        "INTEGER": "CAST(CAST({json} ->> '{name}' AS NUMERIC) AS BIGINT)",
        "BOOLEAN": "CAST({json} ->> '{name}' AS BOOLEAN)",
        "TEXT": "{json} ->> '{name}'",
    },
}


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
        sa.select(searches.c.space, searches.c.metric_names).order_by(searches.c.id)
    ).all()
    kinds: dict[str, set[str]] = {}
    for row in stored:
        for spec in row.space:
            kinds.setdefault(spec["name"], set()).update(_kinds(spec))
    hyperparameters = {name: SQL_TYPES.get(frozenset(k), "TEXT") for name, k in kinds.items()}
    metrics = dict.fromkeys((name for row in stored for name in row.metric_names), "REAL")

    dialect = connection.dialect.name
    columns = FIXED_COLUMNS | {"duration_s": DURATION_S[dialect]}
    _add_columns(columns, hyperparameters, "i.hyperparameters", EXTRACTS[dialect])
    _add_columns(columns, metrics, "e.metrics", EXTRACTS[dialect], prefix="metric_")

    selected = ",\n  ".join(f'{value} AS "{column}"' for column, value in columns.items())
    connection.exec_driver_sql(
        f"CREATE VIEW leaderboard AS\nSELECT\n  {selected}\n"
        f"FROM ({PLACES}) p\n"
        "JOIN individuals i ON i.id = p.id\n"
        "JOIN searches s ON s.id = p.search_id\n"
        "JOIN evaluations e ON e.individual_id = p.id AND e.status = 'completed'\n"
        "ORDER BY p.search_id DESC, p.place"
    )


def _add_columns(
    columns: dict[str, str],
    types: Mapping[str, str],
    json: str,
    extracts: Mapping[str, str],
    prefix: str = "",
) -> None:
    """Add a column for each key of a JSON object, with a prefix where its name is taken."""
    taken = {column.lower() for column in columns}
    for name, sql_type in types.items():
        if not DOTTED_NAME.fullmatch(name):
            raise StorageError(f"`{name}` is no name for a column: use letters, digits, _ and .")
        column = name.replace(".", "_")
        if column.lower() in taken:
            column = prefix + column
        if column.lower() in map(str.lower, columns):
            raise StorageError(
                f"`{name}` would share the leaderboard column `{column}` with another: rename one"
            )
        if len(column) > MAX_COLUMN_LENGTH:
            raise StorageError(f"`{name}` is too long for a column: {MAX_COLUMN_LENGTH} at most")
        columns[column] = extracts[sql_type].format(json=json, name=name)


def _kinds(spec: Mapping[str, Any]) -> set[str]:
    """Return the kinds of value a hyperparameter may have."""
    if spec["kind"] != "choice":
        return {spec["kind"]}
    return {type(choice).__name__ for choice in spec.get("choices", ()) if choice is not None}


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
