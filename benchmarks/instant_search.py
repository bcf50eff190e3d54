"""A real launch of a search whose evaluations cost nothing: only the controllers' part is left.

Started under mpiexec, by `benchmarks/controller.py` and by the tests of many ranks. Everything is
as in `oialr-search run` but the workers: no process, an answer at once or after `--seconds`. Each
rank writes what it cost into `FOLDER/cost-RANK.json`.

    mpiexec -n 8 python -m mpi4py benchmarks/instant_search.py FOLDER --evaluations 2000
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import sys
import time
from collections import deque
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar

from oialr_search.evaluation import evaluator
from oialr_search.evaluation.devices import WorkerSettings
from oialr_search.evaluation.outbox import Outbox
from oialr_search.evaluation.worker_process import WorkerProcess
from oialr_search.launch.controller import Controller
from oialr_search.launch.islands import Exchange
from oialr_search.launch.launch import LaunchSettings, run
from oialr_search.launch.population import Population
from oialr_search.launch.progress import ProgressDisplay
from oialr_search.launch.stop_request import StopRequest
from oialr_search.space.search_file import load_search
from oialr_search.storage.database import Storage
from oialr_training.protocol import Completed, Epoch, Evaluate, Event, Message, Ready, Started

SEARCH_FILE = Path(__file__).parents[1] / "search_spaces" / "minivit_digits.yaml"
# What a rank does for an evaluation, none of it inside another.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "breeding": [(Controller, "_propose"), (Population, "add")],
    "claim": [(Storage, "claim")],
    "storing": [(Outbox, "flush")],
    "files": [(evaluator, "write_claim"), (evaluator, "write_record")],
    "exchange": [(Exchange, n) for n in ("receive", "tell_peers", "migrate", "report")],
    "display": [(ProgressDisplay, "refresh")],
}


class Cost:
    """What this rank spends from its first evaluation to its last."""

    born = time.monotonic()
    ready = 0.0  # imports and MPI are done
    first: tuple[float, float] | None = None
    last = (0.0, 0.0)
    evaluations = 0
    first_memory_mib = 0.0
    parts: ClassVar[dict[str, list[float]]] = {}

    @classmethod
    def time_parts(cls) -> None:
        """From now on what the parts of an evaluation take is added up."""
        for part, functions in PARTS.items():
            cls.parts[part] = [0.0, 0.0]
            for owner, name in functions:
                setattr(owner, name, cls._timed(part, getattr(owner, name)))

    @classmethod
    def _timed(cls, part: str, function: Any) -> Any:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.process_time(), time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                if cls.first is not None:
                    cls.parts[part][0] += time.process_time() - cpu
                    cls.parts[part][1] += time.monotonic() - wall

        return timed

    @classmethod
    def count(cls) -> None:
        """Note an evaluation."""
        now = (time.monotonic(), time.process_time())
        if cls.first is None:
            cls.first, cls.first_memory_mib = now, peak_memory_mib()
        cls.last = now
        cls.evaluations += 1

    @classmethod
    def figures(cls) -> dict[str, Any]:
        """Seconds and evaluations of this rank."""
        first = cls.first or cls.last
        return {
            "started": cls.evaluations,
            "evaluations": max(cls.evaluations - 1, 0),  # from the first to the last
            "wall_s": cls.last[0] - first[0],
            "cpu_s": cls.last[1] - first[1],
            "first_evaluation_after_s": first[0] - cls.born,
            "resuming_s": first[0] - cls.ready,
            "started_at": time.time() - time.monotonic() + first[0],
            "ended_at": time.time() - time.monotonic() + cls.last[0],
            "peak_memory_mib": peak_memory_mib(),
            "grown_mib": peak_memory_mib() - cls.first_memory_mib,
            "parts": cls.parts,
        }


def peak_memory_mib() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class InstantWorker(WorkerProcess):
    """No process: the fitness is a smooth function of the hyperparameters."""

    seconds = 0.0

    def __init__(self, settings: WorkerSettings, log_path: Path) -> None:
        self.log_path = log_path
        log_path.touch()
        self._waiting: deque[tuple[float, Event]] = deque([(0.0, Ready())])

    def send(self, message: Message) -> None:
        """Answer an evaluation with its whole course."""
        if not isinstance(message, Evaluate):
            return
        Cost.count()
        loss = distance(message.config)
        metrics = {"validation_loss": loss, "validation_top1": 100 / (1 + loss)}
        metrics |= {"train_loss": loss, "trainable_percent": 10.0}
        now = time.time()
        done = Completed(
            metrics=metrics | {"epoch": 1.0},
            trainable_percent=10.0,
            compression_percent=100.0,
            device="none",
            duration_s=self.seconds,
            at=now + self.seconds,
        )
        self._waiting += [
            (0.0, Started(at=now, total_steps=1, parameters=1, layers="none")),
            (0.0, Epoch(epoch=1, step=1, metrics=metrics)),
            (time.monotonic() + self.seconds, done),
        ]

    def receive(self, timeout_s: float) -> list[Event]:
        """What has come by now."""
        if not self._waiting:
            time.sleep(timeout_s)
            return []
        due, _ = self._waiting[0]
        time.sleep(max(0.0, min(due - time.monotonic(), timeout_s)))
        arrived = []
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            arrived.append(self._waiting.popleft()[1])
        return arrived

    def dead(self) -> bool:
        """Never."""
        return False

    def kill(self) -> bool:
        """There is nothing to kill."""
        return True

    def release(self) -> None:
        """There is nothing to wait for."""


def distance(config: object) -> float:
    """How far the numbers of a configuration are from 1, on a log scale."""
    if isinstance(config, dict):
        return sum(distance(value) for value in config.values())
    if isinstance(config, bool) or not isinstance(config, int | float) or config <= 0:
        return 0.0
    return math.log(config) ** 2 / 100


def main() -> None:
    """One rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--evaluations", type=int, required=True)
    parser.add_argument("--islands", type=int, default=2)
    parser.add_argument("--engine", default="propulate", help="what proposes")
    parser.add_argument("--db", help="by default search.db in the folder")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long an evaluation takes")
    parser.add_argument("--parts", action="store_true", help="time the parts of an evaluation")
    arguments = parser.parse_args()
    stop = StopRequest()
    stop.listen()
    InstantWorker.seconds = arguments.seconds
    if arguments.parts:
        Cost.time_parts()
    names = ("evaluations", "islands", "engine")
    changed = {name: getattr(arguments, name) for name in names}
    settings = LaunchSettings(
        database_url=arguments.db or str(arguments.folder / "search.db"),
        search_dir=arguments.folder,
        data_dir=None,
        new=False,
        stop=stop,
        environment=dict(os.environ),
        worker_type=InstantWorker,
    )
    from mpi4py import MPI

    MPI.COMM_WORLD.barrier()
    Cost.ready = time.monotonic()
    code = run(lambda: load_search(SEARCH_FILE, (), changed), settings)
    path = arguments.folder / f"cost-{MPI.COMM_WORLD.rank}.json"
    path.write_text(json.dumps(Cost.figures() | {"exit_code": code}))
    sys.exit(code)


if __name__ == "__main__":
    main()
