"""The leaderboard as plain rows: what may be shown and asked for, filters, what is Pareto-best."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from oialr_search.analysis.where import find_column
from oialr_search.space.pareto import pareto_front
from oialr_search.storage.database import Storage
from oialr_search.storage.leaderboard import (
    ATTEMPT,
    COMPRESSION,
    DEVIATION,
    INDIVIDUAL,
    ISLAND_RANK,
    OF_RESOURCES,
    REASON,
    SEEDS,
    STATUS,
    TRAINABLE,
    VIOLATION,
    all_columns,
    name_in,
    objective,
)
from oialr_search.storage.records import SearchRecord, Status
from oialr_search.storage.selection import Column, Every, OneOf, Placed, Selection, columns_of
from oialr_training.errors import ConfigError

Row = dict[str, Any]

PARETO = Column("pareto", "bool", "computed", "pareto")
# Shown where not only completed individuals are asked for, or where they are named.
OF_OTHERS = {STATUS, ATTEMPT, REASON}
OF_NETWORKS = {TRAINABLE, COMPRESSION}
WHERE_NAMED = {ISLAND_RANK, *OF_RESOURCES}
IDS_AT_ONCE = 10_000  # SQLite takes 32766 values in a statement


def shown_columns(
    search: SearchRecord, selection: Selection, objectives: Sequence[str] = ()
) -> list[Column]:
    """The columns of a leaderboard's rows: the usual ones, and those that are asked about.

    Raises:
        ConfigError: when an objective is no column, or none of numbers.
    """
    asked = objectives or [name for text in search.objectives if (name := name_in(text))]
    named = {*columns_of(selection.where), *(_objective(search, text)[0] for text in asked)}
    columns = all_columns(search).values()
    hidden = WHERE_NAMED | {
        c for c in columns if c.source == "metrics" and c.name.startswith("train_")
    }
    if list(selection.statuses) == [Status.COMPLETED]:
        hidden |= OF_OTHERS
    metrics = search.metrics()
    hidden |= {column for column in OF_NETWORKS if metrics.find(column.name) is None}
    shown = [column for column in columns if column in named or column not in hidden]
    return [shown[0], PARETO, *shown[1:]] if objectives or search.objectives else shown


def leaderboard(
    storage: Storage,
    search: SearchRecord,
    top: int | None,
    selection: Selection | None = None,
    objectives: Sequence[str] = (),
) -> list[Row]:
    """Individuals, the fittest first; with objectives, all of their Pareto front too, marked.

    Without, they are the search's, if it has several.

    Raises:
        ConfigError: when an objective is no column, or none of numbers.
    """
    selection = selection or Selection()
    placed = storage.select(search.id, selection, limit=top)
    front: Mapping[int, object] = {}
    if objectives or search.objectives:
        front = front_of(storage, search, selection, objectives)
        missing = sorted(front.keys() - {entry.individual.id for entry in placed})
        placed += _by_id(storage, search, selection, missing)
        placed.sort(key=_order)
    columns = shown_columns(search, selection, objectives)
    return [_row(entry, columns, front) for entry in placed]


def for_people(rows: Sequence[Row]) -> list[Row]:
    """The same; deviation and number of seeds only where something was measured again."""
    if any(row.get(DEVIATION.name) is not None for row in rows):
        return list(rows)
    unused = {DEVIATION.name, SEEDS.name}
    return [{k: v for k, v in row.items() if k not in unused} for row in rows]


def front_of(
    storage: Storage,
    search: SearchRecord,
    selection: Selection | None = None,
    objectives: Sequence[str] = (),
) -> dict[int, list[float]]:
    """The individuals that no other beats, and what is minimised of each; constraints are met.

    Raises:
        ConfigError: when an objective is no column, or none of numbers.
    """
    import numpy as np

    wanted = [_objective(search, text) for text in objectives]
    wanted = wanted or [(objective(number), 1) for number in range(len(search.objectives))]
    columns, signs = [column for column, _ in wanted], [sign for _, sign in wanted]
    rows = storage.values(search.id, selection or Selection(), [VIOLATION, *columns])
    found = np.array(rows or [(0, 0, *signs)], dtype=float)
    numbers, violations, values = found[:, 0], found[:, 1], found[:, 2:] * signs
    known = np.isfinite(values).all(axis=1) & (numbers > 0)  # NULL has become NaN
    known &= violations <= 0.0
    numbers, values = numbers[known], values[known]
    return {int(numbers[place]): values[place].tolist() for place in pareto_front(values)}


def _objective(search: SearchRecord, text: str) -> tuple[Column, Literal[-1, 1]]:
    """A column to minimise, or with -1 to maximise: the better way, unless the text says it."""
    name, _, way = text.strip().partition(":")
    column = find_column(name, all_columns(search), "--pareto")
    if column.kind not in ("int", "float"):
        raise ConfigError(f"`--pareto`: `{column.name}` is no number")
    if way not in ("", "min", "max"):
        raise ConfigError(f"`--pareto`: `:min` or `:max` may follow {name}, got `:{way}`")
    metric = search.metrics().find(column.name)
    higher = metric is not None and metric.better == "higher"
    return column, -1 if way == "max" or (higher and not way) else 1


def _by_id(
    storage: Storage, search: SearchRecord, selection: Selection, numbers: Sequence[int]
) -> list[Placed]:
    placed = []
    for first in range(0, len(numbers), IDS_AT_ONCE):
        among = OneOf(INDIVIDUAL, numbers[first : first + IDS_AT_ONCE])
        parts = [among] if selection.where is None else [among, selection.where]
        placed += storage.select(
            search.id,
            Selection(
                statuses=selection.statuses, islands=selection.islands, where=Every(tuple(parts))
            ),
        )
    return placed


def _order(entry: Placed) -> tuple[float, int]:
    return entry.place or math.inf, entry.individual.id


def _row(entry: Placed, columns: Sequence[Column], front: Collection[int]) -> Row:
    return {column.name: _value(column, entry, front) for column in columns}


def _value(column: Column, entry: Placed, front: Collection[int]) -> Any:
    individual, evaluation = entry.individual, entry.individual.evaluation
    match column.source:
        case "individual":
            value = getattr(individual, column.key)
            return value.value if isinstance(value, Status) else value
        case "objectives":
            found = individual.objectives
            return found[int(column.key)] if int(column.key) < len(found) else None
        case "hyperparameters":
            return individual.hyperparameters.get(column.key)
        case "computed" if column.key != "duration_s":
            return entry.place if column.key == "place" else individual.id in front
    if evaluation is None:
        return None
    if column.source == "metrics":
        return finite(evaluation.metrics.get(column.key))
    of = evaluation.resources if hasattr(evaluation.resources, column.key) else evaluation
    return getattr(of, column.key)


def finite(value: float | None) -> float | None:
    """A number that JSON has, too."""
    return value if value is not None and math.isfinite(value) else None
