"""One individual: where it comes from, what its values are, how it trained, why it failed."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from oialr_search.analysis.choosing import find_individual
from oialr_search.analysis.leaderboard import finite
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    EpochRecord,
    EvaluationRecord,
    IndividualRecord,
    SearchRecord,
    StorageError,
)

Row = dict[str, Any]

NATURAL = re.compile(r"(\d+)")


def describe(storage: Storage, individual_id: int, database_options: Sequence[str] = ()) -> Row:
    """All that is known of one individual; `database_options` go into the commands it tells.

    Raises:
        StorageError: when there is none of that number.
    """
    individual, search = find_individual(storage, individual_id)
    evaluations = storage.evaluations(individual.id)
    parents = [_parent(storage, individual, number) for number in individual.parents]
    return {
        "individual": individual.id,
        "search": search.name,
        "task": search.task,
        "metric": search.metric,
        "aim": search.aim,
        "status": individual.status.value,
        "fitness": individual.fitness,
        "deviation": individual.fitness_deviation,
        "seeds": individual.num_seeds,
        "repeat_of": individual.repeat_of,
        "repeats": [_repeat(repeat) for repeat in storage.repeats(search.id, individual.id)],
        "violation": individual.violation,
        "objectives": dict(zip(search.objectives, individual.objectives, strict=False)),
        "constraints": list(individual.constraints),
        "island": individual.island,
        "island_rank": individual.island_rank,
        "generation": individual.generation,
        "origin": individual.origin,
        "created_at": individual.created_at.isoformat(timespec="seconds"),
        "launch": individual.launch_id,
        "parents": parents,
        "new_values": _new_values(individual, parents),
        "hyperparameters": dict(individual.hyperparameters),
        "search_file": {n: search.of_search_file(n) for n in individual.hyperparameters},
        "space": {h.name: _limits(h) for h in search.space.hyperparameters},
        "evaluations": [_evaluation(storage, search, each) for each in evaluations],
        "train_again": _commands(storage, individual, evaluations, database_options),
    }


def log_of(storage: Storage, individual_id: int, attempt: int | None) -> EvaluationRecord:
    """The attempt whose log is meant, the latest by default.

    Raises:
        StorageError: when there is no such individual or attempt.
    """
    individual, _ = find_individual(storage, individual_id)
    for evaluation in reversed(storage.evaluations(individual.id)):
        if attempt in (None, evaluation.attempt):
            return evaluation
    which = "was never evaluated" if attempt is None else f"has no attempt {attempt}"
    raise StorageError(f"individual {individual_id} {which}")


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts 10 after 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in NATURAL.split(text)]


def _parent(storage: Storage, child: IndividualRecord, number: int) -> Row:
    """A parent and its values where the child's differ."""
    parent = storage.individual(number)
    if parent is None:  # its row was deleted by hand
        return {"individual": number}
    return {
        "individual": number,
        "status": parent.status.value,
        "fitness": parent.fitness,
        "island": parent.island,
        "generation": parent.generation,
        "differences": {
            name: parent.hyperparameters.get(name)
            for name, value in child.hyperparameters.items()
            if parent.hyperparameters.get(name) != value
        },
    }


def _repeat(individual: IndividualRecord) -> Row:
    """One that measures another again."""
    return {
        "individual": individual.id,
        "origin": individual.origin,
        "status": individual.status.value,
        "seed": individual.seed,
        "fitness": individual.fitness,
    }


def _new_values(individual: IndividualRecord, parents: Sequence[Row]) -> list[str]:
    """The hyperparameters that are as in none of the parents."""
    known = [parent["differences"] for parent in parents if "differences" in parent]
    if not known:
        return []
    return [name for name in individual.hyperparameters if all(name in d for d in known)]


def _limits(hyperparameter: Hyperparameter) -> Row:
    known = vars(hyperparameter).items()
    return {key: value for key, value in known if key != "name" and value not in (None, ())}


def _evaluation(storage: Storage, search: SearchRecord, evaluation: EvaluationRecord) -> Row:
    inner_ranks: dict[str, list[int]] = {}
    for update in storage.rank_updates(evaluation.id):
        history = inner_ranks.setdefault(update.layer, [update.full_inner_rank])
        history.append(update.inner_rank)
    number, folder = evaluation.exit_signal, Path(evaluation.folder)
    here = folder.is_dir()
    return {
        "attempt": evaluation.attempt,
        "status": evaluation.status.value,
        "fitness": evaluation.fitness,
        "reason": evaluation.reason,
        "exit_code": evaluation.exit_code,
        "exit_signal": number,
        "exit_signal_name": _signal_name(number),
        "launch": evaluation.launch_id,
        "host": evaluation.hostname,
        "world_rank": evaluation.world_rank,
        "device": evaluation.device,
        "seed": evaluation.seed,
        "num_threads": evaluation.num_threads,
        "started_at": evaluation.started_at.isoformat(timespec="seconds"),
        "duration_s": evaluation.duration_s,
        "resumed_epoch": evaluation.resumed_epoch,
        "epochs": evaluation.last_epoch,
        "trainable_percent": evaluation.trainable_percent,
        "compression_percent": evaluation.compression_percent,
        "metrics": {name: finite(value) for name, value in evaluation.metrics.items()},
        "resources": vars(evaluation.resources),
        "course": _course(search, storage.epochs(evaluation.id)),
        "inner_ranks": {layer: inner_ranks[layer] for layer in sorted(inner_ranks, key=natural)},
        "folder": evaluation.folder,
        "files": sorted(path.name for path in folder.iterdir()) if here else None,
        "log": evaluation.log_path,
        "log_tail": evaluation.log_tail,
    }


def _course(search: SearchRecord, epochs: Sequence[EpochRecord]) -> dict[str, Row]:
    """Each metric's first, best and last value over the epochs."""
    course, metrics = {}, search.metrics()
    for name in dict.fromkeys(name for epoch in epochs for name in epoch.metrics):
        values = [(e.epoch, finite(e.metrics[name])) for e in epochs if name in e.metrics]
        metric = metrics.find(name)
        sign = -1 if metric is not None and metric.better == "higher" else 1
        known = [(sign * value, epoch, value) for epoch, value in values if value is not None]
        _, best_epoch, best = min(known, default=(None, None, None))
        course[name] = {
            "first": values[0][1],
            "best": best,
            "best_epoch": best_epoch,
            "last": values[-1][1],
            "last_epoch": values[-1][0],
        }
    return course


def _signal_name(number: int | None) -> str | None:
    if number is None:
        return None
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _commands(
    storage: Storage,
    individual: IndividualRecord,
    evaluations: Sequence[EvaluationRecord],
    database_options: Sequence[str],
) -> list[str]:
    """What to type to train the same again; nothing where it was never evaluated."""
    if not evaluations:
        return []
    file = f"individual-{individual.id}.yaml"
    launches = storage.launches(individual.search_id)
    line = next(x.command_line for x in launches if x.id == evaluations[-1].launch_id)
    given = _option("--data-dir", line)
    data_dir = ["--data-dir", given] if given else []
    export = ["oialr-search", "export", "--individual", str(individual.id), "-o", file]
    return [
        shlex.join([*export, *database_options]),
        shlex.join(["oialr-search", "train", file, *data_dir]),
    ]


def _option(name: str, line: str) -> str | None:
    """The value of an option in a stored command line."""
    try:
        words = shlex.split(line)
    except ValueError:  # version 0.1.0 did not quote
        words = line.split()
    for word, following in pairwise([*words, ""]):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    return None


def readable_log(evaluation: EvaluationRecord) -> Path | None:
    """The evaluation's log, if it is on this machine."""
    path = Path(evaluation.log_path)
    return path if path.is_file() and os.access(path, os.R_OK) else None
