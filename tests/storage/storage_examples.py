"""Records to fill a database with; each test changes what it is about."""

from __future__ import annotations

from typing import Any

from oialr_search.space.hyperparameters import SearchSpace
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    EpochRecord,
    NewLaunch,
    NewMigration,
    NewSearch,
    Proposal,
    Runner,
)
from oialr_training.protocol import Resources


def space_of(*hyperparameters: dict[str, Any]) -> SearchSpace:
    """Make a space, a hyperparameter by its fields."""
    return SearchSpace.from_json(hyperparameters, "an example")


SPACE = space_of(
    {"name": "optimizer.lr", "kind": "float", "low": 1e-5, "high": 1e-1, "scale": "log"},
    {"name": "oialr.delay_steps", "kind": "int", "low": 0, "high": 1000},
    {"name": "oialr.full_rank_first", "kind": "bool", "choices": [False, True]},
    {"name": "optimizer.name", "kind": "choice", "choices": ["adamw", "sgd"]},
)
RESOURCES = Resources(
    gpu_energy_j=1.5e6,
    cpu_energy_j=0.25,
    peak_host_memory_bytes=2**35,
    peak_gpu_memory_bytes=2**36 + 1,
    samples_per_s=12345.5,
)
HYPERPARAMETERS = {
    "optimizer.lr": 0.001,
    "oialr.delay_steps": 100,
    "oialr.full_rank_first": True,
    "optimizer.name": "adamw",
}


def new_search(**changes: Any) -> NewSearch:
    """Make a search named digits of three individuals."""
    values: dict[str, Any] = {
        "name": "digits",
        "task": "minivit_digits",
        "metric": "top1",
        "settings": {
            "search": {"name": "digits", "metric": "top1", "evaluations": 3, "islands": 2},
            "training": {"task": "minivit_digits"},
        },
        "space": SPACE,
        "metric_names": ["val.top1", "val.loss"],
        "seed": 2**40,
        "evaluations_total": 3,
        "version": "0.1.0",
    }
    return NewSearch(**values | changes)


def new_launch(search_id: int, **changes: Any) -> NewLaunch:
    """Make a launch of four ranks on two islands."""
    values: dict[str, Any] = {
        "search_id": search_id,
        "world_size": 4,
        "num_islands": 2,
        "hostname": "node1",
        "command_line": "oialr-search run digits.yaml",
        "versions": {"torch": "2.9"},
        "git_revision": None,
    }
    return NewLaunch(**values | changes)


def new_migration(search_id: int, individual_id: int, source: int, target: int) -> NewMigration:
    """Make a migration that happens now."""
    return NewMigration(
        search_id=search_id,
        individual_id=individual_id,
        source_island=source,
        target_island=target,
    )


def new_proposal(generation: int = 0, **changes: Any) -> Proposal:
    """Make a proposal of one rank's generation."""
    values: dict[str, Any] = {
        "island": 1,
        "island_rank": 0,
        "generation": generation,
        "parents": [],
        "origin": "random",
        "genes": dict.fromkeys(HYPERPARAMETERS, 0.5),
        "hyperparameters": HYPERPARAMETERS,
    }
    return Proposal(**values | changes)


def new_runner(launch_id: int, **changes: Any) -> Runner:
    """Make a rank on the first GPU of node1."""
    values: dict[str, Any] = {
        "launch_id": launch_id,
        "world_rank": 2,
        "hostname": "node1",
        "device": "GPU-0",
        "seed": 7,
        "num_threads": 2,
        "search_folder": "/tmp/digits",
    }
    return Runner(**values | changes)


def launched_search(storage: Storage, **changes: Any) -> tuple[int, int]:
    """Create and launch a search; return the ids of both."""
    search_id = storage.create_search(new_search(**changes))
    return search_id, storage.start_launch(new_launch(search_id))


def started_evaluation(
    storage: Storage, search_id: int, launch_id: int, generation: int = 0, **changes: Any
) -> tuple[int, int]:
    """Claim a new individual for a rank of the generation's number; return the ids of both."""
    runner = new_runner(launch_id, world_rank=changes.pop("world_rank", generation))
    claim = storage.claim(search_id, new_proposal(generation, **changes), 100, runner)
    assert claim is not None
    return claim.individual.id, claim.evaluation.id


def epoch_record(epoch: int, **metrics: float) -> EpochRecord:
    """Make an epoch of a hundred steps."""
    return EpochRecord(epoch=epoch, step=100 * epoch, metrics=metrics)
