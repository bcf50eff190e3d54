"""Individual → request → worker → outcome → storage. Whatever a worker does, it is an outcome.

While one worker trains, the next is already started and warm; the log it has written so far becomes
the log of the evaluation that it is given.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from oialr_search.evaluation.devices import WorkerSettings, with_num_threads
from oialr_search.evaluation.files import (
    OUTCOME_FILE,
    REQUEST_FILE,
    STATE_FILE,
    Ending,
    epoch_records,
    epochs_told,
    read_result,
    remove_state,
    write_claim,
    write_record,
)
from oialr_search.evaluation.outbox import Outbox
from oialr_search.evaluation.outcomes import is_of_machine, is_repeated, outcome_of, pruned_outcome
from oialr_search.evaluation.worker_process import (
    WorkerDied,
    WorkerProcess,
    kill_ending_workers,
    look_after_ending_workers,
    oom_kills,
)
from oialr_search.space.hyperparameters import with_hyperparameters
from oialr_search.space.search_file import SearchFile
from oialr_search.storage.records import CONFIRM, Claim, Outcome, Runner, Status
from oialr_training.errors import ConfigError
from oialr_training.protocol import (
    PROTOCOL,
    Completed,
    Epoch,
    Evaluate,
    Event,
    Failed,
    Prepare,
    Ready,
    Started,
    Stop,
    Stopped,
    StopReason,
)

PREPARE_POLL_S = 0.1
PREPARATIONS = 3
LOG_LOOK_S = 1.0
WRITE_AGAIN_S = 1.0
LONGEST_PAUSE_S = 30.0
WORKER_LOGS = "worker-*.log"
"""The logs of workers that wait for an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An individual whose evaluation has ended."""

    claim: Claim
    status: Status
    fitness: float | None
    violation: float = 0.0
    objectives: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class _End:
    """How a worker came to its end."""

    outcome: Outcome
    machine: bool = False
    """The machine may be at fault: another attempt may succeed."""


@dataclass(kw_only=True)
class _Spare:
    """A worker that waits for an evaluation."""

    worker: WorkerProcess
    since: float
    ready: bool = False


@dataclass(kw_only=True)
class _Running:
    claim: Claim
    since: float
    heard: float
    log_seen: float
    worker: WorkerProcess | None = None
    ready: bool = False
    training_since: float | None = None
    """The first training step, as if earlier attempts had ended just before."""
    last_epoch: Epoch | None = None
    epochs: list[Mapping[str, float]] = field(default_factory=list)
    """Their metrics."""
    asked_to_stop: bool = False
    launch_stops: bool = False
    not_worth: str = ""
    """Why it is not worth going on with; empty while it is."""
    expected: float | None = None
    """The fitness that it would have come to then."""
    oom_kills: int | None = field(default_factory=oom_kills)
    end: _End | None = None


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
        worker_type: Callable[[WorkerSettings, Path], WorkerProcess] = WorkerProcess,
    ) -> None:
        self._worker_type = worker_type
        self._search = search_file.search
        self._aims = search_file.aims
        confirm = search_file.search.confirm
        self._tests = confirm is not None and confirm.on == "test"
        self._training = with_num_threads(
            search_file.training.model_dump(mode="json"), worker_settings.num_threads
        )
        self._folder = folder
        self._data_dir = data_dir
        self._worker_settings = worker_settings
        self._world_rank = world_rank
        gpu = worker_settings.gpu
        self._device = f"cuda:{gpu}" if gpu else "cpu"  # until a worker says what it really is
        self._notify = notify
        self._worker_numbers = itertools.count(1)
        self._spare: _Spare | None = None
        self._preparations_left = PREPARATIONS
        self._running: _Running | None = None
        self._failures_in_a_row = 0
        self._unwritten: list[tuple[Path, Ending]] = []
        self._write_at = 0.0
        self.pause_until = 0.0
        """Start nothing before this time: what failed, a full disk perhaps, would fail again."""
        self._outbox: Outbox

    def prepare(self) -> bool:
        """Start the first worker; called again until it is ready. One that is killed gets others.

        Raises:
            ConfigError: when the configuration or the data are wrong, or it takes too long.
            WorkerDied: when the worker cannot start.
            OSError: likewise.
        """
        start = self._worker_settings.start
        if self._spare is None:
            try:
                self._spare = self._start_worker()
            except (FileNotFoundError, PermissionError) as error:
                if start.is_own:
                    raise
                raise ConfigError(
                    f"cannot start {start.shown!r} of `worker`: {error.strerror} {error.filename!r}"
                ) from None
        spare, limit_s = self._spare, self._search.preparation_limit_s
        try:
            events = spare.worker.receive(PREPARE_POLL_S)
            if events:
                self._refuse_other_protocol(spare.worker)
            for event in events:
                if isinstance(event, Failed):
                    raise ConfigError(event.reason)
                spare.ready |= isinstance(event, Ready)
        except WorkerDied as death:
            self._preparations_left -= 1
            if not start.is_own and spare.worker.hello is None:
                raise ConfigError(
                    f"{start.shown!r} of `worker` starts no worker ({death}): it needs "
                    "oialr-training: run `pip install ./workers` in a clone of oialr-search"
                ) from None
            if death.exit_signal is None or not self._preparations_left:
                raise
            self.stop_spare()
            return False
        if not spare.ready and time.monotonic() - spare.since > limit_s:
            raise ConfigError(
                f"world rank {self._world_rank} on {socket.gethostname()} has no worker that is "
                f"ready after `search.preparation_limit_s`, {limit_s:g} s"
            )
        return spare.ready

    def _refuse_other_protocol(self, worker: WorkerProcess) -> None:
        start, hello = self._worker_settings.start, worker.hello
        spoken = hello.protocol if hello else 0
        if not start.is_own and spoken != PROTOCOL:
            raise ConfigError(
                f"{start.shown!r} of `worker` has another version of oialr-training: its protocol "
                f"is {spoken}, here {PROTOCOL}"
            )

    @property
    def worker_versions(self) -> Mapping[str, str]:
        """What the workers say of an environment of their own; nothing where it is the same."""
        hello = self._spare.worker.hello if self._spare else None
        if hello is None or self._worker_settings.start.is_own:
            return {}
        return {f"worker {package}": version for package, version in hello.versions.items()}

    def open(self, outbox: Outbox) -> None:
        """From now on outcomes are stored there."""
        self._outbox = outbox

    def runner(self, launch_id: int) -> Runner:
        """Who evaluates here, for the database."""
        return Runner(
            launch_id=launch_id,
            world_rank=self._world_rank,
            hostname=socket.gethostname(),
            device=self._device,
            seed=int(self._training["seed"]),
            num_threads=int(self._training["num_threads"]),
            search_folder=str(self._folder.absolute()),
        )

    @property
    def busy(self) -> bool:
        """Does an evaluation run?"""
        return self._running is not None

    @property
    def trained(self) -> tuple[int, int] | None:
        """The running individual and its last epoch; None: it has none, or is not to be judged.

        It is not when it stops already, when it is gone on with after it was pruned, and when it
        repeats another: it is to tell how good that is.
        """
        running = self._running
        if running is None or running.last_epoch is None:
            return None
        individual = running.claim.individual
        if running.asked_to_stop or running.claim.continued or individual.repeat_of is not None:
            return None
        return individual.id, running.last_epoch.epoch

    @property
    def unreliable(self) -> bool:
        """Has this rank failed so often, one time after the other, that it had better stop?"""
        return self._failures_in_a_row >= self._search.failures_in_a_row

    def start(self, claim: Claim) -> None:
        """Begin the evaluation of a claimed individual; what goes wrong is told by `poll`."""
        assert self._running is None
        now = time.monotonic()
        self._running = running = _Running(claim=claim, since=now, heard=now, log_seen=now)
        evaluation = claim.evaluation
        folder = Path(evaluation.folder)
        training = self._training | {
            "num_threads": evaluation.num_threads,
            "seed": evaluation.seed,
        }
        request = Evaluate(
            config=with_hyperparameters(training, claim.individual.hyperparameters),
            folder=evaluation.folder,
            evaluate_test=self._tests and claim.individual.origin == CONFIRM,
            state_file=str(folder.parent / STATE_FILE),
        )
        try:
            write_claim(claim)
            (folder / REQUEST_FILE).write_text(json.dumps(request.config, indent=1))
            spare = self._take_spare()
            running.worker, running.ready = spare.worker, spare.ready
            running.worker.move_log(Path(evaluation.log_path))
            running.worker.send(request)
        except OSError as error:  # nothing was tried: it counts as no failure of the individual
            running.end = _End(outcome=_lost(f"cannot start: {error}"), machine=True)
            return
        if claim.remaining:
            with contextlib.suppress(OSError):  # the next evaluation tries again
                self._spare = self._start_worker()

    def poll(self, timeout_s: float) -> Evaluated | None:
        """Take in what the worker says, for at most `timeout_s`; the outcome when it has ended."""
        running = self._running
        assert running is not None
        end = running.end or self._follow(running, timeout_s) or self._over_a_limit(running)
        return None if end is None else self._finish(end)

    def ask_to_stop(self) -> None:
        """Have the worker end after its epoch; the individual is `lost` then, to be repeated."""
        self.stop_spare()
        if self._running is not None:
            self._running.launch_stops = True
            self._send_stop(self._running, "launch_stops")

    def prune(self, reason: str, expected: float | None = None) -> None:
        """Have the worker end, as it is not worth going on; not to be repeated."""
        assert self._running is not None
        self._running.not_worth, self._running.expected = reason, expected
        self._send_stop(self._running, "pruned")

    @staticmethod
    def _send_stop(running: _Running, reason: StopReason) -> None:
        """The worker ends for the first reason that it is given."""
        if running.worker is not None and not running.asked_to_stop:
            running.asked_to_stop = True
            running.worker.send(Stop(reason=reason))

    def write_outcomes(self, *, now: bool = False) -> None:
        """Write the outcomes for which the disk had no room, tried once a second unless `now`."""
        if not now and time.monotonic() < self._write_at:
            return
        self._write_at = time.monotonic() + WRITE_AGAIN_S
        while self._unwritten:
            path, ending = self._unwritten[0]
            try:
                write_record(path, ending)
            except OSError as error:
                self._notify(f"cannot write {path}: {error.strerror}, it is tried again")
                return
            self._unwritten.pop(0)

    def abandon(self) -> None:
        """Kill all workers; what was running is `lost` and will be repeated."""
        if self._running is not None:
            self._finish(_End(outcome=_lost("the search was stopped")))
        self.stop_spare()
        kill_ending_workers()

    def stop_spare(self) -> None:
        """Kill the worker that waits for an evaluation; its log tells nobody anything."""
        if self._spare is not None:
            self._kill(self._spare.worker)
            self._spare.worker.log_path.unlink(missing_ok=True)
            self._spare = None

    def _take_spare(self) -> _Spare:
        if self._spare is not None and self._spare.worker.dead():
            self.stop_spare()
        spare, self._spare = self._spare or self._start_worker(), None
        return spare

    def _follow(self, running: _Running, timeout_s: float) -> _End | None:
        assert running.worker is not None
        try:
            events = running.worker.receive(timeout_s)
        except WorkerDied as death:
            return self._of_death(death, running)
        for event in events:
            running.heard = time.monotonic()
            end = self._take_in(event, running)
            if end is not None:
                return end
        return None

    def _take_in(self, event: Event, running: _Running) -> _End | None:
        evaluation_id = running.claim.evaluation.id
        match event:
            case Ready():
                running.ready = True
            case Started():
                running.training_since = time.monotonic() - event.trained_s
                self._device = event.device or self._device
                started = datetime.fromtimestamp(event.at, UTC), event.resumed_epoch, event.device
                self._outbox.put(lambda s: s.mark_training_started(evaluation_id, *started))
                for warning in event.warnings:
                    self._notify(warning)
            case Epoch():
                running.last_epoch = event
                running.epochs.append(event.metrics)
                records = epoch_records(event)
                self._outbox.put(lambda s: s.add_epoch(evaluation_id, *records))
            case Stopped(reason="launch_stops"):
                lost = _lost(f"the search was stopped after epoch {event.epoch}")
                return _End(outcome=replace(lost, resources=event.resources))
            case Stopped(reason="pruned"):
                outcome = pruned_outcome(
                    event,
                    running.last_epoch,
                    running.not_worth,
                    running.expected,
                    self._aims,
                    running.claim.individual.hyperparameters,
                    running.epochs,
                )
                return _End(outcome=outcome)
            case Completed() | Failed():
                outcome = self._outcome_of(event, running, running.epochs)
                # What could be prepared when the launch began fails now: not the configuration.
                machine = isinstance(event, Failed) and (
                    event.cause == "machine" or not running.ready
                )
                return _End(outcome=outcome, machine=machine)
        return None

    def _outcome_of(
        self, result: Completed | Failed, running: _Running, epochs: Sequence[Mapping[str, float]]
    ) -> Outcome:
        return outcome_of(result, self._aims, running.claim.individual.hyperparameters, epochs)

    def _of_death(self, death: WorkerDied, running: _Running) -> _End:
        """What a dead worker leaves: its result, if it has still written that."""
        folder = Path(running.claim.evaluation.folder)
        result = read_result(folder)
        if result is not None:
            outcome = self._outcome_of(result, running, epochs_told(folder, self._aims))
            return _End(outcome=outcome, machine=is_of_machine(result))
        if running.launch_stops:
            return _End(outcome=_lost("the search was stopped"))
        reason = str(death)
        if death.exit_signal == signal.SIGKILL and running.oom_kills != oom_kills():
            reason = "the worker was killed by the kernel: out of memory"
        outcome = Outcome(
            status=Status.FAILED,
            reason=reason,
            exit_code=death.exit_code,
            exit_signal=death.exit_signal,
        )
        return _End(outcome=outcome, machine=True)

    def _over_a_limit(self, running: _Running) -> _End | None:
        """The limit that has passed. Until the training starts, it is that of preparation."""
        now, search = time.monotonic(), self._search
        if now - running.log_seen > LOG_LOOK_S and running.worker is not None:
            running.log_seen = now
            look_after_ending_workers()
            if running.worker.log_bytes() > search.log_limit_mib << 20:
                reason = f"a log of more than {search.log_limit_mib} MiB"
                return _End(outcome=Outcome(status=Status.FAILED, reason=reason))
        if running.training_since is None:
            if now - running.since > search.preparation_limit_s:
                return _timed_out(f"not ready after {search.preparation_limit_s:g} s", machine=True)
            return None
        limit = search.evaluation_time_limit_s
        if limit is not None and now - running.training_since > limit:
            return _timed_out(f"over the time limit of {limit:g} s", machine=False)
        if now - running.heard > search.no_progress_limit_s:
            reason = f"no progress for {search.no_progress_limit_s:g} s"
            return _timed_out(reason, machine=True)
        return None

    def _finish(self, end: _End) -> Evaluated:
        assert self._running is not None
        running, self._running = self._running, None
        outcome, claim = end.outcome, running.claim
        if running.worker is not None:
            if outcome.status is Status.COMPLETED:
                running.worker.release()
            else:
                self._kill(running.worker)
                outcome = replace(outcome, log_tail=running.worker.log_tail())
        repeat = is_repeated(
            outcome,
            machine=end.machine,
            failures=claim.failures,
            retries=self._search.retries,
        )
        folder = Path(claim.evaluation.folder)
        ending = Ending(outcome=outcome, repeat=repeat)
        self._unwritten.append((folder / OUTCOME_FILE, ending))
        self.write_outcomes(now=True)
        stopping = self._search.stopping
        goes_on = stopping is not None and stopping.go_on and outcome.status is Status.PRUNED
        if not repeat and not goes_on:
            remove_state(folder.parent)
        evaluation_id = claim.evaluation.id
        self._outbox.put(lambda s: s.finish_evaluation(evaluation_id, outcome, repeat=repeat))
        self._count(end, outcome)
        return Evaluated(
            claim=claim,
            status=outcome.status,
            fitness=outcome.fitness,
            violation=outcome.violation,
            objectives=outcome.objectives,
        )

    def _count(self, end: _End, outcome: Outcome) -> None:
        if outcome.status is Status.LOST and not end.machine:
            return
        self._failures_in_a_row = self._failures_in_a_row + 1 if end.machine else 0
        if end.machine:
            pause_s = min(2.0 ** (self._failures_in_a_row - 1), LONGEST_PAUSE_S)
            self.pause_until = time.monotonic() + pause_s
        if self.unreliable:
            runner = self.runner(0)
            self._notify(
                f"world rank {runner.world_rank} asks for no more work: {runner.device} on "
                f"{runner.hostname} failed {self._failures_in_a_row} times in a row, "
                f"last: {outcome.reason}"
            )
            self.stop_spare()

    def _start_worker(self) -> _Spare:
        name = f"worker-{socket.gethostname()}-{self._world_rank}-{next(self._worker_numbers)}.log"
        worker = self._worker_type(self._worker_settings, self._folder / name)
        worker.send(Prepare(config=self._training, data_dir=self._data_dir))
        return _Spare(worker=worker, since=time.monotonic())

    def _kill(self, worker: WorkerProcess) -> None:
        if not worker.kill():
            self._notify(
                f"worker {worker.pid} on {socket.gethostname()} is killed and does not end: it "
                "waits for a device or a disk, and holds its memory until then"
            )


def _lost(reason: str) -> Outcome:
    return Outcome(status=Status.LOST, reason=reason)


def _timed_out(reason: str, *, machine: bool) -> _End:
    return _End(outcome=Outcome(status=Status.TIMED_OUT, reason=reason), machine=machine)
