"""Individual → request → worker → fitness → storage. Whatever a worker does, it is an outcome.

While one worker trains, the next is already started and warm; the log it has written so far becomes
the log of the evaluation that it is given.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from oialr_search.config import SearchFile
from oialr_search.fitness import fitness_of
from oialr_search.launcher import (
    Worker,
    WorkerDied,
    WorkerSettings,
    as_request,
    kill_ending_workers,
)
from oialr_search.search_space import with_hyperparameters
from oialr_search.storage import Claim, NewEvaluation, Outcome, RankUpdate, Status, Storage
from workers.config import ConfigError
from workers.protocol import Completed, Epoch, Evaluate, Event, Failed, Prepare, Ready, Started

LOG_FILE = "log.txt"
REQUEST_FILE = "request.json"
PREPARE_POLL_S = 0.1
PREPARATION_LIMIT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An individual whose evaluation has ended."""

    claim: Claim
    status: Status
    fitness: float | None


@dataclass(kw_only=True)
class _Running:
    claim: Claim
    evaluation_id: int
    worker: Worker | None = None
    since: float = field(default_factory=time.monotonic)
    training_since: float | None = None
    failure: str | None = None


class Evaluator:
    """The evaluations of one controller rank, one at a time."""

    def __init__(
        self,
        *,
        search_file: SearchFile,
        folder: Path,
        data_dir: str | None,
        worker_settings: WorkerSettings,
        world_rank: int,
        notify: Callable[[str], None],
    ) -> None:
        self._search = search_file.search
        self._task = search_file.training.task
        self._training = as_request(
            search_file.training.model_dump(mode="json"), worker_settings.num_threads
        )
        self._folder = folder
        self._data_dir = data_dir
        self._worker_settings = worker_settings
        self._world_rank = world_rank
        self._notify = notify
        self._worker_numbers = itertools.count(1)
        self._spare: Worker | None = None
        self._running: _Running | None = None
        self._storage: Storage

    def prepare(self) -> Callable[[], bool]:
        """Start the first worker; the function returned tells whether it is ready.

        That function raises `ConfigError` when the configuration or the data are wrong, and
        `WorkerDied` when the worker cannot start.
        """
        worker = self._spare = self._start_worker()

        def ready() -> bool:
            for event in worker.receive(PREPARE_POLL_S):
                if isinstance(event, Failed):
                    raise ConfigError(event.reason)
                return isinstance(event, Ready)
            return False

        return ready

    def open(self, storage: Storage) -> None:
        """From now on outcomes are stored there."""
        self._storage = storage

    def start(self, claim: Claim) -> None:
        """Begin the evaluation of a claimed individual; what goes wrong is told by `poll`."""
        assert self._running is None
        individual = claim.individual
        folder = self._folder / f"individual-{individual.id:06d}" / f"attempt-{claim.attempt}"
        request = Evaluate(
            config=with_hyperparameters(self._training, individual.hyperparameters),  # type: ignore[arg-type]
            folder=str(folder.absolute()),
        )
        evaluation_id = self._storage.start_evaluation(
            NewEvaluation(
                individual_id=individual.id,
                attempt=claim.attempt,
                hostname=socket.gethostname(),
                device=f"cuda:{self._worker_settings.gpu}" if self._worker_settings.gpu else "cpu",
                world_rank=self._world_rank,
                seed=int(request.config["seed"]),
                num_threads=int(request.config["num_threads"]),
                folder=str(folder.absolute()),
                log_path=str((folder / LOG_FILE).absolute()),
            )
        )
        self._running = running = _Running(claim=claim, evaluation_id=evaluation_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / REQUEST_FILE).write_text(json.dumps(request.config, indent=1))
            running.worker = self._take_spare()
            running.worker.move_log(folder / LOG_FILE)
            running.worker.send(request)
            if claim.remaining:
                self._spare = self._start_worker()
        except OSError as error:
            running.failure = f"cannot start: {error}"

    def _take_spare(self) -> Worker:
        worker, self._spare = self._spare, None
        if worker is None or worker.dead():
            self._discard(worker)
            worker = self._start_worker()
        return worker

    def poll(self, timeout_s: float) -> Evaluated | None:
        """Take in what the worker says, for at most `timeout_s`; the outcome when it has ended."""
        running = self._running
        assert running is not None
        if running.worker is None or running.failure is not None:
            return self._finish(Outcome(status=Status.FAILED, reason=running.failure))
        try:
            events = running.worker.receive(timeout_s)
        except WorkerDied as death:
            return self._finish(
                Outcome(
                    status=Status.FAILED,
                    reason=str(death),
                    exit_code=death.exit_code,
                    exit_signal=death.exit_signal,
                )
            )
        for event in events:
            outcome = self._take_in(event, running)
            if outcome is not None:
                return self._finish(outcome)
        reason = self._over_time(running)
        return self._finish(Outcome(status=Status.TIMED_OUT, reason=reason)) if reason else None

    def _over_time(self, running: _Running) -> str | None:
        """The limit that has passed. Until the training starts, it is that of preparation."""
        if running.training_since is None:
            if time.monotonic() - running.since > PREPARATION_LIMIT_S:
                return f"the worker was not ready after {PREPARATION_LIMIT_S:g} s"
            return None
        limit = self._search.evaluation_time_limit_s
        if limit is not None and time.monotonic() - running.training_since > limit:
            return f"over the time limit of {limit:g} s"
        return None

    def stop(self) -> None:
        """Kill all workers; what was running is `lost` and will be repeated."""
        if self._running is not None:
            self._finish(Outcome(status=Status.LOST, reason="the search was stopped"))
        self.stop_spare()
        kill_ending_workers()

    def stop_spare(self) -> None:
        """Kill the worker that waits for an evaluation."""
        self._discard(self._spare)
        self._spare = None

    def _take_in(self, event: Event, running: _Running) -> Outcome | None:
        evaluation_id = running.evaluation_id
        match event:
            case Started():
                running.training_since = time.monotonic()
                at = datetime.fromtimestamp(event.at, UTC)
                self._storage.mark_training_started(evaluation_id, at)
                for warning in event.warnings:
                    self._notify(warning)
            case Epoch():
                self._storage.add_epoch(evaluation_id, event.epoch, event.step, event.metrics)
                if event.rank_updates:
                    self._storage.add_rank_updates(
                        evaluation_id, [RankUpdate(**asdict(u)) for u in event.rank_updates]
                    )
            case Completed():
                return self._completed(event)
            case Failed():
                at = datetime.fromtimestamp(event.at, UTC)
                return Outcome(status=Status.FAILED, reason=event.reason, finished_at=at)
        return None

    def _completed(self, event: Completed) -> Outcome:
        at = datetime.fromtimestamp(event.at, UTC)
        fitness = fitness_of(event.metrics, self._search.metric, self._task)
        if fitness is None:
            reason = f"{self._search.metric} is {event.metrics.get(self._search.metric)}"
            return Outcome(status=Status.FAILED, reason=reason, finished_at=at)
        return Outcome(
            status=Status.COMPLETED,
            fitness=fitness,
            metrics=event.metrics,
            trainable_percent=event.trainable_percent,
            compression_percent=event.compression_percent,
            finished_at=at,
        )

    def _finish(self, outcome: Outcome) -> Evaluated:
        assert self._running is not None
        running, self._running = self._running, None
        if running.worker is not None:
            if outcome.status is Status.COMPLETED:
                running.worker.release()
            else:
                running.worker.kill()
        self._storage.finish_evaluation(running.evaluation_id, outcome)
        return Evaluated(claim=running.claim, status=outcome.status, fitness=outcome.fitness)

    def _start_worker(self) -> Worker:
        name = f"worker-{socket.gethostname()}-{self._world_rank}-{next(self._worker_numbers)}.log"
        worker = Worker(self._worker_settings, self._folder / name)
        worker.send(Prepare(config=self._training, data_dir=self._data_dir))
        return worker

    @staticmethod
    def _discard(worker: Worker | None) -> None:
        """Kill a worker that never had an evaluation; its log tells nobody anything."""
        if worker is not None:
            worker.kill()
            with contextlib.suppress(FileNotFoundError):
                worker.log_path.unlink()
