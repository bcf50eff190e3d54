"""What is done to a search, and when."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from oialr_search.evaluation.files import (
    EVALUATION_FILE,
    INDIVIDUAL_FILE,
    OUTCOME_FILE,
    REQUEST_FILE,
    SEARCH_FILE,
    STATE_FILE,
)
from oialr_training.protocol import EVENTS_FILE, RESULT_FILE

from .databases import Database
from .launches import Hung, Launch, wait_until

MOMENT_LIMIT_S = 20.0
BALLAST = "ballast"
FILES = (
    STATE_FILE, EVENTS_FILE, RESULT_FILE, OUTCOME_FILE, EVALUATION_FILE, INDIVIDUAL_FILE,
    SEARCH_FILE, REQUEST_FILE, "log.txt", "launch-*.json", "migrations-*.jsonl",
)  # fmt: skip


@dataclass(kw_only=True)
class Scene:
    """The search as the faults see it."""

    launch: Launch
    folder: Path
    """Of the search."""
    disk: Disk
    database: Database
    random: random.Random
    evaluations: int
    damaged: set[Path] = field(default_factory=set)
    """Files that were truncated."""

    def files(self, name: str) -> list[Path]:
        """All files of a name."""
        return sorted(path for path in self.folder.rglob(name) if path.is_file())

    def trace(self) -> tuple[int, int]:
        """It changes when something goes on."""
        sizes = [_size(path) for path in self.files(EVENTS_FILE)]
        return sum(sizes), len(self.files(OUTCOME_FILE))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# -- moments ------------------------------------------------------------------------------------


def at_any_time(scene: Scene) -> Callable[[], bool]:
    at = time.monotonic() + scene.random.uniform(0.0, 5.0)
    return lambda: time.monotonic() > at


def preparing(scene: Scene) -> Callable[[], bool]:
    at = scene.launch.since + scene.random.uniform(0.0, 3.0)
    return lambda: time.monotonic() > at


def training(scene: Scene) -> Callable[[], bool]:
    return lambda: bool(scene.launch.trainings())


def state_kept(scene: Scene) -> Callable[[], bool]:
    before = {path: path.stat().st_mtime for path in scene.files(STATE_FILE)}
    return lambda: any(path not in before for path in scene.files(STATE_FILE))


def result_written(scene: Scene) -> Callable[[], bool]:
    before = len(scene.files(RESULT_FILE))
    return lambda: len(scene.files(RESULT_FILE)) > before


def outcome_written(scene: Scene) -> Callable[[], bool]:
    before = len(scene.files(OUTCOME_FILE))
    return lambda: len(scene.files(OUTCOME_FILE)) > before


def claimed(scene: Scene) -> Callable[[], bool]:
    before = len(scene.files(EVALUATION_FILE))
    return lambda: len(scene.files(EVALUATION_FILE)) > before


def nearly_complete(scene: Scene) -> Callable[[], bool]:
    return lambda: len(scene.files(RESULT_FILE)) >= scene.evaluations - 2


MOMENTS = (
    at_any_time, preparing, training, state_kept, result_written, outcome_written, claimed,
    nearly_complete,
)  # fmt: skip


# -- faults -------------------------------------------------------------------------------------


def signal_worker(number: signal.Signals) -> Callable[[Scene], str | None]:
    """One that trains, where the signal leaves it hanging; else any."""

    def fault(scene: Scene) -> str | None:
        launch = scene.launch
        hangs = number == signal.SIGSTOP
        return _signal(scene, launch.trainings() if hangs else launch.workers(), number)

    return fault


def signal_rank(number: signal.Signals) -> Callable[[Scene], str | None]:
    def fault(scene: Scene) -> str | None:
        # Python takes a moment to be able to take a signal.
        young = "preparing" not in scene.launch.output.read_text()
        scene.launch.disturbed |= number == signal.SIGKILL or young
        return _signal(scene, scene.launch.ranks(), number)

    return fault


def signal_mpiexec(number: signal.Signals) -> Callable[[Scene], str | None]:
    def fault(scene: Scene) -> str | None:
        scene.launch.disturbed = True
        scene.launch.signal(number)
        return "mpiexec"

    return fault


def two_in_a_row(scene: Scene) -> str | None:
    """Two faults within a second."""
    kinds = scene.random.sample(SIGNALS, 2)
    hit = [SIGNALS_BY_NAME[kinds[0]](scene)]
    at = time.monotonic() + scene.random.uniform(0.0, 1.0)
    wait_until(lambda: time.monotonic() > at, 2.0, "the second fault")
    hit.append(SIGNALS_BY_NAME[kinds[1]](scene))
    if not all(hit):
        return None
    return " and ".join(f"{kind}: {what}" for kind, what in zip(kinds, hit, strict=True))


def truncate(scene: Scene) -> str | None:
    """Cut a file off while the search runs."""
    return _truncate(scene, 1, [name for name in FILES if name != SEARCH_FILE])


def kill_and_truncate(scene: Scene) -> str | None:
    """Kill all at once, and cut off what it wrote last, as a power failure does."""
    scene.launch.disturbed = True
    scene.launch.signal(signal.SIGKILL)
    scene.launch.wait_for_the_last()
    return _truncate(scene, 3, FILES)


def fill_disk(scene: Scene) -> str | None:
    """No space for some seconds."""
    away_s = scene.random.uniform(0.5, 6.0)
    with scene.disk.full(scene.launch):
        at = time.monotonic() + away_s
        wait_until(lambda: time.monotonic() > at, 10.0, "the disk")
    return f"{scene.disk.kind}, {away_s:.1f} s"


def restart_database(mode: str) -> Callable[[Scene], str | None]:
    def fault(scene: Scene) -> str | None:
        away_s = scene.random.uniform(0.0, 5.0)
        scene.database.stop(mode)
        at = time.monotonic() + away_s
        wait_until(lambda: time.monotonic() > at, 10.0, "the database")
        scene.database.start()
        return f"away for {away_s:.1f} s"

    return fault


def cut_connections(scene: Scene) -> str | None:
    """End all sessions at the server."""
    number = scene.database.cut_connections()
    return f"{number} sessions" if number else None


def _signal(scene: Scene, processes: list[psutil.Process], number: signal.Signals) -> str | None:
    if not processes:
        return None
    process = scene.random.choice(processes)
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
    return f"process {process.pid}"


def _truncate(scene: Scene, number: int, names: Sequence[str]) -> str | None:
    hit: list[str] = []
    for name in scene.random.sample(names, len(names)):
        paths = scene.files(name)
        if not paths or len(hit) == number:
            continue
        path = scene.random.choice(paths[-4:])  # what was written last is what gets lost
        size = _size(path)
        length = scene.random.choice((0, scene.random.randrange(size + 1)))
        with suppress(FileNotFoundError):
            os.truncate(path, length)
        scene.damaged.add(path)
        hit.append(f"{path.relative_to(scene.folder)} {size} -> {length}")
    return ", ".join(hit) or None


SIGNALS_BY_NAME = {
    "worker KILL": signal_worker(signal.SIGKILL),
    "worker SEGV": signal_worker(signal.SIGSEGV),
    "worker STOP": signal_worker(signal.SIGSTOP),
    "rank KILL": signal_rank(signal.SIGKILL),
    "rank TERM": signal_rank(signal.SIGTERM),
    "mpiexec KILL": signal_mpiexec(signal.SIGKILL),
    "mpiexec TERM": signal_mpiexec(signal.SIGTERM),
    "mpiexec USR1": signal_mpiexec(signal.SIGUSR1),
}
SIGNALS = tuple(SIGNALS_BY_NAME)
ANYWHERE = {
    **SIGNALS_BY_NAME,
    "two in a row": two_in_a_row,
    "disk full": fill_disk,
    "file truncated": truncate,
    "all killed, files truncated": kill_and_truncate,
}
ON_A_SERVER = {
    "database restarted": restart_database("fast"),
    "database killed": restart_database("kill"),
    "connections cut": cut_connections,
}


def deal(random_numbers: random.Random, database: Database, number: int) -> Iterator[str]:
    """The kinds of a number of faults: each as often as the others, in any order."""
    kinds = [*ANYWHERE, *(ON_A_SERVER if database.is_server else ())]
    first = database.first_faults
    dealt = [*first[:number]]
    while len(dealt) < number:
        dealt += random_numbers.sample(kinds, len(kinds))
    return iter(dealt[:number])


def inject(kind: str, scene: Scene) -> tuple[str, str] | None:
    """Wait for a moment and do it; returns moment and what was hit, None when the launch ended."""
    chosen = scene.random.choice(MOMENTS)
    come = chosen(scene)
    name = chosen.__name__
    try:
        wait_until(lambda: come() or scene.launch.ended(), MOMENT_LIMIT_S, name)
    except Hung:
        name = "at_any_time"
    if scene.launch.ended():
        return None
    hit = (ANYWHERE | ON_A_SERVER)[kind](scene)
    return (name, hit) if hit else None


# -- the disk -----------------------------------------------------------------------------------


class Disk:
    """Where the search's folder is: a small file system of its own, where that may be mounted."""

    def __init__(self, folder: Path, size_mib: int) -> None:
        folder.mkdir()
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)]
        try:
            self.mounted = subprocess.run(mount, capture_output=True).returncode == 0
        except FileNotFoundError:
            self.mounted = False
        self.kind = "no space left" if self.mounted else "no file may grow"

    @contextmanager
    def full(self, launch: Launch) -> Iterator[None]:
        """No space is left in it."""
        if not self.mounted:
            with _no_growth(launch):
                yield
            return
        ballast = self.folder / BALLAST
        try:
            _fill(ballast)
            yield
        finally:
            ballast.unlink(missing_ok=True)

    def release(self) -> None:
        """Give it back."""
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


@contextmanager
def _no_growth(launch: Launch) -> Iterator[None]:
    """No process of the launch may write a byte to a file; those started meanwhile inherit it."""
    _limit_files(launch, 0)
    try:
        yield
    finally:
        _limit_files(launch, resource.RLIM_INFINITY)


def _limit_files(launch: Launch, size: int) -> None:
    for process in (*launch.ranks(), *launch.workers()):
        with suppress(ProcessLookupError, PermissionError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
