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

REPORTED_PACKAGES = ("oialr-search", "torch", "timm", "propulate", "mpi4py", "numpy", "sqlalchemy")


def find_stored(storage: Storage, search_file: SearchFile) -> SearchRecord | None:
    """The stored search of the same name.

    Raises:
        ConfigError: when it is another search: its task, metric, space or training differs.
    """
    name = search_file.search.name
    stored = storage.find_search(name)
    if stored is not None:
        # Through JSON, where there are no tuples.
        space = json.loads(json.dumps(search_file.space.as_json()))
        settings = search_file.as_json()
        for what, old, new in (
            ("task", stored.task, search_file.training.task),
            ("metric", stored.metric, search_file.search.metric),
            ("space", json.loads(json.dumps(stored.space)), space),
            ("training configuration", stored.settings["training"], settings["training"]),
        ):
            if old != new:
                raise ConfigError(
                    f"search {name!r} is stored with another {what}: give this one another "
                    f"name, `--set search.name=NAME` ({search_file.source})"
                )
    return stored


def is_complete(storage: Storage, search_id: int, evaluations: int) -> bool:
    """Have so many individuals been evaluated to their end, whichever it was?"""
    unfinished = (Status.QUEUED, Status.RUNNING, Status.LOST)
    counts = storage.progress(search_id).counts
    return sum(n for status, n in counts.items() if status not in unfinished) >= evaluations


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
