"""Who evaluated and what it took over, observations, counters of islands and finishes, indexes."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

STATUSES = ("queued", "running", "completed", "pruned", "failed", "timed_out", "lost")
INDEXES = {
    "ix_launches_search_id_started_at": ("launches", ["search_id", "started_at"]),
    "ix_individuals_search_id_status_id": ("individuals", ["search_id", "status", "id"]),
    "ix_individuals_search_id_fitness_id": ("individuals", ["search_id", "fitness", "id"]),
    "ix_individuals_search_id_island_fitness_id": (
        "individuals",
        ["search_id", "island", "fitness", "id"],
    ),
    "ix_evaluations_launch_id_finish_number": ("evaluations", ["launch_id", "finish_number"]),
    "ix_migrations_search_id_target_island_fitness_individual_id": (
        "migrations",
        ["search_id", "target_island", "fitness", "individual_id"],
    ),
}
RESOURCES: tuple[tuple[str, sa.types.TypeEngine[Any], str], ...] = (
    ("gpu_energy_j", sa.Double(), "of the whole GPU, whoever uses it"),
    ("cpu_energy_j", sa.Double(), "of all CPUs of the node, whoever uses them"),
    ("peak_host_memory_bytes", sa.BigInteger(), "with loader processes"),
    ("peak_gpu_memory_bytes", sa.BigInteger(), "of all tensors"),
    ("samples_per_s", sa.Double(), "images or windows trained"),
)


def upgrade() -> None:
    """Add the columns and tables, and fill them from what is there."""
    op.add_column(
        "searches",
        sa.Column(
            "last_finish_number",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="how many evaluations have finished",
        ),
    )
    op.execute(
        "UPDATE searches SET last_finish_number = COALESCE((SELECT MAX(e.finish_number) "
        "FROM evaluations e JOIN individuals i ON i.id = e.individual_id "
        "WHERE i.search_id = searches.id), 0)"
    )

    op.add_column(
        "migrations",
        sa.Column("fitness", sa.Double(), nullable=True, comment="of the individual"),
    )
    op.execute(
        "UPDATE migrations SET fitness = "
        "(SELECT i.fitness FROM individuals i WHERE i.id = migrations.individual_id)"
    )

    op.add_column(
        "evaluations",
        sa.Column("launch_id", sa.Integer(), nullable=True, comment="the launch that evaluated"),
    )
    op.execute(
        "UPDATE evaluations SET launch_id = "
        "(SELECT i.launch_id FROM individuals i WHERE i.id = evaluations.individual_id)"
    )
    with op.batch_alter_table("evaluations") as batch:
        batch.alter_column("launch_id", existing_type=sa.Integer(), nullable=False)
        batch.create_foreign_key(
            op.f("fk_evaluations_launch_id"), "launches", ["launch_id"], ["id"]
        )
        batch.add_column(
            sa.Column(
                "resumed_epoch",
                sa.Integer(),
                nullable=True,
                comment="epochs of an earlier attempt",
            )
        )
        batch.add_column(
            sa.Column(
                "log_tail",
                sa.Text(),
                nullable=True,
                comment="end of the log if it did not complete",
            )
        )
        for name, kind, comment in RESOURCES:
            batch.add_column(sa.Column(name, kind, nullable=True, comment=comment))
        batch.alter_column(
            "started_at",
            existing_type=sa.DateTime(timezone=True),
            existing_nullable=False,
            comment="UTC; claimed by its rank",
        )

    op.create_table(
        "islands",
        sa.Column("search_id", sa.Integer(), nullable=False, comment="the search"),
        sa.Column(
            "island", sa.Integer(), autoincrement=False, nullable=False, comment="its number"
        ),
        *(
            sa.Column(
                status,
                sa.Integer(),
                server_default=sa.text("0"),
                nullable=False,
                comment=f"bred there and now {status}",
            )
            for status in STATUSES
        ),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_islands_search_id")),
        sa.PrimaryKeyConstraint("search_id", "island", name=op.f("pk_islands")),
        comment="individuals of each island by status",
    )
    counts = ", ".join(f"COUNT(CASE WHEN status = '{status}' THEN 1 END)" for status in STATUSES)
    op.execute(
        f"INSERT INTO islands (search_id, island, {', '.join(STATUSES)}) "
        f"SELECT search_id, island, {counts} FROM individuals GROUP BY search_id, island"
    )
    op.execute(
        "INSERT INTO islands (search_id, island) "
        "SELECT DISTINCT m.search_id, m.target_island FROM migrations m WHERE NOT EXISTS "
        "(SELECT 1 FROM islands i WHERE i.search_id = m.search_id AND i.island = m.target_island)"
    )

    op.create_table(
        "observations",
        sa.Column("evaluation_id", sa.Integer(), nullable=False, comment="whose"),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False, comment="when"),
        sa.Column(
            "earlier_step",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="what it is compared with",
        ),
        sa.Column("layer", sa.Text(), nullable=False, comment="which layer"),
        sa.Column("stability", sa.Double(), nullable=True, comment="of the basis, Eq. (4)"),
        sa.Column(
            "mixing_similarity", sa.Double(), nullable=True, comment="of the mixings, Eq. (5)"
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name=op.f("fk_observations_evaluation_id")
        ),
        sa.PrimaryKeyConstraint(
            "evaluation_id", "step", "earlier_step", "layer", name=op.f("pk_observations")
        ),
        comment="how far bases and mixings have come between two instants",
    )

    for name, (table, columns) in INDEXES.items():
        op.create_index(name, table, columns)
    running = sa.text("status = 'running'")
    op.create_index(
        "ix_evaluations_running",
        "evaluations",
        ["launch_id", "world_rank"],
        sqlite_where=running,
        postgresql_where=running,
    )


def downgrade() -> None:
    """Take away what `upgrade` added."""
    op.drop_index("ix_evaluations_running", "evaluations")
    for name, (table, _) in INDEXES.items():
        op.drop_index(name, table)
    op.drop_table("observations")
    op.drop_table("islands")
    added = ("launch_id", "resumed_epoch", "log_tail", *(name for name, _, _ in RESOURCES))
    with op.batch_alter_table("evaluations") as batch:
        batch.drop_constraint(op.f("fk_evaluations_launch_id"), type_="foreignkey")
        for column in added:
            batch.drop_column(column)
        batch.alter_column(
            "started_at",
            existing_type=sa.DateTime(timezone=True),
            existing_nullable=False,
            comment="UTC; request sent to the worker",
        )
    for table, column in (("migrations", "fitness"), ("searches", "last_finish_number")):
        with op.batch_alter_table(table, recreate="never") as batch:
            batch.drop_column(column)
