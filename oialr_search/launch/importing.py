"""A lost database made anew: a search stored again from the files of its folder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from oialr_search.evaluation.files import (
    read_histories,
    read_launches,
    read_migrations,
    read_search,
)
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    IndividualHistory,
    LaunchRecord,
    NewMigration,
    SearchRecord,
)


def import_search(storage: Storage, folder: Path) -> tuple[SearchRecord, int, list[str]]:
    """Store a search from its folder; returns it, its individuals, and what could not be read.

    Raises:
        FolderError: when the folder holds no search.
        StorageError: when the database has it already.
    """
    search = read_search(folder)
    launches, histories = list[LaunchRecord](), list[IndividualHistory]()
    migrations, mistakes = list[NewMigration](), list[str]()
    kept: dict[type, list[Any]] = {
        LaunchRecord: launches,
        IndividualHistory: histories,
        NewMigration: migrations,
        str: mistakes,
    }
    for found in itertools.chain(
        read_launches(folder), read_histories(folder, search), read_migrations(folder, search.id)
    ):
        kept[type(found)].append(found)
    launches += lost_launches(search, launches, histories)
    launches.sort(key=attrgetter("id"))
    completed = {h.individual.id for h in histories if h.individual.fitness is not None}
    with storage.together():
        storage.restore(search, launches, numbered(alone_where_the_first_is_lost(histories)))
        for migration in migrations:
            if migration.individual_id in completed:
                storage.record_migration(migration)
    return search, len(histories), mistakes


def lost_launches(
    search: SearchRecord, known: Sequence[LaunchRecord], histories: Sequence[IndividualHistory]
) -> list[LaunchRecord]:
    """What individuals and evaluations tell of launches whose files are lost."""
    individuals = [history.individual for history in histories]
    evaluations = [h.evaluation for history in histories for h in history.evaluations]
    told = {i.launch_id for i in individuals} | {e.launch_id for e in evaluations}
    launches = []
    for launch_id in sorted(told - {launch.id for launch in known}):
        bred = [i for i in individuals if i.launch_id == launch_id]
        evaluated = [e for e in evaluations if e.launch_id == launch_id]
        launches.append(
            LaunchRecord(
                id=launch_id,
                search_id=search.id,
                world_size=1 + max((e.world_rank for e in evaluated), default=0),
                num_islands=1 + max((i.island for i in bred), default=0),
                hostname=evaluated[0].hostname if evaluated else "unknown",
                command_line="unknown: its file is lost",
                versions={},
                git_revision=None,
                started_at=min([i.created_at for i in bred] + [e.started_at for e in evaluated]),
                ended_at=None,
                exit_code=None,
            )
        )
    return launches


def alone_where_the_first_is_lost(
    histories: Sequence[IndividualHistory],
) -> list[IndividualHistory]:
    """The same; who repeats an individual that was not found is one by itself."""
    found = {history.individual.id for history in histories}
    return [
        history
        if history.individual.repeat_of in found | {None}
        else replace(history, individual=replace(history.individual, repeat_of=None))
        for history in histories
    ]


def numbered(histories: Sequence[IndividualHistory]) -> list[IndividualHistory]:
    """The same, their evaluations numbered in the order in which they finished."""
    finished = [
        (h.evaluation.finished_at, h.evaluation.id)
        for history in histories
        for h in history.evaluations
        if h.evaluation.finished_at is not None
    ]
    numbers = {evaluation_id: n for n, (_, evaluation_id) in enumerate(sorted(finished), start=1)}
    return [
        replace(
            history,
            evaluations=[
                replace(h, evaluation=replace(h.evaluation, finish_number=numbers[h.evaluation.id]))
                for h in history.evaluations
            ],
        )
        for history in histories
    ]
