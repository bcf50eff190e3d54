"""Before the first row is written every rank has a worker that has loaded everything."""

from __future__ import annotations

import time
from collections.abc import Collection

from oialr_search import exit_codes
from oialr_search.evaluation.evaluator import Evaluator
from oialr_search.evaluation.worker_process import WorkerDied
from oialr_search.launch.agreement import agree, code_of
from oialr_search.launch.islands import POLL_S
from oialr_search.launch.mpi import MPI
from oialr_search.launch.stop_request import StopRequest
from oialr_training.errors import ConfigError

PREPARED = 1
"""Tag of the message to world rank 0 that a rank is no longer preparing."""
WORD_EVERY_S = 30.0
RANKS_NAMED = 8


def prepare(comm: MPI.Comm, evaluator: Evaluator, stop: StopRequest) -> None:
    """Have the first worker load everything: the earliest moment at which data can be missed.

    Raises:
        LaunchError: on all ranks, when one of them has no worker that is ready.
    """
    mistake, exit_code = None, exit_codes.CONFIG
    roll_call = RollCall(comm)
    try:
        while not evaluator.prepare():
            roll_call.look()
            if stop.requested():
                mistake, exit_code = "stopped before the first evaluation", exit_codes.STOPPED
                break
    except ConfigError as error:
        mistake = str(error)
    except WorkerDied as error:
        mistake, exit_code = str(error), exit_codes.INTERNAL
    except OSError as error:
        mistake, exit_code = f"cannot start a worker: {error}", code_of(error)
    roll_call.wait()
    agree(comm, mistake, exit_code)


class RollCall:
    """World rank 0 says now and then who is still preparing."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self._missing = set(range(comm.size)) if comm.rank == 0 else set[int]()
        self._began = self._told = time.monotonic()
        if comm.rank == 0:
            print(f"preparing {comm.size} worker(s): imports and data ...", flush=True)

    def look(self) -> None:
        """On world rank 0: hear who is ready, and say a word if it is time."""
        while self._missing and (request := self._comm.improbe(tag=PREPARED)) is not None:
            self._missing.discard(request.recv())
        now = time.monotonic()
        if self._missing and now - self._told >= WORD_EVERY_S:
            self._told = now
            waited = f"{now - self._began:.0f} s"
            print(f"after {waited} still preparing: {_named(self._missing)}", flush=True)

    def wait(self) -> None:
        """This rank is no longer preparing; world rank 0 waits until nobody is."""
        self._missing.discard(0)
        if self._comm.rank != 0:
            self._comm.send(self._comm.rank, dest=0, tag=PREPARED)
        while self._missing:
            self.look()
            time.sleep(POLL_S)


def _named(world_ranks: Collection[int]) -> str:
    named = ", ".join(map(str, sorted(world_ranks)[:RANKS_NAMED]))
    more = len(world_ranks) - RANKS_NAMED
    return f"world rank(s) {named}" + (f" and {more} more" if more > 0 else "")
