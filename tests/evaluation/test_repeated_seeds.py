"""What `oialr-search train` does with a worker: files, mistakes, failures; in this process."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from oialr_search.evaluation.devices import WorkerSettings
from oialr_search.evaluation.repeated_seeds import TrainingFailed, refuse_completed, summary, train
from oialr_search.evaluation.worker_process import WorkerDied
from oialr_training.errors import ConfigError
from oialr_training.protocol import (
    Completed,
    Evaluate,
    Event,
    Failed,
    Prepare,
    Resources,
    write_result,
)
from oialr_training.tasks import load_training

from ..conftest import SEARCH_SPACES
from .scripted import BEGAN, Clock, Line, Workers, completed, epoch, started

CONFIG = load_training(SEARCH_SPACES / "training" / "minivit_cifar10_baseline.yaml")


def trained(folder: Path, script: Sequence[Line], told: list[Event]) -> Completed:
    """A training by a worker of this script, which is killed in the end."""
    workers = Workers([[Prepare, Evaluate, *script]], Clock())
    settings = WorkerSettings(gpu=None, num_threads=3)
    try:
        return train(
            CONFIG,
            folder=folder,
            data_dir="/data",
            settings=settings,
            report=told.append,
            worker_type=workers,
        )
    finally:
        [worker] = workers.started
        assert worker.killed
        prepare, evaluate = worker.sent
        assert isinstance(prepare, Prepare)
        assert isinstance(evaluate, Evaluate)
        assert (prepare.config["num_threads"], prepare.data_dir) == (3, "/data")
        assert evaluate.evaluate_test
        assert evaluate.save_checkpoint


def test_epochs_are_told_and_kept(tmp_path: Path) -> None:
    folder, told = tmp_path / "out" / "seed-42", list[Event]()
    end = completed()
    script = [started(), epoch(1), epoch(2, train_loss=math.nan), end]
    assert trained(folder, script, told) == end
    assert told == script
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["step"], row["train_loss"]) for row in rows] == [
        (1, 4, 1.0),
        (2, 8, None),
    ]
    assert rows[1]["validation_top1"] == 20.0


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (Failed(reason="diverged", cause="training", at=BEGAN), "diverged"),
        (WorkerDied("worker killed by SIGKILL", -9), "worker killed by SIGKILL"),
    ],
)
def test_a_failure_names_the_log_and_may_be_repeated(
    tmp_path: Path, end: Line, reason: str
) -> None:
    log = tmp_path / "log.txt"
    with pytest.raises(TrainingFailed) as failed:
        trained(tmp_path, [started(), epoch(1), end], [])
    assert str(failed.value) == f"{reason} (log: {log})"
    assert log.exists()
    write_result(tmp_path, Failed(reason=reason, cause="training", at=BEGAN))
    refuse_completed(tmp_path)
    trained(tmp_path, [started(), completed()], [])
    assert not (tmp_path / "result.json").exists()  # its worker would have written another


def test_a_mistake_leaves_nothing(tmp_path: Path) -> None:
    mistake = Failed(reason="no CIFAR-10 in /data", cause="configuration", at=BEGAN)
    with pytest.raises(ConfigError, match="no CIFAR-10 in /data"):
        trained(tmp_path / "new" / "seed-42", [mistake], [])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot make the folder .*file/seed-1: Not a directory"):
        train(
            CONFIG,
            folder=tmp_path / "file" / "seed-1",
            data_dir=None,
            settings=WorkerSettings(gpu=None, num_threads=1),
            report=list[Event]().append,
            worker_type=Workers([], Clock()),
        )


def test_a_completed_training_is_not_overwritten(tmp_path: Path) -> None:
    refuse_completed(tmp_path)
    write_result(tmp_path, completed())
    with pytest.raises(ConfigError, match="holds a training already: name another --output"):
        refuse_completed(tmp_path)


def test_a_summary_has_rows_for_what_was_measured() -> None:
    used = Resources(cpu_energy_j=0.5, peak_host_memory_bytes=2**40, samples_per_s=1e5)
    rows = {row["metric"]: row for row in summary([completed(), completed(resources=used)])}
    assert rows["duration_s"]["seeds"] == 2
    assert (rows["samples_per_s"]["mean"], rows["samples_per_s"]["seeds"]) == (1e5, 1)
    assert not {"gpu_energy_j", "peak_gpu_memory_bytes"} & rows.keys()
