"""A worker that does what a test has written, and the time, which passes only where a test waits.

Both are strict: what is not in the script fails the test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from oialr_search.evaluation.devices import WorkerSettings
from oialr_search.evaluation.worker_process import WorkerDied, WorkerProcess
from oialr_training.protocol import Completed, Epoch, Evaluate, Event, Message, Prepare, Started

BEGAN = 1_700_000_000.0


class Clock:
    """Stands in for the module `time`."""

    strftime = staticmethod(time.strftime)

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return BEGAN + self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def replace(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        """Be the time of these modules."""
        for module in modules:
            monkeypatch.setattr(module, "time", self)


class Silence(float):
    """Seconds in which a worker says nothing."""


Line = Event | WorkerDied | Silence | type[Message] | Callable[["ScriptedWorker"], Event | None]
"""What a worker says, how it dies, how long it is silent, what it waits for, what happens then or
what it says to that."""


class ScriptedWorker(WorkerProcess):
    """Plays one script: what is to be sent to it stands there, too."""

    def __init__(self, script: Sequence[Line], log_path: Path, clock: Clock) -> None:
        self.log_path = log_path
        log_path.write_text("the worker's log\n")
        self.sent: list[Message] = []
        self.released = self.killed = False
        self._script = list(script)
        self._clock = clock
        self._silent_until = 0.0
        self._dead = False

    @property
    def pid(self) -> int:
        return 4711

    def send(self, message: Message) -> None:
        assert not self.killed, f"sent to a killed worker: {message}"
        self.sent.append(message)
        if self._dead:
            return
        waits_for = next((line for line in self._script if isinstance(line, type)), None)
        assert waits_for is type(message), f"the script waits for {waits_for}, not for {message}"
        self._script.remove(waits_for)

    def receive(self, timeout_s: float) -> list[Event]:
        assert not self.killed, "a killed worker says nothing"
        said: list[Event] = []
        while self._silent_until <= self._clock.now:
            assert self._script, "nothing more is in the script"
            match self._script[0]:
                case type():
                    break
                case Silence() as seconds:
                    self._silent_until = self._clock.now + seconds
                case WorkerDied() as death:
                    if said:
                        return said
                    self._dead = True
                    self._script.clear()
                    raise death
                case event if isinstance(event, Event):
                    said.append(event)
                case happens:
                    answer = happens(self)  # type: ignore[operator]
                    said += [answer] if answer is not None else []
            del self._script[0]
            if not self._script:
                return said
        if not said:
            self._clock.sleep(timeout_s)
        return said

    def dead(self) -> bool:
        return self._dead

    def die(self) -> None:
        """Unheard, while it waits."""
        self._dead = True

    def kill(self) -> bool:
        self.killed = True
        return True

    def release(self) -> None:
        assert not self._script, f"released before its end: {self._script}"
        self.released = True


class Workers:
    """The workers of a rank, script by script; more than these must not be started."""

    def __init__(self, scripts: Iterable[Sequence[Line]], clock: Clock) -> None:
        self._scripts = iter(scripts)
        self._clock = clock
        self.started: list[ScriptedWorker] = []

    def __call__(self, settings: WorkerSettings, log_path: Path) -> ScriptedWorker:
        script = next(self._scripts, None)
        assert script is not None, "no such worker is in the script"
        self.started.append(ScriptedWorker(script, log_path, self._clock))
        return self.started[-1]


def started(**changes: Any) -> Started:
    values: dict[str, Any] = {"at": BEGAN, "total_steps": 8, "parameters": 9, "layers": "none"}
    return Started(**values | {"device": "cpu"} | changes)


def epoch(number: int, **metrics: float) -> Epoch:
    """An epoch in which nothing was updated; its accuracy is ten times its number."""
    measured = {"validation_loss": 1.0 / number, "validation_top1": 10.0 * number}
    measured |= {"train_loss": 1.0, "trainable_percent": 12.5, "compression_percent": 80.0}
    return Epoch(epoch=number, step=4 * number, metrics=measured | metrics)


def completed(top1: float = 90.0, **changes: Any) -> Completed:
    values: dict[str, Any] = {
        "metrics": {"epoch": 2.0, "validation_top1": top1, "validation_loss": 0.5},
        "trainable_percent": 12.5,
        "compression_percent": 80.0,
        "device": "cpu",
        "duration_s": 2.0,
        "at": BEGAN + 2.0,
    }
    return Completed(**values | changes)


def trains(top1: float = 90.0) -> Iterator[Line]:
    """From the start of a worker that is not waited for to its result."""
    yield from (Prepare, Evaluate, started(), epoch(1), epoch(2), completed(top1))
