"""The `lineage` view: one row for each individual and parent, with what the child has gained."""

from __future__ import annotations

import sqlalchemy as sa

# An individual's own parents as rows (number, id); no two databases take a JSON list apart alike.
PARENTS = {
    "sqlite": "json_each(c.parents) x",
    "postgresql": "json_array_elements_text(c.parents) WITH ORDINALITY x(value, key)",
}
NUMBER = {"sqlite": "x.key + 1", "postgresql": "x.key"}


def drop_lineage(connection: sa.Connection) -> None:
    """Drop the view, so that the tables below it can change."""
    connection.exec_driver_sql("DROP VIEW IF EXISTS lineage")


def create_lineage(connection: sa.Connection) -> None:
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
