"""The leaderboard as plain rows: what may be shown and asked for, filters, the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from oialr_training.errors import ConfigError

from oialr_search.analysis.where import find_column
from oialr_search.storage.database import Storage
from oialr_search.storage.records import SearchRecord, Status, StorageError
from oialr_search.storage.selection import Column, Every, Kind, OneOf, Placed, Selection, columns_of

Row = dict[str, Any]

FIRST = (
    Column("place", "int", "computed", "place"),
    Column("individual", "int", "individual", "id"),
    Column("status", "text", "individual", "status"),
    Column("fitness", "float", "individual", "fitness"),
)
PARAMETERS = (
    Column("trainable_percent", "float", "evaluation", "trainable_percent"),
    Column("compression_percent", "float", "evaluation", "compression_percent"),
)
REASON = Column("reason", "text", "evaluation", "reason")
LAST = (
    Column("island", "int", "individual", "island"),
    Column("generation", "int", "individual", "generation"),
    Column("duration_s", "float", "computed", "duration_s"),
    Column("world_rank", "int", "evaluation", "world_rank"),
    Column("hostname", "text", "evaluation", "hostname"),
    Column("device", "text", "evaluation", "device"),
    Column("attempt", "int", "evaluation", "attempt"),
    REASON,
    Column("gpu_energy_j", "float", "evaluation", "gpu_energy_j"),
    Column("cpu_energy_j", "float", "evaluation", "cpu_energy_j"),
    Column("peak_host_memory_bytes", "int", "evaluation", "peak_host_memory_bytes"),
    Column("peak_gpu_memory_bytes", "int", "evaluation", "peak_gpu_memory_bytes"),
    Column("samples_per_s", "float", "evaluation", "samples_per_s"),
)
PARETO = Column("pareto", "bool", "computed", "pareto")
# Shown where not only completed individuals are asked for, or where they are named.
OF_OTHERS = {"status", "attempt", "reason"}
WHERE_NAMED = {column.name for column in LAST[LAST.index(REASON) + 1 :]}
IDS_AT_ONCE = 10_000  # SQLite takes 32766 values in a statement


def choose_search(storage: Storage, name: str | None) -> SearchRecord:
    """The search of that name, or the one launched last.

    Raises:
        StorageError: when there is none.
    """
    searches = storage.searches()
    if not searches:
        raise StorageError("the database holds no search yet")
    if name is None:
        return searches[0]
    found = storage.find_search(name)
    if found is None:
        known = ", ".join(search.name for search in searches)
        raise StorageError(f"no search named {name!r} in the database; it holds {known}")
    return found


def all_columns(search: SearchRecord) -> dict[str, Column]:
    """All that a condition may name, by name, in the order in which it is shown."""
    metrics = [Column(name, "float", "metrics", name) for name in search.metric_names]
    hyperparameters = [
        Column(str(spec["name"]), _kind(spec), "hyperparameters", str(spec["name"]))
        for spec in search.space
    ]
    columns = [*FIRST, *metrics, *PARAMETERS, *hyperparameters, *LAST]
    named: dict[str, Column] = {}
    for column in columns:  # a metric may be a column, too: trainable_percent
        named.setdefault(column.name, column)
    return named


def shown_columns(
    search: SearchRecord, selection: Selection, objectives: Sequence[str] = ()
) -> list[Column]:
    """The columns of a leaderboard's rows: the usual ones, and those that are asked about.

    Raises:
        ConfigError: when an objective is no column, or none of numbers.
    """
    named = {*columns_of(selection.where), *(_objective(search, text)[0] for text in objectives)}
    hidden = WHERE_NAMED | {name for name in search.metric_names if name.startswith("train_")}
    if list(selection.statuses) == [Status.COMPLETED]:
        hidden |= OF_OTHERS
    columns = all_columns(search).values()
    shown = [column for column in columns if column in named or column.name not in hidden]
    return [shown[0], PARETO, *shown[1:]] if objectives else shown


def leaderboard(
    storage: Storage,
    search: SearchRecord,
    top: int | None,
    selection: Selection | None = None,
    objectives: Sequence[str] = (),
) -> list[Row]:
    """Individuals, the fittest first; with objectives, all of their Pareto front too, marked.

    Raises:
        ConfigError: when an objective is no column, or none of numbers.
    """
    selection = selection or Selection()
    placed = storage.select(search.id, selection, limit=top)
    front: set[int] = set()
    if objectives:
        front = _front(storage, search, selection, objectives)
        missing = sorted(front - {entry.individual.id for entry in placed})
        placed += _by_id(storage, search, selection, missing)
        placed.sort(key=_order)
    columns = shown_columns(search, selection, objectives)
    return [_row(entry, columns, front) for entry in placed]


def pareto_front(points: Any) -> list[int]:
    """The positions of the points that no other is at least as low as everywhere and lower once."""
    import numpy as np

    if not len(points):
        return []
    costs = np.asarray(points, dtype=float)
    left = np.lexsort(costs.T[::-1])  # whoever beats a point comes before it
    front: list[int] = []
    while len(left):
        best = costs[left[0]]
        equal = (costs[left] == best).all(axis=1)
        front += left[equal].tolist()
        left = left[(costs[left] < best).any(axis=1) & ~equal]
    return sorted(front)


def _front(
    storage: Storage, search: SearchRecord, selection: Selection, objectives: Sequence[str]
) -> set[int]:
    import numpy as np

    wanted = [_objective(search, text) for text in objectives]
    columns, signs = [column for column, _ in wanted], [sign for _, sign in wanted]
    found = np.array(storage.values(search.id, selection, columns) or [(0, *signs)], dtype=float)
    numbers, values = found[:, 0], found[:, 1:] * signs
    known = np.isfinite(values).all(axis=1) & (numbers > 0)  # NULL has become NaN
    return {int(numbers[known][position]) for position in pareto_front(values[known])}


def _objective(search: SearchRecord, text: str) -> tuple[Column, Literal[-1, 1]]:
    """A column to minimise, or with -1 to maximise: the better way, unless the text says it."""
    from oialr_training.config import TASKS

    name, _, way = text.strip().partition(":")
    column = find_column(name, all_columns(search), "--pareto")
    if column.kind not in ("int", "float"):
        raise ConfigError(f"`--pareto`: `{column.name}` is no number")
    if way not in ("", "min", "max"):
        raise ConfigError(f"`--pareto`: `:min` or `:max` may follow {name}, got `:{way}`")
    task = TASKS.get(search.task)
    higher = task is not None and task.metrics.get(column.name) == "higher"
    return column, -1 if way == "max" or (higher and not way) else 1


def _by_id(
    storage: Storage, search: SearchRecord, selection: Selection, numbers: Sequence[int]
) -> list[Placed]:
    placed = []
    for first in range(0, len(numbers), IDS_AT_ONCE):
        among = OneOf(FIRST[1], numbers[first : first + IDS_AT_ONCE])
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


def _row(entry: Placed, columns: Sequence[Column], front: set[int]) -> Row:
    return {column.name: _value(column, entry, front) for column in columns}


def _value(column: Column, entry: Placed, front: set[int]) -> Any:
    individual, evaluation = entry.individual, entry.individual.evaluation
    match column.source:
        case "individual":
            value = getattr(individual, column.key)
            return value.value if isinstance(value, Status) else value
        case "hyperparameters":
            return individual.hyperparameters.get(column.key)
        case "computed" if column.key != "duration_s":
            return entry.place if column.key == "place" else individual.id in front
    if evaluation is None:
        return None
    if column.source == "metrics":
        return finite(evaluation.metrics.get(column.key))
    return getattr(evaluation, column.key)


def finite(value: float | None) -> float | None:
    """A number that JSON has, too."""
    return value if value is not None and math.isfinite(value) else None


def _kind(spec: Mapping[str, Any]) -> Kind:
    if spec["kind"] != "choice":
        return "float" if spec["kind"] == "float" else "int" if spec["kind"] == "int" else "bool"
    types = {type(choice) for choice in spec.get("choices") or () if choice is not None}
    if types == {bool}:
        return "bool"
    if types == {int}:
        return "int"
    return "float" if types and types <= {int, float} else "text"
