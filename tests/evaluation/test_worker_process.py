"""WorkerProcess processes: how they start, what they inherit, how they die."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from oialr_search.evaluation import worker_process
from oialr_search.evaluation.devices import (
    WorkerSettings,
    choose_gpu,
    threads_per_rank,
    visible_gpus,
)
from oialr_search.evaluation.files import read_events
from oialr_search.evaluation.worker_process import WorkerDied, WorkerProcess, worker_environment
from oialr_training.protocol import (
    EVENTS_FILE,
    Completed,
    Epoch,
    Evaluate,
    Event,
    Observation,
    Prepare,
    Ready,
    Started,
    encode,
)

from ..conftest import BIN, DIGITS

CPU = WorkerSettings(gpu=None, num_threads=1)
TIMEOUT_S = 60.0


def tiny(**changes: Any) -> dict[str, Any]:
    """A digits training of a second, as a request carries it."""
    from oialr_training.tasks import validate_training
    from oialr_training.yaml_files import read_yaml

    content = {k: v for k, v in read_yaml(DIGITS).items() if k not in ("search", "space")}
    content["model"] |= {"depth": 1, "embed_dim": 32}
    content["oialr"] |= {"delay_steps": 10, "update_frequency": 10}
    content |= {"epochs": 2, "num_threads": 1, **changes}
    return validate_training(content, "test").model_dump(mode="json")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(CPU, tmp_path / "log.txt")
    yield worker
    worker.kill()


def wait_for(worker: WorkerProcess, kind: type[Event]) -> list[Event]:
    """All events up to the first of a kind."""
    events: list[Event] = []
    while not any(isinstance(event, kind) for event in events):
        received = worker.receive(TIMEOUT_S)
        assert received, "the worker says nothing"
        events += received
    return events


def test_a_warm_worker_trains_and_leaves_its_result_in_the_folder(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    worker.send(Prepare(config=tiny(), data_dir=None))
    wait_for(worker, Ready)
    worker.send(Evaluate(config=tiny(), folder=str(tmp_path)))
    events = wait_for(worker, Completed)
    assert [type(event) for event in events] == [Started, Epoch, Epoch, Completed]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["type"] == "completed"
    assert result["metrics"] == events[-1].metrics  # type: ignore[union-attr]
    with pytest.raises(WorkerDied, match="exit code 0"):
        worker.receive(TIMEOUT_S)


def test_a_released_worker_that_hangs_is_killed(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.release()
    worker_process.look_after_ending_workers()
    assert not worker.dead()
    monkeypatch.setattr(worker_process, "ENDING_LIMIT_S", 0.0)
    worker_process.look_after_ending_workers()
    assert worker.dead()


@pytest.mark.parametrize("asked", ["kill", "receive"])
def test_a_process_that_cannot_die_is_not_waited_for(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """As one that waits in the kernel for a GPU or a network disk."""
    os.kill(worker.pid, signal.SIGKILL)
    select.select([worker._events], [], [])

    def wait(timeout: float | None = None) -> int:
        assert timeout is not None, "waited without limit"
        raise subprocess.TimeoutExpired("worker", timeout)

    with monkeypatch.context() as patch:
        patch.setattr(worker._process, "wait", wait)
        patch.setattr(worker._process, "poll", lambda: None)
        if asked == "kill":
            assert not worker.kill()
        else:
            with pytest.raises(WorkerDied, match="SIGKILL"):
                worker.receive(TIMEOUT_S)
    assert worker.kill()


@pytest.mark.slow
def test_a_warm_worker_gives_the_same_numbers_as_a_cold_one(tmp_path: Path) -> None:
    metrics = []
    for name in ("warm", "cold"):
        folder = tmp_path / name
        folder.mkdir()
        worker = WorkerProcess(CPU, folder / "log.txt")
        if name == "warm":
            worker.send(Prepare(config=tiny(seed=7), data_dir=None))
            wait_for(worker, Ready)
        else:
            worker.send(Prepare(config=tiny(), data_dir=None))
        worker.send(Evaluate(config=tiny(), folder=str(folder)))
        completed = wait_for(worker, Completed)[-1]
        assert isinstance(completed, Completed)
        metrics.append({k: v for k, v in completed.metrics.items() if k != "epoch_s"})
        worker.kill()
    assert metrics[0] == metrics[1]


def test_a_killed_worker_is_told_with_its_signal(worker: WorkerProcess) -> None:
    os.kill(worker.pid, signal.SIGSEGV)
    with pytest.raises(WorkerDied, match="SIGSEGV") as caught:
        wait_for(worker, Completed)
    assert caught.value.exit_signal == signal.SIGSEGV
    assert caught.value.exit_code is None


def test_a_worker_that_raises_is_told_with_its_exit_code_and_last_line(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    assert worker._process.stdin is not None
    worker._process.stdin.write(b"nonsense\n")
    worker._process.stdin.flush()
    with pytest.raises(WorkerDied, match=r"exit code 1: .*nonsense") as caught:
        wait_for(worker, Completed)
    assert caught.value.exit_code == 1


def test_what_a_library_prints_goes_to_the_log(worker: WorkerProcess, tmp_path: Path) -> None:
    worker.kill()
    assert worker.log_path.exists()
    moved = tmp_path / "elsewhere.txt"
    worker.move_log(moved)
    assert worker.log_tail() == moved.read_text()


Stub = Callable[[str], WorkerProcess]

STUB = """#!{python} -IS
import os, sys, time
events = int(sys.argv[sys.argv.index("--events") + 1])
say = lambda text: os.write(events, text.encode())
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """Starts a process that does as it is told, in the place of a worker."""
    started: list[WorkerProcess] = []

    def start(code: str) -> WorkerProcess:
        script = tmp_path / "stub"
        script.write_text(STUB.format(python=sys.executable) + code)
        script.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(script))
            started.append(WorkerProcess(CPU, tmp_path / "stub.log"))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


def test_all_that_was_said_is_heard_before_the_death(stub: Stub) -> None:
    """However it is cut; what the process printed last says why."""
    worker = stub(
        'say(\'{"type": "rea\'); time.sleep(0.05); say(\'dy"}\\n\' + \'{"type": "ready"}\\n\');'
        "print('no torch'); print('Extension modules: a, b'); sys.exit(3)"
    )
    heard: list[Event] = []
    with pytest.raises(WorkerDied, match="the worker ended with exit code 3: no torch") as caught:
        heard.extend(event for _ in itertools.count() for event in worker.receive(TIMEOUT_S))
    assert heard == [Ready(), Ready()]
    assert (caught.value.exit_code, caught.value.exit_signal) == (3, None)


def test_what_it_is_sent_arrives(stub: Stub) -> None:
    worker = stub("sys.stderr.write(sys.stdin.readline()); sys.exit(0)")
    worker.send(Prepare(config={"epochs": 3}, data_dir="/data"))
    with pytest.raises(WorkerDied):
        worker.receive(TIMEOUT_S)
    assert json.loads(worker.log_tail())["config"] == {"epochs": 3}
    worker.send(Prepare(config={}, data_dir=None))  # told by `receive`


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("no JSON\\n", "garbage on the worker's pipe: no message of this protocol"),
        ("x", "garbage on the worker's pipe: a line without end"),
    ],
)
def test_garbage_on_the_pipe_kills_the_worker(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, said: str, reason: str
) -> None:
    monkeypatch.setattr(worker_process, "MAX_LINE_BYTES", 1000)
    worker = stub(f"say('{said}' * 1001); time.sleep(3600)")
    with pytest.raises(WorkerDied, match=reason):
        worker.receive(TIMEOUT_S)
    assert worker.dead()


def test_an_epoch_with_many_observations_is_no_line_without_end(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives whole, from the pipe and from the folder, and no line of it is long."""
    monkeypatch.setattr(worker_process, "MAX_LINE_BYTES", 200_000)
    seen = Observation(
        step=3,
        earlier_step=1,
        layer="blocks.0.attn.qkv",
        stability=0.5,
        mixing_similarity=0.25,
        relative_mixing_similarity=0.125,
    )
    epoch = Epoch(epoch=1, step=3, metrics={"lr": 0.1}, observations=[seen] * 2_000)
    (tmp_path / EVENTS_FILE).write_bytes(encode(epoch))
    worker = stub(f"say(open({str(tmp_path / EVENTS_FILE)!r}).read()); time.sleep(3600)")
    assert wait_until_heard(worker) == [epoch]
    assert list(read_events(tmp_path)) == [epoch]


def wait_until_heard(worker: WorkerProcess) -> list[Event]:
    """What is told by an epoch's lines, which may come in many pieces."""
    heard: list[Event] = []
    while not heard:
        heard += worker.receive(TIMEOUT_S)
    return heard


def test_a_worker_that_closes_its_pipe_and_lives_on_is_killed(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "END_GRACE_S", 0.01)
    worker = stub("os.close(events); time.sleep(3600)")
    with pytest.raises(WorkerDied, match="SIGKILL"):
        worker.receive(TIMEOUT_S)


def test_its_children_die_with_it(stub: Stub) -> None:
    worker = stub('os.fork(); say(\'{"type": "ready"}\\n\'); time.sleep(3600)')
    wait_for(worker, Ready)
    processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children()]
    assert worker.kill()
    psutil.wait_procs(processes, timeout=TIMEOUT_S)
    assert not any(process.is_running() for process in processes)


STARTER = """
import sys, time
from pathlib import Path
from oialr_search.evaluation.devices import WorkerSettings
from oialr_search.evaluation.files import read_events
from oialr_search.evaluation.worker_process import WorkerProcess
worker = WorkerProcess(WorkerSettings(gpu=None, num_threads=1), Path(sys.argv[1]))
print(worker.pid, flush=True)
sys.stdin.read()
"""


def test_no_worker_outlives_its_rank_even_after_kill_9(tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path / "log.txt")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    process = psutil.Process(int(starter.stdout.readline()))
    starter.kill()
    starter.communicate()
    psutil.wait_procs([process], timeout=20)
    assert not process.is_running()


def test_a_worker_inherits_neither_mpi_nor_the_batch_system() -> None:
    environment = {
        "PATH": "/bin",
        "OMPI_COMM_WORLD_RANK": "1",
        "PMIX_RANK": "1",
        "PMI_RANK": "1",
        "HYDI_CONTROL_FD": "9",
        "PRTE_X": "1",
        "I_MPI_X": "1",
        "MV2_X": "1",
        "SLURM_PROCID": "1",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    settings = WorkerSettings(gpu="GPU-5fd2", num_threads=3)
    assert worker_environment(environment, settings) == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "GPU-5fd2",
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "PYTHONUNBUFFERED": "1",
    }


def test_gpus_keep_their_names_and_are_dealt_by_local_rank() -> None:
    gpus = visible_gpus({"CUDA_VISIBLE_DEVICES": "MIG-1,GPU-2, 3"})
    assert gpus == ["MIG-1", "GPU-2", "3"]
    assert [choose_gpu("auto", gpus, rank) for rank in range(4)] == ["MIG-1", "GPU-2", "3", "MIG-1"]
    assert choose_gpu("cpu", gpus, 0) is None
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    with pytest.raises(LookupError, match="'cuda'"):
        choose_gpu("cuda", [], 0)


def test_cores_are_shared_among_the_ranks_bound_to_them() -> None:
    everything = frozenset(range(8))
    assert threads_per_rank(everything, [everything] * 4) == 2
    assert threads_per_rank(frozenset({0, 1}), [frozenset({0, 1}), frozenset({2, 3})]) == 2
    assert threads_per_rank(frozenset({0}), [frozenset({0})] * 3) == 1


def test_a_controller_never_imports_torch() -> None:
    code = (
        "import sys, oialr_search.launch.launch, oialr_search.cli;"
        "import oialr_search.evaluation.repeated_seeds;"
        "heavy = ('torch', 'timm', 'sklearn', 'oialr_training.tasks.measures');"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run(
        [BIN / "python", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
