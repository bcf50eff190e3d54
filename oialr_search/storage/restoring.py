"""A search stored again as it was, from the records that its files keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import sqlalchemy as sa

from oialr_search.storage.claims import average
from oialr_search.storage.records import (
    EpochRecord,
    EvaluationRecord,
    IndividualHistory,
    LaunchRecord,
    SearchRecord,
    Status,
    StorageError,
)
from oialr_search.storage.schema import (
    evaluations,
    individuals,
    islands,
    launches,
    metrics,
    observations,
    rank_updates,
    row_of,
    searches,
)
from oialr_training.protocol import Observation, RankUpdate

NUMBERED = (searches, launches, individuals, evaluations)  # their ids are given out in order
BATCH = 500  # individuals stored at once

Rows = list[dict[str, Any]]


def restore(
    connection: sa.Connection,
    search: SearchRecord,
    launch_records: Sequence[LaunchRecord],
    histories: Iterable[IndividualHistory],
) -> None:
    """Store a search, its launches and its individuals under the ids that they had."""
    if connection.dialect.name == "postgresql":  # nobody takes an id meanwhile
        names = ", ".join(table.name for table in NUMBERED)
        connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")
    census: Counter[tuple[int, Status]] = Counter()
    last_finish_number, repeated = 0, set[int]()
    try:
        fields = _fields(search, searches) | {"space": search.space.as_json()}
        connection.execute(sa.insert(searches), [fields])
        _insert(connection, launches, [_fields(launch, launches) for launch in launch_records])
        remaining = iter(histories)
        while batch := list(islice(remaining, BATCH)):
            census.update((h.individual.island, h.individual.status) for h in batch)
            attempts = [attempt for history in batch for attempt in history.evaluations]
            numbers = (attempt.evaluation.finish_number or 0 for attempt in attempts)
            last_finish_number = max(last_finish_number, *numbers, 0)
            _insert(connection, individuals, [_fields(h.individual, individuals) for h in batch])
            _insert(connection, evaluations, [_fields(a.evaluation, evaluations) for a in attempts])
            for attempt in attempts:
                for table, rows in epoch_rows(
                    attempt.evaluation.id,
                    attempt.epochs,
                    attempt.rank_updates,
                    attempt.observations,
                ):
                    _insert(connection, table, rows)
            repeated.update(
                h.individual.repeat_of
                for h in batch
                if h.individual.repeat_of is not None and h.individual.fitness is not None
            )
        for individual_id in sorted(repeated):
            average(connection, individual_id)
        _insert(connection, islands, list(_islands(search.id, census)))
    except sa.exc.IntegrityError as error:
        reason = str(error.orig).partition("DETAIL:")[0].strip()
        raise StorageError(
            f"search `{search.name}` cannot be restored here, its name or one of its numbers is "
            f"taken ({reason}): give an empty database with --db"
        ) from None
    connection.execute(
        sa.update(searches)
        .where(searches.c.id == search.id)
        .values(last_finish_number=last_finish_number)
    )
    if connection.dialect.name == "postgresql":
        for table in NUMBERED:  # SQLite goes on after the highest by itself
            connection.exec_driver_sql(
                f"SELECT setval('{table.name}_id_seq', GREATEST(max(id), "
                f"(SELECT last_value FROM {table.name}_id_seq))) FROM {table.name}"
            )


def epoch_rows(
    evaluation_id: int,
    epochs: Sequence[EpochRecord],
    updates: Sequence[RankUpdate],
    observed: Sequence[Observation],
) -> Iterator[tuple[sa.Table, Rows]]:
    """Say which rows a training has brought forth, table by table, none empty."""
    whose = {"evaluation_id": evaluation_id}
    values = [
        {**whose, "epoch": epoch.epoch, "step": epoch.step, "name": name, "value": value}
        for epoch in epochs
        for name, value in epoch.metrics.items()
    ]
    if values:
        yield metrics, values
    if updates:
        yield rank_updates, [whose | vars(update) for update in updates]
    if observed:
        yield observations, [whose | _fields(observation, observations) for observation in observed]


def _fields(record: Any, table: sa.Table) -> dict[str, Any]:
    fields = row_of(record) if isinstance(record, EvaluationRecord) else vars(record)
    return {column.name: fields[column.name] for column in table.c if column.name in fields}


def _insert(connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
    if rows:
        connection.execute(sa.insert(table), rows)


def _islands(search_id: int, census: Mapping[tuple[int, Status], int]) -> Iterator[dict[str, Any]]:
    for island in sorted({island for island, _ in census}):
        counts = {status.value: census.get((island, status), 0) for status in Status}
        yield {"search_id": search_id, "island": island, **counts}
