"""The state of a training on disk: the same digits after it, and what is no such state."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from oialr_training import training
from oialr_training.protocol import Completed, Epoch, Event, Started
from oialr_training.sections import OptimizerConfig
from oialr_training.state import FORMAT, StateFile, identity
from oialr_training.tasks import TASKS, load_training, validate_training
from oialr_training.tasks.minivit import MiniViTDigits
from oialr_training.training import CHEAP_WRITE_S

from ..conftest import ROOT, SEARCH_SPACES, SHARED
from .process import digits
from .test_forecast_training import EARLY_OIALR, SMALL
from .trained import told, train_here

DATA = SHARED / "data"
STORED = ROOT / "tests" / "stored_search" / "version-0.1.0.tar.xz"


def after(epoch: int) -> Callable[[list[Event]], bool]:
    return lambda events: isinstance(events[-1], Epoch) and events[-1].epoch == epoch


def forecast(kind: str, **changes: Any) -> dict[str, Any]:
    assignments = [f"{key}={value}" for key, value in (SMALL | changes).items()]
    path = SEARCH_SPACES / "training" / f"autoformer_ettm2_96_{kind}.yaml"
    return load_training(path, assignments).model_dump(mode="json")


def resumed_epoch(events: list[Event]) -> int:
    (start,) = [event for event in events if isinstance(event, Started)]
    return start.resumed_epoch


def assert_same_network(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


LATE = {"oialr.delay_steps": 70, "oialr.update_frequency": 10, "oialr.full_rank_warmup": "true"}


@pytest.mark.parametrize(
    ("kind", "changes", "stopped_after"),
    [
        # Low-rank from the first step, cut at step 20.
        pytest.param("untuned", EARLY_OIALR, 1, marks=pytest.mark.slow),
        pytest.param("untuned", EARLY_OIALR, 3, marks=pytest.mark.slow),
        pytest.param("untuned", EARLY_OIALR | {"result_epoch": "last"}, 2, marks=pytest.mark.slow),
        pytest.param("untuned", LATE, 2, marks=pytest.mark.slow),  # dense till step 70
        pytest.param("tuned", EARLY_OIALR, 2, marks=pytest.mark.slow),
        pytest.param("baseline", {}, 2, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_autoformer_comes_to_the_same_digits(
    tmp_path: Path, kind: str, changes: dict[str, Any], stopped_after: int
) -> None:
    if not DATA.is_dir():
        pytest.skip(f"no ETTm2 in {DATA}")
    early_end = {"epochs": 6, "early_stopping_patience": 1, "optimizer.lr": 3e-3}
    config = forecast(kind, **(early_end | changes))
    whole, expected = train_here(config, DATA, evaluate_test=True)
    assert sum(isinstance(event, Epoch) for event in whole) > stopped_after
    state = tmp_path / "state"
    first, _ = train_here(config, DATA, state, after(stopped_after))
    second, trained = train_here(config, DATA, state, evaluate_test=True)
    assert resumed_epoch(second) == stopped_after
    assert second[1 : stopped_after + 1] == first[1:]
    assert told(second) == told(whole)
    assert trained is not None
    assert expected is not None
    assert_same_network(trained.model, expected.model)


@pytest.mark.parametrize("best", [True, False])
def test_early_stopping_counts_on(tmp_path: Path, best: bool) -> None:
    changes = {"result_epoch": "best" if best else "last", "optimizer__lr": 0.05}
    config = digits(epochs=30, early_stopping_patience=3, oialr=None, **changes)
    whole, expected = train_here(config, evaluate_test=True)
    num_epochs = sum(isinstance(event, Epoch) for event in whole)
    assert 5 < num_epochs < 30
    # One epoch without a lower loss lies before the end of the first attempt, the others after.
    state = tmp_path / "state"
    train_here(config, None, state, after(num_epochs - 2))
    second, trained = train_here(config, None, state, evaluate_test=True)
    assert resumed_epoch(second) == num_epochs - 2
    assert told(second) == told(whole)
    assert trained is not None
    assert expected is not None
    assert_same_network(trained.model, expected.model)


def test_every_epoch_can_be_the_last_of_an_attempt(tmp_path: Path) -> None:
    config = digits(epochs=5, observation={"interval_steps": 4, "lags": [2]})
    whole, _ = train_here(config)
    state = tmp_path / "state"
    for epoch in range(1, 5):
        events, _ = train_here(config, None, state, after(epoch))
        assert resumed_epoch(events) == epoch - 1
    events, _ = train_here(config, None, state)
    assert told(events) == told(whole)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The state after two epochs of the digits."""
    path = tmp_path_factory.mktemp("kept") / "state"
    train_here(digits(), None, path, after(2))
    return path.read_bytes()


def flipped(state: bytes) -> bytes:
    """One bit of a weight is another."""
    middle = len(state) // 2
    return state[:middle] + bytes([state[middle] ^ 1]) + state[middle + 1 :]


def pickled(_: bytes) -> bytes:
    """A whole file that would execute something when it is unpickled."""
    file = io.BytesIO()
    torch.save({"identity": Path("/")}, file)
    return FORMAT + hashlib.sha256(file.getvalue()).digest() + file.getvalue()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is written after every epoch, however busy the disk is."""
    monkeypatch.setattr(training, "CHEAP_WRITE_S", math.inf)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flipped, "damaged"),
        (lambda state: state[:-1], "damaged"),
        (lambda state: state[: len(FORMAT) + 5], "damaged"),
        (lambda state: b"", "no state"),
        (lambda state: b"another format\n" + state, "no state"),
        (pickled, "Weights only load failed"),
    ],
)
def test_a_damaged_state_is_ignored(
    tmp_path: Path,
    kept: bytes,
    damage: Callable[[bytes], bytes],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = tmp_path / "state"
    state.write_bytes(damage(kept))
    events, _ = train_here(digits(), None, state)
    assert resumed_epoch(events) == 0
    assert isinstance(events[-1], Completed)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert words in line
    assert str(state) in line
    assert "\n" not in line
    # Its place is taken by a good one.
    assert resumed_epoch(train_here(digits(), None, state)[0]) == 3


@pytest.mark.parametrize(
    ("changes", "usable"),
    [
        ({"seed": 1}, False),
        ({"epochs": 5}, False),
        ({"oialr__cutoff_fraction": 0.41}, False),
        ({"provenance": {"search": "another"}}, True),
        ({"device": "cpu"}, True),
    ],
)
def test_a_state_serves_its_own_configuration_only(
    tmp_path: Path, kept: bytes, changes: dict[str, Any], usable: bool
) -> None:
    state = tmp_path / "state"
    state.write_bytes(kept)
    events, _ = train_here(digits(**changes), None, state)
    assert resumed_epoch(events) == (2 if usable else 0)


def test_a_state_of_version_0_1_0_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(STORED) as stored:
        stored.extractall(tmp_path, filter="data")
    individual = tmp_path / "searches" / "stored" / "individual-000010"
    config = json.loads((individual / "attempt-1" / "request.json").read_text())
    monkeypatch.setattr(torch, "__version__", "2.15.0+cu132")  # which it was trained with
    events, _ = train_here(config, None, individual / "state.pt")
    assert resumed_epoch(events) == 2
    assert isinstance(events[-1], Completed)
    assert [event.epoch for event in events if isinstance(event, Epoch)] == [1, 2, 3, 4, 5]


class LaterDigits(MiniViTDigits):
    """As a later version may have it."""

    temperature: float = 1.0
    optimizer: LaterOptimizer


class LaterOptimizer(OptimizerConfig):
    momentum: float = 0.5


@pytest.mark.parametrize(
    ("changes", "usable"),
    [({}, True), ({"temperature": 1.0}, True), ({"temperature": 2.0}, False), ({"seed": 1}, False)],
)
def test_a_state_serves_on_after_fields_with_defaults_were_added(
    tmp_path: Path,
    kept: bytes,
    changes: dict[str, Any],
    usable: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(TASKS, "minivit_digits", LaterDigits)
    state = tmp_path / "state"
    state.write_bytes(kept)
    content = validate_training(digits() | changes, "test").model_dump(mode="json")
    assert content["optimizer"]["momentum"] == 0.5
    events, _ = train_here(content, None, state)
    assert resumed_epoch(events) == (2 if usable else 0)


def test_a_state_of_a_task_that_is_gone_is_ignored(
    tmp_path: Path, kept: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateFile(tmp_path / "state")
    (tmp_path / "state").write_bytes(kept)
    monkeypatch.delitem(TASKS, "minivit_digits")
    assert state.read("{}") is None


def test_threads_and_the_kind_of_device_count_where_they_change_digits() -> None:
    config = validate_training(digits(), "test")
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    one = identity(config, cpu), identity(config, gpu)
    torch.set_num_threads(2)
    two = identity(config, cpu), identity(config, gpu)
    torch.set_num_threads(1)
    assert one[0] != two[0]
    assert one[1] == two[1] != one[0]


def test_a_state_that_cannot_be_read_or_written_is_told_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").mkdir()
    events, _ = train_here(digits(epochs=2), None, tmp_path / "folder")
    assert isinstance(events[-1], Completed)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    ours = [record for record in caplog.records if record.name == "oialr_training"]
    starting, keeping = [record.getMessage() for record in ours]
    assert starting.startswith("starting from the beginning")
    assert keeping.startswith("cannot keep the training's state")


@pytest.mark.parametrize("batches", [0, 1, 5])
def test_what_is_given_up_need_not_end_its_epoch(tmp_path: Path, batches: int) -> None:
    """It ends as of the epoch before, and can be gone on with from there."""
    undisturbed, _ = train_here(digits(epochs=3))
    asked = list[int]()

    def given_up(events: list[Event]) -> bool:
        asked.append(len(events))
        return asked.count(3) > batches

    events, trained = train_here(digits(epochs=3), state=tmp_path / "state", stop=given_up)
    assert trained is None
    assert [e.epoch for e in events if isinstance(e, Epoch)] == [1, 2]
    assert asked.count(3) == batches + 1
    rest, _ = train_here(digits(epochs=3), state=tmp_path / "state")
    assert resumed_epoch(rest) == 2
    assert told(rest) == told(undisturbed)


class SlowFile(StateFile):
    """A state on a disk that takes its time."""

    writes = 0

    def write(self, identity: str, content: dict[str, Any]) -> None:
        self.writes += 1
        time.sleep(1.2 * CHEAP_WRITE_S)
        super().write(identity, content)


def test_a_state_that_is_slow_to_write_is_written_seldom_but_when_stopped(tmp_path: Path) -> None:
    slow = SlowFile(tmp_path / "state")
    train_here(digits(epochs=6), stop=after(5), state_file=slow)
    assert slow.writes == 2
    events, _ = train_here(digits(epochs=6), state=tmp_path / "state")
    assert resumed_epoch(events) == 5
