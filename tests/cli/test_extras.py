"""What each command needs to be installed, and how it says that it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from oialr_search import extras
from oialr_training.errors import ConfigError

from ..conftest import DIGITS, ROOT, Command

HEAVY = ("numpy", "scipy", "optuna", "plotly", "pandas", "torch", "propulate", "mpi4py")
WORKERS = ("torch", "torchvision", "timm", "PIL", "safetensors", "pandas", "sklearn")
NOT_IN_BASE = sorted({*WORKERS, *(name for names in extras.EXTRAS.values() for name in names)})

# What hides packages from the process and its children, and runs commands in it, one a line.
HIDING = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, *rest):
    return None if name.partition(".")[0] in {names!r} else find(name, *rest)
PathFinder.find_spec = find_spec
"""
RUNNING = """
import contextlib, io, json, shlex, sys
from oialr_search import cli
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    sys.argv = shlex.split(line)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    loaded = [name for name in {heavy!r} if name in sys.modules]
    print(json.dumps([code, out.getvalue(), err.getvalue(), loaded]))
"""


def run(command: Command, lines: Sequence[str]) -> dict[str, list[Any]]:
    """Each line's exit code, output, errors, and what heavy was loaded by the end of it."""
    answer = subprocess.run(
        [sys.executable, "-c", RUNNING.format(heavy=HEAVY)],
        input="".join(f"oialr-search {line}\n" for line in lines),
        cwd=command.folder,
        env=command.environment | hiding(command.folder, NOT_IN_BASE),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(lines, map(json.loads, answer.stdout.splitlines()), strict=True))


def hiding(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The variable with which a Python process finds none of these packages."""
    (folder / "sitecustomize.py").write_text(HIDING.format(names=[*names]))
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


def test_without_extras_what_looks_works_and_the_rest_says_what_it_lacks(searched: Command) -> None:
    light = [
        "--help", "status", "leaderboard", "leaderboard --format csv", "show 1", "show 3",
        "export --individual 1", f"validate {DIGITS}",
    ]  # fmt: skip
    asking_a_model = ["export", "leaderboard --pareto fitness,trainable_percent"]
    lacking = {
        f"run {DIGITS} --search-dir new": "search",
        "plot importance": "figures",
        "report": "figures",
        "dashboard": "figures",
    }
    found = run(searched, [*light, *lacking, *asking_a_model])
    for line in (*light, *asking_a_model):
        code, output, errors, loaded = found[line]
        assert (code, errors) == (0, ""), line
        assert output, line
        assert not loaded or line in asking_a_model, line
    for line, extra in lacking.items():
        code, output, errors, loaded = found[line]
        assert (code, output, loaded) == (78, "", []), line
        name, lacks = line.partition(" ")[0], ", ".join(extras.EXTRAS[extra])
        which = ", with Python 3.11 or 3.12" if extra == "search" else ""
        assert errors == (
            f"error: {name} needs {lacks}: run pip install 'oialr-search[{extra}]'{which}\n"
        )
    assert not (searched.folder / "new").exists()


def test_a_worker_without_torch_says_so(searched: Command) -> None:
    searched("export", "--individual", "1", "-o", "best.yaml")
    environment = searched.environment | hiding(searched.folder, ["torch"])
    there = Command(searched.folder, environment)
    result = there.in_process("train", "best.yaml", "--device", "cpu")
    assert result.returncode == 78
    assert result.stderr == (
        f"error: {sys.executable} has no torch: run pip install 'oialr-search[train]'\n"
    )
    assert not (searched.folder / "trainings").exists()


def test_in_python_it_is_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import oialr_search
    from oialr_search.analysis import load_study

    monkeypatch.setattr(
        extras.importlib.util,
        "find_spec",
        lambda name: None if name in ("optuna", "pandas") else find_spec(name),
    )
    with pytest.raises(ConfigError, match=r"open_search needs optuna, pandas: .*\[figures\]"):
        _ = oialr_search.open_search
    with pytest.raises(ConfigError, match=r"load_study needs optuna, pandas: .*\[figures\]"):
        load_study("search.db")


def requirements(file: Path, extra: str | None = None) -> set[str]:
    project = tomllib.loads(file.read_text())["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return set(lines)


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_an_extra_has_what_is_asked_for(extra: str) -> None:
    listed = {line.partition(">")[0] for line in requirements(ROOT / "pyproject.toml", extra)}
    of_module = metadata.packages_distributions()
    for module in extras.EXTRAS[extra]:
        assert listed & {name.lower() for name in of_module[module]}, module


def test_the_distributions_agree() -> None:
    main, training, method = (
        ROOT / folder / "pyproject.toml" for folder in (".", "workers", "workers/oialr")
    )
    assert requirements(main, "train") <= requirements(training)
    assert requirements(training) <= requirements(main) | requirements(main, "train")
    assert requirements(method) <= requirements(training)
    assert (
        len({tomllib.loads(f.read_text())["project"]["version"] for f in (main, training, method)})
        == 1
    )
