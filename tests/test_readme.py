"""What the README says is so; its commands are run by `launch/test_run.py`."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from .conftest import BIN, ROOT

README = (ROOT / "README.md").read_text()
LINES = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = [line for line in LINES if line.startswith("oialr-search ")]
LAUNCHES = [line for line in LINES if line.startswith("mpiexec ") and ".yaml" in line]


def test_there_is_something_to_test() -> None:
    names = [shlex.split(line)[1] for line in COMMANDS]
    assert names == ["status", "leaderboard", "dashboard", "show", "plot", "export", "train"]
    assert LAUNCHES


@pytest.mark.parametrize("line", LAUNCHES)
def test_the_launches_name_valid_search_files(line: str) -> None:
    words = shlex.split(line)
    file = words[words.index("run") + 1]
    subprocess.run([BIN / "oialr-search", "validate", file], cwd=ROOT, check=True)


def test_its_figures_have_no_rounding_noise() -> None:
    assert not re.findall(r"\d\.\d{7,}", README)


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"`?make (\w+)(?:`|   )", README)
    assert {"search", "test", "lint"} <= set(targets)
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_files_it_names_exist() -> None:
    names = re.findall(r"`((?:[a-z_]+/)+[\w.]*)`", README)
    assert len(names) > 10
    for name in names:
        if not name.startswith("searches/"):
            assert Path(ROOT / name).exists(), name
