"""What reports ask of a whole search, each in one statement, with every value bound."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from oialr_search.storage.records import Status
from oialr_search.storage.schema import (
    evaluations,
    individuals,
    launches,
    metrics,
    observations,
    rank_updates,
)
from oialr_search.storage.selection import (
    Column,
    Comparison,
    Condition,
    Either,
    Every,
    FailureCount,
    IsNull,
    Not,
    OneOf,
    Rows,
    Selection,
    columns_of,
)
from oialr_search.storage.views import DURATION_S

TableName = Literal["individuals", "metrics", "rank_updates", "observations", "lineage"]
COMPARE: Mapping[str, Any] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
DID_NOT_COMPLETE = (Status.PRUNED, Status.FAILED, Status.TIMED_OUT, Status.LOST)

LATEST = evaluations.alias("e")  # the name that DURATION_S uses
_attempts = evaluations.alias("attempts")
IS_LATEST = (LATEST.c.individual_id == individuals.c.id) & (
    LATEST.c.attempt
    == sa.select(sa.func.max(_attempts.c.attempt))
    .where(_attempts.c.individual_id == individuals.c.id)
    .correlate(individuals)
    .scalar_subquery()
)
# Much cheaper, and the same where all have completed: they do so once.
IS_COMPLETED = (LATEST.c.individual_id == individuals.c.id) & (
    LATEST.c.status == sa.literal_column(f"'{Status.COMPLETED}'")
)


def select(
    connection: sa.Connection,
    search_id: int,
    selection: Selection,
    wanted: Sequence[Column] | None = None,
    limit: int | None = None,
) -> sa.CursorResult[Any]:
    """Return a selection, the fittest first: place, individual and its latest evaluation.

    With columns `wanted`, the individual's id and those instead, in any order.
    """
    dialect = connection.dialect.name
    asked = [*columns_of(selection.where), *(wanted or ())]
    places = (
        sa.select(
            individuals.c.id,
            sa.func.row_number()
            .over(order_by=(individuals.c.fitness, individuals.c.id))
            .label("place"),
        )
        .where(individuals.c.search_id == search_id, individuals.c.fitness.is_not(None))
        .subquery("places")
    )
    # Counting all places is for those who are filtered: the whole leaderboard counts by itself.
    with_places = any(c.name == "place" for c in asked) or (
        wanted is None and not selection.is_leaderboard
    )
    completed = list(selection.statuses) == [Status.COMPLETED]
    source: sa.FromClause = individuals
    if wanted is None or any(map(_is_of_evaluation, asked)):
        source = source.outerjoin(LATEST, IS_COMPLETED if completed else IS_LATEST)
    if with_places:
        source = source.outerjoin(places, places.c.id == individuals.c.id)
    if wanted is None:
        place = places.c.place if with_places else sa.null()
        fields: list[Any] = [place, *individuals.c, *LATEST.c]
    else:
        fields = [individuals.c.id, *(_value(c, places, dialect) for c in wanted)]
    conditions: list[sa.ColumnElement[bool]] = [individuals.c.search_id == search_id]
    if completed:
        conditions.append(individuals.c.fitness.is_not(None))  # the same, and the index knows it
    else:
        conditions.append(individuals.c.status.in_(selection.statuses))
    if selection.islands:
        conditions.append(individuals.c.island.in_(selection.islands))
    if selection.where is not None:
        conditions.append(_condition(selection.where, places, dialect))
    order = individuals.c.fitness if completed else individuals.c.fitness.nulls_last()
    query = sa.select(*fields).select_from(source).where(*conditions)
    if wanted is None:
        query = query.order_by(order, individuals.c.id)
    return connection.execute(query.limit(limit))


def _is_of_evaluation(column: Column) -> bool:
    return column.source in ("evaluation", "metrics") or column.key == "duration_s"


def _condition(condition: Condition, places: sa.Subquery, dialect: str) -> sa.ColumnElement[bool]:
    match condition:
        case Comparison(column, name, value):
            found: sa.ColumnElement[bool] = COMPARE[name](
                _value(column, places, dialect), _literal(value)
            )
            return found
        case OneOf(column, values):
            return _value(column, places, dialect).in_([_literal(value) for value in values])
        case IsNull(column):
            return _value(column, places, dialect).is_(None)
        case Not(part):
            return sa.not_(_condition(part, places, dialect))
        case Every(parts):
            return sa.and_(*(_condition(part, places, dialect) for part in parts))
        case Either(parts):
            return sa.or_(*(_condition(part, places, dialect) for part in parts))


def _literal(value: float | bool | str) -> sa.ColumnElement[Any]:
    """Bind a value as what it is: an integer column would have 1.5 rounded."""
    if isinstance(value, bool):
        return sa.literal(value, sa.Boolean())
    if isinstance(value, str):
        return sa.literal(value, sa.Text())
    return sa.literal(float(value), sa.Double())


def _value(column: Column, places: sa.Subquery, dialect: str) -> sa.ColumnElement[Any]:
    match column.source:
        case "computed":
            return (
                places.c.place
                if column.key == "place"
                else sa.literal_column(f"({DURATION_S[dialect]})", sa.Double())
            )
        case "individual" | "evaluation":
            table = individuals if column.source == "individual" else LATEST
            found: sa.ColumnElement[Any] = table.c[column.key]
            return sa.type_coerce(found, sa.Text) if column.kind == "text" else found
        case _:
            table = individuals if column.source == "hyperparameters" else LATEST
            entry: Any = sa.type_coerce(table.c[column.source], sa.JSON)[column.key]
            read = {"bool": entry.as_boolean, "text": entry.as_string}
            typed: sa.ColumnElement[Any] = read.get(column.kind, entry.as_float)()
            return typed


def last_finishes(
    connection: sa.Connection, launch_id: int, limit: int
) -> Sequence[tuple[datetime, int]]:
    """When a launch's last evaluations ended, and on which islands; the latest first."""
    query = (
        sa.select(evaluations.c.finished_at, individuals.c.island)
        .join_from(evaluations, individuals)
        .where(evaluations.c.launch_id == launch_id, evaluations.c.finish_number.is_not(None))
        .order_by(evaluations.c.finish_number.desc())
        .limit(limit)
    )
    return [(row.finished_at, row.island) for row in connection.execute(query)]


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
                "compression_percent", "gpu_energy_j", "cpu_energy_j", "peak_host_memory_bytes",
                "peak_gpu_memory_bytes", "samples_per_s",
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
