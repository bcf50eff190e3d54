"""A machine without an MPI library."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import replace

import pytest

from ..conftest import DIGITS, Command


@pytest.mark.parametrize("missing", [{"MPI4PY_LIBMPI": "/nowhere"}, {"MPI4PY_MPIABI": "openmpi"}])
def test_what_is_missing_is_one_line(command: Command, missing: dict[str, str]) -> None:
    """No library at all; none of the kind that is asked for."""
    with suppress(OSError):
        if "MPI4PY_MPIABI" in missing and ctypes.CDLL("libmpi.so.40"):
            pytest.skip("this machine has Open MPI")
    without = replace(command, environment=command.environment | missing)
    result = without("run", DIGITS, check=False)
    assert result.returncode == 78
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: mpi4py finds no MPI library (")
    assert "`module load openmpi`" in line
    assert "`pip install mpich`" in line
    assert not list(command.folder.iterdir())
