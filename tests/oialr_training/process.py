"""A worker process of one's own: what it is told, what it says, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from oialr_training.protocol import Event, Hello, Message, Progressed, decode, encode
from oialr_training.tasks import validate_training
from oialr_training.yaml_files import read_yaml

from ..conftest import DIGITS, ROOT

TIMEOUT_S = 60.0


def digits(**changes: Any) -> dict[str, Any]:
    """A digits training of 13 steps and some hundredths of a second an epoch, as requests have it.

    It converts at step 15 and updates at 15, 28, 41 ...; `oialr__delay_steps` is a dotted path.
    """
    content = {k: v for k, v in read_yaml(DIGITS).items() if k not in ("search", "space")}
    content["model"] |= {"depth": 2, "embed_dim": 32}
    content["data"] |= {"train_subset": 500}
    content["oialr"] |= {
        "delay_steps": 15, "update_frequency": 13, "layer_fraction": 0.5, "cutoff_fraction": 0.4,
    }  # fmt: skip
    content |= {"epochs": 4, "num_threads": 1}
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = content
        for name in sections:
            section = section[name]
        section[key] = value
    return validate_training(content, "test").model_dump(mode="json")


class Process:
    """`python -m oialr_training`, its pipe and its log."""

    def __init__(self, log: Path) -> None:
        self.log = log
        events, theirs = os.pipe()
        command = [sys.executable, "-m", "oialr_training", "--events", str(theirs)]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--parent", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                start_new_session=True,
                cwd=ROOT,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            )
        os.close(theirs)
        self._events = os.fdopen(events, "rb")
        self.pid = self._process.pid

    def send(self, *messages: Message) -> None:
        assert self._process.stdin is not None
        for message in messages:
            self._process.stdin.write(encode(message))
        self._process.stdin.flush()

    def events(self) -> Iterator[Event]:
        """What it says, but for its being alive; until it ends."""
        for line in self._events:
            event = decode(line)
            if not isinstance(event, Progressed | Hello):
                yield event

    def wait(self) -> int:
        return self._process.wait(TIMEOUT_S)

    def kill(self) -> None:
        """Kill this one process, and not its group."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._events.close()


@contextmanager
def started(log: Path) -> Iterator[Process]:
    """A worker that is gone afterwards."""
    process = Process(log)
    try:
        yield process
    finally:
        process.close()


def gone(processes: list[psutil.Process], within_s: float) -> bool:
    """Have they all ended before the deadline?"""
    deadline = time.monotonic() + within_s
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
