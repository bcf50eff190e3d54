"""`seen`: a search of a dozen individuals that has all that there may be, in both databases."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from oialr_search.storage import open_storage
from oialr_search.storage.records import (
    EpochRecord,
    EvaluationHistory,
    IndividualHistory,
    Status,
)
from oialr_training.protocol import Observation, RankUpdate, Resources

from .invented import evaluation_record, individual_record, launch_record, search_record
from .storage.postgres_server import PostgresServer, started_server
from .storage.storage_examples import SPACE, new_migration

BEGAN = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
METRICS = ["validation_loss", "validation_top1", "train_loss"]
SETTINGS: dict[str, Any] = {
    "training": {
        "epochs": 3,
        "optimizer": {"lr": 0.01, "name": "adamw"},
        "oialr": {"delay_steps": 7, "full_rank_first": False},
    }
}
FAILURES = {
    9: (Status.FAILED, "diverged: train_loss is nan after epoch 1"),
    10: (Status.FAILED, "diverged: train_loss is inf after epoch 2"),
    11: (Status.TIMED_OUT, "over the time limit of 60 s"),
}
RUNNING, RESUMED = 12, 5
# individual: (fitness, trainable %); 5 is the best, and {5, 2, 7} the Pareto front
COMPLETED = {
    1: (5.0, 20.0), 2: (3.0, 12.0), 3: (6.0, 30.0), 4: (4.0, 12.0),
    5: (2.0, 40.0), 6: (7.0, 10.0), 7: (3.5, 9.0), 8: (8.0, 90.0),
}  # fmt: skip
PARENTS = {5: [2, 4], 6: [1, 2], 7: [2, 5], 12: [5, 7]}


def hyperparameters(number: int) -> dict[str, Any]:
    """Different for each individual; 7 is like its parent 5 but for the learning rate."""
    as_of = RESUMED if number == 7 else number
    return {
        "optimizer.lr": 10.0 ** -(1 + number % 4),
        "oialr.delay_steps": 100 * as_of,
        "oialr.full_rank_first": as_of % 2 == 0,
        "optimizer.name": "adamw" if as_of % 3 else "sgd",
    }


def fill(url: str, *, ended: bool = False) -> None:
    """Make a database with the search `seen`; its launch runs, or has ended."""
    search = search_record(
        name="seen", task="minivit_digits", metric="validation_top1", settings=SETTINGS,
        space=SPACE, metric_names=METRICS, evaluations_total=20, created_at=BEGAN,
    )  # fmt: skip
    launch = launch_record(
        search, world_size=2, hostname="node1", started_at=BEGAN,
        command_line="oialr-search run f.yaml --data-dir /data",
        ended_at=BEGAN + timedelta(hours=3) if ended else None, exit_code=75 if ended else None,
    )  # fmt: skip
    numbers = itertools.count(1)
    last = RUNNING - 1 if ended else RUNNING
    with open_storage(url, create=True) as storage:
        storage.restore(search, [launch], [history(n, numbers) for n in range(1, last + 1)])
        storage.record_migration(new_migration(1, 2, 1, 0))
        storage.record_migration(new_migration(1, 5, 1, 0))


def history(number: int, numbers: Iterator[int]) -> IndividualHistory:
    """An individual; evaluations are numbered as they come."""
    fitness, trainable = COMPLETED.get(number, (None, None))
    status, reason = FAILURES.get(number, (Status.COMPLETED, None))
    status = Status.RUNNING if number == RUNNING else status
    attempts = []
    if number == RESUMED:
        attempts.append(attempt(number, next(numbers), 1, Status.LOST, "its launch ended first"))
    latest = attempt(number, next(numbers), len(attempts) + 1, status, reason, fitness, trainable)
    attempts.append(latest)
    individual = individual_record(
        number, latest.evaluation, island=(number + 1) % 2 if number != RESUMED else 1,
        parents=PARENTS.get(number, []), origin="bred" if number in PARENTS else "random",
        hyperparameters=hyperparameters(number),
    )  # fmt: skip
    return IndividualHistory(individual=individual, evaluations=attempts)


def attempt(
    number: int,
    evaluation_id: int,
    which: int,
    status: Status,
    reason: str | None,
    fitness: float | None = None,
    trainable: float | None = None,
) -> EvaluationHistory:
    """Started every ten minutes, each of 90 seconds and three epochs; the second is the best."""
    failed = status in (Status.FAILED, Status.TIMED_OUT)
    done = status is Status.COMPLETED
    evaluation = evaluation_record(
        number, status, id=evaluation_id, attempt=which, world_rank=number % 2, hostname="node1",
        device=f"cuda:{number % 2}", started_at=BEGAN + timedelta(minutes=10 * evaluation_id),
        resumed_epoch=1 if which == 2 else 0, reason=reason,
        exit_signal=9 if status is Status.TIMED_OUT else None,
        last_epoch=3 if done else 1, fitness=fitness,
        metrics={"validation_loss": 1.0, "validation_top1": 100 - fitness, "train_loss": 0.5}
        if fitness is not None
        else {},
        trainable_percent=trainable,
        compression_percent=trainable and 2 * trainable,
        resources=Resources(
            gpu_energy_j=100.0 * number if number != RESUMED else None,
            peak_host_memory_bytes=2**40,
        ),
        log_tail="epoch 1\n\x1b[31mloss [/nan]\nTraceback" if failed else None,
    )  # fmt: skip
    losses = [3.0, 0.5, 1.0] if done else [3.0]
    return EvaluationHistory(
        evaluation=evaluation,
        epochs=[
            EpochRecord(
                epoch=epoch,
                step=10 * epoch,
                metrics={"validation_loss": loss, "validation_top1": 90.0 + epoch % 3,
                         "train_loss": float("nan") if failed else loss / 2},
            )
            for epoch, loss in enumerate(losses, start=1)
        ],
        rank_updates=[
            RankUpdate(step=step, layer=layer, inner_rank=rank, full_inner_rank=64, stability=0.5)
            for step, rank in ((10, 32), (20, 16))
            for layer in ("blocks.10.fc", "blocks.9.fc")
        ]
        if done
        else [],
        observations=[
            Observation(step=20, earlier_step=10, layer="blocks.9.fc", stability=0.25,
                        mixing_similarity=float("nan"), relative_mixing_similarity=0.5)
        ]
        if number == 1
        else [],
    )  # fmt: skip


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all that only reads."""
    with started_server() as server:
        yield server


@pytest.fixture(scope="session")
def new_url(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """A function that gives a database of a kind that is empty or not there yet."""
    numbers = itertools.count()

    def create(kind: str) -> str:
        name = f"seeing_{next(numbers)}"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path_factory.mktemp(name)}/search.db"
        postgres.execute(f"CREATE DATABASE {name}")
        return postgres.url_of("postgres", name)

    return create


@pytest.fixture(scope="session")
def seen_urls(new_url: Callable[[str], str]) -> dict[str, str]:
    """The search `seen` in both; read it only."""
    urls = {kind: new_url(kind) for kind in ("sqlite", "postgresql")}
    for url in urls.values():
        fill(url)
    return urls


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which database."""
    return str(request.param)


@pytest.fixture
def url(kind: str, seen_urls: dict[str, str]) -> str:
    """The search `seen`; read it only."""
    return seen_urls[kind]


def sqlite_path(url: str) -> Path:
    """The file of an SQLite URL."""
    return Path(url.removeprefix("sqlite:///"))
