"""The method's own distribution, installed beside today's torch and NumPy and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT
from .oialr.test_recipes import README, blocks

PYTHON = "3.13"


def interpreters() -> Iterator[str]:
    """Pythons to try: of another version than the search's, if the machine has one."""
    yield from map(str, Path.home().glob(f".pyenv/versions/{PYTHON}.*/bin/python"))
    yield from (path for path in (shutil.which(f"python{PYTHON}"), sys.executable) if path)


@pytest.mark.slow
def test_the_readme_runs_where_oialr_is_installed_alone(tmp_path: Path) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("there is no uv to install with")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*line: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500
        )

    source = tmp_path / "oialr"  # a build leaves folders beside what it builds
    shutil.copytree(ROOT / "workers" / "oialr", source)
    assert any(run(uv, "venv", "-p", path, "empty").returncode == 0 for path in interpreters())
    python = tmp_path / "empty" / "bin" / "python"
    installed = run(uv, "pip", "install", "--python", python, source, "numpy")
    if installed.returncode:
        offline = ("error sending request", "dns error", "failed to fetch", "client error")
        assert any(word in installed.stderr.lower() for word in offline), installed.stderr
        pytest.skip("no package index can be reached")
    shutil.rmtree(source)
    listed = run(uv, "pip", "list", "--python", python).stdout
    assert "oialr " in listed
    for name in ("mpi4py", "propulate", "oialr-search", "pydantic", "timm"):
        assert f"{name} " not in listed
    (tmp_path / "readme.py").write_text("\n\n".join(blocks(README.read_text())))
    environment |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": "29513", "GLOO_SOCKET_IFNAME": "lo"}
    ran = run(python, "readme.py")
    assert ran.returncode == 0, ran.stderr
    assert "trainable" in ran.stdout
    shutil.rmtree(tmp_path / "empty")
