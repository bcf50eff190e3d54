"""The leaderboard: its columns, and the one query behind the command and the view of its name."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from oialr_search.space.hyperparameters import SearchSpace
from oialr_search.storage.records import SearchRecord, Status
from oialr_search.storage.schema import (
    BEST_FIRST,
    IS_NO_REPEAT,
    evaluations,
    individuals,
    searches,
)
from oialr_search.storage.selection import (
    Column,
    Comparison,
    Condition,
    Either,
    Every,
    IsNull,
    Kind,
    Not,
    OneOf,
    Selection,
    columns_of,
)
from oialr_training.protocol import Resources

SEARCH = Column("search", "text", "search", "name")
PLACE = Column("place", "int", "computed", "place")
INDIVIDUAL = Column("individual", "int", "individual", "id")
STATUS = Column("status", "text", "individual", "status")
FITNESS = Column("fitness", "float", "individual", "fitness")
DEVIATION = Column("deviation", "float", "individual", "fitness_deviation")
SEEDS = Column("seeds", "int", "individual", "num_seeds")
TRAINABLE = Column("trainable_percent", "float", "evaluation", "trainable_percent")
COMPRESSION = Column("compression_percent", "float", "evaluation", "compression_percent")
VIOLATION = Column("violation", "float", "individual", "violation")
ISLAND = Column("island", "int", "individual", "island")
ISLAND_RANK = Column("island_rank", "int", "individual", "island_rank")
GENERATION = Column("generation", "int", "individual", "generation")
DURATION = Column("duration_s", "float", "computed", "duration_s")
REASON = Column("reason", "text", "evaluation", "reason")
ATTEMPT = Column("attempt", "int", "evaluation", "attempt")
OF_MACHINE = (
    Column("world_rank", "int", "evaluation", "world_rank"),
    Column("hostname", "text", "evaluation", "hostname"),
    Column("device", "text", "evaluation", "device"),
)
OF_RESOURCES = tuple(
    Column(f.name, "int" if f.type == "int | None" else "float", "evaluation", f.name)
    for f in fields(Resources)
)

DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
SQL_TYPES: Mapping[Kind, sa.types.TypeEngine[Any]] = {
    "int": sa.BigInteger(),
    "float": sa.Double(),
    "bool": sa.Boolean(),
    "text": sa.Text(),
}
COMPARE: Mapping[str, Any] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

LATEST = evaluations.alias("latest")
DURATION_S = {
    "sqlite": "ROUND((julianday(latest.finished_at) - julianday(latest.started_at)) * 86400, 3)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM latest.finished_at - latest.started_at) "
    "AS DOUBLE PRECISION)",
}
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


def all_columns(search: SearchRecord) -> dict[str, Column]:
    """Return all that a condition may name, by name, in the order in which it is shown."""
    columns = [
        PLACE, INDIVIDUAL, STATUS, FITNESS, DEVIATION, SEEDS, *of_aims([search.settings]),
        *of_metrics(search.metric_names),
        TRAINABLE, COMPRESSION, *of_hyperparameters([search.space]),
        ISLAND, ISLAND_RANK, GENERATION, DURATION, *OF_MACHINE, ATTEMPT, REASON, *OF_RESOURCES,
    ]  # fmt: skip
    named: dict[str, Column] = {}
    for column in columns:  # a metric may be a column, too: trainable_percent
        named.setdefault(column.name, column)
    return named


def of_aims(settings: Iterable[Mapping[str, Any]]) -> list[Column]:
    """Return a column for the violation of constraints, and one for each objective.

    Not for an objective that is another column, such as `trainable_percent`.
    """
    searches = [stored.get("search") or {} for stored in settings]
    written = [search.get("objectives") or () for search in searches]
    numbers = {n for texts in written for n, text in enumerate(texts) if not name_in(text)}
    constrained = any(search.get("subject_to") for search in searches)
    return [*([VIOLATION] if constrained else []), *(objective(n) for n in sorted(numbers))]


def objective(number: int) -> Column:
    """Return the column of an objective, counted from 0, as it is minimised."""
    return Column(f"objective_{number + 1}", "float", "objectives", str(number))


def name_in(text: str) -> str | None:
    """Return the name of an objective that is nothing but a column, with or without its way."""
    name = text.partition(":")[0].strip()
    return name if DOTTED_NAME.fullmatch(name) else None


def of_metrics(names: Iterable[str]) -> list[Column]:
    """Return a column for each metric."""
    return [Column(name, "float", "metrics", name) for name in dict.fromkeys(names)]


def of_hyperparameters(spaces: Iterable[SearchSpace]) -> list[Column]:
    """Return a column for each hyperparameter, of a kind that has room for all of its values."""
    types: dict[str, set[str]] = {}
    for space in spaces:
        for h in space.hyperparameters:
            own = {h.kind} if h.kind != "choice" else {type(c).__name__ for c in h.choices or ()}
            types.setdefault(h.name, set()).update(own)
    return [Column(name, _kind(own), "hyperparameters", name) for name, own in types.items()]


def _kind(types: set[str]) -> Kind:
    alone: Mapping[str, Kind] = {"bool": "bool", "int": "int"}
    if len(types) == 1 and types <= alone.keys():
        return alone[min(types)]
    return "float" if types and types <= {"int", "float"} else "text"


def leaderboard(
    columns: Sequence[Column] | None, selection: Selection, search_id: int | None, dialect: str
) -> sa.Select[Any]:
    """Build the query for individuals: the command's of one search, the view's of all.

    Without `columns` it is for place, individual and latest evaluation, the fittest first; those
    of the whole leaderboard have no place, as they are in order. Columns of one search come in any
    order; without `search_id` they are of all, the latest search first.
    """
    places = _places(search_id)
    completed = list(selection.statuses) == [Status.COMPLETED]
    with_places = columns is None and selection != Selection()
    asked = [*columns_of(selection.where), *(columns or ())]
    order: list[sa.ColumnElement[Any]] = [*BEST_FIRST]
    if not completed:
        order.insert(0, individuals.c.fitness.is_(None))
    source: sa.FromClause = individuals
    if search_id is None:
        # In order before the wide rows are looked up one by one: with a LIMIT, PostgreSQL then
        # decodes the JSON of so many rows only.
        source = places.join(individuals, individuals.c.id == places.c.id)
        order = [places.c.search_id.desc(), places.c.place]
    elif with_places or PLACE in asked:
        source = individuals.outerjoin(places, places.c.id == individuals.c.id)
    of_evaluation = any(c.source in ("evaluation", "metrics") or c == DURATION for c in asked)
    if columns is None or of_evaluation:
        is_wanted = IS_COMPLETED if completed else IS_LATEST
        source = source.join(LATEST, is_wanted, isouter=search_id is not None)
    if SEARCH in asked:
        source = source.join(searches, searches.c.id == individuals.c.search_id)

    values = (
        [places.c.place if with_places else sa.null(), *individuals.c, *LATEST.c]
        if columns is None
        else [_value(column, places, dialect).label(column.name) for column in columns]
    )
    query = sa.select(*values).select_from(source)
    if search_id is not None:
        query = query.where(
            individuals.c.search_id == search_id,
            individuals.c.fitness.is_not(None)  # the same, and the index knows it
            if completed
            else individuals.c.status.in_(selection.statuses),
            IS_NO_REPEAT,
        )
    if selection.islands:
        query = query.where(individuals.c.island.in_(selection.islands))
    if selection.where is not None:
        query = query.where(_condition(selection.where, places, dialect))
    return query.order_by(*order) if columns is None or search_id is None else query


def _places(search_id: int | None) -> sa.Subquery:
    """Number the completed individuals of each search, from an index alone."""
    place = sa.func.row_number().over(partition_by=individuals.c.search_id, order_by=BEST_FIRST)
    query = sa.select(*individuals.c["id", "search_id"], place.label("place")).where(
        individuals.c.fitness.is_not(None), IS_NO_REPEAT
    )
    if search_id is not None:
        query = query.where(individuals.c.search_id == search_id)
    return query.order_by(individuals.c.search_id.desc(), sa.text("place")).subquery("p")


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
    if column == SEARCH:
        return searches.c.name
    if column == PLACE:
        return places.c.place
    if column == DURATION:
        return sa.literal_column(f"({DURATION_S[dialect]})", sa.Double())
    of_individual = column.source in ("individual", "hyperparameters", "objectives")
    table = individuals if of_individual else LATEST
    if column.source in ("individual", "evaluation"):
        found: sa.ColumnElement[Any] = table.c[column.key]
        return sa.type_coerce(found, sa.Text) if column.kind == "text" else found
    entry: sa.ColumnElement[Any]
    at_place = column.source == "objectives"
    if dialect == "sqlite":
        path = f"$[{column.key}]" if at_place else f'$."{column.key}"'
        entry = sa.func.json_extract(table.c[column.source], path)
    else:
        key = sa.literal(int(column.key)) if at_place else sa.literal(column.key, sa.Text())
        entry = table.c[column.source].op("->>")(key)
    if column.kind == "int":  # a whole number may be written as a float
        entry = sa.cast(entry, sa.Numeric())
    typed: sa.ColumnElement[Any] = sa.cast(entry, SQL_TYPES[column.kind])
    return typed
