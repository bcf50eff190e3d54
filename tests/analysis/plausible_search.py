"""A search that could have been: individuals bred on islands, failures, epochs, inner ranks."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from oialr_training.protocol import RankUpdate

from oialr_search.space.fitness import fitness_of
from oialr_search.space.search_file import SearchFile, load_search
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    EpochRecord,
    EvaluationHistory,
    EvaluationRecord,
    IndividualHistory,
    IndividualRecord,
    LaunchRecord,
    SearchRecord,
    Status,
)

from ..conftest import CIFAR10
from ..storage.storage_examples import new_migration

BEGIN = datetime(2026, 5, 4, 8, 0, tzinfo=UTC)
STEPS_PER_EPOCH = 44
LAYERS = [
    f"blocks.{block}.{layer}"
    for block in range(6)
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]
FAILURES = (
    (Status.FAILED, "diverged: train_loss is nan after epoch 3", 1, None),
    (Status.FAILED, "worker killed by SIGKILL", None, 9),
    (Status.TIMED_OUT, "took longer than 7200 s", None, 15),
)


def store_plausible_search(
    storage: Storage,
    *,
    search_id: int = 1,
    individuals: int = 200,
    islands: int = 4,
    epochs: int = 30,
    running: int = 3,
    failing: float = 0.06,
    assignments: tuple[str, ...] = (),
    migrate: bool = True,
) -> SearchRecord:
    """Store a search like the paper's on CIFAR-10; return what was stored."""
    file = load_search(CIFAR10, assignments, {"evaluations": individuals, "islands": islands})
    begin = BEGIN + timedelta(days=search_id)
    search = SearchRecord(
        id=search_id,
        name=file.search.name,
        task=file.training.task,
        metric=file.search.metric,
        settings=file.as_json(),
        space=file.space.as_json(),
        metric_names=["validation_loss", "validation_top1", "validation_top5"],
        seed=file.search.seed,
        evaluations_total=individuals,
        version="0.1.0",
        created_at=begin,
        last_launch_at=begin,
    )
    launch = LaunchRecord(
        id=search_id,
        search_id=search_id,
        world_size=2 * islands,
        num_islands=islands,
        hostname="node01",
        command_line="oialr-search run search_spaces/minivit_cifar10.yaml",
        versions={"oialr-search": "0.1.0", "torch": "2.9.1", "propulate": "1.2.2"},
        git_revision="f823ad8",
        started_at=begin,
        ended_at=None,
        exit_code=None,
    )
    breeding = _Breeding(file, search_id, islands, epochs, begin)
    histories = breeding.histories(individuals, running, failing)
    storage.restore(search, [launch], histories)
    if migrate:
        for individual, source, target in breeding.migrations:
            storage.record_migration(new_migration(search_id, individual, source, target))
    return search


class _Breeding:
    def __init__(
        self, file: SearchFile, search_id: int, islands: int, epochs: int, begin: datetime
    ) -> None:
        self.file, self.search_id, self.islands, self.epochs = file, search_id, islands, epochs
        self.begin = begin
        self.random = random.Random(search_id)
        self.population: list[list[tuple[float, int, dict[str, float]]]] = [
            [] for _ in range(islands)
        ]
        self.migrations: list[tuple[int, int, int]] = []

    def histories(
        self, individuals: int, running: int, failing: float
    ) -> Iterator[IndividualHistory]:
        offset = (self.search_id - 1) * 1_000_000
        for number in range(individuals):
            rank = number % (2 * self.islands)
            island, island_rank = rank % self.islands, rank // self.islands
            genes, parents = self._genes(island)
            fails = self.random.random() < failing
            status = Status.RUNNING if number >= individuals - running else Status.COMPLETED
            failure = self.random.choice(FAILURES) if fails else None
            if failure and status is Status.COMPLETED:
                status = failure[0]
            history = self._history(
                offset + number + 1,
                status,
                failure if status not in (Status.RUNNING, Status.COMPLETED) else None,
                {
                    "island": island,
                    "island_rank": island_rank,
                    "generation": number // (2 * self.islands),
                    "parents": parents,
                    "origin": "bred" if parents else "random",
                    "genes": genes,
                    "hyperparameters": self.file.space.decode(genes),
                },
            )
            self._select(island, history.individual)
            yield history

    def _genes(self, island: int) -> tuple[dict[str, float], list[int]]:
        names = [h.name for h in self.file.space.hyperparameters]
        population = self.population[island]
        if len(population) < 8 or self.random.random() < 0.1:
            return {name: self.random.random() for name in names}, []
        (_, one, left), (_, two, right) = self.random.sample(population[:8], 2)
        genes = {}
        for name in names:
            gene = self.random.choice((left, right))[name] + self.random.gauss(0, 0.06)
            genes[name] = min(max(gene, 0.0), 1.0)
        return genes, [one, two]

    def _select(self, island: int, individual: IndividualRecord) -> None:
        if individual.fitness is None:
            return
        member = (individual.fitness, individual.id, dict(individual.genes))
        population = self.population[island]
        population.append(member)
        population.sort(key=lambda m: m[:2])
        del population[8:]
        if population[0] is member or self.random.random() < 0.2:
            for target in range(self.islands):
                if target != island and self.random.random() < 0.5:
                    other = self.population[target]
                    if all(m[1] != population[0][1] for m in other):
                        other.append(population[0])
                        other.sort(key=lambda m: m[:2])
                        self.migrations.append((population[0][1], island, target))

    def _history(
        self, number: int, status: Status, failure: Any, proposal: dict[str, Any]
    ) -> IndividualHistory:
        genes = list(proposal["genes"].values())
        # A valley that the search can find, another weight for each hyperparameter.
        distance = sum(
            weight * (gene - centre) ** 2
            for gene, weight, centre in zip(
                genes,
                (9, 5, 1, 3, 0.5, 4, 1, 2),
                (0.6, 0.8, 0.5, 0.3, 0.5, 0.35, 0.4, 0.2),
                strict=False,
            )
        )
        top1 = max(86.0 - 9.0 * math.sqrt(distance) + self.random.gauss(0, 0.35), 12.0)
        trainable = 100.0  # the cutoff fraction is the sixth gene
        if self.file.training.oialr is not None:
            trainable = 6.0 + 70.0 * (1 - genes[5]) ** 3 + self.random.random() * 4
        order = (number - 1) % 1_000_000
        started = self.begin + timedelta(seconds=90 * order)
        duration = 600 + 200 * self.random.random()
        done = status is not Status.RUNNING
        completed = status is Status.COMPLETED
        reached = self.epochs if completed else self.epochs // 3
        epochs = [
            self._epoch(epoch, top1, trainable, proposal["hyperparameters"])
            for epoch in range(1, reached + 1)
        ]
        metrics = dict(epochs[-1].metrics) if completed and epochs else {}
        if completed and not epochs:
            metrics = dict(self._epoch(30, top1, trainable, proposal["hyperparameters"]).metrics)
        fitness = (
            fitness_of(metrics, self.file.search.metric, self.file.training.task)
            if completed
            else None
        )
        reason, exit_code, exit_signal = failure[1:] if failure else (None, None, None)
        evaluation = EvaluationRecord(
            id=number,
            individual_id=number,
            attempt=1,
            launch_id=self.search_id,
            world_rank=proposal["island"],
            hostname=f"node{proposal['island'] + 1:02d}",
            device="NVIDIA H100",
            seed=42,
            num_threads=8,
            folder=f"/searches/minivit_cifar10/individual-{number:06d}/attempt-1",
            log_path=f"/searches/minivit_cifar10/individual-{number:06d}/attempt-1/log.txt",
            status=status,
            started_at=started,
            resumed_epoch=0,
            reason=reason,
            exit_code=0 if completed else exit_code,
            exit_signal=exit_signal,
            training_started_at=started + timedelta(seconds=4),
            finished_at=started + timedelta(seconds=duration) if done else None,
            finish_number=order + 1 if done else None,
            last_epoch=reached or None,
            fitness=fitness,
            metrics=metrics,
            trainable_percent=trainable if completed else None,
            compression_percent=trainable + 18 if completed else None,
            log_tail="Traceback (most recent call last):\n  ...\nDivergedError"
            if failure
            else None,
        )
        individual = IndividualRecord(
            **proposal,
            id=number,
            search_id=self.search_id,
            launch_id=self.search_id,
            status=status,
            fitness=fitness,
            created_at=started,
            finished_at=evaluation.finished_at,
            evaluation=None,
        )
        attempt = EvaluationHistory(
            evaluation=evaluation,
            epochs=epochs,
            rank_updates=self._rank_updates(reached, trainable)
            if epochs and trainable < 100
            else [],
            observations=[],
        )
        return IndividualHistory(individual=individual, evaluations=[attempt])

    def _epoch(
        self, epoch: int, top1: float, trainable: float, hyperparameters: dict[str, Any]
    ) -> EpochRecord:
        part = epoch / max(self.epochs, 30)
        at_first, at_last = 10.0 + top1 * 0.25, top1
        now = at_last - (at_last - at_first) * math.exp(-6 * part) + self.random.gauss(0, 0.4)
        if part == 1:
            now = top1
        low, high = hyperparameters["scheduler.min_lr"], hyperparameters["optimizer.lr"]
        warm = hyperparameters["scheduler.warmup_epochs"]
        turn = (1 + math.cos(math.pi * part ** hyperparameters["scheduler.lr_k_decay"])) / 2
        lr = high * epoch / warm if epoch < warm else low + (high - low) * turn
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
        updates, ranks = [], dict.fromkeys(LAYERS, 768)
        for number, epoch in enumerate(range(6, epochs + 1, 2), start=1):
            reached = LAYERS[-max(1, round(len(LAYERS) * 0.1 * number)) :]
            for layer in reached:
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
