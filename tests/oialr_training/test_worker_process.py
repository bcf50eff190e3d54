"""The worker process: killed and resumed, stopped, on a full disk; nothing outlives it."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from oialr_training.__main__ import Worker
from oialr_training.protocol import (
    EVENTS_FILE,
    RESULT_FILE,
    Completed,
    Epoch,
    Evaluate,
    Event,
    Failed,
    Prepare,
    Progressed,
    Ready,
    Started,
    Stop,
    Stopped,
    decode,
)
from oialr_training.tasks import load_training

from ..conftest import SEARCH_SPACES
from .process import digits, gone, started
from .test_data import make_images
from .trained import told, train_here, work_here


def evaluate(folder: Path, config: dict[str, Any], **more: Any) -> Evaluate:
    folder.mkdir(exist_ok=True)
    return Evaluate(config=config, folder=str(folder), **more)


def run(folder: Path, config: dict[str, Any], **more: Any) -> list[Event]:
    """All events of an evaluation that ends by itself."""
    with started(folder.with_suffix(".log")) as worker:
        worker.send(evaluate(folder, config, **more))
        events = list(worker.events())
        assert worker.wait() == 0
    return events


def resumed_epoch(events: list[Event]) -> int:
    (start,) = [event for event in events if isinstance(event, Started)]
    return start.resumed_epoch


OBSERVED = {"interval_steps": 5, "lags": [1, 3]}


@pytest.mark.parametrize(
    ("killed_after", "changes"),
    [
        pytest.param(2, {"oialr__delay_steps": 90}, id="before conversion", marks=pytest.mark.slow),
        pytest.param(
            3,
            {"oialr__delay_steps": 30, "oialr__update_frequency": 90},
            id="after conversion",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            4,
            {"result_epoch": "best", "optimizer__lr": 0.02, "observation": OBSERVED},
            id="after truncation, best epoch",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_killed_training_goes_on_to_the_same_digits(
    tmp_path: Path, killed_after: int, changes: dict[str, Any]
) -> None:
    config, state = digits(epochs=10, **changes), tmp_path / "state"
    uninterrupted, _ = train_here(config, evaluate_test=True)
    with started(tmp_path / "log1") as first, started(tmp_path / "log2") as second:
        first.send(evaluate(tmp_path / "first", config, state_file=str(state)))
        for event in first.events():
            assert not isinstance(event, Completed | Failed)
            if isinstance(event, Epoch) and event.epoch == killed_after:
                break
        first.kill()
        assert state.exists()
        more = {"evaluate_test": True, "state_file": str(state)}
        second.send(evaluate(tmp_path / "second", config, **more))
        events = list(second.events())
        assert second.wait() == 0
    assert killed_after - 1 <= resumed_epoch(events) < 10
    assert told(events) == told(uninterrupted)
    assert any(e.observations for e in events if isinstance(e, Epoch)) == ("observation" in changes)
    assert not state.exists()
    assert not state.with_name("state.part").exists()
    completed = events[-1]
    assert isinstance(completed, Completed)
    epoch_s = [event.metrics["epoch_s"] for event in events if isinstance(event, Epoch)]
    assert sum(epoch_s) < completed.duration_s  # of both attempts


def test_what_is_said_is_also_in_the_folder(tmp_path: Path) -> None:
    events = work_here(evaluate(tmp_path / "evaluation", digits()))
    lines = (tmp_path / "evaluation" / EVENTS_FILE).read_bytes().splitlines()
    assert [decode(line) for line in lines] == events
    assert [type(event) for event in events] == [Started, *[Epoch] * 4, Completed]
    assert isinstance(events[0], Started)
    assert events[0].device == "cpu"


def test_a_training_that_moves_touches_its_events(tmp_path: Path) -> None:
    """So that `status` says when it was last heard, also within an epoch."""
    end, pipe = os.pipe()
    worker = Worker(pipe)
    worker._folder = tmp_path
    worker.report(Progressed(step=1))  # before there is a file: no line, no failure
    worker.report(Started(at=1.0, total_steps=3, parameters=4, layers="all"))
    file = tmp_path / EVENTS_FILE
    said = file.read_bytes()
    os.utime(file, (0, 0))
    worker.report(Progressed(step=2))
    assert file.stat().st_mtime > 0
    assert file.read_bytes() == said
    os.close(end)
    os.close(pipe)


def test_a_failure_is_also_in_the_folder_and_its_state_is_gone(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_bytes(b"something")
    config = digits(optimizer__lr=1e30)
    events = work_here(evaluate(tmp_path / "evaluation", config, state_file=str(state)))
    assert isinstance(events[-1], Failed)
    assert events[-1].cause == "training"
    assert events[-1].resources.peak_host_memory_bytes
    lines = (tmp_path / "evaluation" / EVENTS_FILE).read_bytes().splitlines()
    assert [decode(line) for line in lines] == events
    assert decode((tmp_path / "evaluation" / RESULT_FILE).read_bytes()) == events[-1]
    assert not state.exists()


@pytest.mark.parametrize("keep", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_stop_ends_after_the_epoch_and_the_rest_follows_later(tmp_path: Path, keep: bool) -> None:
    config, more = digits(epochs=40), {"state_file": str(tmp_path / "state")} if keep else {}
    with started(tmp_path / "log") as worker:
        worker.send(evaluate(tmp_path / "first", config, **more))
        events = []
        for event in worker.events():
            events.append(event)
            if isinstance(event, Epoch) and event.epoch == 2:
                worker.send(Stop(reason="pruned"), Stop(reason="launch_stops"))
        assert worker.wait() == 0
    *_, last_epoch, stopped = events
    assert isinstance(stopped, Stopped)
    assert isinstance(last_epoch, Epoch)
    assert stopped.reason == "pruned"  # what was said first
    assert 2 <= stopped.epoch == last_epoch.epoch < 40
    assert stopped.resources.samples_per_s
    assert not (tmp_path / "first" / RESULT_FILE).exists()
    assert decode((tmp_path / "first" / EVENTS_FILE).read_bytes().splitlines()[-1]) == stopped
    if keep:
        rest = run(tmp_path / "second", config, **more)
        assert resumed_epoch(rest) == stopped.epoch
        assert rest[1 : stopped.epoch + 1] == events[1:-1]
        assert isinstance(rest[-1], Completed)
    else:
        assert not (tmp_path / "state").exists()


def test_a_stop_in_the_last_epoch_changes_nothing(tmp_path: Path) -> None:
    message = evaluate(tmp_path / "evaluation", digits(epochs=1))
    events = work_here(message, lambda _, stops: stops.append(Stop()))
    assert [type(event) for event in events] == [Started, Epoch, Completed]


def test_a_stop_before_the_evaluation_ends_the_process(tmp_path: Path) -> None:
    with started(tmp_path / "log") as worker:
        worker.send(Prepare(config=digits(), data_dir=None), Stop())
        assert [type(event) for event in worker.events()] == [Ready]
        assert worker.wait() == 0


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file grows past 20 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_state_that_finds_no_room_does_not_end_the_training(
    tmp_path: Path, full_disk: None, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    events = work_here(evaluate(tmp_path / "evaluation", digits(), state_file=str(state)))
    assert isinstance(events[-1], Completed)
    lines = [line for line in caplog.messages if "cannot keep" in line]
    assert len(lines) == 3
    assert all("File too large" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]


def test_events_and_a_result_that_find_no_room_still_arrive(
    tmp_path: Path, full_disk: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    old = b"x" * 19_900 + b"\n"
    (folder / EVENTS_FILE).write_bytes(old)
    (folder / RESULT_FILE).mkdir()
    events = work_here(evaluate(folder, digits()))
    assert [type(event) for event in events] == [Started, *[Epoch] * 4, Completed]
    assert (folder / EVENTS_FILE).read_bytes() == old  # no half line
    assert {path.name for path in folder.iterdir()} == {EVENTS_FILE, RESULT_FILE}
    assert any("cannot write the result" in line for line in caplog.messages)
    assert any(f"{EVENTS_FILE}: File too large" in line for line in caplog.messages)


def test_a_segmentation_fault_leaves_its_place_in_the_log(tmp_path: Path) -> None:
    with started(tmp_path / "log") as worker:
        worker.send(Prepare(config=digits(), data_dir=None))
        next(iter(worker.events()))
        os.kill(worker.pid, signal.SIGSEGV)
        assert worker.wait() == -signal.SIGSEGV
    log = (tmp_path / "log").read_text()
    assert "Segmentation fault" in log
    assert "__main__.py" in log


def cifar10(**changes: str) -> dict[str, Any]:
    small = {
        "model.embed_dim": "24", "model.depth": "1", "model.num_heads": "3", "batch_size": "4",
        "epochs": "10000", "num_threads": "1", "data.num_loader_processes": "2", "device": "cpu",
    }  # fmt: skip
    path = SEARCH_SPACES / "training" / "minivit_cifar10_baseline.yaml"
    assignments = [f"{name}={value}" for name, value in (small | changes).items()]
    return load_training(path, assignments).model_dump(mode="json")


def test_loader_processes_die_with_a_killed_worker(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    with started(tmp_path / "log") as worker:
        worker.send(Prepare(config=cifar10(), data_dir=str(images)))
        worker.send(evaluate(tmp_path / "evaluation", cifar10()))
        for event in worker.events():
            if isinstance(event, Epoch):
                break
        loaders = psutil.Process(worker.pid).children()
        assert len(loaders) == 2
        for loader in loaders:
            loader.suspend()  # so that torch's own watch cannot end it
        worker.kill()
        assert gone(loaders, within_s=10)


def test_a_killed_loader_process_is_the_machine_s_fault(tmp_path: Path) -> None:
    images, state = make_images(tmp_path / "images"), tmp_path / "state"
    with started(tmp_path / "log") as worker:
        worker.send(Prepare(config=cifar10(), data_dir=str(images)))
        worker.send(evaluate(tmp_path / "evaluation", cifar10(), state_file=str(state)))
        events = worker.events()
        for event in events:
            if isinstance(event, Epoch) and event.epoch == 2:
                break
        psutil.Process(worker.pid).children()[0].kill()
        *_, failed = events
        assert worker.wait() == 0
    assert isinstance(failed, Failed)
    assert failed.cause == "machine"
    assert "DataLoader worker" in failed.reason
    assert len(failed.reason.splitlines()) == 1
    assert state.exists()
