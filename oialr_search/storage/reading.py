"""What is stored, read back as records; each method sees one moment of the database."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from datetime import datetime
from itertools import groupby
from types import TracebackType
from typing import Any, Literal, Self

import sqlalchemy as sa

from oialr_search.space.hyperparameters import SearchSpace
from oialr_search.storage import queries
from oialr_search.storage.curves import list_trainings, read_curves
from oialr_search.storage.errors import storage_errors
from oialr_search.storage.leaderboard import INDIVIDUAL, IS_LATEST, LATEST, leaderboard
from oialr_search.storage.records import (
    CONFIRM,
    Curve,
    EpochRecord,
    EvaluationRecord,
    IndividualRecord,
    IslandSummary,
    Known,
    LaunchRecord,
    MigrationRecord,
    Progress,
    RunningEvaluation,
    SearchRecord,
    Status,
    StorageError,
    StorageUnavailable,
)
from oialr_search.storage.schema import (
    BEST_FIRST,
    IS_NO_REPEAT,
    RESOURCES,
    evaluations,
    individuals,
    islands,
    launches,
    migrations,
    observations,
    rank_updates,
    searches,
)
from oialr_search.storage.schema import metrics as metrics_table
from oialr_search.storage.selection import Column, FailureCount, Placed, Rows, Selection
from oialr_training.errors import ConfigError
from oialr_training.protocol import Observation, RankUpdate, Resources

IDS_AT_ONCE = 1000  # in the text of one query
COUNTS = [islands.c[status.value] for status in Status]


def has_status(table: sa.Table, status: Status) -> sa.ColumnElement[bool]:
    """Say that rows have a status, in the text of the statement instead of as a bound value.

    A database that plans a statement once for all values knows only so that the partial index
    holds all running evaluations, and that hardly any individual is `lost`.
    """
    return table.c.status == sa.literal_column(f"'{status}'")


def parameter(name: str) -> sa.BindParameter[Any]:
    """Name a value that comes with each execution: statements are built once."""
    return sa.bindparam(f"the_{name}")


INDIVIDUALS = sa.select(individuals, LATEST).outerjoin_from(individuals, LATEST, IS_LATEST)
INDIVIDUAL_FIELDS, EVALUATION_FIELDS = individuals.c.keys(), evaluations.c.keys()

_bred = (
    sa.select(*BEST_FIRST)
    .where(
        individuals.c.search_id == parameter("search_id"),
        individuals.c.island == parameter("island"),
        individuals.c.fitness.is_not(None),
        IS_NO_REPEAT,
    )
    .order_by(*BEST_FIRST)
    .limit(parameter("limit"))
    .subquery()
)
_accepted = (
    sa.select(*migrations.c["violation", "fitness", "individual_id"])
    .where(
        migrations.c.search_id == parameter("search_id"),
        migrations.c.target_island == parameter("island"),
        migrations.c.fitness.is_not(None),
    )
    .order_by(*migrations.c["violation", "fitness", "individual_id"])
    .limit(parameter("limit"))
    .subquery()
)
BREEDERS = sa.union(sa.select(_bred), sa.select(_accepted))  # of one island, unordered
CONFIRMATIONS = sa.select(sa.func.count()).where(
    individuals.c.repeat_of.is_not(None),
    individuals.c.search_id + 0 == parameter("search_id"),  # not by its index: repeats are few
    individuals.c.origin == CONFIRM,
)
BEST_OF_ISLAND = (
    sa.select(individuals.c.id)
    .where(
        individuals.c.search_id == islands.c.search_id,
        individuals.c.island == islands.c.island,
        individuals.c.fitness.is_not(None),
        IS_NO_REPEAT,
    )
    .order_by(*BEST_FIRST)
    .limit(1)
    .correlate(islands)
    .scalar_subquery()
)


class StorageReader(AbstractContextManager["StorageReader"]):
    """The reading half of `Storage`."""

    def __init__(self, engine: sa.Engine) -> None:
        """Take over an engine on a database that has our schema."""
        self._engine = engine
        self._together: sa.Connection | None = None

    def __enter__(self) -> Self:
        """Close when the block ends."""
        return self

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        if self._together is not None:
            yield self._together
            return
        with self._errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with storage_errors(self._engine.url):
                yield
        except StorageUnavailable:
            self._engine.dispose()  # the next call starts with a new connection
            raise

    def find_search(self, name: str) -> SearchRecord | None:
        """Return the search of that name."""
        with self._reading() as connection:
            return next(iter(read_searches(connection, searches.c.name == name)), None)

    def searches(self) -> list[SearchRecord]:
        """Return all searches, the most recently launched first."""
        with self._reading() as connection:
            return read_searches(connection)

    def launches(self, search_id: int) -> list[LaunchRecord]:
        """Return a search's launches, oldest first."""
        query = sa.select(launches).where(launches.c.search_id == search_id).order_by("id")
        with self._reading() as connection:
            return [LaunchRecord(**row) for row in connection.execute(query).mappings()]

    def unfinished(self, search_id: int) -> list[EvaluationRecord]:
        """Return the evaluations that are stored as running."""
        query = (
            sa.select(evaluations)
            .join_from(individuals, evaluations)
            .where(
                individuals.c.search_id == search_id,
                has_status(individuals, Status.RUNNING),
                has_status(evaluations, Status.RUNNING),
            )
            .order_by(evaluations.c.id)
        )
        with self._reading() as connection:
            return read_evaluations(connection, query)

    def progress(self, search_id: int) -> Progress:
        """Return where a search stands."""
        running = (
            sa.select(
                evaluations.c.id.label("evaluation_id"),
                *evaluations.c["individual_id", "attempt", "world_rank", "hostname", "device"],
                *evaluations.c["started_at", "training_started_at", "resumed_epoch"],
                *evaluations.c["last_epoch", "folder"],
                *individuals.c["island", "island_rank"],
            )
            .join_from(individuals, evaluations)
            .where(
                individuals.c.search_id == search_id,
                has_status(individuals, Status.RUNNING),
                has_status(evaluations, Status.RUNNING),
            )
            .order_by(evaluations.c.world_rank, evaluations.c.id)
        )
        sums = sa.select(*(sa.func.coalesce(sa.func.sum(count), 0) for count in COUNTS))
        with self._reading() as connection:
            total = connection.execute(
                sa.select(searches.c.evaluations_total).where(searches.c.id == search_id)
            ).scalar_one()
            counts = connection.execute(sums.where(islands.c.search_id == search_id)).one()
            best = connection.execute(
                sa.select(*individuals.c["fitness", "id", "violation"])
                .where(
                    individuals.c.search_id == search_id,
                    individuals.c.fitness.is_not(None),
                    IS_NO_REPEAT,
                )
                .order_by(*BEST_FIRST)
                .limit(1)
            ).one_or_none()
            return Progress(
                total=total,
                counts=dict(zip(Status, counts, strict=True)),
                best_fitness=best.fitness if best else None,
                best_individual_id=best.id if best else None,
                best_violation=best.violation if best else 0.0,
                running=[RunningEvaluation(**r) for r in connection.execute(running).mappings()],
                num_confirmations=count_confirmations(connection, search_id),
            )

    def islands(self, search_id: int) -> list[IslandSummary]:
        """Return the islands that have bred or accepted an individual, by number."""
        query = (
            sa.select(islands.c.island, individuals.c.fitness, individuals.c.id, *COUNTS)
            .outerjoin_from(islands, individuals, individuals.c.id == BEST_OF_ISLAND)
            .where(islands.c.search_id == search_id)
            .order_by(islands.c.island)
        )
        with self._reading() as connection:
            return [
                IslandSummary(
                    island=island,
                    counts=dict(zip(Status, counts, strict=True)),
                    best_fitness=fitness,
                    best_individual_id=individual_id,
                )
                for island, fitness, individual_id, *counts in connection.execute(query)
            ]

    def breeders(
        self, search_id: int, island: int, num_islands: int, limit: int
    ) -> list[IndividualRecord]:
        """Return the fittest of an island, best first: those bred there and those it accepted.

        Islands are counted modulo `num_islands`: a launch may have fewer than an earlier one.
        """
        as_this = sa.select(islands.c.island).where(
            islands.c.search_id == search_id, islands.c.island % num_islands == island
        )
        asked = {"the_search_id": search_id, "the_limit": limit}
        with self._reading() as connection:
            candidates = {
                tuple(row)
                for number in connection.scalars(as_this).all()
                for row in connection.execute(BREEDERS, {**asked, "the_island": number})
            }
            chosen = [individual_id for _, _, individual_id in sorted(candidates)[:limit]]
            return read_individuals(connection, individuals.c.id.in_(chosen), order=BEST_FIRST[:2])

    def next_generation(self, search_id: int, island: int, island_rank: int) -> int:
        """Return the number of the next proposal of a rank: one more than its highest so far."""
        highest = sa.select(sa.func.max(individuals.c.generation)).where(
            individuals.c.search_id == search_id,
            individuals.c.island == island,
            individuals.c.island_rank == island_rank,
        )
        with self._reading() as connection:
            found = connection.scalar(highest)
        return 0 if found is None else int(found) + 1

    def individuals(
        self,
        search_id: int,
        *,
        status: Status | None = None,
        limit: int | None = None,
        order: Literal["fitness", "id"] = "id",
    ) -> list[IndividualRecord]:
        """Return a search's individuals; by fitness means best first, those without one last.

        By fitness they come without those that repeat another one, which are part of its mean.
        """
        conditions = [individuals.c.search_id == search_id]
        if status:
            conditions.append(individuals.c.status == status)
        by_fitness: list[sa.ColumnElement[Any]] = []
        if order == "fitness" and status is Status.COMPLETED:
            conditions[1] = individuals.c.fitness.is_not(None)  # the same, and the index knows it
            by_fitness = [*BEST_FIRST]
        elif order == "fitness" and status is None:
            by_fitness = [individuals.c.fitness.is_(None), *BEST_FIRST]
        if by_fitness:
            conditions.append(IS_NO_REPEAT)
        with self._reading() as connection:
            return read_individuals(connection, *conditions, order=by_fitness, limit=limit)

    def repeats(self, search_id: int, individual_id: int | None = None) -> list[IndividualRecord]:
        """Return those that repeat an individual, or any of a search, by id."""
        first = individuals.c.repeat_of
        whom = first.is_not(None) if individual_id is None else first == individual_id
        with self._reading() as connection:
            return read_individuals(connection, individuals.c.search_id == search_id, whom)

    def individuals_after(
        self, search_id: int, individual_id: int | None, again: Collection[int] = ()
    ) -> list[IndividualRecord]:
        """Return a search's individuals with higher ids, and those named `again`, by id.

        Who has read a search before needs no more: its ids only grow, and an individual that
        neither runs nor waits changes no more. None: only those named.
        """
        with self._reading() as connection:
            return [
                record
                for conditions in _after(search_id, individual_id, again)
                for record in read_individuals(connection, *conditions)
            ]

    def known_after(
        self, search_id: int, individual_id: int, again: Collection[int] = ()
    ) -> list[Known]:
        """Return the same individuals as engines know them: a quarter of the memory and time."""
        c = individuals.c
        query = sa.select(
            c.id.label("individual_id"),
            *c["island", "status", "genes", "fitness", "violation"],
            *c[
                "objectives", "constraints", "repeat_of", "num_seeds", "fitness_deviation", "cost_s"
            ],
        )
        with self._reading() as connection:
            return [
                Known(**row._mapping)
                for conditions in _after(search_id, individual_id, again)
                for row in connection.execute(query.where(*conditions).order_by(c.id))
            ]

    def last_individual_id(self, search_id: int) -> int:
        """Return the highest id of a search's individuals; 0: it has none."""
        highest = sa.select(sa.func.max(individuals.c.id)).where(
            individuals.c.search_id == search_id
        )
        with self._reading() as connection:
            return connection.scalar(highest) or 0

    def num_confirmations(self, search_id: int) -> int:
        """Count the individuals that confirm a search's best, now or earlier."""
        with self._reading() as connection:
            return count_confirmations(connection, search_id)

    def confirmations(self, search_id: int) -> list[IndividualRecord]:
        """Return those that confirm a search's best: repeats that are newer than all else of it."""
        of_search = individuals.c.search_id == search_id
        newest = sa.select(sa.func.max(individuals.c.id)).where(
            of_search, individuals.c.origin != CONFIRM
        )
        with self._reading() as connection:
            return read_individuals(
                connection,
                of_search,
                individuals.c.repeat_of.is_not(None),
                individuals.c.id > newest.scalar_subquery(),
            )

    def individual(self, individual_id: int) -> IndividualRecord | None:
        """Return one individual."""
        with self._reading() as connection:
            return next(iter(read_individuals(connection, individuals.c.id == individual_id)), None)

    def evaluations(self, individual_id: int) -> list[EvaluationRecord]:
        """Return an individual's evaluations, first attempt first."""
        query = (
            sa.select(evaluations)
            .where(evaluations.c.individual_id == individual_id)
            .order_by(evaluations.c.attempt)
        )
        with self._reading() as connection:
            return read_evaluations(connection, query)

    def epochs(self, evaluation_id: int) -> list[EpochRecord]:
        """Return an evaluation's epochs in order; a metric that was not a number reads as NaN."""
        query = (
            sa.select(*metrics_table.c["epoch", "step", "name", "value"])
            .where(metrics_table.c.evaluation_id == evaluation_id)
            .order_by(metrics_table.c.epoch, metrics_table.c.step, metrics_table.c.name)
        )
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [
            EpochRecord(epoch=epoch, step=step, metrics={row.name: row.value for row in group})
            for (epoch, step), group in groupby(rows, lambda row: (row.epoch, row.step))
        ]

    def metric_by_epoch(
        self, name: str, evaluation_ids: Sequence[int]
    ) -> dict[int, dict[int, float]]:
        """Return one metric of many evaluations: evaluation -> epoch -> value, in order."""
        columns = metrics_table.c["evaluation_id", "epoch", "value"]
        query = sa.select(*columns).where(metrics_table.c.name == name).order_by(*columns[:2])
        found: dict[int, dict[int, float]] = {}
        with self._reading() as connection:
            for ids in _batches(evaluation_ids):
                asked = query.where(metrics_table.c.evaluation_id.in_(ids))
                for evaluation_id, epoch, value in connection.execute(asked):
                    found.setdefault(evaluation_id, {})[epoch] = value
        return found

    def trainings(self, search_id: int, *, newest: int, best: int) -> list[tuple[int, Status, int]]:
        """Return individual, status and latest evaluation of a search's trainings, by individual.

        Those of the newest individuals that completed, were pruned and run, so many of each, and
        the best: as many whatever is stored.
        """
        with self._reading() as connection:
            return list_trainings(connection, search_id, newest, best)

    def curves(self, individual_ids: Sequence[int], names: Sequence[str]) -> list[Curve]:
        """Return some metrics of the latest trainings of individuals, epoch by epoch."""
        with self._reading() as connection:
            return [
                curve
                for ids in _batches(individual_ids)
                for curve in read_curves(connection, ids, names)
            ]

    def rank_updates(self, evaluation_id: int) -> list[RankUpdate]:
        """Return an evaluation's inner ranks by step and layer."""
        columns = rank_updates.c[*(field.name for field in fields(RankUpdate))]
        query = (
            sa.select(*columns)
            .where(rank_updates.c.evaluation_id == evaluation_id)
            .order_by(rank_updates.c.step, rank_updates.c.layer)
        )
        with self._reading() as connection:
            return [RankUpdate(**row) for row in connection.execute(query).mappings()]

    def observations(self, evaluation_id: int) -> list[Observation]:
        """Return an evaluation's observations by step, earlier step and layer."""
        columns = observations.c[*(field.name for field in fields(Observation))]
        query = (
            sa.select(*columns)
            .where(observations.c.evaluation_id == evaluation_id)
            .order_by(*observations.c["step", "earlier_step", "layer"])
        )
        with self._reading() as connection:
            return [Observation(**row) for row in connection.execute(query).mappings()]

    def migrations(self, search_id: int) -> list[MigrationRecord]:
        """Return a search's accepted migrations, oldest first."""
        columns = [c for c in migrations.c if c.name not in ("fitness", "violation")]
        query = sa.select(*columns).where(migrations.c.search_id == search_id).order_by("id")
        with self._reading() as connection:
            return [MigrationRecord(**row) for row in connection.execute(query).mappings()]

    def last_finish_number(self, search_id: int) -> int:
        """Return how many evaluations of a search have finished."""
        number = sa.select(searches.c.last_finish_number).where(searches.c.id == search_id)
        with self._reading() as connection:
            return int(connection.execute(number).scalar_one())

    def finished_after(self, search_id: int, finish_number: int | None) -> tuple[int, list[int]]:
        """Return the latest finish number, and whom evaluations after the given one have changed.

        Without one there are none to tell. Who repeats another has changed the mean of that one.
        """
        if finish_number is None:
            return self.last_finish_number(search_id), []
        query = (
            sa.select(
                evaluations.c.finish_number, evaluations.c.individual_id, individuals.c.repeat_of
            )
            .join_from(launches, evaluations)
            .join(individuals, individuals.c.id == evaluations.c.individual_id)
            .where(launches.c.search_id == search_id, evaluations.c.finish_number > finish_number)
        )
        with self._reading() as connection:
            found = connection.execute(query).all()
        numbers = [finish_number, *(row.finish_number for row in found)]
        changed = {number for row in found for number in row[1:] if number is not None}
        return max(numbers), sorted(changed)

    def finished_since(self, search_id: int, finish_number: int = 0) -> list[EvaluationRecord]:
        """Return evaluations that finished after the one with that number, in that order."""
        query = (
            sa.select(evaluations)
            .join_from(launches, evaluations)
            .where(
                launches.c.search_id == search_id,
                evaluations.c.finish_number > finish_number,
            )
            .order_by(evaluations.c.finish_number)
        )
        with self._reading() as connection:
            return read_evaluations(connection, query)

    def select(
        self, search_id: int, selection: Selection, limit: int | None = None
    ) -> list[Placed]:
        """Return the individuals of a selection, best first, those without a fitness last."""
        query = leaderboard(None, selection, search_id, self._engine.dialect.name)
        with self._reading() as connection:
            found = connection.execute(query.limit(limit))
            return [
                Placed(
                    place=number if selection == Selection() else row[0],
                    individual=as_individual(row[1:]),
                )
                for number, row in enumerate(found, start=1)
            ]

    def values(
        self, search_id: int, selection: Selection, columns: Sequence[Column]
    ) -> list[tuple[Any, ...]]:
        """Return the id of each individual of a selection, in any order, and its values."""
        asked, dialect = [INDIVIDUAL, *columns], self._engine.dialect.name
        query = leaderboard(asked, selection, search_id, dialect)
        with self._reading() as connection:
            return [tuple(row) for row in connection.execute(query)]

    def last_finishes(self, launch_id: int, limit: int) -> Sequence[tuple[datetime, int]]:
        """Return when a launch's latest evaluations ended and where, latest first; not the lost."""
        with self._reading() as connection:
            return queries.last_finishes(connection, launch_id, limit)

    def pruned_epochs(self, search_id: int) -> list[tuple[int, Mapping[str, Any]]]:
        """Return how long each pruned individual was trained, and its hyperparameters."""
        with self._reading() as connection:
            return queries.pruned_epochs(connection, search_id)

    def failures(self, search_id: int) -> list[FailureCount]:
        """Count the evaluations that did not complete, repeated ones too, by what they say."""
        with self._reading() as connection:
            return queries.failures(connection, search_id)

    def table(self, search_id: int, name: queries.TableName) -> Rows:
        """Return all that a search has in a table; `individuals` with their latest evaluations."""
        with self._reading() as connection:
            return queries.table(connection, search_id, name)

    def close(self) -> None:
        """Let go of the database; closing twice is fine."""
        self._engine.dispose()

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close on the way out."""
        self.close()


def _batches(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + IDS_AT_ONCE] for start in range(0, len(ids), IDS_AT_ONCE))


def read_searches(
    connection: sa.Connection, *conditions: sa.ColumnElement[bool]
) -> list[SearchRecord]:
    """Return searches, the most recently launched first."""
    last_launch_at = (
        sa.select(sa.func.max(launches.c.started_at))
        .where(launches.c.search_id == searches.c.id)
        .scalar_subquery()
    )
    columns = [column for column in searches.c if column.name != "last_finish_number"]
    query = (
        sa.select(*columns, last_launch_at.label("last_launch_at"))
        .where(*conditions)
        .order_by(last_launch_at.desc().nulls_last(), searches.c.id.desc())
    )
    return [
        SearchRecord(**{**row, "space": read_space(row["name"], row["space"])})
        for row in connection.execute(query).mappings()
    ]


def read_space(search: str, content: Any) -> SearchSpace:
    """Return a search's space.

    Raises:
        StorageError: when this version does not know all of it.
    """
    try:
        return SearchSpace.from_json(content, f"search {search!r} as it is stored")
    except ConfigError as error:
        raise StorageError(str(error)) from None


def read_evaluations(connection: sa.Connection, query: sa.Select[Any]) -> list[EvaluationRecord]:
    """Return the evaluations of a query for all their columns."""
    return [as_evaluation(row) for row in connection.execute(query)]


def _after(
    search_id: int, individual_id: int | None, again: Collection[int]
) -> Iterator[Sequence[sa.ColumnElement[bool]]]:
    """Yield the conditions of individuals named `again`, then those of the higher ids."""
    for ids in _batches(sorted(again)):
        yield [individuals.c.id.in_(ids)]
    if individual_id is not None:
        yield [
            individuals.c.search_id == search_id,
            individuals.c.status.in_(list(Status)),  # the index has them by status, then id
            individuals.c.id > individual_id,
        ]


def count_confirmations(connection: sa.Connection, search_id: int) -> int:
    """Count the individuals that confirm a search's best."""
    number = connection.scalar(CONFIRMATIONS, {"the_search_id": search_id})
    return int(number or 0)


def read_individuals(
    connection: sa.Connection,
    *conditions: sa.ColumnElement[bool],
    order: Sequence[sa.ColumnElement[Any]] = (),
    limit: int | None = None,
) -> list[IndividualRecord]:
    """Return individuals with their latest evaluations."""
    query = INDIVIDUALS.where(*conditions).order_by(*order, individuals.c.id).limit(limit)
    return [as_individual(row) for row in connection.execute(query)]


def as_individual(row: Sequence[Any]) -> IndividualRecord:
    """Make a record of a row of `individuals` joined to one of `evaluations`, if there is one."""
    split = len(INDIVIDUAL_FIELDS)
    values, latest = dict(zip(INDIVIDUAL_FIELDS, row[:split], strict=True)), row[split:]
    return IndividualRecord(**values, evaluation=as_evaluation(latest) if latest[0] else None)


def as_evaluation(row: Sequence[Any]) -> EvaluationRecord:
    """Make a record of a row of `evaluations`."""
    values = dict(zip(EVALUATION_FIELDS, row, strict=True))
    resources = Resources(**{name: values.pop(name) for name in RESOURCES})
    return EvaluationRecord(**values, resources=resources)
