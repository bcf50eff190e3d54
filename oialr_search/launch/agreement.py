"""A launch begins on all ranks or on none: they agree, or all end with the same exit code."""

from __future__ import annotations

import errno

from oialr_search import exit_codes
from oialr_search.launch.islands import wait
from oialr_search.launch.mpi import MPI
from oialr_search.storage.records import StorageUnavailable
from oialr_training.errors import KnownError

PASSING_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class LaunchError(KnownError):
    """This launch cannot begin; every rank ends with the same exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        mistaken = exit_code in (exit_codes.USAGE, exit_codes.CONFIG)
        self.cause = "configuration" if mistaken else "machine"


def agree(comm: MPI.Comm, mistake: str | None, exit_code: int) -> None:
    """Go on when no rank has a mistake.

    Raises:
        LaunchError: with the mistake of the first rank that has one, on all ranks.
    """
    wait(comm)
    for text, code in comm.allgather((mistake, exit_code)):
        if text is not None:
            raise LaunchError(text, code)


def code_of(error: Exception) -> int:
    """Where the database comes back, and the disk has space again, the same command goes on."""
    passes = isinstance(error, StorageUnavailable) or (
        isinstance(error, OSError) and error.errno in PASSING_ERRORS
    )
    return exit_codes.STOPPED if passes else exit_codes.CONFIG
