"""Searches filled through the storage, with individuals of all kinds, for what only reads."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from oialr_training.config import TASKS

from oialr_search.space.hyperparameters import SearchSpace, parse_space
from oialr_search.space.search_file import load_search
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    EpochRecord,
    EvaluationHistory,
    EvaluationRecord,
    IndividualHistory,
    IndividualRecord,
    LaunchRecord,
    NewLaunch,
    Outcome,
    Proposal,
    Runner,
    SearchRecord,
    Status,
)

from ..conftest import DIGITS

METRIC = "validation_top1"
EPOCHS = 8
BEGAN = datetime(2025, 3, 1, 12, tzinfo=UTC)
# Each kind of gene is there: log and linear scale, integer, bool, choice.
SPACE = {
    "optimizer.lr": {"low": 5.0e-4, "high": 5.0e-2, "scale": "log"},
    "oialr.delay_steps": {"low": 20, "high": 300},
    "oialr.update_frequency": {"low": 8, "high": 128, "scale": "log"},
    "oialr.cutoff_fraction": {"low": 0.1, "high": 0.9},
    "oialr.full_rank_first_layer": None,
    "model.depth": {"choices": [2, 4, 6]},
}
UNFINISHED = (Status.RUNNING, Status.LOST)


@cache
def space() -> SearchSpace:
    """The space of the searches here."""
    training = load_search(DIGITS, (), {}).training
    return parse_space(SPACE, type(training), training.model_dump(mode="json"), "filled.py")


def search_record(**changes: Any) -> SearchRecord:
    """A search of that space."""
    search_file = load_search(DIGITS, (), {})
    values: dict[str, Any] = {
        "id": 3,
        "name": "minivit_digits",
        "task": "minivit_digits",
        "metric": METRIC,
        "settings": search_file.as_json(),
        "space": space().as_json(),
        "metric_names": [*TASKS["minivit_digits"].metrics, "train_loss"],
        "seed": 0,
        "evaluations_total": 200,
        "version": "0.1.0",
        "created_at": BEGAN,
        "last_launch_at": BEGAN,
    }
    return SearchRecord(**values | changes)


def launch_record(search: SearchRecord) -> LaunchRecord:
    """A launch of four ranks on two islands."""
    return LaunchRecord(
        id=search.id,
        search_id=search.id,
        world_size=4,
        num_islands=2,
        hostname="node1",
        command_line="oialr-search run minivit_digits.yaml",
        versions={"torch": "2.9"},
        git_revision=None,
        started_at=BEGAN,
        ended_at=None,
        exit_code=None,
    )


def fill(
    storage: Storage, statuses: Mapping[int, Status], folder: Path, **changes: Any
) -> SearchRecord:
    """Store a search whose individuals have these ids and statuses."""
    search = search_record(**changes)
    storage.restore(search, [launch_record(search)], histories(search, statuses, folder))
    return search


def histories(
    search: SearchRecord, statuses: Mapping[int, Status], folder: Path
) -> Iterator[IndividualHistory]:
    """Individuals that get better as a search makes them."""
    for place, (number, status) in enumerate(statuses.items(), start=1):
        yield history(search, number, status, folder, place, len(statuses))


def history(
    search: SearchRecord, number: int, status: Status, folder: Path, place: int, of: int
) -> IndividualHistory:
    """An individual as good as its genes; they get nearer to good ones as the search goes on."""
    rng = random.Random(number)
    spread = 1.0 - 0.75 * place / of
    genes = {}
    for name, best in zip(SPACE, (0.55, 0.3, 0.4, 0.35, 0.9, 0.5), strict=True):
        genes[name] = min(max(best + spread * (rng.random() - 0.5), 0.0), 0.999)
    distance = abs(genes["optimizer.lr"] - 0.55) + 0.6 * abs(genes["oialr.cutoff_fraction"] - 0.35)
    top1 = 97.5 - 45.0 * distance**1.5 - rng.random()
    completed = status is Status.COMPLETED
    epochs = EPOCHS if completed else {Status.PRUNED: 3, Status.QUEUED: 0}.get(status, 2)
    metrics = {METRIC: top1, "validation_loss": (100 - top1) / 15, "train_loss": (100 - top1) / 20}
    started_at = BEGAN + timedelta(seconds=14 * number)
    ended_at = (
        None
        if status in (*UNFINISHED, Status.QUEUED)
        else started_at + timedelta(seconds=50 + 30 * rng.random())
    )
    path = folder / f"individual-{number:06d}" / "attempt-1"
    evaluation = EvaluationRecord(
        id=number + 1000,
        individual_id=number,
        attempt=1,
        launch_id=search.id,
        world_rank=number % 4,
        hostname="node1",
        device="GPU-0",
        seed=42,
        num_threads=2,
        folder=str(path),
        log_path=str(path / "log.txt"),
        status=status,
        started_at=started_at,
        resumed_epoch=0,
        reason=REASONS.get(status),
        exit_code=None,
        exit_signal=None,
        training_started_at=started_at,
        finished_at=ended_at,
        finish_number=place if ended_at else None,
        last_epoch=epochs or None,
        fitness=100 - top1 if completed else None,
        metrics=metrics if completed else {},
        trainable_percent=4 + 30 * genes["oialr.cutoff_fraction"] if completed else None,
        compression_percent=20 + 60 * genes["oialr.cutoff_fraction"] if completed else None,
        log_tail="the end of its log" if status is Status.FAILED else None,
    )
    individual = IndividualRecord(
        id=number,
        search_id=search.id,
        launch_id=search.id,
        island=number % 2,
        island_rank=number % 4 // 2,
        generation=number,
        parents=[number - 1, number - 2] if place > 8 else [],
        origin="bred" if place > 8 else "random",
        genes=genes,
        hyperparameters=space().decode(genes),
        status=status,
        fitness=evaluation.fitness,
        created_at=started_at,
        finished_at=ended_at,
        evaluation=evaluation,
    )
    said = [
        EpochRecord(
            epoch=epoch,
            step=36 * epoch,
            metrics={
                # A training that diverges says so first by what it measures.
                METRIC: math.nan
                if status is Status.FAILED and epoch == epochs
                else top1 - 60 * math.exp(-0.8 * epoch),
                "train_loss": 1 / epoch,
            },
        )
        for epoch in range(1, epochs + 1)
    ]
    told = EvaluationHistory(evaluation=evaluation, epochs=said, rank_updates=[], observations=[])
    started = status is not Status.QUEUED
    return IndividualHistory(
        individual=individual if started else replace(individual, evaluation=None),
        evaluations=[told] if started else [],
    )


REASONS = {
    Status.PRUNED: "did badly",
    Status.FAILED: f"{METRIC} is nan",
    Status.TIMED_OUT: "took longer than 300 s",
    Status.LOST: "its launch ended first",
}


def a_search(count: int) -> dict[int, Status]:
    """Ids with gaps, and statuses as of a search that runs: the last few are under way."""
    rng = random.Random(0)
    ids = [number for number in range(5, 5 + count + count // 10) if number % 11 != 7][:count]
    statuses = dict.fromkeys(ids, Status.COMPLETED)
    for number in ids:
        draw = rng.random()
        if draw < 0.09:
            ended_badly = (Status.PRUNED, Status.FAILED, Status.TIMED_OUT)
            statuses[number] = ended_badly[int(draw / 0.03)]
    return statuses | dict.fromkeys(ids[-4:], Status.RUNNING)


def go_on(storage: Storage, search: SearchRecord) -> tuple[int, Runner]:
    """Launch a search again; what ran becomes lost. Returns the next generation, and a rank."""
    launch = NewLaunch(
        search_id=search.id,
        world_size=1,
        num_islands=1,
        hostname="node2",
        command_line="",
        versions={},
        git_revision=None,
    )
    runner = Runner(
        launch_id=storage.start_launch(launch),
        world_rank=0,
        hostname="node2",
        device=None,
        seed=42,
        num_threads=1,
        search_folder="/nowhere",
    )
    return storage.next_generation(search.id, 0, 0), runner


def proposal(generation: int, **hyperparameters: Any) -> Proposal:
    """A proposal in the middle of the space, but for these hyperparameters."""
    genes = dict.fromkeys(SPACE, 0.5)
    decoded = space().decode(genes) | {k.replace("__", "."): v for k, v in hyperparameters.items()}
    return Proposal(
        island=0,
        island_rank=0,
        generation=generation,
        parents=[],
        origin="random",
        genes=genes,
        hyperparameters=decoded,
    )


COMPLETED = Outcome(
    status=Status.COMPLETED,
    fitness=1.25,
    metrics={METRIC: 98.75, "train_loss": math.nan},
    trainable_percent=5.0,
    compression_percent=25.0,
)
