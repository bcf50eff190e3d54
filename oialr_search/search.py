"""A search in the database: made new or taken up again, and the populations rebuilt from it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import socket
import subprocess
import sys
from pathlib import Path

from oialr_search.config import SearchFile
from oialr_search.evolution import Member
from oialr_search.storage import NewLaunch, NewSearch, SearchRecord, Status, Storage
from workers.config import TASKS, ConfigError

# Where a search runs may change from launch to launch, what it searches may not.
MACHINE_SETTINGS = ("device", "num_threads", "data.num_loader_processes")
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
        if was != is_now and path not in MACHINE_SETTINGS:
            raise ConfigError(
                f"search {name!r} is stored with `{path}` = {was!r:.60}, got {is_now!r:.60}: "
                f"give this one another name, `--set search.name=NAME` ({search_file.source})"
            )
    return stored


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


def start_search(storage: Storage, search_file: SearchFile, world_size: int) -> tuple[int, int]:
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
    return search_id, launch_id


def stored_members(
    storage: Storage, search_id: int, island: int, island_rank: int, num_islands: int
) -> tuple[list[Member], int]:
    """An island's stored individuals, and the number of this rank's next proposal.

    Individuals of islands that this launch does not have are dealt to those it has, by remainder.
    """
    individuals = storage.individuals(search_id)
    accepted = {
        migration.individual_id
        for migration in storage.migrations(search_id)
        if migration.target_island == island
    }
    members = [
        Member(individual_id=i.id, genes=dict(i.genes), fitness=i.fitness)
        for i in individuals
        if i.status is Status.COMPLETED
        and i.fitness is not None
        and (i.island % num_islands == island or i.id in accepted)
    ]
    own = [i.generation for i in individuals if (i.island, i.island_rank) == (island, island_rank)]
    return members, max(own, default=-1) + 1


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
