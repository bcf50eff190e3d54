"""The schema of version 0.1.0; what was before it is no longer read."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = None


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "searches",
        _column("id", sa.Integer(), "numbers the searches"),
        _column("name", sa.Text(), "what the user calls the search"),
        _column("task", sa.Text(), "what is trained"),
        _column("metric", sa.Text(), "validation metric that the fitness is made of"),
        _column("settings", sa.JSON(), "the complete search file after overrides"),
        _column("space", sa.JSON(), "list of hyperparameters: name, kind and limits"),
        _column("metric_names", sa.JSON(), "final metrics that are leaderboard columns"),
        _column("seed", sa.BigInteger(), "seed of the whole search"),
        _column("evaluations_total", sa.Integer(), "individuals the search will have"),
        _column("version", sa.Text(), "oialr_search version that created the search"),
        _column("created_at", sa.DateTime(timezone=True), "UTC"),
        _column(
            "last_finish_number",
            sa.Integer(),
            "how many evaluations have finished",
            server_default=sa.text("0"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_searches")),
        sa.UniqueConstraint("name", name=op.f("uq_searches_name")),
        comment="one optimisation over one space each",
    )
    op.create_table(
        "islands",
        _column("search_id", sa.Integer(), "the search"),
        _column("island", sa.Integer(), "its number", autoincrement=False),
        _column("queued", sa.Integer(), "bred there and now queued", server_default=sa.text("0")),
        _column("running", sa.Integer(), "bred there and now running", server_default=sa.text("0")),
        _column(
            "completed", sa.Integer(), "bred there and now completed", server_default=sa.text("0")
        ),
        _column("pruned", sa.Integer(), "bred there and now pruned", server_default=sa.text("0")),
        _column("failed", sa.Integer(), "bred there and now failed", server_default=sa.text("0")),
        _column(
            "timed_out", sa.Integer(), "bred there and now timed_out", server_default=sa.text("0")
        ),
        _column("lost", sa.Integer(), "bred there and now lost", server_default=sa.text("0")),
        _refers("islands", "search_id", "searches"),
        sa.PrimaryKeyConstraint("search_id", "island", name=op.f("pk_islands")),
        comment="individuals of each island by status",
    )
    op.create_table(
        "launches",
        _column("id", sa.Integer(), "numbers the launches"),
        _column("search_id", sa.Integer(), "the search it works on"),
        _column("started_at", sa.DateTime(timezone=True), "UTC"),
        _column(
            "ended_at", sa.DateTime(timezone=True), "UTC; NULL if running or killed", nullable=True
        ),
        _column("exit_code", sa.Integer(), "0 finished, 75 resumable", nullable=True),
        _column("world_size", sa.Integer(), "controller ranks"),
        _column("num_islands", sa.Integer(), "islands the ranks were divided into"),
        _column("hostname", sa.Text(), "node of world rank 0"),
        _column("command_line", sa.Text(), "as typed, without passwords"),
        _column("versions", sa.JSON(), "package -> version"),
        _column("git_revision", sa.Text(), "commit of the code, if known", nullable=True),
        _refers("launches", "search_id", "searches"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_launches")),
        comment="one mpirun each; a resumed search has several",
    )
    op.create_index(
        op.f("ix_launches_search_id_started_at"),
        "launches",
        ["search_id", "started_at"],
        unique=False,
    )
    op.create_table(
        "individuals",
        _column("id", sa.Integer(), "numbers all individuals of the database"),
        _column("search_id", sa.Integer(), "the search it belongs to"),
        _column("launch_id", sa.Integer(), "the launch that bred it"),
        _column("island", sa.Integer(), "island it was bred on"),
        _column("island_rank", sa.Integer(), "rank within the island that bred it"),
        _column("generation", sa.Integer(), "count of the rank that bred it"),
        _column("parents", sa.JSON(), "list of individual ids"),
        _column("origin", sa.Text(), "how it came about: random, bred"),
        _column("genes", sa.JSON(), "hyperparameter -> number in [0, 1]"),
        _column("hyperparameters", sa.JSON(), "hyperparameter -> value trained with"),
        _column("status", sa.String(length=9), "of its latest evaluation"),
        _column("fitness", sa.Double(), "minimised; NULL unless completed", nullable=True),
        _column("created_at", sa.DateTime(timezone=True), "UTC"),
        _column("finished_at", sa.DateTime(timezone=True), "UTC", nullable=True),
        *_checks("individuals"),
        _refers("individuals", "launch_id", "launches"),
        _refers("individuals", "search_id", "searches"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_individuals")),
        sa.UniqueConstraint(
            "search_id",
            "island",
            "island_rank",
            "generation",
            name=op.f("uq_individuals_search_id_island_island_rank_generation"),
        ),
        comment="genes and their provenance",
    )
    op.create_index(
        op.f("ix_individuals_search_id_fitness_id"),
        "individuals",
        ["search_id", "fitness", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_individuals_search_id_island_fitness_id"),
        "individuals",
        ["search_id", "island", "fitness", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_individuals_search_id_status_id"),
        "individuals",
        ["search_id", "status", "id"],
        unique=False,
    )
    op.create_table(
        "evaluations",
        _column("id", sa.Integer(), "numbers all evaluations of the database"),
        _column("individual_id", sa.Integer(), "what was evaluated"),
        _column("attempt", sa.Integer(), "1, 2, ... for one individual"),
        _column("launch_id", sa.Integer(), "the launch that evaluated"),
        _column("status", sa.String(length=9), "how it ended, running until then"),
        _column("reason", sa.Text(), "why it did not complete", nullable=True),
        _column("exit_code", sa.Integer(), "of the worker process", nullable=True),
        _column("exit_signal", sa.Integer(), "that ended the worker process", nullable=True),
        _column("hostname", sa.Text(), "node it ran on"),
        _column("device", sa.Text(), "GPU it ran on", nullable=True),
        _column("world_rank", sa.Integer(), "controller rank that ran it"),
        _column("seed", sa.BigInteger(), "seed of the training"),
        _column("num_threads", sa.Integer(), "CPU threads of the training"),
        _column("started_at", sa.DateTime(timezone=True), "UTC; claimed by its rank"),
        _column(
            "training_started_at", sa.DateTime(timezone=True), "UTC; first step", nullable=True
        ),
        _column("resumed_epoch", sa.Integer(), "epochs of an earlier attempt", nullable=True),
        _column("finished_at", sa.DateTime(timezone=True), "UTC", nullable=True),
        _column("finish_number", sa.Integer(), "n-th of its search to finish", nullable=True),
        _column("folder", sa.Text(), "where its files are"),
        _column("log_path", sa.Text(), "output of the worker process"),
        _column("last_epoch", sa.Integer(), "highest epoch reported", nullable=True),
        _column("fitness", sa.Double(), "minimised; NULL unless completed", nullable=True),
        _column("metrics", sa.JSON(), "final metric -> value, null if not finite"),
        _column("trainable_percent", sa.Double(), "of full rank's parameters", nullable=True),
        _column("compression_percent", sa.Double(), "total parameters likewise", nullable=True),
        _column("log_tail", sa.Text(), "end of the log if it did not complete", nullable=True),
        _column("gpu_energy_j", sa.Double(), "of the whole GPU, whoever uses it", nullable=True),
        _column(
            "cpu_energy_j", sa.Double(), "of all CPUs of the node, whoever uses them", nullable=True
        ),
        _column("peak_host_memory_bytes", sa.BigInteger(), "with loader processes", nullable=True),
        _column("peak_gpu_memory_bytes", sa.BigInteger(), "of all tensors", nullable=True),
        _column("samples_per_s", sa.Double(), "images or windows trained", nullable=True),
        *_checks("evaluations"),
        _refers("evaluations", "individual_id", "individuals"),
        _refers("evaluations", "launch_id", "launches"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint(
            "individual_id", "attempt", name=op.f("uq_evaluations_individual_id_attempt")
        ),
        comment="one worker process each",
    )
    op.create_index(
        op.f("ix_evaluations_launch_id_finish_number"),
        "evaluations",
        ["launch_id", "finish_number"],
        unique=False,
    )
    op.create_index(
        "ix_evaluations_running",
        "evaluations",
        ["launch_id", "world_rank"],
        unique=False,
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_table(
        "migrations",
        _column("id", sa.Integer(), "numbers the migrations"),
        _column("search_id", sa.Integer(), "the search it belongs to"),
        _column("individual_id", sa.Integer(), "who moved"),
        _column("source_island", sa.Integer(), "island that sent it"),
        _column("target_island", sa.Integer(), "island that accepted it"),
        _column("accepted_at", sa.DateTime(timezone=True), "UTC"),
        _column("fitness", sa.Double(), "of the individual", nullable=True),
        _refers("migrations", "individual_id", "individuals"),
        _refers("migrations", "search_id", "searches"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_migrations")),
        sa.UniqueConstraint(
            "individual_id", "target_island", name=op.f("uq_migrations_individual_id_target_island")
        ),
        comment="individuals accepted by other islands",
    )
    op.create_index(
        op.f("ix_migrations_search_id_target_island_fitness_individual_id"),
        "migrations",
        ["search_id", "target_island", "fitness", "individual_id"],
        unique=False,
    )
    op.create_table(
        "metrics",
        _column("evaluation_id", sa.Integer(), "whose"),
        _column("epoch", sa.Integer(), "when", autoincrement=False),
        _column("name", sa.Text(), "which metric"),
        _column("step", sa.BigInteger(), "training steps done"),
        _column("value", sa.Double(), "NULL where it was not a number", nullable=True),
        _refers("metrics", "evaluation_id", "evaluations"),
        sa.PrimaryKeyConstraint("evaluation_id", "epoch", "name", name=op.f("pk_metrics")),
        comment="training and validation metrics over time",
    )
    op.create_table(
        "observations",
        _column("evaluation_id", sa.Integer(), "whose"),
        _column("step", sa.BigInteger(), "when", autoincrement=False),
        _column("earlier_step", sa.BigInteger(), "what it is compared with", autoincrement=False),
        _column("layer", sa.Text(), "which layer"),
        _column("stability", sa.Double(), "of the basis, Eq. (4)", nullable=True),
        _column("mixing_similarity", sa.Double(), "of the mixings, Eq. (5)", nullable=True),
        _refers("observations", "evaluation_id", "evaluations"),
        sa.PrimaryKeyConstraint(
            "evaluation_id", "step", "earlier_step", "layer", name=op.f("pk_observations")
        ),
        comment="how far bases and mixings have come between two instants",
    )
    op.create_table(
        "rank_updates",
        _column("evaluation_id", sa.Integer(), "whose"),
        _column("step", sa.BigInteger(), "when", autoincrement=False),
        _column("layer", sa.Text(), "which layer"),
        _column("inner_rank", sa.Integer(), "after the update"),
        _column("full_inner_rank", sa.Integer(), "of the layer at full rank"),
        _column("stability", sa.Double(), "of the basis; NULL at conversion", nullable=True),
        _refers("rank_updates", "evaluation_id", "evaluations"),
        sa.PrimaryKeyConstraint("evaluation_id", "step", "layer", name=op.f("pk_rank_updates")),
        comment="how OIALR cut the inner rank of each layer",
    )


def downgrade() -> None:
    """Drop all tables."""
    measured = ("observations", "rank_updates", "metrics")
    for table in (*measured, "migrations", "evaluations", "individuals", "launches", "islands"):
        op.drop_table(table)
    op.drop_table("searches")


def _column(name: str, kind: Any, comment: str, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, comment=comment, **{"nullable": False} | options)


def _refers(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{to}.id"], name=op.f(f"fk_{table}_{column}"))


def _checks(table: str) -> list[sa.CheckConstraint]:
    known = "'queued', 'running', 'completed', 'pruned', 'failed', 'timed_out', 'lost'"
    rules = {
        "status": f"status IN ({known})",
        "fitness_is_for_completed": "(status = 'completed') = (fitness IS NOT NULL)",
    }
    return [
        sa.CheckConstraint(rule, name=op.f(f"ck_{table}_{name}")) for name, rule in rules.items()
    ]
