"""What rank 0 shows while a search runs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from oialr_search.launch import progress
from oialr_search.launch.progress import LastingStream, ProgressDisplay
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Outcome, Status, StorageUnavailable

from ..evaluation.scripted import Clock
from ..storage.storage_examples import (
    epoch_record,
    launched_search,
    new_proposal,
    new_runner,
    started_evaluation,
)


class Shown:
    """A display, its search and what it has shown so far."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self.storage, self.clock = storage, clock
        self.search_id, self.launch_id = launched_search(storage, evaluations_total=4)
        self._stream = io.StringIO()
        self.display: ProgressDisplay

    def begin(self, *, terminal: bool = False) -> None:
        console = Console(file=self._stream, force_terminal=terminal, width=150)
        self.display = ProgressDisplay(self.storage, self.search_id, "top1", console)

    def evaluate(self, generation: int, outcome: Outcome, *, repeat: bool = False) -> int:
        found = started_evaluation(self.storage, self.search_id, self.launch_id, generation)
        self.storage.finish_evaluation(found[1], outcome, repeat=repeat)
        return found[1]

    def lines(self) -> list[str]:
        """Since the last time."""
        self.clock.sleep(1.0)
        self.display.refresh()
        text = self._stream.getvalue()
        self._stream.seek(0)
        self._stream.truncate()
        return text.splitlines()


@pytest.fixture
def shown(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    clock = Clock()
    clock.replace(monkeypatch, progress)
    shutil.copy(empty_database, tmp_path / "search.db")
    with open_storage(str(tmp_path / "search.db")) as storage:
        yield Shown(storage, clock)


def done(fitness: float) -> Outcome:
    return Outcome(
        status=Status.COMPLETED,
        fitness=fitness,
        metrics={"top1": 100.0 - fitness},
        trainable_percent=12.345,
    )


def test_a_line_an_evaluation(shown: Shown) -> None:
    shown.begin()
    shown.evaluate(0, done(3.5))
    (line,) = shown.lines()
    assert line.startswith("00:00:01 [1/4]     1 fitness 3.5000  top1 96.5000  trainable 12.3 %  ")
    assert line.endswith(" s  best so far")
    shown.evaluate(1, done(4.5))
    shown.evaluate(2, done(2.5))
    worse, better = shown.lines()
    assert "[2/4]     2 fitness 4.5" in worse
    assert not worse.endswith("best so far")
    assert better.endswith("best so far")
    assert shown.lines() == []


def test_only_the_last_attempt_ends_an_individual(shown: Shown) -> None:
    shown.begin()
    killed = Outcome(status=Status.FAILED, reason="killed by SIGKILL")
    shown.evaluate(0, killed, repeat=True)
    assert shown.lines() == ["00:00:01 [0/4]     1 failed: killed by SIGKILL"]
    again = shown.storage.claim(shown.search_id, new_proposal(9), 4, new_runner(shown.launch_id))
    assert again is not None
    shown.storage.finish_evaluation(again.evaluation.id, killed)
    pruned = Outcome(status=Status.PRUNED, reason="stopped after epoch 2: among the worst")
    shown.evaluate(1, pruned)
    assert shown.lines() == [
        "00:00:02 [1/4]     1 failed: killed by SIGKILL",
        "00:00:02 [2/4]     2 pruned: stopped after epoch 2: among the worst",
    ]


def test_elapsed_time_does_not_begin_anew_after_a_day(shown: Shown) -> None:
    shown.begin()
    shown.clock.sleep(25 * 3600 + 61)
    shown.evaluate(0, done(1.0))
    (line,) = shown.lines()
    assert line.startswith("25:01:02 [1/4]")


def test_what_earlier_launches_did_is_counted_and_not_told(shown: Shown) -> None:
    shown.evaluate(0, done(1.0))
    shown.begin()
    assert shown.lines() == []
    shown.evaluate(1, done(2.0))
    (line,) = shown.lines()
    assert "[2/4]" in line
    assert not line.endswith("best so far")


def test_a_warning_is_told_once_however_many_evaluations_it_concerns(shown: Shown) -> None:
    shown.begin()
    for layer in ("head", "stem"):
        shown.display.warn(f"a setting has no effect: {layer}")
    shown.display.warn("something else")
    assert shown.lines() == ["warning: a setting has no effect: head", "warning: something else"]


def test_on_a_terminal_there_is_a_bar(shown: Shown) -> None:
    shown.begin(terminal=True)
    _, evaluation_id = started_evaluation(shown.storage, shown.search_id, shown.launch_id)
    shown.storage.add_epoch(evaluation_id, epoch_record(7, top1=1.0))
    shown.clock.sleep(1.0)
    shown.display.close()
    text = "\n".join(shown.lines())
    assert "running individual:epoch 1:7" in text
    assert "0/4" in text


def test_a_database_that_is_away_leaves_the_display_as_it_is(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown.begin()

    def progress_of(self: Storage, search_id: int) -> None:
        raise StorageUnavailable("connection refused")

    shown.evaluate(0, done(1.0))
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "progress", progress_of)
        assert shown.lines() == []
    assert len(shown.lines()) == 1


def test_output_that_nobody_reads_ends_nothing() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    stream = LastingStream(Full())
    assert stream.write("hello") == 5
    stream.flush()
    assert stream.encoding is None
