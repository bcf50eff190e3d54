"""WorkerProcess processes: how they start, what they inherit, how they die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from oialr_training.config import load_training
from oialr_training.protocol import (
    Completed,
    Epoch,
    Evaluate,
    Event,
    Failed,
    Prepare,
    Ready,
    Started,
)

from oialr_search.evaluation import worker_process
from oialr_search.evaluation.devices import (
    WorkerSettings,
    choose_gpu,
    threads_per_rank,
    visible_gpus,
)
from oialr_search.evaluation.worker_process import WorkerDied, WorkerProcess, worker_environment

from ..conftest import BIN, DIGITS, SEARCH_SPACES

CPU = WorkerSettings(gpu=None, num_threads=1)
TIMEOUT_S = 60.0


def tiny(**changes: Any) -> dict[str, Any]:
    """A digits training of a second, as a request carries it."""
    from oialr_training.config import validate_training
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


def test_a_diverging_training_is_a_result_not_a_crash(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    config = tiny()
    config["optimizer"]["lr"] = 1e30
    worker.send(Prepare(config=tiny(), data_dir=None))
    worker.send(Evaluate(config=config, folder=str(tmp_path)))
    failed = wait_for(worker, Failed)[-1]
    assert isinstance(failed, Failed)
    assert "diverged" in failed.reason
    assert failed.cause == "training"


def test_missing_data_is_the_configuration_s_fault(worker: WorkerProcess, tmp_path: Path) -> None:
    path = SEARCH_SPACES / "training" / "minivit_cifar10_baseline.yaml"
    config = load_training(path).model_dump(mode="json")
    worker.send(Prepare(config=config, data_dir=str(tmp_path)))
    failed = wait_for(worker, Failed)[-1]
    assert isinstance(failed, Failed)
    assert failed.cause == "configuration"
    assert str(tmp_path) in failed.reason
    assert "--data-dir" in failed.reason


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


def test_garbage_on_the_pipe_kills_the_worker(worker: WorkerProcess) -> None:
    worker._buffer += b"no JSON"
    worker.send(Prepare(config=tiny(), data_dir=None))
    with pytest.raises(WorkerDied, match="garbage"):
        wait_for(worker, Ready)
    assert worker.dead()


def test_what_a_library_prints_goes_to_the_log(worker: WorkerProcess, tmp_path: Path) -> None:
    worker.kill()
    assert worker.log_path.exists()
    moved = tmp_path / "elsewhere.txt"
    worker.move_log(moved)
    assert worker.log_tail() == moved.read_text()


STARTER = """
import sys, time
from pathlib import Path
from oialr_search.evaluation.devices import WorkerSettings
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
        "heavy = ('torch', 'timm', 'sklearn', 'oialr_training.tasks');"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run(
        [BIN / "python", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
