"""The schema of version 0.1.0; what was before it is no longer read."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = None

STATUS_IS_KNOWN = (
    "status IN ('queued', 'running', 'completed', 'pruned', 'failed', 'timed_out', 'lost')"
)


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "searches",
        sa.Column("id", sa.Integer(), nullable=False, comment="numbers the searches"),
        sa.Column("name", sa.Text(), nullable=False, comment="what the user calls the search"),
        sa.Column("task", sa.Text(), nullable=False, comment="what is trained"),
        sa.Column(
            "metric",
            sa.Text(),
            nullable=False,
            comment="validation metric that the fitness is made of",
        ),
        sa.Column(
            "settings",
            sa.JSON(),
            nullable=False,
            comment="the complete search file after overrides",
        ),
        sa.Column(
            "space",
            sa.JSON(),
            nullable=False,
            comment="list of hyperparameters: name, kind and limits",
        ),
        sa.Column(
            "metric_names",
            sa.JSON(),
            nullable=False,
            comment="final metrics that are leaderboard columns",
        ),
        sa.Column("seed", sa.BigInteger(), nullable=False, comment="seed of the whole search"),
        sa.Column(
            "evaluations_total",
            sa.Integer(),
            nullable=False,
            comment="individuals the search will have",
        ),
        sa.Column(
            "version",
            sa.Text(),
            nullable=False,
            comment="oialr_search version that created the search",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, comment="UTC"),
        sa.Column(
            "last_finish_number",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="how many evaluations have finished",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_searches")),
        sa.UniqueConstraint("name", name=op.f("uq_searches_name")),
        comment="one optimisation over one space each",
    )
    op.create_table(
        "islands",
        sa.Column("search_id", sa.Integer(), nullable=False, comment="the search"),
        sa.Column(
            "island", sa.Integer(), autoincrement=False, nullable=False, comment="its number"
        ),
        sa.Column(
            "queued",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="bred there and now queued",
        ),
        sa.Column(
            "running",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="bred there and now running",
        ),
        sa.Column(
            "completed",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="bred there and now completed",
        ),
        sa.Column(
            "pruned",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="bred there and now pruned",
        ),
        sa.Column(
            "failed",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="bred there and now failed",
        ),
        sa.Column(
            "timed_out",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="bred there and now timed_out",
        ),
        sa.Column(
            "lost",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="bred there and now lost",
        ),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_islands_search_id")),
        sa.PrimaryKeyConstraint("search_id", "island", name=op.f("pk_islands")),
        comment="individuals of each island by status",
    )
    op.create_table(
        "launches",
        sa.Column("id", sa.Integer(), nullable=False, comment="numbers the launches"),
        sa.Column("search_id", sa.Integer(), nullable=False, comment="the search it works on"),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, comment="UTC"),
        sa.Column(
            "ended_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="UTC; NULL if running or killed",
        ),
        sa.Column("exit_code", sa.Integer(), nullable=True, comment="0 finished, 75 resumable"),
        sa.Column("world_size", sa.Integer(), nullable=False, comment="controller ranks"),
        sa.Column(
            "num_islands",
            sa.Integer(),
            nullable=False,
            comment="islands the ranks were divided into",
        ),
        sa.Column("hostname", sa.Text(), nullable=False, comment="node of world rank 0"),
        sa.Column("command_line", sa.Text(), nullable=False, comment="as typed, without passwords"),
        sa.Column("versions", sa.JSON(), nullable=False, comment="package -> version"),
        sa.Column("git_revision", sa.Text(), nullable=True, comment="commit of the code, if known"),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_launches_search_id")),
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
        sa.Column(
            "id", sa.Integer(), nullable=False, comment="numbers all individuals of the database"
        ),
        sa.Column("search_id", sa.Integer(), nullable=False, comment="the search it belongs to"),
        sa.Column("launch_id", sa.Integer(), nullable=False, comment="the launch that bred it"),
        sa.Column("island", sa.Integer(), nullable=False, comment="island it was bred on"),
        sa.Column(
            "island_rank",
            sa.Integer(),
            nullable=False,
            comment="rank within the island that bred it",
        ),
        sa.Column(
            "generation", sa.Integer(), nullable=False, comment="count of the rank that bred it"
        ),
        sa.Column("parents", sa.JSON(), nullable=False, comment="list of individual ids"),
        sa.Column("origin", sa.Text(), nullable=False, comment="how it came about: random, bred"),
        sa.Column("genes", sa.JSON(), nullable=False, comment="hyperparameter -> number in [0, 1]"),
        sa.Column(
            "hyperparameters",
            sa.JSON(),
            nullable=False,
            comment="hyperparameter -> value trained with",
        ),
        sa.Column(
            "status", sa.String(length=9), nullable=False, comment="of its latest evaluation"
        ),
        sa.Column(
            "fitness", sa.Double(), nullable=True, comment="minimised; NULL unless completed"
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, comment="UTC"),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True, comment="UTC"),
        sa.CheckConstraint(STATUS_IS_KNOWN, name=op.f("ck_individuals_status")),
        sa.CheckConstraint(
            "(status = 'completed') = (fitness IS NOT NULL)",
            name=op.f("ck_individuals_fitness_is_for_completed"),
        ),
        sa.ForeignKeyConstraint(
            ["launch_id"], ["launches.id"], name=op.f("fk_individuals_launch_id")
        ),
        sa.ForeignKeyConstraint(
            ["search_id"], ["searches.id"], name=op.f("fk_individuals_search_id")
        ),
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
        sa.Column(
            "id", sa.Integer(), nullable=False, comment="numbers all evaluations of the database"
        ),
        sa.Column("individual_id", sa.Integer(), nullable=False, comment="what was evaluated"),
        sa.Column("attempt", sa.Integer(), nullable=False, comment="1, 2, ... for one individual"),
        sa.Column("launch_id", sa.Integer(), nullable=False, comment="the launch that evaluated"),
        sa.Column(
            "status",
            sa.String(length=9),
            nullable=False,
            comment="how it ended, running until then",
        ),
        sa.Column("reason", sa.Text(), nullable=True, comment="why it did not complete"),
        sa.Column("exit_code", sa.Integer(), nullable=True, comment="of the worker process"),
        sa.Column(
            "exit_signal", sa.Integer(), nullable=True, comment="that ended the worker process"
        ),
        sa.Column("hostname", sa.Text(), nullable=False, comment="node it ran on"),
        sa.Column("device", sa.Text(), nullable=True, comment="GPU it ran on"),
        sa.Column(
            "world_rank", sa.Integer(), nullable=False, comment="controller rank that ran it"
        ),
        sa.Column("seed", sa.BigInteger(), nullable=False, comment="seed of the training"),
        sa.Column(
            "num_threads", sa.Integer(), nullable=False, comment="CPU threads of the training"
        ),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="UTC; claimed by its rank",
        ),
        sa.Column(
            "training_started_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="UTC; first step",
        ),
        sa.Column(
            "resumed_epoch", sa.Integer(), nullable=True, comment="epochs of an earlier attempt"
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True, comment="UTC"),
        sa.Column(
            "finish_number", sa.Integer(), nullable=True, comment="n-th of its search to finish"
        ),
        sa.Column("folder", sa.Text(), nullable=False, comment="where its files are"),
        sa.Column("log_path", sa.Text(), nullable=False, comment="output of the worker process"),
        sa.Column("last_epoch", sa.Integer(), nullable=True, comment="highest epoch reported"),
        sa.Column(
            "fitness", sa.Double(), nullable=True, comment="minimised; NULL unless completed"
        ),
        sa.Column(
            "metrics",
            sa.JSON(),
            nullable=False,
            comment="final metric -> value, null if not finite",
        ),
        sa.Column(
            "trainable_percent", sa.Double(), nullable=True, comment="of full rank's parameters"
        ),
        sa.Column(
            "compression_percent", sa.Double(), nullable=True, comment="total parameters likewise"
        ),
        sa.Column(
            "log_tail", sa.Text(), nullable=True, comment="end of the log if it did not complete"
        ),
        sa.Column(
            "gpu_energy_j", sa.Double(), nullable=True, comment="of the whole GPU, whoever uses it"
        ),
        sa.Column(
            "cpu_energy_j",
            sa.Double(),
            nullable=True,
            comment="of all CPUs of the node, whoever uses them",
        ),
        sa.Column(
            "peak_host_memory_bytes",
            sa.BigInteger(),
            nullable=True,
            comment="with loader processes",
        ),
        sa.Column(
            "peak_gpu_memory_bytes", sa.BigInteger(), nullable=True, comment="of all tensors"
        ),
        sa.Column("samples_per_s", sa.Double(), nullable=True, comment="images or windows trained"),
        sa.CheckConstraint(STATUS_IS_KNOWN, name=op.f("ck_evaluations_status")),
        sa.CheckConstraint(
            "(status = 'completed') = (fitness IS NOT NULL)",
            name=op.f("ck_evaluations_fitness_is_for_completed"),
        ),
        sa.ForeignKeyConstraint(
            ["individual_id"], ["individuals.id"], name=op.f("fk_evaluations_individual_id")
        ),
        sa.ForeignKeyConstraint(
            ["launch_id"], ["launches.id"], name=op.f("fk_evaluations_launch_id")
        ),
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
        sa.Column("id", sa.Integer(), nullable=False, comment="numbers the migrations"),
        sa.Column("search_id", sa.Integer(), nullable=False, comment="the search it belongs to"),
        sa.Column("individual_id", sa.Integer(), nullable=False, comment="who moved"),
        sa.Column("source_island", sa.Integer(), nullable=False, comment="island that sent it"),
        sa.Column("target_island", sa.Integer(), nullable=False, comment="island that accepted it"),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=False, comment="UTC"),
        sa.Column("fitness", sa.Double(), nullable=True, comment="of the individual"),
        sa.ForeignKeyConstraint(
            ["individual_id"], ["individuals.id"], name=op.f("fk_migrations_individual_id")
        ),
        sa.ForeignKeyConstraint(
            ["search_id"], ["searches.id"], name=op.f("fk_migrations_search_id")
        ),
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
        sa.Column("evaluation_id", sa.Integer(), nullable=False, comment="whose"),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False, comment="when"),
        sa.Column("name", sa.Text(), nullable=False, comment="which metric"),
        sa.Column("step", sa.BigInteger(), nullable=False, comment="training steps done"),
        sa.Column("value", sa.Double(), nullable=True, comment="NULL where it was not a number"),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name=op.f("fk_metrics_evaluation_id")
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "epoch", "name", name=op.f("pk_metrics")),
        comment="training and validation metrics over time",
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
    op.create_table(
        "rank_updates",
        sa.Column("evaluation_id", sa.Integer(), nullable=False, comment="whose"),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False, comment="when"),
        sa.Column("layer", sa.Text(), nullable=False, comment="which layer"),
        sa.Column("inner_rank", sa.Integer(), nullable=False, comment="after the update"),
        sa.Column(
            "full_inner_rank", sa.Integer(), nullable=False, comment="of the layer at full rank"
        ),
        sa.Column(
            "stability", sa.Double(), nullable=True, comment="of the basis; NULL at conversion"
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name=op.f("fk_rank_updates_evaluation_id")
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "step", "layer", name=op.f("pk_rank_updates")),
        comment="how OIALR cut the inner rank of each layer",
    )


def downgrade() -> None:
    """Drop all tables."""
    for table in (
        "observations",
        "rank_updates",
        "metrics",
        "migrations",
        "evaluations",
        "individuals",
        "launches",
        "islands",
        "searches",
    ):
        op.drop_table(table)
