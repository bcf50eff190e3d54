"""Launches of a search under mpiexec; their processes bear a mark in their environment."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from oialr_training.protocol import EVENTS_FILE

MARK = "CHAOS_LAUNCH"
POLL_S = 0.02
END_LIMIT_S = 15.0


class Hung(Exception):  # noqa: N818
    """What should have come did not come."""


def wait_until(condition: Callable[[], object], limit_s: float, what: str) -> None:
    """Poll until something is so.

    Raises:
        Hung: when it is not in time.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise Hung(f"{what}: not within {limit_s:g} s")
        time.sleep(POLL_S)


class Launch:
    """One launch, from its start to the end of its last process."""

    def __init__(
        self, line: Sequence[str], folder: Path, environment: Mapping[str, str], output: Path
    ) -> None:
        self._mark = uuid.uuid4().hex
        self.output = output
        self.since = time.monotonic()
        self.disturbed = False
        """Was something killed so that no exit code can be promised?"""
        with output.open("w") as file:
            self.mpiexec = subprocess.Popen(
                line,
                cwd=folder,
                env={**environment, MARK: self._mark},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        """All that lives of this launch."""
        return [p for p in psutil.process_iter() if _environment(p).get(MARK) == self._mark]

    def ranks(self) -> list[psutil.Process]:
        """Its controllers, by world rank."""
        pythons = [p for p in self.processes() if _is_python(p)]
        ranks = [p for p in pythons if "oialr_training" not in _command(p)]
        return sorted(ranks, key=lambda p: int(_environment(p).get("PMI_RANK", 0)))

    def workers(self) -> list[psutil.Process]:
        """Its workers, those that wait for work included."""
        return [p for p in self.processes() if _is_python(p) and "oialr_training" in _command(p)]

    def trainings(self) -> list[psutil.Process]:
        """Its workers that train."""
        return [p for p in self.workers() if _has_begun(_log_of(p))]

    def ended(self) -> bool:
        """Is mpiexec gone?"""
        return self.mpiexec.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Signal mpiexec."""
        with suppress(ProcessLookupError):
            self.mpiexec.send_signal(number)

    def wait_for_the_last(self) -> None:
        """Wait until no process of it is left.

        Raises:
            Hung: when one is.
        """
        try:
            wait_until(lambda: self.ended() and not self.processes(), END_LIMIT_S, "the end")
        except Hung:
            left = [f"{p.pid} {' '.join(_command(p))}" for p in self.processes()]
            raise Hung(f"left over after {END_LIMIT_S:g} s: {left}") from None

    def kill(self) -> None:
        """Kill all that is left."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.mpiexec.wait()


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.Error, OSError):
        return []


def _is_python(process: psutil.Process) -> bool:
    return Path((_command(process) or [""])[0]).name.startswith("python")


def _log_of(worker: psutil.Process) -> Path:
    try:
        return Path(os.readlink(f"/proc/{worker.pid}/fd/1"))
    except OSError:
        return Path()


def _has_begun(log: Path) -> bool:
    return log.name == "log.txt" and (log.parent / EVENTS_FILE).exists()
