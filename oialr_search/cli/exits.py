"""How a command ends that cannot do what was asked: lines on standard error and an exit code."""

from __future__ import annotations

import os
import sys
import time
import traceback

from oialr_search import exit_codes
from oialr_training.errors import KnownError

# Rank of this process in a launch, as the launchers announce it before MPI is initialised.
WORLD_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
HEAD_START_S = 2.0


def exit_code_of(error: BaseException) -> int:
    """Tell what went wrong, and return the exit code of its kind."""
    match error:
        case KnownError(cause="training"):
            return _complain(error, exit_codes.INTERNAL)
        case KnownError():
            return _complain(error, exit_codes.CONFIG)
        case KeyboardInterrupt():
            return exit_codes.INTERRUPTED
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if show is None or code is None:  # none of typer's own
        traceback.print_exception(error)
        return exit_codes.INTERNAL
    if _speaks_for_the_launch():
        show()
    return int(code)


def _complain(error: Exception, code: int) -> int:
    if _speaks_for_the_launch():
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
    return code


def _speaks_for_the_launch() -> bool:
    """Rank 0 tells what is wrong; the others wait, as Open MPI ends all when the first one ends."""
    ranks = (os.environ[name] for name in WORLD_RANK_VARIABLES if name in os.environ)
    if next(ranks, "0") == "0":
        return True
    time.sleep(HEAD_START_S)
    return False
