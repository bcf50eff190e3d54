"""The database of searches on SQLite and PostgreSQL; one short transaction for each method."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from oialr_search.space.given import Given
from oialr_search.storage import claims, restoring
from oialr_search.storage.opening import begin_immediate, lock_schema
from oialr_search.storage.reading import StorageReader, has_status
from oialr_search.storage.records import (
    Claim,
    EpochRecord,
    IndividualHistory,
    LaunchRecord,
    NewLaunch,
    NewMigration,
    NewSearch,
    Outcome,
    Proposal,
    Runner,
    SearchRecord,
    Status,
    StorageError,
    utc_now,
)
from oialr_search.storage.schema import (
    evaluations,
    individuals,
    islands,
    launches,
    migrations,
    searches,
)
from oialr_search.storage.views import renew_leaderboard
from oialr_training.protocol import Observation, RankUpdate

PASSWORDS = re.compile(r"""(://[^:/@\s]*:)\S*(?=@)|([?&](?:ssl)?password=)[^&\s"']*""")


class Storage(StorageReader):
    """The database of searches. Each method is one transaction; any number of processes may call.

    Every method raises `StorageError` where the database cannot do it, and its `StorageUnavailable`
    where the same call may work later. Nothing of that call is stored then, but for one case: a
    database lost in the middle of a commit does not say whether it happened. All methods that a
    controller calls while it evaluates may be called again after that.
    """

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make one transaction of the calls within: all of it is stored, or nothing.

        Within another `together` they are part of that one's transaction.
        """
        if self._together is not None:
            yield
            return
        with self._writing() as self._together:
            try:
                yield
            finally:
                self._together = None

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        if self._together is not None:
            yield self._together
            return
        with self._errors(), begin_immediate(self._engine) as connection:
            yield connection

    def create_search(self, search: NewSearch) -> int:
        """Store a search, give the leaderboard its columns and return the search's id."""
        values = vars(search) | _blanked(search) | {"space": search.space.as_json()}
        with self._writing() as connection:
            lock_schema(connection)
            try:
                search_id = _insert(connection, searches, values, created_at=utc_now())
            except sa.exc.IntegrityError:
                raise StorageError(
                    f"a search named `{search.name}` exists: resume it or choose another name"
                ) from None
            renew_leaderboard(connection)
        return search_id

    def change_search(self, search_id: int, search: NewSearch) -> None:
        """Store what a launch may change of a search: settings, seed, individuals in total."""
        changed = {"seed": search.seed, "evaluations_total": search.evaluations_total}
        with self._writing() as connection:
            connection.execute(
                claims.UPDATE_SEARCH, {"the_id": search_id, **changed, **_blanked(search)}
            )

    def start_launch(self, launch: NewLaunch) -> int:
        """Store a launch and return its id; what earlier launches left running becomes lost."""
        search_id = launch.search_id
        running = sa.select(individuals.c.id).where(
            individuals.c.search_id == search_id, has_status(individuals, Status.RUNNING)
        )
        values = vars(launch) | {"command_line": _blank(launch.command_line)}
        with self._writing() as connection:
            claims.lock_search(connection, search_id)
            left = connection.scalars(running).all()  # a handful; PostgreSQL would scan to join
            connection.execute(
                sa.update(evaluations)
                .where(
                    evaluations.c.individual_id.in_(left),
                    evaluations.c.status == Status.RUNNING,
                )
                .values(status=Status.LOST, reason="its launch ended first", finished_at=utc_now())
            )
            connection.execute(
                sa.update(individuals).where(individuals.c.id.in_(left)).values(status=Status.LOST)
            )
            connection.execute(
                sa.update(islands)
                .where(islands.c.search_id == search_id)
                .values(lost=islands.c.lost + islands.c.running, running=0)
            )
            return _insert(connection, launches, values, started_at=utc_now())

    def end_launch(self, launch_id: int, exit_code: int) -> None:
        """Note that a launch ended by itself."""
        with self._writing() as connection:
            connection.execute(
                sa.update(launches)
                .where(launches.c.id == launch_id)
                .values(ended_at=utc_now(), exit_code=exit_code)
            )

    def claim(
        self,
        search_id: int,
        proposal: Proposal,
        total: int,
        runner: Runner,
        go_on: int | None = None,
    ) -> Claim | None:
        """Hand out the oldest lost, else queued one, else the proposal, else None at `total`.

        Before the proposal comes the individual to `go_on` with, if it is still pruned.

        Its evaluation is stored as running. Atomic over all processes: no individual is handed out
        twice, and none is bred beyond `total`. A runner that has a running evaluation gets it
        again: it had been cut off before it knew of it.

        A proposal to repeat an individual with a seed that it had already gets None, too.

        Raises:
            StorageError: when a later launch has taken the search over.
        """
        with self._writing() as connection:
            return claims.claim(connection, search_id, proposal, total, runner, go_on)

    def queue(self, search_id: int, given: Sequence[Given]) -> list[tuple[int, bool]]:
        """Queue individuals that a person named, dealt to the islands in turn.

        Returns for each its id, and whether it is new: values that the search has are not queued
        again.

        Raises:
            StorageError: when the search has had no launch.
        """
        with self._writing() as connection:
            return claims.queue(connection, search_id, given)

    def queue_repeats(self, search_id: int, repeats: Sequence[tuple[int, int]]) -> None:
        """Queue what confirms a search's best: individuals to repeat, each with a training seed."""
        with self._writing() as connection:
            claims.queue_repeats(connection, search_id, repeats)

    def mark_training_started(
        self, evaluation_id: int, at: datetime, resumed_epoch: int, device: str | None = None
    ) -> None:
        """Note the time of the first training step, the epochs taken over, and the device if known.

        Until then the device is what the worker was to use.
        """
        values = {"training_started_at": at, "resumed_epoch": resumed_epoch}
        values |= {"device": device} if device else {}
        with self._writing() as connection:
            connection.execute(claims.UPDATE_EVALUATION, {"the_id": evaluation_id, **values})

    def add_epoch(
        self,
        evaluation_id: int,
        epoch: EpochRecord,
        rank_updates: Sequence[RankUpdate] = (),
        observations: Sequence[Observation] = (),
    ) -> None:
        """Store an epoch and what OIALR did in it; what is already there stays."""
        last_epoch = {"the_id": evaluation_id, "the_epoch": epoch.epoch, "last_epoch": epoch.epoch}
        with self._writing() as connection:
            for table, rows in restoring.epoch_rows(
                evaluation_id, [epoch], rank_updates, observations
            ):
                insert = claims.INSERT_NEW[connection.dialect.name, table.name]
                connection.execute(insert, rows)
            connection.execute(claims.RAISE_LAST_EPOCH, last_epoch)

    def finish_evaluation(
        self, evaluation_id: int, outcome: Outcome, *, repeat: bool = False
    ) -> bool:
        """Close an evaluation and its individual; False if it had been closed before.

        With `repeat`, and always with the status `lost`, the individual becomes `lost`: it is
        claimed again. What completed is never repeated.
        """
        with self._writing() as connection:
            return claims.finish(connection, evaluation_id, outcome, repeat=repeat)

    def record_migration(self, migration: NewMigration) -> bool:
        """Note that an island accepted an individual; False if it had done so before.

        Raises:
            StorageError: when the individual has not completed: only fitness breeds.
        """
        search_id, individual_id = migration.search_id, migration.individual_id
        measured = sa.select(*individuals.c["fitness", "violation"]).where(
            individuals.c.id == individual_id,
            individuals.c.search_id == search_id,
            individuals.c.fitness.is_not(None),
        )
        with self._writing() as connection:
            claims.lock_search(connection, search_id)  # before the island's row, as a claim does
            found = connection.execute(measured).one_or_none()
            if found is None:
                raise StorageError(
                    f"individual {individual_id} has not completed in search {search_id}: "
                    "it cannot migrate"
                )
            island = {"search_id": search_id, "island": migration.target_island}
            connection.execute(claims.INSERT_NEW[connection.dialect.name, "islands"], island)
            row = vars(migration) | dict(found._mapping)
            insert = claims.INSERT_NEW[connection.dialect.name, "migrations"]
            return connection.execute(insert.returning(migrations.c.id), row).first() is not None

    def restore(
        self,
        search: SearchRecord,
        launches: Sequence[LaunchRecord],
        histories: Iterable[IndividualHistory],
    ) -> None:
        """Store a whole search as it was but for its migrations, ids included, in one transaction.

        Raises:
            StorageError: when an id or the name is taken.
        """
        with self._writing() as connection:
            lock_schema(connection)
            restoring.restore(connection, search, launches, histories)
            renew_leaderboard(connection)


def _blanked(search: NewSearch) -> dict[str, Any]:
    """Return the settings without passwords."""
    return {"settings": json.loads(_blank(json.dumps(search.settings)))}


def _blank(text: str) -> str:
    """Take the passwords out of the URLs in a text."""
    return PASSWORDS.sub(r"\1\2***", text)


def _insert(
    connection: sa.Connection, table: sa.Table, values: Mapping[str, Any], **more: Any
) -> int:
    insert = sa.insert(table).values(**values, **more).returning(table.c.id)
    return int(connection.execute(insert).scalar_one())
