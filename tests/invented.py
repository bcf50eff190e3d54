"""Searches that never ran, for what only reads: their records, and one that breeds as a real one.

They are stored as `oialr-search import` would.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from oialr_search.space.fitness import fitness_of
from oialr_search.space.search_file import SearchFile
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    EpochRecord,
    EvaluationHistory,
    EvaluationRecord,
    IndividualHistory,
    IndividualRecord,
    LaunchRecord,
    NewMigration,
    SearchRecord,
    Status,
)
from oialr_training.protocol import RankUpdate

BEGAN = datetime(2026, 5, 4, 8, tzinfo=UTC)
STEPS_PER_EPOCH = 44
LAYERS = [
    f"blocks.{block}.{layer}"
    for block in range(6)
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]
# Status: reasons, with an exit code and a signal.
ENDINGS: Mapping[Status, Sequence[tuple[str, int | None, int | None]]] = {
    Status.FAILED: [
        ("diverged: train_loss is nan after epoch 2", 1, None),
        ("worker killed by SIGKILL", None, 9),
    ],
    Status.TIMED_OUT: [("took longer than 7200 s", None, 15)],
    Status.PRUNED: [("did badly", None, None)],
    Status.LOST: [("its launch ended first", None, None)],
}
NOT_ENDED = (Status.QUEUED, Status.RUNNING, Status.LOST)


def search_record(file: SearchFile | None = None, **changes: Any) -> SearchRecord:
    """A search of a file; without one, all that makes a search must be given."""
    values: dict[str, Any] = {
        "id": 1,
        "seed": 0,
        "version": "0.1.0",
        "created_at": BEGAN,
        "last_launch_at": BEGAN,
    }
    if file is not None:
        values |= {
            "name": file.search.name,
            "task": file.training.task,
            "metric": file.search.metric,
            "settings": file.as_json(),
            "space": file.space,
            "metric_names": [*file.training.reported.names, "train_loss"],
            "evaluations_total": file.search.evaluations,
        }
    return SearchRecord(**values | changes)


def launch_record(search: SearchRecord, **changes: Any) -> LaunchRecord:
    """The one launch of a search, which runs."""
    values: dict[str, Any] = {
        "id": search.id,
        "search_id": search.id,
        "world_size": 4,
        "num_islands": 2,
        "hostname": "node01",
        "command_line": "oialr-search run search.yaml",
        "versions": {"oialr-search": "0.1.0", "torch": "2.9.1", "propulate": "1.2.2"},
        "git_revision": "f823ad8",
        "started_at": search.created_at,
        "ended_at": None,
        "exit_code": None,
    }
    return LaunchRecord(**values | changes)


def evaluation_record(
    individual_id: int, status: Status, *, folder: Path | str = "/nowhere", **changes: Any
) -> EvaluationRecord:
    """An attempt at an individual, with that number too; it took 90 s if it has ended."""
    started_at = changes.get("started_at", BEGAN)
    path = f"{folder}/individual-{individual_id:06d}/attempt-{changes.get('attempt', 1)}"
    number = changes.get("id", individual_id)
    values: dict[str, Any] = {
        "id": number,
        "individual_id": individual_id,
        "attempt": 1,
        "launch_id": 1,
        "world_rank": 0,
        "hostname": "node01",
        "device": "GPU-0",
        "seed": 42,
        "num_threads": 2,
        "folder": path,
        "log_path": f"{path}/log.txt",
        "status": status,
        "started_at": started_at,
        "resumed_epoch": 0,
        "reason": ENDINGS[status][0][0] if status in ENDINGS else None,
        "exit_code": None,
        "exit_signal": None,
        "training_started_at": started_at,
        "finished_at": None if status is Status.RUNNING else started_at + timedelta(seconds=90),
        "finish_number": None if status is Status.RUNNING else number,
        "last_epoch": None,
        "fitness": None,
        "metrics": {},
        "trainable_percent": None,
        "compression_percent": None,
        "log_tail": None,
    }
    return EvaluationRecord(**values | changes)


def individual_record(
    number: int, evaluation: EvaluationRecord | None = None, **changes: Any
) -> IndividualRecord:
    """An individual that is what its latest evaluation has made of it."""
    status = evaluation.status if evaluation else Status.QUEUED
    values: dict[str, Any] = {
        "id": number,
        "search_id": 1,
        "launch_id": evaluation.launch_id if evaluation else 1,
        "island": 0,
        "island_rank": 0,
        "generation": number,
        "parents": [],
        "origin": "random",
        "genes": {},
        "hyperparameters": {},
        "status": status,
        "fitness": evaluation.fitness if evaluation else None,
        "created_at": evaluation.started_at if evaluation else BEGAN,
        "finished_at": evaluation.finished_at if evaluation and status not in NOT_ENDED else None,
        "evaluation": evaluation,
        "num_seeds": int(status is Status.COMPLETED),
    }
    return IndividualRecord(**values | changes)


def ended(number: int, fitness: float | None = None, **changes: Any) -> IndividualRecord:
    """An individual without an evaluation, which ended in the second of its number."""
    status = Status.FAILED if fitness is None else Status.COMPLETED
    values = {
        "status": status,
        "fitness": fitness,
        "finished_at": BEGAN + timedelta(seconds=number),
    }
    return individual_record(number, **values | changes)


def statuses_of(number: int, *, running: int = 4, failing: float = 0.06) -> dict[int, Status]:
    """Of so many individuals, as of a search that goes on: the last few run; ids have gaps."""
    rng = random.Random(number)
    ids = [i for i in range(1, 2 * number + 12) if i % 11 != 7][:number]
    bad = [Status.FAILED, Status.FAILED, Status.TIMED_OUT, Status.PRUNED]
    statuses = {i: rng.choice(bad) if rng.random() < failing else Status.COMPLETED for i in ids}
    return statuses | dict.fromkeys(ids[number - running :], Status.RUNNING)


def store_search(
    storage: Storage,
    file: SearchFile,
    statuses: Mapping[int, Status],
    *,
    search_id: int = 1,
    islands: int = 2,
    epochs: int = 8,
    folder: Path | str = "/searches",
) -> SearchRecord:
    """Store a search whose individuals have these numbers and statuses; two ranks an island."""
    search = search_record(file, id=search_id, created_at=BEGAN + timedelta(days=search_id))
    launch = launch_record(search, world_size=2 * islands, num_islands=islands)
    breeding = _Breeding(search, file, islands, epochs, str(folder))
    storage.restore(search, [launch], breeding.histories(statuses))
    for individual, source, target in breeding.migrations:
        migration = NewMigration(
            search_id=search_id,
            individual_id=individual,
            source_island=source,
            target_island=target,
        )
        storage.record_migration(migration)
    return search


class _Breeding:
    """Individuals get better from generation to generation, as good as their genes are."""

    # Weights and best genes: a valley that the search can find.
    VALLEY = ((40, 0.6), (5, 0.8), (1, 0.5), (3, 0.3), (0.5, 0.5), (4, 0.35), (1, 0.4), (2, 0.2))

    def __init__(
        self, search: SearchRecord, file: SearchFile, islands: int, epochs: int, folder: str
    ) -> None:
        self.search, self.file, self.islands, self.epochs = search, file, islands, epochs
        self.folder = folder
        self.random = random.Random(search.id)
        self.population: list[list[tuple[float, int, Mapping[str, float]]]] = [
            [] for _ in range(islands)
        ]
        self.migrations: list[tuple[int, int, int]] = []

    def histories(self, statuses: Mapping[int, Status]) -> Iterator[IndividualHistory]:
        for place, (number, status) in enumerate(statuses.items()):
            history = self._history(number, status, place)
            self._select(history.individual)
            yield history

    def _genes(self, island: int) -> tuple[dict[str, float], list[int]]:
        names = [h.name for h in self.file.space.hyperparameters]
        population = self.population[island]
        if len(population) < 8 or self.random.random() < 0.1:
            return {name: self.random.random() for name in names}, []
        (_, one, left), (_, two, right) = self.random.sample(population, 2)
        genes = {}
        for name in names:
            gene = self.random.choice((left, right))[name] + self.random.gauss(0, 0.06)
            genes[name] = min(max(gene, 0.0), 1.0)
        return genes, [one, two]

    def _select(self, individual: IndividualRecord) -> None:
        if individual.fitness is None:
            return
        member = (individual.fitness, individual.id, individual.genes)
        best = self._accept(individual.island, member)[0]
        if best is member or self.random.random() < 0.2:
            for target in range(self.islands):
                known = {known[1] for known in self.population[target]}
                if best[1] not in known and self.random.random() < 0.5:
                    self._accept(target, best)
                    self.migrations.append((best[1], individual.island, target))

    def _accept(
        self, island: int, member: tuple[float, int, Mapping[str, float]]
    ) -> list[tuple[float, int, Mapping[str, float]]]:
        population = sorted([*self.population[island], member], key=lambda m: m[:2])[:8]
        self.population[island] = population
        return population

    def _history(self, number: int, status: Status, place: int) -> IndividualHistory:
        rank = place % (2 * self.islands)
        island, island_rank = rank % self.islands, rank // self.islands
        genes, parents = self._genes(island)
        values = self.file.space.decode(genes)
        distance = sum(
            weight * (gene - best) ** 2
            for gene, (weight, best) in zip(genes.values(), self.VALLEY, strict=False)
        )
        top1 = max(86.0 - 9.0 * math.sqrt(distance) + self.random.gauss(0, 0.35), 12.0)
        trainable = 100.0
        if self.file.training.oialr is not None:
            cutoff = genes.get("oialr.cutoff_fraction", 0.5)
            trainable = 6.0 + 70.0 * (1 - cutoff) ** 3 + self.random.random() * 4
        completed = status is Status.COMPLETED
        wanted = {Status.COMPLETED: self.epochs, Status.PRUNED: 3, Status.QUEUED: 0}
        reached = min(wanted.get(status, 2), self.epochs)
        epochs = [self._epoch(n, top1, trainable, values) for n in range(1, reached + 1)]
        final = self._epoch(max(self.epochs, 1), top1, trainable, values).metrics
        if status is Status.FAILED and epochs:  # says so first by what it measures
            last = epochs[-1]
            unknown = dict.fromkeys((self.search.metric, "train_loss"), math.nan)
            metrics = {**last.metrics, **unknown}
            epochs[-1] = EpochRecord(epoch=last.epoch, step=last.step, metrics=metrics)
        reason, exit_code, exit_signal = self.random.choice(ENDINGS.get(status, [(None,) * 3]))
        started_at = self.search.created_at + timedelta(seconds=90 * place)
        took = timedelta(seconds=600 + 200 * self.random.random())
        evaluation = evaluation_record(
            number,
            status,
            folder=self.folder,
            id=number + 1000,
            launch_id=self.search.id,
            world_rank=rank,
            hostname=f"node{island + 1:02d}",
            started_at=started_at,
            reason=reason,
            exit_code=0 if completed else exit_code,
            exit_signal=exit_signal,
            finished_at=None if status is Status.RUNNING else started_at + took,
            finish_number=None if status is Status.RUNNING else place + 1,
            last_epoch=reached or None,
            log_tail="Traceback (most recent call last):\n  ...\nDivergedError"
            if status is Status.FAILED
            else None,
            **{
                "fitness": fitness_of(final, self.search.metric, self.search.metrics()),
                "metrics": final,
                "trainable_percent": trainable,
                "compression_percent": trainable + 18,
            }
            if completed
            else {},
        )
        began = status is not Status.QUEUED
        individual = individual_record(
            number,
            evaluation if began else None,
            search_id=self.search.id,
            launch_id=self.search.id,
            island=island,
            island_rank=island_rank,
            generation=place // (2 * self.islands),
            parents=parents,
            origin="bred" if parents else "random",
            genes=genes,
            hyperparameters=values,
            created_at=started_at,
        )
        attempt = EvaluationHistory(
            evaluation=evaluation,
            epochs=epochs,
            rank_updates=self._rank_updates(reached, trainable),
            observations=[],
        )
        return IndividualHistory(individual=individual, evaluations=[attempt] if began else [])

    def _epoch(
        self, epoch: int, top1: float, trainable: float, values: Mapping[str, Any]
    ) -> EpochRecord:
        part = epoch / max(self.epochs, 1)
        now = top1 * (1 - 0.75 * math.exp(-6 * part)) + self.random.gauss(0, 0.4)
        now = top1 if part == 1 else now
        low, high = values.get("scheduler.min_lr", 1e-5), values["optimizer.lr"]
        warm = 0.1 * self.epochs
        lr = high * epoch / warm if epoch < warm else low + (high - low) * (1 - part)
        left = 100.0 if part < 0.2 else max(trainable, 100 * math.exp(-8 * (part - 0.2)))
        return EpochRecord(
            epoch=epoch,
            step=epoch * STEPS_PER_EPOCH,
            metrics={
                "train_loss": 2.5 - 1.6 * now / 100,
                "validation_loss": 2.4 - 1.8 * now / 100,
                "validation_top1": now,
                "validation_top5": min(100.0, 60 + now * 0.45),
                "lr": lr,
                "epoch_s": 22.0,
                "trainable_percent": left,
                "compression_percent": left + 18,
            },
        )

    def _rank_updates(self, epochs: int, trainable: float) -> list[RankUpdate]:
        if trainable == 100.0:
            return []
        updates, ranks = [], dict.fromkeys(LAYERS, 768)
        for number, epoch in enumerate(range(6, epochs + 1, 2), start=1):
            for layer in LAYERS[-max(1, round(len(LAYERS) * 0.1 * number)) :]:
                ranks[layer] = max(int(ranks[layer] * 0.6), int(7.68 * trainable))
                updates.append(
                    RankUpdate(
                        step=epoch * STEPS_PER_EPOCH,
                        layer=layer,
                        inner_rank=ranks[layer],
                        full_inner_rank=768,
                        stability=0.98,
                    )
                )
        return updates
