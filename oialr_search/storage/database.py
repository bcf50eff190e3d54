"""`Storage` on SQLite and PostgreSQL: one short transaction for each method.

What a controller calls for every evaluation costs the same whatever the search has grown to: it
reads by index, and what must be counted is counted as it changes (`islands` and the
`last_finish_number` of `searches`), under the lock on the search's row.
"""

# ruff: noqa: D102 - `Storage` says what each method promises
from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from types import TracebackType
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oialr_search.storage import queries as questions
from oialr_search.storage import restoring
from oialr_search.storage.engine import begin_immediate, lock_schema
from oialr_search.storage.errors import storage_errors
from oialr_search.storage.leaderboard import create_leaderboard, drop_leaderboard
from oialr_search.storage.records import (
    Claim,
    EpochRecord,
    EvaluationRecord,
    IndividualHistory,
    IndividualRecord,
    IslandSummary,
    LaunchRecord,
    MigrationRecord,
    NewLaunch,
    NewMigration,
    NewSearch,
    Observation,
    Outcome,
    Progress,
    Proposal,
    RankUpdate,
    Runner,
    RunningEvaluation,
    SearchRecord,
    Status,
    Storage,
    StorageError,
    StorageUnavailable,
    individual_folder,
    utc_now,
)
from oialr_search.storage.schema import (
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

PASSWORDS = re.compile(r"""(://[^:/@\s]*:)\S*(?=@)|([?&](?:ssl)?password=)[^&\s"']*""")
UNFINISHED = (Status.QUEUED, Status.RUNNING)
IDS_AT_ONCE = 1000  # in the text of one query
INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}

COUNTS = [islands.c[status.value] for status in Status]


def _is(table: sa.Table, status: Status) -> sa.ColumnElement[bool]:
    """In the text of the statement, where a database knows it when it plans once for all values.

    Only so it knows that the partial index holds all, and that hardly any row is `lost`.
    """
    return table.c.status == sa.literal_column(f"'{status}'")


def _named(name: str) -> sa.BindParameter[Any]:
    """A parameter whose value comes with each execution; statements are built once."""
    return sa.bindparam(f"the_{name}")


def _id_is(table: sa.Table, name: str = "id") -> sa.ColumnElement[bool]:
    return table.c.id == _named(name)


LOCK_SEARCH = (
    sa.select(searches.c.id)
    .where(_id_is(searches, "search_id"))
    .with_for_update(key_share=True)  # who only refers to the search need not wait
)
CENSUS = sa.select(
    sa.func.coalesce(sa.func.sum(sum(COUNTS[1:], COUNTS[0])), 0).label("num_individuals"),
    sa.func.coalesce(sa.func.sum(islands.c.lost), 0).label("num_lost"),
    sa.select(evaluations.c.id)
    .where(
        evaluations.c.launch_id == _named("launch_id"),
        evaluations.c.world_rank == _named("world_rank"),
        _is(evaluations, Status.RUNNING),
    )
    .order_by(evaluations.c.id)
    .limit(1)
    .scalar_subquery()
    .label("running_id"),
    sa.select(sa.func.min(individuals.c.id))
    .where(individuals.c.search_id == _named("search_id"), _is(individuals, Status.LOST))
    .scalar_subquery()
    .label("lost_id"),
    sa.select(sa.func.max(launches.c.id))
    .where(launches.c.search_id == _named("search_id"))
    .scalar_subquery()
    .label("last_launch_id"),
).where(islands.c.search_id == _named("search_id"))

INSERT_INDIVIDUAL = sa.insert(individuals).returning(individuals)
INSERT_EVALUATION = sa.insert(evaluations).returning(evaluations)
UPDATE_INDIVIDUAL = sa.update(individuals).where(_id_is(individuals))
REPEAT_INDIVIDUAL = UPDATE_INDIVIDUAL.returning(individuals)
UPDATE_EVALUATION = sa.update(evaluations).where(_id_is(evaluations))
UPDATE_SEARCH = sa.update(searches).where(_id_is(searches))
CLOSE_EVALUATION = UPDATE_EVALUATION.where(evaluations.c.status == Status.RUNNING)
RAISE_LAST_EPOCH = UPDATE_EVALUATION.where(
    sa.or_(evaluations.c.last_epoch.is_(None), evaluations.c.last_epoch < _named("epoch"))
)
ATTEMPTS = (
    sa.select(*evaluations.c["attempt", "status", "num_threads"])
    .where(evaluations.c.individual_id == _named("individual_id"))
    .order_by(evaluations.c.attempt)
)
RUNNING = sa.select(evaluations).where(_id_is(evaluations))
LOCK_SEARCH_OF_EVALUATION = (
    sa.select(*individuals.c["id", "search_id", "island"], searches.c.last_finish_number)
    .select_from(
        evaluations.join(individuals, individuals.c.id == evaluations.c.individual_id).join(
            searches, searches.c.id == individuals.c.search_id
        )
    )
    .where(_id_is(evaluations))
    .with_for_update(of=searches, key_share=True)
)

_attempts = evaluations.alias()
INDIVIDUALS = sa.select(individuals, evaluations).outerjoin_from(
    individuals,
    evaluations,
    (evaluations.c.individual_id == individuals.c.id)
    & (
        evaluations.c.attempt
        == sa.select(sa.func.max(_attempts.c.attempt))
        .where(_attempts.c.individual_id == individuals.c.id)
        .correlate(individuals)
        .scalar_subquery()
    ),
)
INDIVIDUAL_FIELDS, EVALUATION_FIELDS = individuals.c.keys(), evaluations.c.keys()

_bred = (
    sa.select(individuals.c.fitness, individuals.c.id)
    .where(
        individuals.c.search_id == _named("search_id"),
        individuals.c.island == _named("island"),
        individuals.c.fitness.is_not(None),
    )
    .order_by(individuals.c.fitness, individuals.c.id)
    .limit(_named("limit"))
    .subquery()
)
_accepted = (
    sa.select(migrations.c.fitness, migrations.c.individual_id)
    .where(
        migrations.c.search_id == _named("search_id"),
        migrations.c.target_island == _named("island"),
        migrations.c.fitness.is_not(None),
    )
    .order_by(migrations.c.fitness, migrations.c.individual_id)
    .limit(_named("limit"))
    .subquery()
)
BREEDERS = sa.union(sa.select(_bred), sa.select(_accepted))  # of one island, unordered
BEST_OF_ISLAND = (
    sa.select(individuals.c.id)
    .where(
        individuals.c.search_id == islands.c.search_id,
        individuals.c.island == islands.c.island,
        individuals.c.fitness.is_not(None),
    )
    .order_by(individuals.c.fitness, individuals.c.id)
    .limit(1)
    .correlate(islands)
    .scalar_subquery()
)


class SqlStorage(Storage):
    """The database behind an engine; see `Storage` for what each method promises."""

    def __init__(self, engine: sa.Engine) -> None:
        """Take over an engine on a database that has our schema."""
        self._engine = engine
        self._together: sa.Connection | None = None

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        if self._together is not None:
            yield self._together
            return
        with self._errors(), begin_immediate(self._engine) as connection:
            yield connection

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._writing() as self._together:
            try:
                yield
            finally:
                self._together = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with storage_errors(self._engine.url):
                yield
        except StorageUnavailable:
            self._engine.dispose()  # the next call starts with a new connection
            raise

    def create_search(self, search: NewSearch) -> int:
        values = vars(search) | {"settings": json.loads(_blank(json.dumps(search.settings)))}
        with self._writing() as connection:
            lock_schema(connection)
            try:
                search_id = _insert(connection, searches, values, created_at=utc_now())
            except sa.exc.IntegrityError:
                raise StorageError(
                    f"a search named `{search.name}` exists: resume it or choose another name"
                ) from None
            drop_leaderboard(connection)
            create_leaderboard(connection)
        return search_id

    def set_evaluations_total(self, search_id: int, total: int) -> None:
        with self._writing() as connection:
            connection.execute(UPDATE_SEARCH, {"the_id": search_id, "evaluations_total": total})

    def find_search(self, name: str) -> SearchRecord | None:
        with self._reading() as connection:
            return next(iter(_searches(connection, searches.c.name == name)), None)

    def searches(self) -> list[SearchRecord]:
        with self._reading() as connection:
            return _searches(connection)

    def start_launch(self, launch: NewLaunch) -> int:
        search_id = launch.search_id
        unfinished = sa.select(individuals.c.id).where(
            individuals.c.search_id == search_id, individuals.c.status.in_(UNFINISHED)
        )
        values = vars(launch) | {"command_line": _blank(launch.command_line)}
        with self._writing() as connection:
            _lock_search(connection, search_id)
            left = connection.scalars(unfinished).all()  # a handful; PostgreSQL would scan to join
            connection.execute(
                sa.update(evaluations)
                .where(evaluations.c.individual_id.in_(left), evaluations.c.status.in_(UNFINISHED))
                .values(status=Status.LOST, reason="its launch ended first", finished_at=utc_now())
            )
            connection.execute(
                sa.update(individuals).where(individuals.c.id.in_(left)).values(status=Status.LOST)
            )
            connection.execute(
                sa.update(islands)
                .where(islands.c.search_id == search_id)
                .values(
                    lost=islands.c.lost + islands.c.queued + islands.c.running, queued=0, running=0
                )
            )
            return _insert(connection, launches, values, started_at=utc_now())

    def end_launch(self, launch_id: int, exit_code: int) -> None:
        with self._writing() as connection:
            connection.execute(
                sa.update(launches)
                .where(launches.c.id == launch_id)
                .values(ended_at=utc_now(), exit_code=exit_code)
            )

    def launches(self, search_id: int) -> list[LaunchRecord]:
        query = sa.select(launches).where(launches.c.search_id == search_id).order_by("id")
        with self._reading() as connection:
            return [LaunchRecord(**row) for row in connection.execute(query).mappings()]

    def claim(self, search_id: int, proposal: Proposal, total: int, runner: Runner) -> Claim | None:
        asked = {
            "the_search_id": search_id,
            "the_launch_id": runner.launch_id,
            "the_world_rank": runner.world_rank,
        }
        with self._writing() as connection:
            _lock_search(connection, search_id)
            census = connection.execute(CENSUS, asked).one()
            if runner.launch_id < (census.last_launch_id or 0):
                raise StorageError(
                    f"launch {census.last_launch_id} has taken the search over: "
                    f"launch {runner.launch_id} ends"
                )
            claimable = max(total - census.num_individuals, 0) + census.num_lost
            if census.running_id is not None:
                return _claimed_before(connection, census.running_id, claimable)
            if not claimable:
                return None
            if census.lost_id is not None:
                again = {"the_id": census.lost_id, "status": Status.RUNNING, "finished_at": None}
                individual = connection.execute(REPEAT_INDIVIDUAL, again).one()
                earlier = _attempts_of(connection, individual.id)
                left: Status | None = Status.LOST
            else:
                values = vars(proposal) | {
                    "search_id": search_id,
                    "launch_id": runner.launch_id,
                    "status": Status.RUNNING,
                    "created_at": utc_now(),
                }
                individual = connection.execute(INSERT_INDIVIDUAL, values).one()
                earlier, left = [], None
            _count(connection, search_id, individual.island, left, Status.RUNNING)
            evaluation = _start_evaluation(connection, individual.id, earlier, runner)

        return Claim(
            individual=_individual(individual, evaluation),
            evaluation=evaluation,
            repeated=left is not None,
            failures=_failures(earlier),
            remaining=claimable - 1,
        )

    def mark_training_started(self, evaluation_id: int, at: datetime, resumed_epoch: int) -> None:
        values = {"training_started_at": at, "resumed_epoch": resumed_epoch}
        with self._writing() as connection:
            connection.execute(UPDATE_EVALUATION, {"the_id": evaluation_id, **values})

    def add_epoch(
        self,
        evaluation_id: int,
        epoch: EpochRecord,
        rank_updates: Sequence[RankUpdate] = (),
        observations: Sequence[Observation] = (),
    ) -> None:
        last_epoch = {"the_id": evaluation_id, "the_epoch": epoch.epoch, "last_epoch": epoch.epoch}
        with self._writing() as connection:
            for table, rows in restoring.epoch_rows(
                evaluation_id, [epoch], rank_updates, observations
            ):
                insert = INSERT_NEW[connection.dialect.name, table.name]
                connection.execute(insert, rows)
            connection.execute(RAISE_LAST_EPOCH, last_epoch)

    def finish_evaluation(
        self, evaluation_id: int, outcome: Outcome, *, repeat: bool = False
    ) -> bool:
        assert not (repeat and outcome.status is Status.COMPLETED)
        status = Status.LOST if repeat else outcome.status
        with self._writing() as connection:
            found = connection.execute(LOCK_SEARCH_OF_EVALUATION, {"the_id": evaluation_id}).one()
            number = found.last_finish_number + 1
            values = {"the_id": evaluation_id, **vars(outcome), "finish_number": number}
            if not connection.execute(CLOSE_EVALUATION, values).rowcount:
                return False
            connection.execute(
                UPDATE_INDIVIDUAL,
                {
                    "the_id": found.id,
                    "status": status,
                    "fitness": outcome.fitness,
                    "finished_at": outcome.finished_at,
                },
            )
            connection.execute(
                UPDATE_SEARCH, {"the_id": found.search_id, "last_finish_number": number}
            )
            _count(connection, found.search_id, found.island, Status.RUNNING, status)
            return True

    def unfinished(self, search_id: int) -> list[EvaluationRecord]:
        query = (
            sa.select(evaluations)
            .join_from(individuals, evaluations)
            .where(
                individuals.c.search_id == search_id,
                _is(individuals, Status.RUNNING),
                _is(evaluations, Status.RUNNING),
            )
            .order_by(evaluations.c.id)
        )
        with self._reading() as connection:
            return _evaluations(connection, query)

    def record_migration(self, migration: NewMigration) -> bool:
        search_id, individual_id = migration.search_id, migration.individual_id
        fitness = sa.select(individuals.c.fitness).where(
            individuals.c.id == individual_id, individuals.c.search_id == search_id
        )
        with self._writing() as connection:
            _lock_search(connection, search_id)  # before the island's row, as a claim does
            row = vars(migration) | {"fitness": connection.scalar(fitness)}
            if row["fitness"] is None:
                raise StorageError(
                    f"individual {individual_id} has not completed in search {search_id}: "
                    "it cannot migrate"
                )
            island = {"search_id": search_id, "island": migration.target_island}
            connection.execute(INSERT_NEW[connection.dialect.name, "islands"], island)
            insert = INSERT_NEW[connection.dialect.name, "migrations"]
            return connection.execute(insert.returning(migrations.c.id), row).first() is not None

    def progress(self, search_id: int) -> Progress:
        running = (
            sa.select(
                evaluations.c.id.label("evaluation_id"),
                *evaluations.c["individual_id", "attempt", "world_rank", "hostname", "device"],
                *evaluations.c["started_at", "last_epoch", "folder"],
                *individuals.c["island", "island_rank"],
            )
            .join_from(individuals, evaluations)
            .where(
                individuals.c.search_id == search_id,
                _is(individuals, Status.RUNNING),
                _is(evaluations, Status.RUNNING),
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
                sa.select(individuals.c.fitness, individuals.c.id)
                .where(individuals.c.search_id == search_id, individuals.c.fitness.is_not(None))
                .order_by(individuals.c.fitness, individuals.c.id)
                .limit(1)
            ).one_or_none()
            return Progress(
                total=total,
                counts=dict(zip(Status, counts, strict=True)),
                best_fitness=best and best.fitness,
                best_individual_id=best and best.id,
                running=[RunningEvaluation(**r) for r in connection.execute(running).mappings()],
            )

    def islands(self, search_id: int) -> list[IslandSummary]:
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
        as_this = sa.select(islands.c.island).where(
            islands.c.search_id == search_id, islands.c.island % num_islands == island
        )
        asked = {"the_search_id": search_id, "the_limit": limit}
        with self._reading() as connection:
            candidates = {
                (fitness, individual_id)
                for number in connection.scalars(as_this).all()
                for fitness, individual_id in connection.execute(
                    BREEDERS, {**asked, "the_island": number}
                )
            }
            chosen = [individual_id for _, individual_id in sorted(candidates)[:limit]]
            return _individuals(
                connection, individuals.c.id.in_(chosen), order=[individuals.c.fitness]
            )

    def next_generation(self, search_id: int, island: int, island_rank: int) -> int:
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
        conditions = [individuals.c.search_id == search_id]
        if status:
            conditions.append(individuals.c.status == status)
        by_fitness: list[sa.ColumnElement[Any]] = []
        if order == "fitness" and status is Status.COMPLETED:
            conditions[1] = individuals.c.fitness.is_not(None)  # the same, and the index knows it
            by_fitness = [individuals.c.fitness]
        elif order == "fitness" and status is None:
            by_fitness = [individuals.c.fitness.nulls_last()]
        with self._reading() as connection:
            return _individuals(connection, *conditions, order=by_fitness, limit=limit)

    def individuals_after(
        self, search_id: int, individual_id: int, again: Collection[int] = ()
    ) -> list[IndividualRecord]:
        newer = (
            individuals.c.search_id == search_id,
            individuals.c.status.in_(list(Status)),  # the index has them by status, then id
            individuals.c.id > individual_id,
        )
        with self._reading() as connection:
            known = [
                record
                for ids in _batches(sorted(again))
                for record in _individuals(connection, individuals.c.id.in_(ids))
            ]
            return known + _individuals(connection, *newer)

    def individual(self, individual_id: int) -> IndividualRecord | None:
        with self._reading() as connection:
            return next(iter(_individuals(connection, individuals.c.id == individual_id)), None)

    def evaluations(self, individual_id: int) -> list[EvaluationRecord]:
        query = (
            sa.select(evaluations)
            .where(evaluations.c.individual_id == individual_id)
            .order_by(evaluations.c.attempt)
        )
        with self._reading() as connection:
            return _evaluations(connection, query)

    def epochs(self, evaluation_id: int) -> list[EpochRecord]:
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
        columns = metrics_table.c["evaluation_id", "epoch", "value"]
        query = sa.select(*columns).where(metrics_table.c.name == name).order_by(*columns[:2])
        found: dict[int, dict[int, float]] = {}
        with self._reading() as connection:
            for ids in _batches(evaluation_ids):
                asked = query.where(metrics_table.c.evaluation_id.in_(ids))
                for evaluation_id, epoch, value in connection.execute(asked):
                    found.setdefault(evaluation_id, {})[epoch] = value
        return found

    def rank_updates(self, evaluation_id: int) -> list[RankUpdate]:
        columns = rank_updates.c["step", "layer", "inner_rank", "full_inner_rank", "stability"]
        query = (
            sa.select(*columns)
            .where(rank_updates.c.evaluation_id == evaluation_id)
            .order_by(rank_updates.c.step, rank_updates.c.layer)
        )
        with self._reading() as connection:
            return [RankUpdate(**row) for row in connection.execute(query).mappings()]

    def observations(self, evaluation_id: int) -> list[Observation]:
        names = ("step", "earlier_step", "layer", "stability", "mixing_similarity")
        query = (
            sa.select(*(observations.c[name] for name in names))
            .where(observations.c.evaluation_id == evaluation_id)
            .order_by(*(observations.c[name] for name in names[:3]))
        )
        with self._reading() as connection:
            return [Observation(**row) for row in connection.execute(query).mappings()]

    def migrations(self, search_id: int) -> list[MigrationRecord]:
        fields = [column for column in migrations.c if column.name != "fitness"]
        query = sa.select(*fields).where(migrations.c.search_id == search_id).order_by("id")
        with self._reading() as connection:
            return [MigrationRecord(**row) for row in connection.execute(query).mappings()]

    def last_finish_number(self, search_id: int) -> int:
        number = sa.select(searches.c.last_finish_number).where(searches.c.id == search_id)
        with self._reading() as connection:
            return int(connection.execute(number).scalar_one())

    def restore(
        self,
        search: SearchRecord,
        launches: Sequence[LaunchRecord],
        histories: Iterable[IndividualHistory],
    ) -> None:
        with self._writing() as connection:
            lock_schema(connection)
            restoring.restore(connection, search, launches, histories)
            drop_leaderboard(connection)
            create_leaderboard(connection)

    def finished_since(self, search_id: int, finish_number: int = 0) -> list[EvaluationRecord]:
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
            return _evaluations(connection, query)

    def select(
        self, search_id: int, selection: Selection, limit: int | None = None
    ) -> list[Placed]:
        split = len(INDIVIDUAL_FIELDS)
        records = []
        with self._reading() as connection:
            found = questions.select(connection, search_id, selection, limit=limit)
            for number, found_row in enumerate(found, start=1):
                place, row = found_row[0], found_row[1:]
                latest = dict(zip(EVALUATION_FIELDS, row[split:], strict=True))
                individual = _individual(
                    row[:split], EvaluationRecord(**latest) if latest["id"] else None
                )
                place = number if selection.is_leaderboard else place
                records.append(Placed(place=place, individual=individual))
        return records

    def values(
        self, search_id: int, selection: Selection, columns: Sequence[Column]
    ) -> list[tuple[Any, ...]]:
        with self._reading() as connection:
            found = questions.select(connection, search_id, selection, wanted=columns)
            return [tuple(row) for row in found]

    def last_finishes(self, launch_id: int, limit: int) -> Sequence[tuple[datetime, int]]:
        with self._reading() as connection:
            return questions.last_finishes(connection, launch_id, limit)

    def failures(self, search_id: int) -> list[FailureCount]:
        with self._reading() as connection:
            return questions.failures(connection, search_id)

    def table(self, search_id: int, name: questions.TableName) -> Rows:
        with self._reading() as connection:
            return questions.table(connection, search_id, name)

    def close(self) -> None:
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


def _blank(text: str) -> str:
    """Take the passwords out of the URLs in a text."""
    return PASSWORDS.sub(r"\1\2***", text)


def _insert(
    connection: sa.Connection, table: sa.Table, values: Mapping[str, Any], **more: Any
) -> int:
    insert = sa.insert(table).values(**values, **more).returning(table.c.id)
    return int(connection.execute(insert).scalar_one())


def _insert_new(dialect: str, table: sa.Table) -> Any:
    """Return a statement that inserts the rows that are not there yet."""
    return INSERTS[dialect](table).on_conflict_do_nothing()


INSERT_NEW: Mapping[tuple[str, str], Any] = {
    (dialect, table.name): _insert_new(dialect, table)
    for dialect in INSERTS
    for table in (metrics_table, rank_updates, observations, migrations, islands)
}


def _lock_search(connection: sa.Connection, search_id: int) -> None:
    """Make others wait who are to change the same search; SQLite has only one writer anyway."""
    if connection.dialect.name != "sqlite":
        connection.execute(LOCK_SEARCH, {"the_search_id": search_id})


def _move(dialect: str, left: Status | None, entered: Status) -> Any:
    """Return a statement that takes an island's individual from one count to another."""
    changes = {entered.value: islands.c[entered.value] + 1}
    if left is not None:
        changes[left.value] = islands.c[left.value] - 1
        return (
            sa.update(islands)
            .where(islands.c.search_id == _named("search_id"), islands.c.island == _named("island"))
            .values(changes)
        )
    first = {"search_id": _named("search_id"), "island": _named("island"), entered.value: 1}
    insert = INSERTS[dialect](islands).values(first)
    return insert.on_conflict_do_update(index_elements=["search_id", "island"], set_=changes)


MOVES: Mapping[tuple[str, Status | None, Status], Any] = {
    (dialect, left, entered): _move(dialect, left, entered)
    for dialect in INSERTS
    for left, entered in [
        (None, Status.RUNNING),
        (Status.LOST, Status.RUNNING),
        *((Status.RUNNING, status) for status in Status if status not in UNFINISHED),
    ]
}


def _count(
    connection: sa.Connection, search_id: int, island: int, left: Status | None, entered: Status
) -> None:
    """Count an individual that is new or has another status."""
    move = MOVES[connection.dialect.name, left, entered]
    connection.execute(move, {"the_search_id": search_id, "the_island": island})


def _start_evaluation(
    connection: sa.Connection, individual_id: int, earlier: Sequence[Any], runner: Runner
) -> EvaluationRecord:
    """Store the next attempt; a repeated one keeps the threads that its sums depend on."""
    values = vars(runner) | {"individual_id": individual_id}
    attempt = earlier[-1].attempt + 1 if earlier else 1
    folder = f"{individual_folder(values.pop('search_folder'), individual_id)}/attempt-{attempt}"
    if earlier:
        values["num_threads"] = earlier[-1].num_threads
    values |= {
        "attempt": attempt,
        "status": Status.RUNNING,
        "started_at": utc_now(),
        "folder": folder,
        "log_path": f"{folder}/log.txt",
        "metrics": {},
    }
    row = connection.execute(INSERT_EVALUATION, values).one()
    return EvaluationRecord(**dict(zip(EVALUATION_FIELDS, row, strict=True)))


def _claimed_before(connection: sa.Connection, evaluation_id: int, claimable: int) -> Claim:
    """Return what a runner had claimed when it was cut off."""
    evaluation = EvaluationRecord(
        **connection.execute(RUNNING, {"the_id": evaluation_id}).mappings().one()
    )
    [individual] = _individuals(connection, individuals.c.id == evaluation.individual_id)
    earlier = _attempts_of(connection, individual.id)[:-1]
    return Claim(
        individual=individual,
        evaluation=evaluation,
        repeated=bool(earlier),
        failures=_failures(earlier),
        remaining=claimable,
    )


def _attempts_of(connection: sa.Connection, individual_id: int) -> Sequence[Any]:
    return connection.execute(ATTEMPTS, {"the_individual_id": individual_id}).all()


def _failures(attempts: Sequence[Any]) -> int:
    return sum(1 for a in attempts if a.status in (Status.FAILED, Status.TIMED_OUT))


def _searches(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> list[SearchRecord]:
    """Return searches, the most recently launched first."""
    last_launch_at = (
        sa.select(sa.func.max(launches.c.started_at))
        .where(launches.c.search_id == searches.c.id)
        .scalar_subquery()
    )
    fields = [column for column in searches.c if column.name != "last_finish_number"]
    query = (
        sa.select(*fields, last_launch_at.label("last_launch_at"))
        .where(*conditions)
        .order_by(last_launch_at.desc().nulls_last(), searches.c.id.desc())
    )
    return [SearchRecord(**row) for row in connection.execute(query).mappings()]


def _evaluations(connection: sa.Connection, query: sa.Select[Any]) -> list[EvaluationRecord]:
    return [
        EvaluationRecord(**dict(zip(EVALUATION_FIELDS, row, strict=True)))
        for row in connection.execute(query)
    ]


def _individuals(
    connection: sa.Connection,
    *conditions: sa.ColumnElement[bool],
    order: Sequence[sa.ColumnElement[Any]] = (),
    limit: int | None = None,
) -> list[IndividualRecord]:
    """Return individuals with their latest evaluations."""
    query = INDIVIDUALS.where(*conditions).order_by(*order, individuals.c.id).limit(limit)
    split = len(INDIVIDUAL_FIELDS)
    records = []
    for row in connection.execute(query):
        latest = dict(zip(EVALUATION_FIELDS, row[split:], strict=True))
        records.append(
            _individual(row[:split], EvaluationRecord(**latest) if latest["id"] else None)
        )
    return records


def _individual(row: Sequence[Any], evaluation: EvaluationRecord | None) -> IndividualRecord:
    fields = dict(zip(INDIVIDUAL_FIELDS, row, strict=True))
    return IndividualRecord(**fields, evaluation=evaluation)
