"""`make` takes the machine's MPI for the machine's, and no other."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh one, on a machine of its own."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\necho HYDRA\n")
    path.chmod(0o755)
    return path


def planned(clone: Path, mpiexec: Path | None) -> list[str]:
    """What `make search` would do with this first on the PATH."""
    machine = [p for p in ("/usr/bin", "/bin") if not Path(p, "mpiexec").exists()]
    if not machine:
        pytest.skip("this machine has its own mpiexec")
    path = os.pathsep.join([*([str(mpiexec.parent)] if mpiexec else []), *machine])
    command = ["make", "--dry-run", "search"]
    environment = {"PATH": path, "PYTHON": "python3"}
    result = subprocess.run(
        command, cwd=clone, env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


def installing(lines: list[str]) -> str:
    (line,) = [line for line in lines if ".[mpich]" in line]
    return line


def test_the_machine_s_mpiexec_is_used_if_mpi4py_finds_its_library(clone: Path) -> None:
    mpiexec = program(clone / "opt" / "bin" / "mpiexec")
    lines = planned(clone, mpiexec)
    assert installing(lines).startswith(".venv/bin/python -c 'import mpi4py;")
    assert any(line.startswith(f"{mpiexec}  -n 2 .venv/bin/oialr-search run") for line in lines)


def test_that_of_another_virtual_environment_is_not_the_machine_s(clone: Path) -> None:
    mpiexec = program(clone / "other" / "bin" / "mpiexec")
    (clone / "other" / "pyvenv.cfg").touch()
    lines = planned(clone, mpiexec)
    assert installing(lines).strip().startswith(".venv/bin/uv pip install")
    assert not any(str(mpiexec) in line for line in lines)


def test_without_any_the_wheel_brings_one(clone: Path) -> None:
    lines = planned(clone, None)
    assert installing(lines).strip().startswith(".venv/bin/uv pip install")
    assert any(line.startswith(".venv/bin/mpiexec  -n 2 .venv/bin/oialr-search") for line in lines)


def test_what_was_installed_goes_before_the_machine_s(clone: Path) -> None:
    program(clone / ".venv" / "bin" / "mpiexec")
    lines = planned(clone, program(clone / "opt" / "bin" / "mpiexec"))
    assert any(line.startswith(".venv/bin/mpiexec  -n 2 .venv/bin/oialr-search") for line in lines)
