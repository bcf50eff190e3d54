"""A search in the database: made new or taken up again, and the populations rebuilt from it."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

from oialr_training.config import TASKS
from oialr_training.errors import ConfigError
from oialr_training.protocol import Epoch, Started

from oialr_search.evaluation.files import (
    OUTCOME_FILE,
    SEARCH_FILE,
    epoch_records,
    holds_individuals,
    read_ending,
    read_events,
    read_histories,
    read_launches,
    read_migrations,
    read_search,
    write_launch,
    write_record,
)
from oialr_search.space.search_file import SearchFile
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    IndividualHistory,
    LaunchRecord,
    NewLaunch,
    NewMigration,
    NewSearch,
    SearchRecord,
    Status,
)

# Where a search runs may change from launch to launch, what it searches may not.
MACHINE_SETTINGS = ("device", "num_threads", "data.num_loader_processes", "observation")
REPORTED_PACKAGES = ("oialr-search", "torch", "timm", "propulate", "mpi4py", "numpy", "sqlalchemy")


def find_stored(storage: Storage, search_file: SearchFile) -> SearchRecord | None:
    """The stored search of the same name.

    Raises:
        ConfigError: when it is another search: its task, metric, space or training differs.
    """
    name = search_file.search.name
    stored = storage.find_search(name)
    if stored is None:
        return None
    old = {"metric": stored.metric, "space": stored.space, "training": stored.settings["training"]}
    new = {
        "metric": search_file.search.metric,
        "space": search_file.space.as_json(),
        "training": search_file.as_json()["training"],
    }
    # Through JSON, where there are no tuples.
    before, now = (_flat(json.loads(json.dumps(settings))) for settings in (old, new))
    for path in dict.fromkeys((*before, *now)):
        was, is_now = before.get(path), now.get(path)
        if was != is_now and not path.startswith(MACHINE_SETTINGS):
            raise ConfigError(
                f"search {name!r} is stored with `{path}` = {was!r:.60}, got {is_now!r:.60}: "
                f"give this one another name, `--set search.name=NAME` ({search_file.source})"
            )
    return stored


def refuse_unknown(folder: Path) -> None:
    """See that a search which is not stored has no evaluations, either.

    Raises:
        ConfigError: when it has: its database is lost.
    """
    if holds_individuals(folder):
        raise ConfigError(
            f"{folder} holds evaluations of a search that the database does not know: "
            f"`oialr-search import {folder}`, with the same --db or --search-dir, stores them, "
            "`--new` begins another search"
        )


def _flat(content: object, path: str = "") -> dict[str, object]:
    """Dotted paths of all values in nested mappings and lists of named mappings."""
    if isinstance(content, list) and all(isinstance(item, dict) for item in content):
        content = {str(item.get("name")): item for item in content}
    if not isinstance(content, dict):
        return {path.removeprefix("training."): content}
    inner = [_flat(value, f"{path}.{key}".lstrip(".")) for key, value in content.items()]
    return {key: value for part in inner for key, value in part.items()}


def ended_individuals(storage: Storage, search_id: int) -> int:
    """How many individuals have been evaluated to their end, whichever it was?"""
    unfinished = (Status.QUEUED, Status.RUNNING, Status.LOST)
    counts = storage.progress(search_id).counts
    return sum(number for status, number in counts.items() if status not in unfinished)


def is_complete(storage: Storage, search_id: int, evaluations: int) -> bool:
    """Is nothing left to evaluate?"""
    return ended_individuals(storage, search_id) >= evaluations


def start_search(
    storage: Storage, search_file: SearchFile, world_size: int, folder: Path
) -> tuple[int, int]:
    """Create the search, or take up the stored one of the same name; returns its and launch's id.

    Raises:
        ConfigError: see `find_stored`.
    """
    search = search_file.search
    stored = find_stored(storage, search_file)
    if stored is None:
        search_id = storage.create_search(
            NewSearch(
                name=search.name,
                task=search_file.training.task,
                metric=search.metric,
                settings=search_file.as_json(),
                space=search_file.space.as_json(),
                metric_names=[*TASKS[search_file.training.task].metrics, "train_loss"],
                seed=search.seed,
                evaluations_total=search.evaluations,
                version=importlib.metadata.version("oialr-search"),
            )
        )
    else:
        search_id = stored.id
        if search.evaluations != stored.evaluations_total:
            storage.set_evaluations_total(search_id, search.evaluations)
        take_in_results(storage, search_id, search_file)
    launch_id = storage.start_launch(
        NewLaunch(
            search_id=search_id,
            world_size=world_size,
            num_islands=search.islands,
            hostname=socket.gethostname(),
            command_line=" ".join(sys.argv),
            versions=versions(),
            git_revision=git_revision(),
        )
    )
    record = storage.find_search(search.name)
    assert record is not None
    write_record(folder / SEARCH_FILE, record)
    for launch in storage.launches(search_id):  # all: how the earlier ones ended is known now
        write_launch(folder, launch)
    return search_id, launch_id


def take_in_results(storage: Storage, search_id: int, search_file: SearchFile) -> None:
    """Store what earlier launches left in the folders of their evaluations and nowhere else."""
    search, task = search_file.search, search_file.training.task
    for evaluation in storage.unfinished(search_id):
        folder = Path(evaluation.folder)
        for event in read_events(folder):
            if isinstance(event, Started):
                at = datetime.fromtimestamp(event.at, UTC)
                storage.mark_training_started(evaluation.id, at, event.resumed_epoch)
            if isinstance(event, Epoch):
                storage.add_epoch(evaluation.id, *epoch_records(event))
        failures = sum(
            attempt.status in (Status.FAILED, Status.TIMED_OUT)
            for attempt in storage.evaluations(evaluation.individual_id)
        )
        may_repeat = failures < search.retries
        ending = read_ending(folder, search.metric, task, may_repeat=may_repeat)
        if ending is not None:
            write_record(folder / OUTCOME_FILE, ending)
            storage.finish_evaluation(evaluation.id, ending.outcome, repeat=ending.repeat)


def free_name(name: str, stored: Sequence[str], search_dir: Path) -> str:
    """The first of NAME, NAME-2, NAME-3, ... that is neither stored nor a folder's."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(x for x in names if x not in stored and not (search_dir / x).exists())


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
        storage.restore(search, launches, numbered(histories))
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


def versions() -> dict[str, str]:
    """What this search ran with."""
    packages = {name: importlib.metadata.version(name) for name in REPORTED_PACKAGES}
    return {"python": platform.python_version(), **packages}


def git_revision() -> str | None:
    """The commit of the source tree, marked when it has changes; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip() or None
