"""The tables, written for people who read SQL: decoded values, named statuses, UTC times.

A change here needs a new file in `migrations/versions` and the new `REVISION`; a test compares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from oialr_search.storage.records import EvaluationRecord, Outcome, Status
from oialr_training.protocol import Resources

FIRST_REVISION, REVISION = "0002", "0004"  # what can be brought up to date, and to what
REVISION_TABLE = "oialr_search_revision"

METADATA = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware time; SQLite keeps it as UTC text without the zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Bring a time to UTC."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give a time its zone back."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


class FreeText(TypeDecorator[str]):
    """What a program printed; no database holds half a character, PostgreSQL no NUL."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace what cannot be stored."""
        return value and value.replace("\0", "?").encode(errors="replace").decode()


class Number(TypeDecorator[float]):
    """A float that is a number or unknown: SQLite would read NaN as NULL, PostgreSQL would not."""

    impl = sa.Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        """Turn NaN into NULL."""
        return None if value is None or math.isnan(value) else value


class MetricValue(Number):
    """A float that may be NaN: NULL in either database."""

    cache_ok = True

    def process_result_value(self, value: float | None, dialect: Dialect) -> float:
        """Turn NULL into NaN."""
        return math.nan if value is None else value


class MetricsJson(TypeDecorator[Mapping[str, float]]):
    """Metrics by name; JSON has no NaN or infinity, so these are null and read as NaN."""

    impl = sa.JSON
    cache_ok = True

    def process_bind_param(
        self, value: Mapping[str, float] | None, dialect: Dialect
    ) -> dict[str, float | None]:
        """Turn what JSON cannot hold into null."""
        return {k: v if math.isfinite(v) else None for k, v in (value or {}).items()}

    def process_result_value(self, value: Any, dialect: Dialect) -> dict[str, float]:
        """Turn null into NaN."""
        return {name: math.nan if v is None else v for name, v in (value or {}).items()}


def _status() -> sa.Enum:
    return sa.Enum(
        Status,
        name="status",
        native_enum=False,
        create_constraint=True,
        values_callable=lambda statuses: [status.value for status in statuses],
    )


def _fitness_is_for_completed() -> sa.CheckConstraint:
    return sa.CheckConstraint(
        "(status = 'completed') = (fitness IS NOT NULL)", name="fitness_is_for_completed"
    )


def _column(name: str, type_: Any, *args: Any, comment: str, **options: Any) -> sa.Column[Any]:
    """Make a column that is NOT NULL unless it says otherwise."""
    return sa.Column(name, type_, *args, comment=comment, **{"nullable": False} | options)


def _aims() -> list[sa.Column[Any]]:
    """Make what an individual, or an evaluation, has come to beside the fitness."""
    empty = sa.text("'[]'")
    return [
        _column("objectives", sa.JSON, server_default=empty, comment="list, each minimised"),
        _column("constraints", sa.JSON, server_default=empty, comment="list, <= 0 where met"),
        _column("violation", Number, server_default=sa.text("0"), comment="of constraints"),
    ]


def _counter(name: str, *, comment: str) -> sa.Column[Any]:
    """Make a number that is kept up to date in the transaction that changes what it counts."""
    return _column(name, sa.Integer, server_default=sa.text("0"), comment=comment)


RESOURCES = {
    "gpu_energy_j": "of the whole GPU, whoever uses it",
    "cpu_energy_j": "of all CPUs of the node, whoever uses them",
    "peak_host_memory_bytes": "with loader processes",
    "peak_gpu_memory_bytes": "of all tensors",
    "samples_per_s": "images or windows trained",
}

searches = sa.Table(
    "searches",
    METADATA,
    _column("id", sa.Integer, primary_key=True, comment="numbers the searches"),
    _column("name", sa.Text, unique=True, comment="what the user calls the search"),
    _column("task", sa.Text, comment="what is trained"),
    _column("metric", sa.Text, comment="validation metric that the fitness is made of"),
    _column("settings", sa.JSON, comment="the complete search file after overrides"),
    _column("space", sa.JSON, comment="list of hyperparameters: name, kind and limits"),
    _column("metric_names", sa.JSON, comment="final metrics that are leaderboard columns"),
    _column("seed", sa.BigInteger, comment="seed of the whole search"),
    _column("evaluations_total", sa.Integer, comment="individuals the search will have"),
    _column("version", sa.Text, comment="oialr_search version that created the search"),
    _column("created_at", UtcDateTime, comment="UTC"),
    _counter("last_finish_number", comment="how many evaluations have finished"),
    comment="one optimisation over one space each",
)

launches = sa.Table(
    "launches",
    METADATA,
    _column("id", sa.Integer, primary_key=True, comment="numbers the launches"),
    _column("search_id", sa.ForeignKey("searches.id"), comment="the search it works on"),
    _column("started_at", UtcDateTime, comment="UTC"),
    _column("ended_at", UtcDateTime, nullable=True, comment="UTC; NULL if running or killed"),
    _column("exit_code", sa.Integer, nullable=True, comment="0 finished, 75 resumable"),
    _column("world_size", sa.Integer, comment="controller ranks"),
    _column("num_islands", sa.Integer, comment="islands the ranks were divided into"),
    _column("hostname", sa.Text, comment="node of world rank 0"),
    _column("command_line", sa.Text, comment="as typed, without passwords"),
    _column("versions", sa.JSON, comment="package -> version"),
    _column("git_revision", sa.Text, nullable=True, comment="commit of the code, if known"),
    sa.Index(None, "search_id", "started_at"),
    comment="one mpirun each; a resumed search has several",
)

individuals = sa.Table(
    "individuals",
    METADATA,
    _column("id", sa.Integer, primary_key=True, comment="numbers all individuals of the database"),
    _column("search_id", sa.ForeignKey("searches.id"), comment="the search it belongs to"),
    _column("launch_id", sa.ForeignKey("launches.id"), comment="the launch that bred it"),
    _column("island", sa.Integer, comment="island it was bred on"),
    _column(
        "island_rank",
        sa.Integer,
        comment="rank within the island that bred it; -1: a person named it",
    ),
    _column("generation", sa.Integer, comment="count of the rank that bred it"),
    _column("parents", sa.JSON, comment="list of individual ids"),
    _column("origin", sa.Text, comment="how it came about: random, bred"),
    _column("genes", sa.JSON, comment="hyperparameter -> number in [0, 1]"),
    _column("hyperparameters", sa.JSON, comment="hyperparameter -> value trained with"),
    _column("status", _status(), comment="of its latest evaluation"),
    _column(
        "fitness",
        Number,
        nullable=True,
        comment="mean over seeds, minimised; NULL unless completed",
    ),
    _column("created_at", UtcDateTime, comment="UTC"),
    _column("finished_at", UtcDateTime, nullable=True, comment="UTC"),
    *_aims(),
    _column("fitness_deviation", Number, nullable=True, comment="over seeds; NULL for one"),
    _counter("num_seeds", comment="seeds that the fitness is the mean of"),
    _column("cost_s", Number, server_default=sa.text("0"), comment="seconds of all its attempts"),
    _column("seed", sa.BigInteger, nullable=True, comment="of the training if not the search's"),
    _column(
        "repeat_of",
        sa.Integer,
        nullable=True,
        comment="the individual that it measures again, with another seed",
    ),
    sa.UniqueConstraint("search_id", "island", "island_rank", "generation"),
    _fitness_is_for_completed(),
    sa.Index(None, "search_id", "status", "id"),
    sa.Index(None, "search_id", "violation", "fitness", "id"),
    sa.Index(None, "search_id", "island", "violation", "fitness", "id"),
    sa.Index(
        "ix_individuals_repeat_of",
        "repeat_of",
        sqlite_where=sa.text("repeat_of IS NOT NULL"),
        postgresql_where=sa.text("repeat_of IS NOT NULL"),
    ),
    comment="genes and their provenance",
)

islands = sa.Table(
    "islands",
    METADATA,
    _column("search_id", sa.ForeignKey("searches.id"), primary_key=True, comment="the search"),
    _column("island", sa.Integer, primary_key=True, autoincrement=False, comment="its number"),
    *(_counter(status.value, comment=f"bred there and now {status.value}") for status in Status),
    comment="individuals of each island by status",
)

evaluations = sa.Table(
    "evaluations",
    METADATA,
    _column("id", sa.Integer, primary_key=True, comment="numbers all evaluations of the database"),
    _column("individual_id", sa.ForeignKey("individuals.id"), comment="what was evaluated"),
    _column("attempt", sa.Integer, comment="1, 2, ... for one individual"),
    _column("launch_id", sa.ForeignKey("launches.id"), comment="the launch that evaluated"),
    _column("status", _status(), comment="how it ended, running until then"),
    _column("reason", FreeText, nullable=True, comment="why it did not complete"),
    _column("exit_code", sa.Integer, nullable=True, comment="of the worker process"),
    _column("exit_signal", sa.Integer, nullable=True, comment="that ended the worker process"),
    _column("hostname", sa.Text, comment="node it ran on"),
    _column("device", sa.Text, nullable=True, comment="GPU it ran on"),
    _column("world_rank", sa.Integer, comment="controller rank that ran it"),
    _column("seed", sa.BigInteger, comment="seed of the training"),
    _column("num_threads", sa.Integer, comment="CPU threads of the training"),
    _column("started_at", UtcDateTime, comment="UTC; claimed by its rank"),
    _column("training_started_at", UtcDateTime, nullable=True, comment="UTC; first step"),
    _column("resumed_epoch", sa.Integer, nullable=True, comment="epochs of an earlier attempt"),
    _column("finished_at", UtcDateTime, nullable=True, comment="UTC"),
    _column("finish_number", sa.Integer, nullable=True, comment="n-th of its search to finish"),
    _column("folder", sa.Text, comment="where its files are"),
    _column("log_path", sa.Text, comment="output of the worker process"),
    _column("last_epoch", sa.Integer, nullable=True, comment="highest epoch reported"),
    _column("fitness", Number, nullable=True, comment="minimised; NULL unless completed"),
    *_aims(),
    _column("metrics", MetricsJson, comment="final metric -> value, null if not finite"),
    _column("trainable_percent", Number, nullable=True, comment="of full rank's parameters"),
    _column("compression_percent", Number, nullable=True, comment="total parameters likewise"),
    _column("log_tail", FreeText, nullable=True, comment="end of the log if it did not complete"),
    *(
        _column(
            resource.name,
            sa.BigInteger if resource.type == "int | None" else Number,
            nullable=True,
            comment=RESOURCES[resource.name],
        )
        for resource in fields(Resources)
    ),
    sa.UniqueConstraint("individual_id", "attempt"),
    _fitness_is_for_completed(),
    sa.Index(None, "launch_id", "finish_number"),
    sa.Index(
        "ix_evaluations_running",
        "launch_id",
        "world_rank",
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    ),
    comment="one worker process each",
)

metrics = sa.Table(
    "metrics",
    METADATA,
    _column("evaluation_id", sa.ForeignKey("evaluations.id"), primary_key=True, comment="whose"),
    _column("epoch", sa.Integer, primary_key=True, autoincrement=False, comment="when"),
    _column("name", sa.Text, primary_key=True, comment="which metric"),
    _column("step", sa.BigInteger, comment="training steps done"),
    _column("value", MetricValue, nullable=True, comment="NULL where it was not a number"),
    comment="training and validation metrics over time",
)

rank_updates = sa.Table(
    "rank_updates",
    METADATA,
    _column("evaluation_id", sa.ForeignKey("evaluations.id"), primary_key=True, comment="whose"),
    _column("step", sa.BigInteger, primary_key=True, autoincrement=False, comment="when"),
    _column("layer", sa.Text, primary_key=True, comment="which layer"),
    _column("inner_rank", sa.Integer, comment="after the update"),
    _column("full_inner_rank", sa.Integer, comment="of the layer at full rank"),
    _column("stability", Number, nullable=True, comment="of the basis; NULL at conversion"),
    comment="how OIALR cut the inner rank of each layer",
)

observations = sa.Table(
    "observations",
    METADATA,
    _column("evaluation_id", sa.ForeignKey("evaluations.id"), primary_key=True, comment="whose"),
    _column("step", sa.BigInteger, primary_key=True, autoincrement=False, comment="when"),
    _column(
        "earlier_step",
        sa.BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="what it is compared with",
    ),
    _column("layer", sa.Text, primary_key=True, comment="which layer"),
    _column("stability", MetricValue, nullable=True, comment="of the basis, Eq. (4)"),
    _column("mixing_similarity", MetricValue, nullable=True, comment="of the mixings, Eq. (5)"),
    _column(
        "relative_mixing_similarity",
        MetricValue,
        nullable=True,
        comment="the same, relative to the mixings' norms",
    ),
    comment="how far bases and mixings have come between two instants",
)

migrations = sa.Table(
    "migrations",
    METADATA,
    _column("id", sa.Integer, primary_key=True, comment="numbers the migrations"),
    _column("search_id", sa.ForeignKey("searches.id"), comment="the search it belongs to"),
    _column("individual_id", sa.ForeignKey("individuals.id"), comment="who moved"),
    _column("source_island", sa.Integer, comment="island that sent it"),
    _column("target_island", sa.Integer, comment="island that accepted it"),
    _column("accepted_at", UtcDateTime, comment="UTC"),
    _column("fitness", Number, nullable=True, comment="of the individual when it was accepted"),
    _column("violation", Number, server_default=sa.text("0"), comment="likewise"),
    sa.UniqueConstraint("individual_id", "target_island"),
    sa.Index(
        "ix_migrations_best_first",
        *("search_id", "target_island", "violation", "fitness", "individual_id"),
    ),
    comment="individuals accepted by other islands",
)


BEST_FIRST = (individuals.c.violation, individuals.c.fitness, individuals.c.id)
"""Who meets all constraints before who breaks one; of equals the one with the lower id."""
IS_NO_REPEAT = individuals.c.repeat_of.is_(None)


def row_of(record: Outcome | EvaluationRecord) -> dict[str, Any]:
    """Return a record's values by column; each of the resources has one of its own."""
    values = vars(record) | vars(record.resources)
    del values["resources"]
    return values
