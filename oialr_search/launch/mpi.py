"""MPI, or one line that says what is missing; nobody else imports mpi4py."""

from __future__ import annotations

from oialr_training.errors import ConfigError

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # the latter where it has looked everywhere
    raise ConfigError(
        f"mpi4py finds no MPI library ({str(error).splitlines()[0]}): load the machine's, often by "
        "`module load openmpi`, or run `pip install mpich`; MPI4PY_LIBMPI names one in another "
        "place, MPI4PY_MPIABI its kind"
    ) from None

__all__ = ["MPI"]
