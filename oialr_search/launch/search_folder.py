"""The folder of a search, locked while a launch works in it."""

from __future__ import annotations

import fcntl
import fnmatch
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from oialr_search import exit_codes
from oialr_search.evaluation.evaluator import WORKER_LOGS
from oialr_search.launch.agreement import LaunchError, agree, code_of
from oialr_search.launch.islands import wait
from oialr_search.launch.mpi import MPI

LOCK_FILE = ".lock"


@contextmanager
def search_folder(comm: MPI.Comm, folder: Path) -> Iterator[Path]:
    """The search's folder, made and locked by rank 0; a launch that cannot begin leaves no trace.

    The lock keeps a second launch of the same search away; it ends with the process that holds it.
    """
    mistake, exit_code, made, lock = None, exit_codes.CONFIG, list[Path](), None
    if comm.rank == 0:
        try:
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder / LOCK_FILE)
            _remove_worker_logs(folder)
        except BlockingIOError:
            owner = (folder / LOCK_FILE).read_text().strip()
            mistake = f"this search is being run already, by {owner}: lock {folder / LOCK_FILE}"
        except OSError as error:
            mistake = f"cannot write to the search folder {folder}: {error.strerror}"
            exit_code = code_of(error)
    try:
        agree(comm, mistake, exit_code)
        yield folder
    except LaunchError:
        wait(comm)  # until the other ranks' workers and their logs are gone
        with suppress(OSError):
            if lock is not None:
                (folder / LOCK_FILE).unlink()
            for path in made:
                path.rmdir()
        raise
    finally:
        if lock is not None:
            lock.close()


def _remove_worker_logs(folder: Path) -> None:
    """Remove those of workers that were killed while they waited."""
    with os.scandir(folder) as entries:  # there may be as many as individuals
        for entry in entries:
            if fnmatch.fnmatch(entry.name, WORKER_LOGS):
                Path(entry).unlink(missing_ok=True)


def _lock(path: Path) -> IO[str]:
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    # A launch that could not begin removes its file, perhaps between these lines.
    if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
        file.close()
        return _lock(path)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
