"""What reports ask of a whole search, each in one statement, with every value bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from oialr_search.storage.leaderboard import IS_LATEST, LATEST
from oialr_search.storage.records import Status
from oialr_search.storage.schema import (
    RESOURCES,
    evaluations,
    individuals,
    launches,
    metrics,
    observations,
    rank_updates,
)
from oialr_search.storage.selection import FailureCount, Rows

TableName = Literal["individuals", "metrics", "rank_updates", "observations", "lineage"]
DID_NOT_COMPLETE = (Status.PRUNED, Status.FAILED, Status.TIMED_OUT, Status.LOST)


def last_finishes(
    connection: sa.Connection, launch_id: int, limit: int
) -> Sequence[tuple[datetime, int]]:
    """When a launch's last evaluations ended, and on which islands; the latest first.

    Those that were stopped or lost are no end: they will be repeated.
    """
    query = (
        sa.select(evaluations.c.finished_at, individuals.c.island)
        .join_from(evaluations, individuals)
        .where(
            evaluations.c.launch_id == launch_id,
            evaluations.c.finish_number.is_not(None),
            evaluations.c.status != Status.LOST,
        )
        .order_by(evaluations.c.finish_number.desc())
        .limit(limit)
    )
    return [(row.finished_at, row.island) for row in connection.execute(query)]


def pruned_epochs(connection: sa.Connection, search_id: int) -> list[tuple[int, Mapping[str, Any]]]:
    """Epochs that each pruned individual was trained for, and its hyperparameters."""
    query = (
        sa.select(sa.func.coalesce(LATEST.c.last_epoch, 0), individuals.c.hyperparameters)
        .join_from(individuals, LATEST, IS_LATEST)
        .where(
            individuals.c.search_id == search_id,
            individuals.c.status == sa.literal_column(f"'{Status.PRUNED}'"),
        )
    )
    return [(epochs, hyperparameters) for epochs, hyperparameters in connection.execute(query)]


def failures(connection: sa.Connection, search_id: int) -> list[FailureCount]:
    """Count the evaluations that did not complete, those that were repeated too."""
    query = (
        sa.select(evaluations.c.status, evaluations.c.reason, sa.func.count().label("count"))
        .join_from(evaluations, launches)
        .where(launches.c.search_id == search_id, evaluations.c.status.in_(DID_NOT_COMPLETE))
        .group_by(evaluations.c.status, evaluations.c.reason)
    )
    return [FailureCount(**row) for row in connection.execute(query).mappings()]


def table(connection: sa.Connection, search_id: int, name: TableName) -> Rows:
    """Return all that a search has in a table, with whose it is."""
    result = connection.execute(_TABLES[name], {"the_search_id": search_id})
    return Rows(columns=list(result.keys()), rows=result.all())


_OF_SEARCH = individuals.c.search_id == sa.bindparam("the_search_id")
_WHOSE = (
    individuals.c.id.label("individual_id"),
    evaluations.c.attempt,
)


def _measured(measured: sa.Table, keys: int) -> sa.Select[Any]:
    """Build a query for what belongs to evaluations, sorted by the table's first keys."""
    columns = list(measured.c)
    return (
        sa.select(*_WHOSE, *columns)
        .select_from(
            individuals.join(evaluations, evaluations.c.individual_id == individuals.c.id).join(
                measured, measured.c.evaluation_id == evaluations.c.id
            )
        )
        .where(_OF_SEARCH)
        .order_by(*columns[:keys])
    )


_PARENTS = sa.table(
    "lineage",
    *(
        sa.column(name)
        for name in (
            "search_id", "individual_id", "parent_number", "parent_id", "origin", "island",
            "generation", "fitness", "parent_island", "parent_generation", "parent_fitness",
            "gain",
        )
    ),
)  # fmt: skip
_TABLES: Mapping[TableName, sa.Select[Any]] = {
    "individuals": sa.select(
        *(c for c in individuals.c if c.name not in ("search_id", "genes")),
        LATEST.c.id.label("evaluation_id"),
        LATEST.c.launch_id.label("evaluation_launch_id"),
        *(
            LATEST.c[name]
            for name in (
                "attempt", "world_rank", "hostname", "device", "reason", "exit_code",
                "exit_signal", "started_at", "last_epoch", "metrics", "trainable_percent",
                "compression_percent", *RESOURCES,
            )
        ),
        LATEST.c.finished_at.label("ended_at"),
    )
    .select_from(individuals.outerjoin(LATEST, IS_LATEST))
    .where(_OF_SEARCH)
    .order_by(individuals.c.id),
    "metrics": _measured(metrics, 3),
    "rank_updates": _measured(rank_updates, 3),
    "observations": _measured(observations, 4),
    "lineage": sa.select(*(c for c in _PARENTS.c if c.name != "search_id"))
    .where(_PARENTS.c.search_id == sa.bindparam("the_search_id"))
    .order_by(_PARENTS.c.individual_id, _PARENTS.c.parent_number),
}  # fmt: skip
