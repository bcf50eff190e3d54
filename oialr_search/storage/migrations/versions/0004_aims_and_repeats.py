"""Several aims and constraints, individuals measured again with other seeds, and what each cost."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

INDICES = [
    ("individuals", ["search_id", "fitness", "id"], None),
    ("individuals", ["search_id", "island", "fitness", "id"], None),
    (
        "migrations",
        ["search_id", "target_island", "fitness", "individual_id"],
        "ix_migrations_best_first",
    ),
]
RANK = "rank within the island that bred it"
SECONDS = {
    "sqlite": "(julianday(e.finished_at) - julianday(e.started_at)) * 86400",
    "postgresql": "EXTRACT(EPOCH FROM e.finished_at - e.started_at)",
}


def upgrade() -> None:
    """Add the columns; who breaks a constraint comes after who meets all in every order."""
    for table in ("individuals", "evaluations"):
        _add(table, "objectives", sa.JSON(), "list, each minimised", "'[]'")
        _add(table, "constraints", sa.JSON(), "list, <= 0 where met", "'[]'")
        _add(table, "violation", sa.Double(), "of constraints", "0")
    _add("individuals", "fitness_deviation", sa.Double(), "over seeds; NULL for one")
    _add("individuals", "num_seeds", sa.Integer(), "seeds that the fitness is the mean of", "0")
    _add("individuals", "cost_s", sa.Double(), "seconds of all its attempts", "0")
    _add("individuals", "seed", sa.BigInteger(), "of the training if not the search's")
    again = "the individual that it measures again, with another seed"
    _add("individuals", "repeat_of", sa.Integer(), again)
    _explain("individuals", "fitness", "mean over seeds, minimised; NULL unless completed")
    _explain("individuals", "island_rank", RANK + "; -1: a person named it")
    _add("migrations", "violation", sa.Double(), "likewise", "0")
    _explain("migrations", "fitness", "of the individual when it was accepted")
    op.create_index(
        "ix_individuals_repeat_of",
        "individuals",
        ["repeat_of"],
        sqlite_where=sa.text("repeat_of IS NOT NULL"),
        postgresql_where=sa.text("repeat_of IS NOT NULL"),
    )
    for table, old, _, new, columns in _indices():
        op.drop_index(old, table)
        op.create_index(new, table, columns)
    op.execute("UPDATE individuals SET num_seeds = 1 WHERE fitness IS NOT NULL")
    op.execute(
        f"UPDATE individuals SET cost_s = COALESCE((SELECT SUM({SECONDS[_dialect()]}) "
        "FROM evaluations e WHERE e.individual_id = individuals.id), 0)"
    )


def downgrade() -> None:
    """Forget them; individuals that were measured again keep their means."""
    for table, old, columns, new, _ in _indices():
        op.drop_index(new, table)
        op.create_index(old, table, columns)
    op.drop_index("ix_individuals_repeat_of", "individuals")
    _explain("migrations", "fitness", "of the individual")
    _explain("individuals", "island_rank", RANK)
    _explain("individuals", "fitness", "minimised; NULL unless completed")
    op.drop_column("migrations", "violation")
    for name in ("repeat_of", "seed", "cost_s", "num_seeds", "fitness_deviation"):
        op.drop_column("individuals", name)
    for table in ("individuals", "evaluations"):
        for name in ("violation", "constraints", "objectives"):
            op.drop_column(table, name)


def _indices() -> Iterator[tuple[str, str, list[str], str, list[str]]]:
    """Yield table, old name and columns, new name and columns."""
    for table, before, name in INDICES:
        after = before.copy()
        after.insert(before.index("fitness"), "violation")
        old, new = (f"ix_{table}_{'_'.join(columns)}" for columns in (before, after))
        yield table, old, before, name or new, after


def _add(table: str, name: str, type_: Any, comment: str, default: str | None = None) -> None:
    op.add_column(
        table,
        sa.Column(
            name,
            type_,
            nullable=default is None,
            server_default=default and sa.text(default),
            comment=comment,
        ),
    )


def _dialect() -> str:
    return op.get_bind().dialect.name


def _explain(table: str, column: str, comment: str) -> None:
    if _dialect() == "postgresql":  # SQLite has no comments
        op.alter_column(table, column, comment=comment)
