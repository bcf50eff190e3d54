"""The curves of a search's trainings, of so many at most: what stopping rules compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import sqlalchemy as sa

from oialr_search.storage.leaderboard import IS_LATEST, LATEST
from oialr_search.storage.records import Curve, EpochRecord, Status
from oialr_search.storage.schema import BEST_FIRST, individuals, metrics, rank_updates

COMPARED = (Status.COMPLETED, Status.PRUNED, Status.RUNNING)


def _newest(status: Status) -> sa.Select[tuple[int]]:
    return (
        sa.select(individuals.c.id)
        .where(
            individuals.c.search_id == sa.bindparam("the_search_id"),
            individuals.c.status == sa.literal_column(f"'{status}'"),
        )
        .order_by(individuals.c.id.desc())
        .limit(sa.bindparam("the_newest"))
    )


_BEST = (
    sa.select(individuals.c.id)
    .where(
        individuals.c.search_id == sa.bindparam("the_search_id"),
        individuals.c.fitness.is_not(None),
    )
    .order_by(*BEST_FIRST)
    .limit(sa.bindparam("the_best"))
)
CHOSEN = sa.union(
    *(sa.select(part.subquery()) for part in (*map(_newest, COMPARED), _BEST)),
)
_chosen = CHOSEN.subquery()
LISTED = (
    sa.select(individuals.c.id, individuals.c.status, LATEST.c.id.label("evaluation_id"))
    .select_from(
        _chosen.join(individuals, individuals.c.id == _chosen.c.id).join(LATEST, IS_LATEST)
    )
    .order_by(individuals.c.id)
)
DESCRIBED = (
    sa.select(
        *individuals.c["id", "status", "genes", "hyperparameters", "fitness"],
        LATEST.c.id.label("evaluation_id"),
    )
    .select_from(individuals.join(LATEST, IS_LATEST))
    .where(individuals.c.id.in_(sa.bindparam("the_ids", expanding=True)))
    .order_by(individuals.c.id)
)
EPOCHS = (
    sa.select(*metrics.c["evaluation_id", "epoch", "step", "name", "value"])
    .where(
        metrics.c.evaluation_id.in_(sa.bindparam("the_ids", expanding=True)),
        metrics.c.name.in_(sa.bindparam("the_names", expanding=True)),
    )
    .order_by(*metrics.c["evaluation_id", "epoch"])
)
FIRST_TRUNCATIONS = (
    sa.select(rank_updates.c.evaluation_id, sa.func.min(rank_updates.c.step).label("step"))
    .where(
        rank_updates.c.evaluation_id.in_(sa.bindparam("the_ids", expanding=True)),
        rank_updates.c.inner_rank < rank_updates.c.full_inner_rank,
    )
    .group_by(rank_updates.c.evaluation_id)
)


def list_trainings(
    connection: sa.Connection, search_id: int, newest: int, best: int
) -> list[tuple[int, Status, int]]:
    """See `StorageReader.trainings`."""
    asked = {"the_search_id": search_id, "the_newest": newest, "the_best": best}
    found = connection.execute(LISTED, asked)
    return [(row.id, row.status, row.evaluation_id) for row in found]


def read_curves(
    connection: sa.Connection, individual_ids: Sequence[int], names: Sequence[str]
) -> Iterator[Curve]:
    """See `StorageReader.curves`."""
    described = connection.execute(DESCRIBED, {"the_ids": individual_ids}).all()
    ids = [row.evaluation_id for row in described]
    rows = connection.execute(EPOCHS, {"the_ids": ids, "the_names": names}).all()
    epochs = {
        evaluation_id: [
            EpochRecord(epoch=epoch, step=step, metrics={row.name: row.value for row in of_epoch})
            for (epoch, step), of_epoch in groupby(of_one, lambda row: (row.epoch, row.step))
        ]
        for evaluation_id, of_one in groupby(rows, lambda row: row.evaluation_id)
    }
    truncated = connection.execute(FIRST_TRUNCATIONS, {"the_ids": ids})
    steps = {row.evaluation_id: row.step for row in truncated}
    for row in described:
        yield Curve(
            individual_id=row.id,
            status=row.status,
            evaluation_id=row.evaluation_id,
            genes=row.genes,
            hyperparameters=row.hyperparameters,
            fitness=row.fitness,
            epochs=epochs.get(row.evaluation_id, []),
            first_truncation=steps.get(row.evaluation_id),
        )
