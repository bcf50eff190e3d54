"""A search at the beginning of a launch: made new, or taken up again where others left it."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from oialr_search.evaluation.files import (
    OUTCOME_FILE,
    SEARCH_FILE,
    epoch_records,
    highest_number,
    holds_individuals,
    read_ending,
    read_events,
    write_launch,
    write_record,
)
from oialr_search.launch.confirming import due
from oialr_search.launch.provenance import git_revision, versions
from oialr_search.launch.starting import starting_points
from oialr_search.launch.until import total_of
from oialr_search.space.search_file import SearchFile, SearchSettings
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    NewLaunch,
    NewSearch,
    SearchRecord,
    Status,
    individual_folder,
    num_failures,
)
from oialr_training.config import Metrics
from oialr_training.errors import ConfigError
from oialr_training.protocol import Epoch, Started

# Where a search runs may change from launch to launch, what it searches may not.
AIMS = ("metric", "fitness", "objectives", "subject_to", "fitness_window")
MACHINE_SETTINGS = ("device", "num_threads", "data.num_loader_processes", "observation")


def find_stored(storage: Storage, search_file: SearchFile) -> SearchRecord | None:
    """The stored search of the same name.

    Raises:
        ConfigError: when it is another search: its task, aims, space or training differ.
    """
    name = search_file.search.name
    stored = storage.find_search(name)
    if stored is None:
        return None
    old, new = (
        {
            "search": search.model_dump(mode="json", include=set(AIMS)),
            "space": space.as_json(),
            "training": training.model_dump(mode="json"),
        }
        for search, space, training in (
            (stored.search_settings(), stored.space, stored.training()),
            (search_file.search, search_file.space, search_file.training),
        )
    )
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


def refuse_newer(storage: Storage, search_id: int, folder: Path) -> None:
    """See that the database knows all evaluations of the folder: their numbers are given out once.

    Raises:
        ConfigError: when it does not: it is older than the folder, as a backup is.
    """
    last = storage.last_individual_id(search_id)
    newest = highest_number(folder, "individual")
    what = f"individual {newest}" if newest > last else ""
    for status in (Status.RUNNING, Status.LOST, Status.PRUNED):  # they may be attempted again
        for individual in storage.individuals(search_id, status=status):
            own = Path(individual_folder(str(folder), individual.id))
            attempt = highest_number(own, "attempt")
            if individual.evaluation is None or attempt > individual.evaluation.attempt:
                what = what or f"attempt {attempt} at individual {individual.id}"
    if what:
        raise ConfigError(
            f"the database is older than {folder}, which has {what}: "
            f"`oialr-search import {folder} --db sqlite:///NEW.db` makes a new one of the folder, "
            "with which the search goes on"
        )


def _flat(content: object, path: str = "") -> dict[str, object]:
    """Dotted paths of all values in nested mappings and lists of named mappings."""
    if isinstance(content, list) and all(isinstance(item, dict) for item in content):
        content = {str(item.get("name")): item for item in content}
    if not isinstance(content, dict):
        return {path.removeprefix("training."): content}
    inner = [_flat(value, f"{path}.{key}".lstrip(".")) for key, value in content.items()]
    return {key: value for part in inner for key, value in part.items()}


def have_ended(storage: Storage, search_id: int, search: SearchSettings) -> bool:
    """Is nothing left to evaluate, neither of the total nor of what was queued beyond it?"""
    progress = storage.progress(search_id)
    return not progress.unfinished and progress.ended >= total_of(storage, search_id, search)


def is_complete(storage: Storage, search_id: int, search: SearchSettings) -> bool:
    """Is nothing left to evaluate, and none of the best to confirm?"""
    ended = have_ended(storage, search_id, search)
    return ended and not (search.confirm and due(storage, search_id, search.confirm))


def start_search(
    storage: Storage,
    search_file: SearchFile,
    world_size: int,
    folder: Path,
    worker_versions: Mapping[str, str] | None = None,
) -> tuple[int, int]:
    """Create the search, or take up the stored one of the same name; returns its and launch's id.

    The versions are those of an environment of the workers' own.

    Raises:
        ConfigError: see `find_stored`.
    """
    search = search_file.search
    stored = find_stored(storage, search_file)
    given = NewSearch(
        name=search.name,
        task=search_file.training.task,
        metric=search.metric,
        settings=search_file.as_json(),
        space=search_file.space,
        metric_names=leaderboard_metrics(search_file.training.reported),
        seed=search.seed,
        evaluations_total=search.evaluations,
        version=importlib.metadata.version("oialr-search"),
    )
    launch = NewLaunch(
        search_id=0 if stored is None else stored.id,
        world_size=world_size,
        num_islands=search.islands,
        hostname=socket.gethostname(),
        command_line=shlex.join(sys.argv),
        versions={**versions(), **(worker_versions or {})},
        git_revision=git_revision(),
    )
    if stored is None:
        points, _ = starting_points(storage, search_file)
        with storage.together():  # or a search that was killed here would start without them
            search_id = storage.create_search(given)
            launch_id = storage.start_launch(replace(launch, search_id=search_id))
            storage.queue(search_id, points)
    else:
        search_id = stored.id
        refuse_newer(storage, search_id, folder)
        storage.change_search(search_id, given)
        take_in_results(storage, search_id, search_file, folder)
        launch_id = storage.start_launch(launch)
    record = storage.find_search(search.name)
    assert record is not None
    write_record(folder / SEARCH_FILE, record)
    for launch in storage.launches(search_id):  # all: how the earlier ones ended is known now
        write_launch(folder, launch)
    return search_id, launch_id


def leaderboard_metrics(metrics: Metrics) -> list[str]:
    """The metrics that become columns of the leaderboard."""
    return [*metrics.names, *(["train_loss"] if metrics.find("train_loss") else [])]


def take_in_results(
    storage: Storage, search_id: int, search_file: SearchFile, search_folder: Path
) -> None:
    """Store what earlier launches left in the folders of their evaluations and nowhere else.

    The search's folder may have been moved since.
    """
    aims = search_file.aims
    for evaluation in storage.unfinished(search_id):
        individual = storage.individual(evaluation.individual_id)
        assert individual is not None
        attempts = storage.evaluations(individual.id)
        moved = Path(individual_folder(str(search_folder), evaluation.individual_id))
        folder = moved / Path(evaluation.folder).name
        ending = read_ending(
            folder,
            aims,
            individual.hyperparameters,
            failures=num_failures(attempts),
            retries=search_file.search.retries,
        )
        if ending is not None:
            write_record(folder / OUTCOME_FILE, ending)
        with storage.together():
            for event in read_events(folder):
                if isinstance(event, Started):
                    at, resumed = datetime.fromtimestamp(event.at, UTC), event.resumed_epoch
                    storage.mark_training_started(evaluation.id, at, resumed, event.device)
                if isinstance(event, Epoch):
                    storage.add_epoch(evaluation.id, *epoch_records(event))
            if ending is not None:
                storage.finish_evaluation(evaluation.id, ending.outcome, repeat=ending.repeat)


def free_name(name: str, stored: Sequence[str], search_dir: Path) -> str:
    """The first of NAME, NAME-2, NAME-3, ... that is neither stored nor a folder's."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(x for x in names if x not in stored and not (search_dir / x).exists())
