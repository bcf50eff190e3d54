"""`Storage` on SQLite and PostgreSQL: one short transaction for each method."""

# ruff: noqa: D102 - `Storage` says what each method promises
from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from types import TracebackType
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oialr_search.storage.contract import (
    Claim,
    EpochRecord,
    EvaluationRecord,
    IndividualRecord,
    LaunchRecord,
    MigrationRecord,
    NewEvaluation,
    NewLaunch,
    NewSearch,
    Outcome,
    Progress,
    Proposal,
    RankUpdate,
    RunningEvaluation,
    SearchRecord,
    Status,
    Storage,
    StorageError,
    utc_now,
)
from oialr_search.storage.engine import begin_immediate, lock_schema, storage_errors
from oialr_search.storage.leaderboard import create_leaderboard, drop_leaderboard
from oialr_search.storage.schema import (
    evaluations,
    individuals,
    launches,
    migrations,
    rank_updates,
    searches,
)
from oialr_search.storage.schema import metrics as metrics_table

PASSWORDS = re.compile(r"""(://[^:/@\s]*:)\S*(?=@)|([?&](?:ssl)?password=)[^&\s"']*""")
UNFINISHED = (Status.QUEUED, Status.RUNNING)
INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class SqlStorage(Storage):
    """The database behind an engine; see `Storage` for what each method promises."""

    def __init__(self, engine: sa.Engine) -> None:
        """Take over an engine on a database that has our schema."""
        self._engine = engine

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with storage_errors(self._engine.url), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with (
            storage_errors(self._engine.url),
            begin_immediate(self._engine) as connection,
        ):
            yield connection

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
            connection.execute(
                sa.update(searches)
                .where(searches.c.id == search_id)
                .values(evaluations_total=total)
            )

    def find_search(self, name: str) -> SearchRecord | None:
        return next((search for search in self.searches() if search.name == name), None)

    def searches(self) -> list[SearchRecord]:
        last_launch_at = (
            sa.select(sa.func.max(launches.c.started_at))
            .where(launches.c.search_id == searches.c.id)
            .scalar_subquery()
        )
        query = sa.select(searches, last_launch_at.label("last_launch_at")).order_by(
            last_launch_at.desc().nulls_last(), searches.c.id.desc()
        )
        with self._reading() as connection:
            return [SearchRecord(**row) for row in connection.execute(query).mappings()]

    def start_launch(self, launch: NewLaunch) -> int:
        of_search = individuals.c.search_id == launch.search_id
        values = vars(launch) | {"command_line": _blank(launch.command_line)}
        with self._writing() as connection:
            _lock_search(connection, launch.search_id)
            connection.execute(
                sa.update(evaluations)
                .where(
                    evaluations.c.individual_id.in_(sa.select(individuals.c.id).where(of_search)),
                    evaluations.c.status.in_(UNFINISHED),
                )
                .values(status=Status.LOST, reason="its launch ended first", finished_at=utc_now())
            )
            connection.execute(
                sa.update(individuals)
                .where(of_search, individuals.c.status.in_(UNFINISHED))
                .values(status=Status.LOST)
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

    def claim(self, search_id: int, launch_id: int, proposal: Proposal, total: int) -> Claim | None:
        is_lost = individuals.c.status == Status.LOST
        census = sa.select(
            sa.func.count(),
            sa.func.count().filter(is_lost),
            sa.func.min(individuals.c.id).filter(is_lost),
        ).where(individuals.c.search_id == search_id)

        with self._writing() as connection:
            _lock_search(connection, search_id)
            num_individuals, num_lost, individual_id = connection.execute(census).one()
            claimable = max(total - num_individuals, 0) + num_lost
            if not claimable:
                return None
            if num_lost:
                connection.execute(
                    sa.update(individuals)
                    .where(individuals.c.id == individual_id)
                    .values(status=Status.RUNNING, finished_at=None)
                )
            else:
                individual_id = _insert(
                    connection,
                    individuals,
                    vars(proposal),
                    search_id=search_id,
                    launch_id=launch_id,
                    status=Status.RUNNING,
                    created_at=utc_now(),
                )
            [individual] = _individuals(connection, individuals.c.id == individual_id)

        previous = individual.evaluation
        return Claim(
            individual=individual,
            attempt=previous.attempt + 1 if previous else 1,
            repeated=bool(num_lost),
            remaining=claimable - 1,
        )

    def start_evaluation(self, evaluation: NewEvaluation) -> int:
        with self._writing() as connection:
            return _insert(
                connection, evaluations, vars(evaluation), status=Status.RUNNING, metrics={}
            )

    def mark_training_started(self, evaluation_id: int, at: datetime) -> None:
        with self._writing() as connection:
            connection.execute(
                sa.update(evaluations)
                .where(evaluations.c.id == evaluation_id)
                .values(training_started_at=at)
            )

    def add_epoch(
        self, evaluation_id: int, epoch: int, step: int, metrics: Mapping[str, float]
    ) -> None:
        rows = [
            {"evaluation_id": evaluation_id, "epoch": epoch, "step": step} | {"name": k, "value": v}
            for k, v in metrics.items()
        ]
        last_epoch = evaluations.c.last_epoch
        with self._writing() as connection:
            _insert_new(connection, metrics_table, rows)
            connection.execute(
                sa.update(evaluations)
                .where(
                    evaluations.c.id == evaluation_id,
                    sa.or_(last_epoch.is_(None), last_epoch < epoch),
                )
                .values(last_epoch=epoch)
            )

    def add_rank_updates(self, evaluation_id: int, updates: Sequence[RankUpdate]) -> None:
        rows = [vars(update) | {"evaluation_id": evaluation_id} for update in updates]
        with self._writing() as connection:
            _insert_new(connection, rank_updates, rows)

    def finish_evaluation(self, evaluation_id: int, outcome: Outcome) -> bool:
        this = evaluations.c.id == evaluation_id
        with self._writing() as connection:
            individual_id, search_id = connection.execute(
                sa.select(individuals.c.id, individuals.c.search_id)
                .join_from(evaluations, individuals)
                .where(this)
            ).one()
            _lock_search(connection, search_id)
            last_number = connection.scalar(
                sa.select(sa.func.max(evaluations.c.finish_number))
                .join_from(evaluations, individuals)
                .where(individuals.c.search_id == search_id)
            )
            closed = connection.execute(
                sa.update(evaluations)
                .where(this, evaluations.c.status == Status.RUNNING)
                .values(**vars(outcome), finish_number=(last_number or 0) + 1)
            )
            if not closed.rowcount:
                return False
            connection.execute(
                sa.update(individuals)
                .where(individuals.c.id == individual_id)
                .values(
                    status=outcome.status,
                    fitness=outcome.fitness,
                    finished_at=outcome.finished_at,
                )
            )
            return True

    def record_migration(
        self, search_id: int, individual_id: int, source_island: int, target_island: int
    ) -> bool:
        row = {
            "search_id": search_id,
            "individual_id": individual_id,
            "source_island": source_island,
            "target_island": target_island,
            "accepted_at": utc_now(),
        }
        with self._writing() as connection:
            return _insert_new(connection, migrations, [row])

    def progress(self, search_id: int) -> Progress:
        of_search = individuals.c.search_id == search_id
        running = (
            sa.select(
                evaluations.c.id.label("evaluation_id"),
                *evaluations.c["individual_id", "attempt", "world_rank", "hostname", "device"],
                *evaluations.c["started_at", "last_epoch"],
                *individuals.c["island", "island_rank"],
            )
            .join_from(evaluations, individuals)
            .where(of_search, evaluations.c.status == Status.RUNNING)
            .order_by(evaluations.c.world_rank, evaluations.c.id)
        )
        with self._reading() as connection:
            total = connection.execute(
                sa.select(searches.c.evaluations_total).where(searches.c.id == search_id)
            ).scalar_one()
            counts = connection.execute(
                sa.select(individuals.c.status, sa.func.count().label("number"))
                .where(of_search)
                .group_by(individuals.c.status)
            )
            best = connection.execute(
                sa.select(individuals.c.fitness, individuals.c.id)
                .where(of_search, individuals.c.fitness.is_not(None))
                .order_by(individuals.c.fitness, individuals.c.id)
                .limit(1)
            ).one_or_none()
            return Progress(
                total=total,
                counts=dict.fromkeys(Status, 0) | {row.status: row.number for row in counts},
                best_fitness=best and best.fitness,
                best_individual_id=best and best.id,
                running=[RunningEvaluation(**r) for r in connection.execute(running).mappings()],
            )

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
        first = [individuals.c.fitness.nulls_last()] if order == "fitness" else []
        with self._reading() as connection:
            return _individuals(connection, *conditions, order=first, limit=limit)

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
            return [EvaluationRecord(**row) for row in connection.execute(query).mappings()]

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

    def rank_updates(self, evaluation_id: int) -> list[RankUpdate]:
        columns = rank_updates.c["step", "layer", "inner_rank", "full_inner_rank", "stability"]
        query = (
            sa.select(*columns)
            .where(rank_updates.c.evaluation_id == evaluation_id)
            .order_by(rank_updates.c.step, rank_updates.c.layer)
        )
        with self._reading() as connection:
            return [RankUpdate(**row) for row in connection.execute(query).mappings()]

    def migrations(self, search_id: int) -> list[MigrationRecord]:
        query = sa.select(migrations).where(migrations.c.search_id == search_id).order_by("id")
        with self._reading() as connection:
            return [MigrationRecord(**row) for row in connection.execute(query).mappings()]

    def finished_since(self, search_id: int, finish_number: int = 0) -> list[EvaluationRecord]:
        query = (
            sa.select(evaluations)
            .join_from(evaluations, individuals)
            .where(
                individuals.c.search_id == search_id,
                evaluations.c.finish_number > finish_number,
            )
            .order_by(evaluations.c.finish_number)
        )
        with self._reading() as connection:
            return [EvaluationRecord(**row) for row in connection.execute(query).mappings()]

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


def _blank(text: str) -> str:
    """Take the passwords out of the URLs in a text."""
    return PASSWORDS.sub(r"\1\2***", text)


def _insert(
    connection: sa.Connection, table: sa.Table, values: Mapping[str, Any], **more: Any
) -> int:
    insert = sa.insert(table).values(**values, **more).returning(table.c.id)
    return int(connection.execute(insert).scalar_one())


def _insert_new(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> bool:
    """Insert the rows that are not there yet and say whether there were any."""
    if not rows:
        return False
    insert = INSERTS[connection.dialect.name](table).values(rows).on_conflict_do_nothing()
    return connection.execute(insert.returning(sa.literal(True))).first() is not None


def _lock_search(connection: sa.Connection, search_id: int) -> None:
    """Make others wait who are to change the same search; SQLite has only one writer anyway."""
    connection.execute(sa.select(searches.c.id).where(searches.c.id == search_id).with_for_update())


def _individuals(
    connection: sa.Connection,
    *conditions: sa.ColumnElement[bool],
    order: Sequence[sa.ColumnElement[Any]] = (),
    limit: int | None = None,
) -> list[IndividualRecord]:
    """Return individuals with their latest evaluations."""
    attempts = evaluations.alias()
    latest = (
        sa.select(sa.func.max(attempts.c.attempt))
        .where(attempts.c.individual_id == individuals.c.id)
        .correlate(individuals)
        .scalar_subquery()
    )
    query = (
        sa.select(individuals, evaluations)
        .outerjoin_from(
            individuals,
            evaluations,
            (evaluations.c.individual_id == individuals.c.id) & (evaluations.c.attempt == latest),
        )
        .where(*conditions)
        .order_by(*order, individuals.c.id)
        .limit(limit)
    )
    records = []
    for row in connection.execute(query).mappings():
        evaluation = {column.name: row[column] for column in evaluations.c}
        records.append(
            IndividualRecord(
                **{column.name: row[column] for column in individuals.c},
                evaluation=EvaluationRecord(**evaluation) if evaluation["id"] else None,
            )
        )
    return records
