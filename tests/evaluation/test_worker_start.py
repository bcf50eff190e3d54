"""Workers of another environment: behind a prefix, by another Python, and what is wrong with it."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from oialr_search.evaluation.devices import WorkerSettings
from oialr_search.evaluation.evaluator import Evaluator
from oialr_search.evaluation.worker_process import WorkerProcess, worker_environment
from oialr_search.space.search_file import load_search
from oialr_search.space.workers import WorkerConfig
from oialr_training.errors import ConfigError
from oialr_training.protocol import PROTOCOL, Completed, Evaluate, Event, Hello, Ready, encode
from oialr_training.yaml_files import dump_yaml

SEARCH = {
    "command": "sh train.sh {lr}",
    "metrics": {"loss": "lower"},
    "search": {"name": "mine", "metric": "loss", "evaluations": 2, "islands": 1},
    "space": {"lr": {"low": 0.5, "high": 1.5}},
}


def executable(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@contextmanager
def prepared(folder: Path, **worker: Any) -> Iterator[Evaluator]:
    """An evaluator whose first worker is ready."""
    path = folder / "search.yaml"
    path.write_text(dump_yaml(SEARCH | {"command": f"sh {folder / 'train.sh'} {{lr}}"}))
    (folder / "train.sh").write_text(
        'echo printed; echo "{\\"epoch\\": 1, \\"loss\\": $1}" >> $OIALR_REPORT'
    )
    search_file = load_search(path, worker=worker)
    evaluator = Evaluator(
        search_file=search_file,
        folder=folder,
        data_dir=None,
        worker_settings=WorkerSettings(gpu=None, num_threads=1, start=search_file.worker),
        world_rank=0,
        notify=print,
    )
    try:
        deadline = time.monotonic() + 60
        while not evaluator.prepare():
            assert time.monotonic() < deadline
        yield evaluator
    finally:
        evaluator.stop_spare()


def test_a_prefix_may_print_and_hands_on_standard_output(tmp_path: Path) -> None:
    prefix = executable(
        tmp_path / "prefix", 'echo "welcome"; echo "$1" > $0.given; shift; exec "$@"'
    )
    settings = WorkerSettings(
        gpu=None, num_threads=1, start=WorkerConfig(command=(prefix, "--overlap"))
    )
    (tmp_path / "train.sh").write_text(
        'echo printed; echo \'{"epoch": 1, "loss": 0.5}\' >> $OIALR_REPORT'
    )
    config = {"command": f"sh {tmp_path / 'train.sh'}", "metrics": {"loss": "lower"}}
    worker = WorkerProcess(settings, tmp_path / "log.txt")
    try:
        worker.send(Evaluate(config=config, folder=str(tmp_path)))
        events: list[Event] = []
        while not any(isinstance(event, Completed) for event in events):
            events += worker.receive(60.0)
        assert events[-1].metrics == {"epoch": 1.0, "loss": 0.5}  # type: ignore[union-attr]
        assert worker.hello is not None
        assert worker.hello.protocol == PROTOCOL
        assert worker.hello.versions["python"] == sys.version.split()[0]
        assert "printed" in worker.log_tail()
        assert "welcome" not in worker.log_tail()
        assert (tmp_path / "prefix.given").read_text() == "--overlap\n"
    finally:
        worker.kill()


def test_another_python_tells_its_versions(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", f'exec {sys.executable} "$@"')
    with prepared(tmp_path, python=python) as evaluator:
        assert evaluator.worker_versions["worker python"] == sys.version.split()[0]
    with prepared(tmp_path) as evaluator:
        assert evaluator.worker_versions == {}


def says(line: bytes) -> str:
    """A worker that says this alone."""
    code = f"import os, sys, time; os.write(int(sys.argv[4]), {line!r}); time.sleep(60)"
    return f'exec {sys.executable} -S -c {shlex.quote(code)} "$@"'


NOT_THERE = r"cannot start '.*/python' of `worker`: No such file or directory"
WRONG = {
    "fails": ("exit 3", r"starts no worker \(the worker ended with exit code 3\): it needs oialr"),
    "package": (
        f'exec {sys.executable} -S -I "$@"',
        r"starts no worker \(.*No module named .*oialr_training'?\): it needs",
    ),
    "newer": (says(encode(Hello(protocol=99, versions={}))), r"its protocol is 99, here \d+"),
}


def refused(folder: Path, line: str, **worker: Any) -> None:
    with pytest.raises(ConfigError, match=line) as caught, prepared(folder, **worker):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "env"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_environment_is_one_line(tmp_path: Path, wrong: str, prefix: str) -> None:
    script, line = WRONG[wrong]
    refused(tmp_path, line, python=executable(tmp_path / "python", script), command=prefix)


def test_an_environment_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path, NOT_THERE, python=str(tmp_path / "python"))


def test_a_worker_of_a_version_without_greeting_is_one_line(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", says(encode(Ready())))
    refused(tmp_path, r"its protocol is 0, here \d+", python=python)


def test_srun_finds_its_job_and_a_worker_else_does_not() -> None:
    environment = {"SLURM_JOB_ID": "7", "PMI_RANK": "1", "PATH": "/bin", "PGPASSWORD": "secret"}
    own = worker_environment(environment, WorkerSettings(gpu=None, num_threads=1))
    srun = WorkerSettings(gpu=None, num_threads=1, start=WorkerConfig(command=("srun",)))
    behind = worker_environment(environment, srun)
    assert "SLURM_JOB_ID" not in own
    assert behind["SLURM_JOB_ID"] == "7"
    for removed in ("PMI_RANK", "PGPASSWORD"):
        assert removed not in own | behind


def test_how_workers_start_is_of_the_launch_and_not_of_the_search(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(dump_yaml(SEARCH | {"worker": {"python": "/a", "command": "srun '-n 1'"}}))
    given = load_search(path)
    assert given.worker == WorkerConfig(python="/a", command=("srun", "-n 1"))
    assert given.worker.shown == "srun '-n 1' /a"
    other = load_search(path, ["worker.command=[env]"], worker={"python": "/b"})
    assert other.worker == WorkerConfig(python="/b", command=("env",))
    assert json.dumps(given.as_json()) == json.dumps(other.as_json())
    for wrong, line in (("worker.pyhton=a", "unknown key `worker.pyhton`"), ("worker=3", "worker")):
        with pytest.raises(ConfigError, match=line):
            load_search(path, [wrong])
