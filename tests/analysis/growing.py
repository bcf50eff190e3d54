"""A search with genes of all kinds, which goes on while it is looked at."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oialr_search.space.search_file import load_search
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    Outcome,
    Proposal,
    Runner,
    SearchRecord,
    Status,
)

from ..conftest import DIGITS
from ..invented import store_search
from ..storage.storage_examples import new_launch, new_proposal, new_runner

METRIC = "validation_top1"
# Each kind of gene is there: log and linear scale, integer, bool, choice.
SPACE = {
    "optimizer.lr": {"low": 5.0e-4, "high": 5.0e-2, "scale": "log"},
    "oialr.delay_steps": {"low": 20, "high": 300},
    "oialr.update_frequency": {"low": 8, "high": 128, "scale": "log"},
    "oialr.cutoff_fraction": {"low": 0.1, "high": 0.9},
    "oialr.full_rank_first_layer": None,
    "model.depth": {"choices": [2, 4, 6]},
}
COMPLETED = Outcome(
    status=Status.COMPLETED,
    fitness=1.25,
    metrics={METRIC: 98.75, "train_loss": math.nan},
    trainable_percent=5.0,
    compression_percent=25.0,
)


def fill(
    storage: Storage,
    statuses: Mapping[int, Status],
    folder: Path,
    *,
    search_id: int = 3,
    name: str = "minivit_digits",
    islands: int = 2,
) -> SearchRecord:
    """Store a search of that space, whose individuals have these numbers and statuses."""
    settings = [f"space={json.dumps(SPACE)}", f"search.name={name}", "search.evaluations=200"]
    file = load_search(DIGITS, settings)
    return store_search(
        storage, file, statuses, search_id=search_id, islands=islands, folder=folder
    )


def go_on(storage: Storage, search: SearchRecord) -> tuple[int, Runner]:
    """Launch a search again; what ran becomes lost. Returns the next generation, and a rank."""
    launch_id = storage.start_launch(new_launch(search.id, world_size=1, num_islands=1))
    return storage.next_generation(search.id, 0, 0), new_runner(launch_id, world_rank=0)


def proposal(search: SearchRecord, generation: int, **hyperparameters: Any) -> Proposal:
    """A proposal in the middle of the space, but for these hyperparameters."""
    genes = dict.fromkeys(SPACE, 0.5)
    changed = {name.replace("__", "."): value for name, value in hyperparameters.items()}
    values = search.space.decode(genes) | changed
    return new_proposal(generation, island=0, genes=genes, hyperparameters=values)
