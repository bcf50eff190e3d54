"""One worker process: started, fed, watched, killed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import dropwhile
from pathlib import Path

from oialr_search.evaluation.devices import WorkerSettings
from oialr_search.space.workers import WorkerConfig
from oialr_training.errors import KnownError, ProtocolError
from oialr_training.protocol import Event, EventReader, Hello, Message, encode

# A worker that inherits these believes to be an MPI rank, or a part of the launch.
LAUNCHER_VARIABLES = (
    "OMPI_", "PMIX_", "PMI", "PRTE_", "HYDRA_", "HYDI_", "MPIR_", "I_MPI_", "MV2_", "SLURM_",
)  # fmt: skip
# What opens the database is no business of a training's.
SECRETS = ("OIALR_SEARCH_DB", "PGPASSWORD")
HELLO = b'{"type": "hello"'
READ_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 24
LOG_READ_BYTES = 1 << 14
LOG_TAIL_LENGTH = 4096
END_GRACE_S = 2.0
KILL_LIMIT_S = 5.0
ENDING_LIMIT_S = 60.0


class WorkerDied(KnownError):  # noqa: N818  (an event of the worker's life, not a mistake of ours)
    """The worker process ended, or spoke nonsense, without a result."""

    cause = "machine"

    def __init__(self, reason: str, exit_code: int | None = None) -> None:
        super().__init__(reason)
        self.exit_code = exit_code if exit_code is not None and exit_code >= 0 else None
        self.exit_signal = -exit_code if exit_code is not None and exit_code < 0 else None


class WorkerProcess:
    """One worker process, from its start to its death; it trains one evaluation."""

    hello: Hello | None = None
    """Who it is, when it has said so."""

    def __init__(self, settings: WorkerSettings, log_path: Path) -> None:
        self.log_path = log_path
        self._released_at = 0.0
        self._buffer = bytearray()
        self._reader = EventReader()
        with log_path.open("ab") as log:
            self._events, events_for_worker = os.pipe()
            os.set_blocking(self._events, False)
            # A batch system or container hands on its standard output, and no other descriptor.
            self._prefixed = bool(settings.start.command)
            events = "1" if self._prefixed else str(events_for_worker)
            command = [*python_of(settings.start), "-m", "oialr_training", "--events", events]
            command += [] if self._prefixed else ["--parent", str(os.getpid())]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=events_for_worker if self._prefixed else log,
                    stderr=log,
                    env=worker_environment(os.environ, settings),
                    pass_fds=() if self._prefixed else (events_for_worker,),
                    start_new_session=True,
                )
            except OSError:
                os.close(self._events)
                raise
            finally:
                os.close(events_for_worker)

    @property
    def pid(self) -> int:
        """Process id, which is also that of the worker's group."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Hand the worker a message; one that is dead already says so in `receive`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(encode(message))
            self._process.stdin.flush()

    def receive(self, timeout_s: float) -> list[Event]:
        """The events that have come, after waiting at most `timeout_s` for the first.

        Raises:
            WorkerDied: when the process is dead and all that it said has been received.
        """
        select.select([self._events], [], [], timeout_s)
        # Asked before reading: what a dead process has said is in the pipe. Its children may hold
        # the pipe open, so its end alone does not tell.
        dead = self.dead()
        try:
            chunk = os.read(self._events, READ_BYTES)
            closed = not chunk
        except BlockingIOError:
            chunk, closed = b"", dead
        if closed:
            exit_code = self._wait_or_kill()
            raise WorkerDied(self._reason_of_death(exit_code), exit_code)
        *lines, rest = chunk.split(b"\n")
        if lines:
            lines[0] = bytes(self._buffer) + lines[0]
            self._buffer.clear()
        self._buffer += rest
        if self._prefixed and self.hello is None:  # what stands before it may print a greeting
            lines = [*dropwhile(lambda line: not line.startswith(HELLO), lines)]
        if len(self._buffer) > MAX_LINE_BYTES:
            self.kill()
            raise WorkerDied("garbage on the worker's pipe: a line without end")
        try:
            events = list(self._reader.read(lines))
        except ProtocolError as error:
            self.kill()
            raise WorkerDied(f"garbage on the worker's pipe: {error}") from None
        for event in events:
            if isinstance(event, Hello):
                self.hello = event
        return events

    def _wait_or_kill(self) -> int:
        """The exit code of a process that has closed its pipe and so is about to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(END_GRACE_S)
        self.kill()
        return -signal.SIGKILL if self._process.returncode is None else self._process.returncode

    def dead(self) -> bool:
        """Has the process ended?"""
        return self._process.poll() is not None

    def move_log(self, path: Path) -> None:
        """Give the log, into which the process goes on writing, its place."""
        self.log_path = self.log_path.rename(path)

    def kill(self) -> bool:
        """Kill the process and its children at once; harmless when they are dead.

        False when it has not ended yet: nothing ends a process while it waits in the kernel for a
        device or a disk. It will end after that.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_LIMIT_S)
        return self.dead()

    def release(self) -> None:
        """Let a worker that has sent its result end in its own time."""
        self._released_at = time.monotonic()
        _ending.append(self)
        look_after_ending_workers()

    def _has_ended(self) -> bool:
        """Has a released worker ended? One that hangs is killed."""
        late = time.monotonic() - self._released_at > ENDING_LIMIT_S
        if late or self.dead():
            self.kill()
            return True
        return False

    def _close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if self._events >= 0:
            os.close(self._events)
            self._events = -1

    def _reason_of_death(self, exit_code: int) -> str:
        if exit_code >= 0:
            last = self.log_tail().strip().splitlines()[-1:]
            return f"the worker ended with exit code {exit_code}" + "".join(f": {x}" for x in last)
        name = signal.Signals(-exit_code).name
        hint = ", perhaps out of memory" if name == "SIGKILL" else ""
        return f"the worker was killed by {name}{hint}"

    def log_bytes(self) -> int:
        """Size of the worker's log; 0 when it is gone."""
        try:
            return self.log_path.stat().st_size
        except OSError:
            return 0

    def log_tail(self) -> str:
        """The end of the worker's log; nothing when it cannot be read."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_READ_BYTES))
                lines = log.read().decode(errors="replace").splitlines(keepends=True)
        except OSError:
            return ""
        # After a crash, Python names all its extension modules in one line of several kB.
        told = (line for line in lines if not line.startswith("Extension modules: "))
        return "".join(told)[-LOG_TAIL_LENGTH:]


_ending: list[WorkerProcess] = []


def look_after_ending_workers() -> None:
    """Kill the released workers that hang at their end."""
    _ending[:] = [worker for worker in _ending if not worker._has_ended()]


def kill_ending_workers(grace_s: float = END_GRACE_S) -> None:
    """Wait shortly for the released workers, then kill those still there."""
    deadline = time.monotonic() + grace_s
    for worker in _ending:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker._process.wait(max(0.0, deadline - time.monotonic()))
        worker.kill()
    _ending.clear()


def python_of(start: WorkerConfig) -> list[str]:
    """What starts the Python of the workers."""
    # Before 3.11 there is no `-P`, and another Python may be older.
    python = [start.python] if start.python else [sys.executable, "-P"]
    return [*start.command, *python]


def oom_kills() -> int | None:
    """How often the kernel has killed for want of memory in this control group (version 2)."""
    try:
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        events = Path(f"/sys/fs/cgroup{group}/memory.events").read_text()
        return int(events.partition("oom_kill ")[2].split()[0])
    except (OSError, IndexError):
        return None


def worker_environment(environment: Mapping[str, str], settings: WorkerSettings) -> dict[str, str]:
    """The environment of a worker: no MPI, no batch system, no secret, one visible GPU or none."""
    # `srun` finds its job by these, and gives the worker its own.
    for_srun = ("SLURM_",) if settings.start.command else ()
    removed = tuple(name for name in LAUNCHER_VARIABLES if name not in for_srun)
    kept = {
        name: value
        for name, value in environment.items()
        if name not in SECRETS and not name.startswith(removed)
    }
    threads = str(settings.num_threads)
    return kept | {
        "CUDA_VISIBLE_DEVICES": settings.gpu or "",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
    }
