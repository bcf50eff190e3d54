"""A search as pandas data frames: `oialr_search.open_search(url, name)`.

Read-only, and fit to be asked while the search runs: each call is one statement, its frame what the
database held then. Times are UTC, percentages are of the full-rank network's parameters, durations
in seconds. What is unknown is `<NA>` (`NaT`), never 0; a number that is none (NaN) is `<NA>` too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import TracebackType
from typing import Any

import pandas as pd

from oialr_search.analysis.choosing import choose_search
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.leaderboard import all_columns
from oialr_search.storage.queries import TableName
from oialr_search.storage.records import SearchRecord
from oialr_search.storage.selection import Column
from oialr_training.protocol import Resources

TIME = "datetime64[ns, UTC]"
TEXT = "string"
OF_KIND = {"int": "Int64", "float": "Float64", "bool": "boolean", "text": "category"}

INDIVIDUALS = {
    "individual_id": "int64",
    "status": "category",
    "fitness": "Float64",
    "fitness_deviation": "Float64",
    "num_seeds": "int64",
    "violation": "Float64",
    "objectives": "object",
    "island": "int64",
    "island_rank": "int64",
    "generation": "int64",
    "origin": "category",
    "parents": "object",
    "seed": "Int64",
    "repeat_of": "Int64",
    "launch_id": "int64",
    "created_at": TIME,
    "finished_at": TIME,
    "attempt": "Int64",
    "evaluation_id": "Int64",
    "evaluation_launch_id": "Int64",
    "world_rank": "Int64",
    "hostname": "category",
    "device": "category",
    "started_at": TIME,
    "duration_s": "Float64",
    "last_epoch": "Int64",
    "reason": TEXT,
    "exit_code": "Int64",
    "exit_signal": "Int64",
    "trainable_percent": "Float64",
    "compression_percent": "Float64",
    **{f.name: "Int64" if f.type == "int | None" else "Float64" for f in fields(Resources)},
}
OF_EVALUATION = {
    "individual_id": "int64",
    "attempt": "int64",
    "evaluation_id": "int64",
}
METRICS = OF_EVALUATION | {
    "epoch": "int64",
    "step": "int64",
    "name": "category",
    "value": "Float64",
}
RANK_UPDATES = OF_EVALUATION | {
    "step": "int64",
    "layer": "category",
    "inner_rank": "int64",
    "full_inner_rank": "int64",
    "stability": "Float64",
}
OBSERVATIONS = OF_EVALUATION | {
    "step": "int64",
    "earlier_step": "int64",
    "layer": "category",
    "stability": "Float64",
    "mixing_similarity": "Float64",
    "relative_mixing_similarity": "Float64",
}
LINEAGE = {
    "individual_id": "int64",
    "parent_number": "int64",
    "parent_id": "int64",
    "origin": "category",
    "island": "int64",
    "generation": "int64",
    "fitness": "Float64",
    "parent_island": "Int64",
    "parent_generation": "Int64",
    "parent_fitness": "Float64",
    "gain": "Float64",
}


def open_search(url: str, name: str | None = None) -> Search:
    """Open a search for reading, by default the one launched last.

    Args:
        url: path of an SQLite file, `sqlite:///PATH` or `postgresql://USER@HOST/NAME`.
        name: which search of the database.

    Raises:
        StorageError: when there is no such database or search.
    """
    storage = open_storage(url, read_only=True)
    try:
        return Search(storage, choose_search(storage, name))
    except BaseException:
        storage.close()
        raise


class Search:
    """One search; a context manager that closes the database."""

    def __init__(self, storage: Storage, record: SearchRecord) -> None:
        """Take over an open database."""
        self._storage = storage
        self.record = record
        """What the database says of the search itself: task, metric, settings, space."""

    def leaderboard(self) -> pd.DataFrame:
        """Completed individuals by `place`, the fittest first, with all columns of `individuals`.

        Final metrics come as a column each (`Float64`).
        """
        frame = self._individuals(with_metrics=True)
        frame = frame[frame["fitness"].notna() & frame["repeat_of"].isna()].sort_values(
            ["violation", "fitness", "individual_id"], ignore_index=True
        )
        frame.insert(0, "place", range(1, len(frame) + 1))
        return frame

    def individuals(self) -> pd.DataFrame:
        """All individuals with their latest attempt, by number.

        One column for each hyperparameter, by its dotted name: `Int64`, `Float64`, `boolean` or
        `category` (text). `parents` and `objectives` (each minimised) are tuples of numbers;
        `duration_s` is of the latest attempt, `finished_at` when it ended. Who repeats another,
        with another `seed`, has its number as `repeat_of`; the other's `fitness` is the mean of
        `num_seeds`.
        """
        return self._individuals(with_metrics=False)

    def metrics(self) -> pd.DataFrame:
        """All metrics of all attempts over their epochs: one row a value (`name`, `value`).

        `step` is the number of training steps done. Losses are as trained, `top1` in percent.
        """
        return self._table("metrics", METRICS)

    def rank_updates(self) -> pd.DataFrame:
        """The inner rank of each layer after each basis update; `stability` by Eq. (4), 0 to 1."""
        return self._table("rank_updates", RANK_UPDATES)

    def observations(self) -> pd.DataFrame:
        """How far bases (Eq. 4) and mixings (Eq. 5) have come from `earlier_step` to `step`.

        `relative_mixing_similarity` is Eq. (5) relative to the mixings' norms; of searches that
        version 0.1.0 observed it is the only one.
        """
        return self._table("observations", OBSERVATIONS)

    def lineage(self) -> pd.DataFrame:
        """One row for each individual and parent; `gain` is the parent's fitness less its own."""
        return self._table("lineage", LINEAGE)

    def close(self) -> None:
        """Let go of the database; closing twice is fine."""
        self._storage.close()

    def __enter__(self) -> Search:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _table(self, name: TableName, types: Mapping[str, str]) -> pd.DataFrame:
        found = self._storage.table(self.record.id, name)
        by_column = dict(zip(found.columns, zip(*found.rows, strict=True), strict=False))
        return pd.DataFrame(
            {column: _series(by_column.get(column, ()), kind) for column, kind in types.items()}
        )

    def _individuals(self, *, with_metrics: bool) -> pd.DataFrame:
        found = self._storage.table(self.record.id, "individuals")
        by_column: dict[str, Any] = dict(
            zip(found.columns, zip(*found.rows, strict=True), strict=False)
        )
        for name in ("parents", "objectives"):
            by_column[name] = [tuple(entries) for entries in by_column.get(name, ())]
        series = {
            name: _series(by_column.get(name, ()), kind)
            for name, kind in INDIVIDUALS.items()
            if name not in ("individual_id", "duration_s")
        }
        series["individual_id"] = _series(by_column.get("id", ()), "int64")
        ended = _series(by_column.get("ended_at", ()), TIME)
        series["duration_s"] = (ended - series["started_at"]).dt.total_seconds().astype("Float64")
        frame = pd.DataFrame({name: series[name] for name in INDIVIDUALS})
        columns = [c for c in all_columns(self.record).values() if c.name not in INDIVIDUALS]
        sources = ["hyperparameters", *(["metrics"] if with_metrics else [])]
        added = {
            column.name: _series(_entries(by_column.get(source, ()), column), OF_KIND[column.kind])
            for source in sources
            for column in columns
            if column.source == source
        }
        return pd.concat([frame, pd.DataFrame(added, index=frame.index)], axis=1)


def _entries(mappings: Iterable[Mapping[str, Any] | None], column: Column) -> list[Any]:
    """A key's values; an attempt that there was not has none."""
    values = [(mapping or {}).get(column.key) for mapping in mappings]
    return (
        [None if value is None else str(value) for value in values]
        if (column.kind == "text")
        else values
    )


def _series(values: Iterable[Any], kind: str) -> pd.Series[Any]:
    if kind == "Float64":  # NaN is as unknown as NULL
        return pd.Series(
            pd.array(pd.to_numeric(pd.Series(list(values), dtype=object))).astype("Float64")
        )
    return pd.Series(list(values), dtype=kind)
