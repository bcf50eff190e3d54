"""Commands start at once: what takes long to load is loaded by the command that needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"mpi4py", "numpy", "optuna", "pandas", "plotly", "pydantic", "sqlalchemy", "torch", "yaml"}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("oialr_search", set()),
        ("oialr_search.cli", {"yaml"}),
        ("oialr_search.analysis.status", {"yaml", "pydantic", "sqlalchemy"}),
        ("oialr_search.analysis.plots.catalogue", {"yaml", "pydantic", "sqlalchemy", "plotly"}),
        ("oialr_search.evaluation.repeated_seeds", {"yaml", "pydantic"}),
    ],
)
def test_nothing_heavy_is_loaded(module: str, allowed: set[str]) -> None:
    code = f"import sys, {module}; print(*({HEAVY} & set(sys.modules)))"
    line = [sys.executable, "-c", code]
    loaded = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()
    assert set(loaded) <= allowed
