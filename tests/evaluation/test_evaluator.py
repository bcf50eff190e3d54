"""Whatever a worker does, it is an outcome: stored, written, and rightly blamed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from oialr_search.evaluation import evaluator as evaluator_module
from oialr_search.evaluation import outbox as outbox_module
from oialr_search.evaluation.devices import WorkerSettings
from oialr_search.evaluation.evaluator import Evaluated, Evaluator
from oialr_search.evaluation.files import Ending, read_histories, read_record
from oialr_search.evaluation.outbox import Outbox
from oialr_search.evaluation.worker_process import WorkerDied
from oialr_search.space.search_file import SearchFile, load_search
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Claim, EvaluationRecord, Status
from oialr_training.errors import ConfigError
from oialr_training.protocol import (
    Evaluate,
    Failed,
    Prepare,
    Progressed,
    Ready,
    Resources,
    Stop,
    Stopped,
    write_result,
)

from ..conftest import DIGITS
from ..storage.storage_examples import launched_search, new_proposal
from .scripted import (
    BEGAN,
    Clock,
    Line,
    ScriptedWorker,
    Silence,
    Workers,
    completed,
    epoch,
    started,
    trains,
)

CPU = WorkerSettings(gpu=None, num_threads=3)
USED = Resources(samples_per_s=7.0, peak_host_memory_bytes=2**30)
DIED = WorkerDied("the worker was killed by SIGKILL", -9)


@cache
def search_file() -> SearchFile:
    return load_search(DIGITS)


class Rank:
    """One rank's evaluator with its workers, its database and its time."""

    def __init__(
        self, storage: Storage, folder: Path, clock: Clock, scripts: Sequence[Sequence[Line]],
        settings: dict[str, Any],
    ) -> None:  # fmt: skip
        self.storage, self.clock, self.folder = storage, clock, folder / "digits"
        self.folder.mkdir(exist_ok=True)
        self.workers = Workers(scripts, clock)
        self.told: list[str] = []
        file = search_file()
        self.evaluator = Evaluator(
            search_file=replace(file, search=file.search.model_copy(update=settings)),
            folder=self.folder,
            data_dir="/data",
            worker_settings=CPU,
            world_rank=2,
            notify=self.told.append,
            worker_type=self.workers,
        )
        self.outbox = Outbox(storage, self.told.append)
        self.evaluator.open(self.outbox)
        self.search_id, self.launch_id = launched_search(
            storage, evaluations_total=9, settings=file.as_json(), metric=file.search.metric
        )
        self.generation = 0

    def prepare(self) -> None:
        while not self.evaluator.prepare():
            pass

    def claim(self, total: int = 1) -> Claim:
        runner = self.evaluator.runner(self.launch_id)
        proposal = new_proposal(self.generation, hyperparameters={"optimizer.lr": 0.003})
        self.generation += 1
        claim = self.outbox.ask(lambda s: s.claim(self.search_id, proposal, total, runner))
        assert claim is not None
        return claim

    def start(self, total: int = 1) -> Claim:
        claim = self.claim(total)
        self.evaluator.start(claim)
        return claim

    def end(self) -> Evaluated:
        """Follow what runs to its end, which is stored then."""
        while (evaluated := self.evaluator.poll(0.5)) is None:
            pass
        assert self.outbox.flush()
        return evaluated

    def evaluate(self, total: int = 1) -> EvaluationRecord:
        """The next individual from claim to stored outcome."""
        claim = self.start(total)
        self.end()
        return self.stored(claim)

    def stored(self, claim: Claim) -> EvaluationRecord:
        """What the database says, after a look that the folder says the same."""
        evaluations = self.storage.evaluations(claim.individual.id)
        record = next(e for e in evaluations if e.id == claim.evaluation.id)
        written = read_record(Path(record.folder) / "outcome.json", Ending)
        for name, value in vars(written.outcome).items():
            assert getattr(record, name) == value, name
        assert written.repeat == (self.status(claim) is Status.LOST)
        return record

    def status(self, claim: Claim) -> Status:
        individual = self.storage.individual(claim.individual.id)
        assert individual is not None
        return individual.status


Make = Callable[..., Rank]


@pytest.fixture
def rank(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`rank(script, script, ..., setting=value)`."""
    clock = Clock()
    clock.replace(monkeypatch, evaluator_module, outbox_module)
    return lambda *scripts, **settings: Rank(storage, tmp_path, clock, scripts, settings)


def failed(cause: Any, reason: str = "no good") -> Failed:
    return Failed(reason=reason, at=BEGAN + 3, cause=cause, resources=USED)


def test_an_evaluation_from_claim_to_outcome(rank: Make) -> None:
    script = [Prepare, Evaluate, started(device="cuda:GPU-1"), epoch(1), epoch(2)]
    it = rank([*script, completed(90.0, resources=USED)])
    claim = it.start()
    folder = Path(claim.evaluation.folder)
    (worker,) = it.workers.started
    assert it.evaluator.busy
    ended = Evaluated(claim=claim, status=Status.COMPLETED, fitness=10.0, objectives=[])
    assert it.end() == ended
    assert not it.evaluator.busy
    record = it.stored(claim)
    assert (record.status, record.fitness, record.reason) == (Status.COMPLETED, 10.0, None)
    assert record.resources == USED
    assert record.training_started_at is not None
    assert record.training_started_at.timestamp() == BEGAN
    assert [e.epoch for e in it.storage.epochs(record.id)] == [1, 2]
    assert it.status(claim) is Status.COMPLETED
    assert worker.released
    assert worker.log_path == folder / "log.txt"
    prepare, evaluate = worker.sent
    assert isinstance(prepare, Prepare)
    assert prepare.data_dir == "/data"
    assert isinstance(evaluate, Evaluate)
    assert evaluate.config["optimizer"]["lr"] == 0.003
    assert evaluate.config["num_threads"] == claim.evaluation.num_threads == 3
    assert evaluate.state_file == str(folder.parent / "state.pt")
    assert json.loads((folder / "request.json").read_text()) == evaluate.config
    assert it.told == []


def test_the_device_is_what_the_worker_says(rank: Make) -> None:
    it = rank([Prepare, Evaluate, started(device="cuda:MIG-7"), completed()])
    claim = it.start()
    assert claim.evaluation.device == "cpu"
    it.end()
    assert it.stored(claim).device == "cuda:MIG-7"
    assert it.evaluator.runner(it.launch_id).device == "cuda:MIG-7"


def test_a_worker_that_says_no_device_leaves_the_one_it_was_given(rank: Make) -> None:
    assert rank([Prepare, Evaluate, started(device=None), completed()]).evaluate().device == "cpu"


def test_the_next_worker_is_warm_while_one_trains_and_there_is_work_left(rank: Make) -> None:
    it = rank(list(trains()), [Prepare, Ready(), Evaluate, started(), completed()])
    it.start(total=2)
    assert [len(worker.sent) for worker in it.workers.started] == [2, 1]
    waiting = it.workers.started[1].log_path
    assert waiting.parent == it.folder
    assert waiting.exists()
    it.end()
    assert it.evaluate(total=2).status is Status.COMPLETED
    assert not waiting.exists()
    assert len(it.workers.started) == 2


def test_a_worker_that_died_while_it_waited_is_replaced(rank: Make) -> None:
    it = rank(list(trains()), [Prepare], list(trains()))
    it.evaluate(total=2)
    it.workers.started[1].die()
    assert it.evaluate(total=2).status is Status.COMPLETED
    assert not it.workers.started[1].log_path.exists()


@pytest.mark.parametrize(
    ("cause", "repeated"), [("configuration", False), ("training", False), ("machine", True)]
)
def test_who_is_at_fault_decides_whether_it_is_repeated(
    rank: Make, cause: str, repeated: bool
) -> None:
    it = rank([Prepare, Ready(), Evaluate, started(), failed(cause)])
    it.prepare()
    claim = it.start()
    ended = it.end()
    assert (ended.status, ended.fitness) == (Status.FAILED, None)
    record = it.stored(claim)
    assert (record.reason, record.log_tail) == ("no good", "the worker's log\n")
    assert record.resources.samples_per_s == 7.0
    assert it.status(claim) is (Status.LOST if repeated else Status.FAILED)
    assert it.workers.started[0].killed
    assert (it.evaluator.pause_until > it.clock.now) == repeated


def test_a_divergence_of_the_first_evaluation_is_no_fault_of_the_machine(rank: Make) -> None:
    """The first worker has said that it is ready before there was an evaluation."""
    diverged = failed("training", "diverged: train_loss is nan")
    it = rank([Prepare, Ready(), Evaluate, started(), diverged], failures_in_a_row=1)
    it.prepare()
    claim = it.start()
    it.end()
    assert it.status(claim) is Status.FAILED
    assert not it.evaluator.unreliable
    assert it.evaluator.pause_until == 0.0


def test_what_was_ready_once_and_fails_to_prepare_later_is_the_machine_s_fault(rank: Make) -> None:
    it = rank([Prepare, Evaluate, failed("configuration", "no data in /data")])
    claim = it.start()
    it.end()
    assert it.stored(claim).reason == "no data in /data"
    assert it.status(claim) is Status.LOST


def test_the_machine_s_fault_is_repeated_so_often_and_no_more(rank: Make) -> None:
    dies = [Prepare, Evaluate, started(), DIED]
    it = rank(dies, dies, dies, retries=2)
    claims = []
    for attempt in (1, 2, 3):
        claims.append(it.start())
        it.end()
        record = it.stored(claims[-1])
        assert (record.attempt, record.status, record.exit_signal) == (attempt, Status.FAILED, 9)
    assert {claim.individual.id for claim in claims} == {1}
    assert it.status(claims[-1]) is Status.FAILED


def test_a_rank_that_fails_again_and_again_pauses_longer_and_gives_up(rank: Make) -> None:
    dies = [Prepare, Evaluate, started(), DIED]
    it = rank(dies, list(trains()), dies, dies, [Prepare], retries=9, failures_in_a_row=2)
    pauses = []
    for _ in range(4):
        it.evaluate(total=9)
        pauses.append(max(0.0, it.evaluator.pause_until - it.clock.now))
    assert pauses[0] == 1.0
    assert pauses[2:] == [1.0, 2.0]
    assert it.evaluator.unreliable
    (line,) = it.told
    assert line.startswith("world rank 2 asks for no more work: cpu on ")
    assert line.endswith("failed 2 times in a row, last: the worker was killed by SIGKILL")


def test_a_metric_that_is_no_number_is_a_failure(rank: Make) -> None:
    record = rank([Prepare, Ready(), Evaluate, started(), completed(float("nan"))]).evaluate()
    assert (record.status, record.reason) == (Status.FAILED, "validation_top1 is nan")


def test_a_dead_worker_s_result_counts_if_it_was_written(rank: Make) -> None:
    def writes(worker: ScriptedWorker) -> None:
        write_result(Path(claim.evaluation.folder), completed(75.0))

    it = rank([Prepare, Evaluate, started(), writes, WorkerDied("ended with exit code 1", 1)])
    claim = it.start()
    assert it.end().fitness == 25.0
    assert it.stored(claim).exit_code is None


def test_out_of_memory_is_told_from_any_other_kill(
    rank: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter((4, 5))
    monkeypatch.setattr(evaluator_module, "oom_kills", lambda: next(kills))
    record = rank([Prepare, Evaluate, started(), DIED]).evaluate()
    assert record.reason == "the worker was killed by the kernel: out of memory"


class TestStopping:
    """A training ends early for one of two reasons, and the database knows which."""

    def test_a_launch_that_stops_has_it_repeated(self, rank: Make) -> None:
        stopped = Stopped(epoch=1, reason="launch_stops", resources=USED)
        it = rank([Prepare, Evaluate, started(), epoch(1), Stop, stopped], [Prepare])
        claim = it.start(total=2)
        it.evaluator.poll(0.5)
        it.evaluator.ask_to_stop()
        it.evaluator.ask_to_stop()
        worker, spare = it.workers.started
        assert spare.killed
        assert worker.sent[-1] == Stop(reason="launch_stops")
        it.end()
        record = it.stored(claim)
        assert record.status is it.status(claim) is Status.LOST
        assert record.reason == "the search was stopped after epoch 1"
        assert (record.fitness, record.metrics, record.resources.samples_per_s) == (None, {}, 7.0)
        assert not it.evaluator.unreliable

    def test_one_not_worth_going_on_keeps_its_metrics_and_is_not_repeated(self, rank: Make) -> None:
        stopped = Stopped(epoch=2, reason="pruned", resources=USED)
        script = [Prepare, Evaluate, started(), epoch(1), Stop, epoch(2), stopped]
        it = rank(script, failures_in_a_row=1)
        claim = it.start()
        (Path(claim.evaluation.folder).parent / "state.pt").touch()
        it.evaluator.poll(0.5)
        it.evaluator.prune("validation_loss is among the worst quarter")
        assert it.workers.started[0].sent[-1] == Stop(reason="pruned")
        pruned = Evaluated(claim=claim, status=Status.PRUNED, fitness=None, objectives=[80.0])
        assert it.end() == pruned
        record = it.stored(claim)
        assert record.status is it.status(claim) is Status.PRUNED
        because = "validation_loss is among the worst quarter"
        assert record.reason == f"stopped after epoch 2: {because}"
        assert record.fitness is None
        assert record.metrics == {"epoch": 2.0, **epoch(2).metrics}
        assert (record.trainable_percent, record.compression_percent) == (12.5, 80.0)
        assert record.resources.samples_per_s == 7.0
        assert not (Path(record.folder).parent / "state.pt").exists()
        (search,) = it.storage.searches()
        (history,) = read_histories(it.folder, search)
        assert not isinstance(history, str)
        assert history.individual.status is Status.PRUNED
        assert history.evaluations[-1].evaluation.metrics == record.metrics
        assert not it.evaluator.unreliable
        assert it.evaluator.pause_until == 0.0

    def test_what_is_judged_is_a_training_of_which_an_epoch_has_ended(self, rank: Make) -> None:
        """Not one that stops already."""
        pause = Silence(1.0)
        script = [Prepare, Evaluate, started(), epoch(1), pause, epoch(2), pause, Stop]
        it = rank([*script, completed()])
        assert it.evaluator.trained is None
        claim = it.start()
        assert it.evaluator.trained is None
        it.evaluator.poll(0.5)
        assert it.evaluator.trained == (claim.individual.id, 1)
        it.clock.sleep(1.0)
        it.evaluator.poll(0.5)
        assert it.evaluator.trained == (claim.individual.id, 2)
        it.evaluator.prune("bad")
        assert it.evaluator.trained is None

    @pytest.mark.parametrize("why", ["is gone on with", "repeats another"])
    def test_one_that_is_to_be_trained_to_its_end_is_not_judged(self, rank: Make, why: str) -> None:
        it = rank([Prepare, Evaluate, started(), epoch(1), Silence(1.0), completed()])
        claim = it.claim()
        if why == "is gone on with":
            claim = replace(claim, continued=True)
        else:
            claim = replace(claim, individual=replace(claim.individual, repeat_of=1))
        it.evaluator.start(claim)
        it.evaluator.poll(0.5)
        assert it.evaluator.trained is None

    def test_the_first_reason_given_is_the_one_that_counts(self, rank: Make) -> None:
        stopped = Stopped(epoch=1, reason="pruned")
        it = rank([Prepare, Evaluate, started(), epoch(1), Stop, stopped])
        claim = it.start()
        it.evaluator.poll(0.5)
        it.evaluator.prune("bad")
        it.evaluator.ask_to_stop()
        it.end()
        assert it.status(claim) is Status.PRUNED

    def test_a_worker_that_completes_all_the_same_has_completed(self, rank: Make) -> None:
        it = rank([Prepare, Evaluate, started(), Stop, completed()])
        claim = it.start()
        it.evaluator.poll(0.5)
        it.evaluator.prune("bad")
        it.end()
        assert it.status(claim) is Status.COMPLETED

    @pytest.mark.parametrize("why", ["launch_stops", "pruned"])
    def test_one_that_dies_before_it_ends_is_blamed_on_a_stopping_launch_only(
        self, rank: Make, why: str
    ) -> None:
        it = rank([Prepare, Evaluate, started(), Stop, DIED])
        claim = it.start()
        it.evaluator.poll(0.5)
        if why == "pruned":
            it.evaluator.prune("bad")
        else:
            it.evaluator.ask_to_stop()
        it.end()
        killed = (Status.FAILED, "the worker was killed by SIGKILL")
        stopped = (Status.LOST, "the search was stopped")
        record = it.stored(claim)
        assert (record.status, record.reason) == (killed if why == "pruned" else stopped)
        assert it.status(claim) is Status.LOST

    def test_what_is_abandoned_is_lost_and_nobody_lives(self, rank: Make) -> None:
        it = rank([Prepare, Evaluate, started(), epoch(1)], [Prepare])
        claim = it.start(total=2)
        it.evaluator.poll(0.5)
        it.evaluator.abandon()
        assert it.outbox.flush()
        assert it.stored(claim).reason == "the search was stopped"
        assert it.status(claim) is Status.LOST
        assert all(worker.killed for worker in it.workers.started)
        assert not it.evaluator.busy


class TestLimits:
    """Nothing lasts for ever; what is counted is told."""

    def test_a_training_is_over_its_time_limit(self, rank: Make) -> None:
        it = rank([Prepare, Evaluate, Silence(9), started(), Silence(99)], no_progress_limit_s=600,
                  evaluation_time_limit_s=10)  # fmt: skip
        claim = it.start()
        it.end()
        assert it.clock.now == pytest.approx(1000 + 9 + 10, abs=1.1)
        record = it.stored(claim)
        assert (record.status, record.reason) == (Status.TIMED_OUT, "over the time limit of 10 s")
        assert it.status(claim) is Status.TIMED_OUT

    def test_what_earlier_attempts_trained_counts(self, rank: Make) -> None:
        resumed = started(resumed_epoch=2, trained_s=7.0)
        it = rank([Prepare, Evaluate, resumed, Silence(99)], evaluation_time_limit_s=10)
        it.evaluate()
        assert it.clock.now == pytest.approx(1000 + 3, abs=1.1)

    def test_a_worker_that_makes_no_progress_may_be_the_machine_s_fault(self, rank: Make) -> None:
        it = rank([Prepare, Evaluate, started(), Silence(5), Progressed(step=1), Silence(99)],
                  no_progress_limit_s=10)  # fmt: skip
        claim = it.start()
        it.end()
        assert it.clock.now == pytest.approx(1000 + 5 + 10, abs=1.1)
        assert it.stored(claim).reason == "no progress for 10 s"
        assert it.status(claim) is Status.LOST

    def test_a_worker_that_never_trains_too(self, rank: Make) -> None:
        it = rank([Prepare, Evaluate, Silence(99)], preparation_limit_s=20)
        claim = it.start()
        it.end()
        assert it.clock.now == pytest.approx(1000 + 20, abs=1.1)
        assert it.stored(claim).reason == "not ready after 20 s"
        assert it.status(claim) is Status.LOST

    def test_a_log_that_is_flooded(self, rank: Make) -> None:
        def floods(worker: ScriptedWorker) -> None:
            worker.log_path.write_text("flood\n" * 200_000)

        it = rank([Prepare, Ready(), Evaluate, started(), floods, Silence(99)], log_limit_mib=1)
        it.prepare()
        claim = it.start()
        it.end()
        assert it.clock.now < 1000 + 3
        assert it.stored(claim).reason == "a log of more than 1 MiB"
        assert it.status(claim) is Status.FAILED


class TestPreparing:
    """A launch begins when each rank has a worker that is ready."""

    def test_what_is_wrong_is_told(self, rank: Make) -> None:
        it = rank([Prepare, failed("configuration", "no data in /data")])
        with pytest.raises(ConfigError, match="no data in /data"):
            it.prepare()

    def test_a_killed_worker_gets_successors(self, rank: Make) -> None:
        it = rank([Prepare, DIED], [Prepare, DIED], [Prepare, Ready()])
        it.prepare()
        assert [worker.killed for worker in it.workers.started] == [True, True, False]

    def test_but_not_for_ever(self, rank: Make) -> None:
        it = rank([Prepare, DIED], [Prepare, DIED], [Prepare, DIED])
        with pytest.raises(WorkerDied):
            it.prepare()

    def test_one_that_cannot_start_does_not(self, rank: Make) -> None:
        it = rank([Prepare, WorkerDied("the worker ended with exit code 1: no torch", 1)])
        with pytest.raises(WorkerDied, match="no torch"):
            it.prepare()

    def test_it_has_a_limit(self, rank: Make) -> None:
        it = rank([Prepare, Silence(99)], preparation_limit_s=20)
        with pytest.raises(ConfigError) as error:
            it.prepare()
        assert it.clock.now == pytest.approx(1000 + 20, abs=1.1)
        assert "world rank 2 on " in str(error.value)
        assert str(error.value).endswith("after `search.preparation_limit_s`, 20 s")


class TestFiles:
    """A disk that is full stops no search."""

    def test_an_evaluation_that_cannot_begin_is_no_failure_of_the_individual(
        self, rank: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        it = rank(list(trains()))
        full = OSError(28, "No space left on device")

        def write_claim(claim: Claim) -> None:
            raise full

        with monkeypatch.context() as patch:
            patch.setattr(evaluator_module, "write_claim", write_claim)
            patch.setattr(evaluator_module, "write_record", lambda path, record: write_claim(claim))
            claim = it.start()
            it.end()
        assert it.status(claim) is Status.LOST
        assert any("cannot write" in line and "tried again" in line for line in it.told)
        it.evaluator.write_outcomes()
        assert not (Path(claim.evaluation.folder) / "outcome.json").exists()
        it.clock.now += 1.0
        Path(claim.evaluation.folder).mkdir(parents=True)
        it.evaluator.write_outcomes()
        assert it.stored(claim).reason == f"cannot start: {full}"
        assert it.claim().failures == 0

    def test_outcomes_that_wait_are_written_in_their_order(
        self, rank: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        it = rank(list(trains()), list(trains()))
        written: list[Path] = []

        def write_record(path: Path, record: object) -> None:
            if len(written) < 2:
                written.append(path)
                raise OSError(28, "No space left on device")
            written.append(path)

        monkeypatch.setattr(evaluator_module, "write_record", write_record)
        for _ in range(2):
            it.start(total=2)
            it.end()
        it.clock.now += 1.0
        it.evaluator.write_outcomes()
        names = [str(path.relative_to(it.folder)) for path in written]
        first, second = (f"individual-{n:06d}/attempt-1/outcome.json" for n in (1, 2))
        assert names == [first, first, first, second]


def test_a_process_that_cannot_die_is_told_and_left_behind(
    rank: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = rank([Prepare, Ready(), Evaluate, started(), Silence(99)], evaluation_time_limit_s=1)
    it.prepare()
    monkeypatch.setattr(it.workers.started[0], "kill", lambda: False)
    assert it.evaluate().status is Status.TIMED_OUT
    (line,) = it.told
    assert line.startswith("worker 4711 on ")
    assert "waits for a device or a disk" in line
