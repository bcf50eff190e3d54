"""Launches in one process: all real but MPI, time and workers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from oialr_search.evaluation import evaluator, outbox
from oialr_search.launch import controller, islands, launch, preparation, progress, stop_request
from oialr_search.launch.launch import LaunchSettings
from oialr_search.launch.stop_request import StopRequest
from oialr_search.space.search_file import SearchFile, load_search
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import SearchRecord
from oialr_training.protocol import Completed, Evaluate, Event, Prepare

from ..conftest import DIGITS
from ..evaluation.scripted import Line, ScriptedWorker, Silence, Workers, completed, epoch, started
from .left_behind import LeftBehind
from .ranks import Comm, World

SLEEPING = (controller, evaluator, islands, outbox, preparation, progress, stop_request)
LASTS_S = 0.5

Scripts = Callable[[int], Iterable[Sequence[Line]]]


@cache
def search_file() -> SearchFile:
    return load_search(DIGITS)


def top1(evaluate: Evaluate) -> float:
    """The nearer the rate is to 0.002, the better."""
    return 100.0 - 1000.0 * abs(evaluate.config["optimizer"]["lr"] - 0.002)  # type: ignore[no-any-return]


def result(worker: ScriptedWorker) -> Event:
    (evaluate,) = (message for message in worker.sent if isinstance(message, Evaluate))
    done = completed(top1(evaluate))
    assert isinstance(done, Completed)
    return done


TRAINS: Sequence[Line] = (
    Prepare, Evaluate, started(), epoch(1), Silence(LASTS_S), epoch(2), result,
)  # fmt: skip
"""Two epochs, between them a while."""


def all_train(world_rank: int) -> Iterator[Sequence[Line]]:
    """The first worker is waited for until it is ready."""
    from oialr_training.protocol import Ready

    while True:
        yield [Prepare, Ready(), *TRAINS[1:]]


class Launches:
    """Launches of one search in a folder of their own, one after the other."""

    def __init__(self, folder: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._empty_database = empty_database
        self._monkeypatch = monkeypatch
        self.grace_s = 0.0
        self.time_limit_s: float | None = None
        self.move_to(folder)
        self.stops: list[StopRequest] = []
        self.workers: list[Workers] = []
        self.world: World[int]

    def move_to(self, folder: Path) -> None:
        """Another folder, with an empty database."""
        folder.mkdir(exist_ok=True)
        self.folder, self.database = folder, folder / "search.db"
        shutil.copy(self._empty_database, self.database)

    def __call__(
        self,
        ranks: int = 1,
        scripts: Scripts = all_train,
        *,
        at: dict[float, Callable[[], object]] | None = None,
        environment: dict[str, str] | None = None,
        load: Callable[[], SearchFile] | None = None,
        latency_s: float = 0.0,
        seed: int = 0,
        **settings: Any,
    ) -> int | None:
        """The exit code; None when the ranks were aborted. `at` says what happens when."""
        self.world = World(ranks, latency_s=latency_s, seed=seed)
        self.world.replace(self._monkeypatch, *SLEEPING)
        self.stops = [StopRequest() for _ in range(ranks)]
        for stop in self.stops:
            limit_s = self.time_limit_s
            stop.limit(None if limit_s is None else self.world.time() + limit_s, self.grace_s)
        self.workers = [Workers(scripts(rank), clock=self.world) for rank in range(ranks)]
        file = search_file()
        file = replace(file, search=file.search.model_copy(update=settings))

        def run(comm: Comm) -> int:
            return launch.run(
                load or (lambda: file),
                LaunchSettings(
                    database_url=str(self.database),
                    search_dir=self.folder,
                    data_dir=None,
                    new=False,
                    stop=self.stops[comm.rank],
                    environment={"CUDA_VISIBLE_DEVICES": "", **(environment or {})},
                    worker_type=self.workers[comm.rank],
                ),
                comm,  # type: ignore[arg-type]
            )

        self.world.happen(at or {})
        codes = self.world.run(run)
        assert len(set(codes)) <= 1
        return codes[0] if codes else None

    def stored(self) -> tuple[Storage, SearchRecord]:
        """The database and the one search in it."""
        storage = open_storage(str(self.database), read_only=True)
        (search,) = storage.searches()
        return storage, search


@pytest.fixture
def launches(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launches:
    return Launches(tmp_path, empty_database, monkeypatch)


@pytest.fixture
def left(empty_database: Path, tmp_path: Path) -> Iterator[LeftBehind]:
    shutil.copy(empty_database, tmp_path / "search.db")
    with open_storage(str(tmp_path / "search.db")) as storage:
        yield LeftBehind(storage, tmp_path / "minivit_digits")
