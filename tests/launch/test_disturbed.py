"""Single disturbances of a search; tests/chaos has them at random."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ..conftest import DIGITS, TINY, Command, FinishedSearch, settings

pytestmark = pytest.mark.slow  # each launch costs seconds of imports

ONE: list[str | Path] = [
    "run",
    DIGITS,
    "--evaluations",
    "1",
    "--islands",
    "1",
    *settings(TINY | {"num_threads": "1"}),
]
LIMIT_S = 300.0


def workers_of(rank: int) -> list[psutil.Process]:
    """The workers that a rank has started."""
    workers = []
    for child in psutil.Process(rank).children():
        with suppress(psutil.Error):
            workers += [child] if "oialr_training" in child.cmdline() else []
    return workers


def test_a_worker_killed_while_it_prepares_gets_a_successor(command: Command) -> None:
    process = command.start(*ONE)
    deadline = time.monotonic() + LIMIT_S
    while not (workers := workers_of(process.pid)):
        assert process.poll() is None
        assert time.monotonic() < deadline
    workers[0].kill()
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    assert "[1/1]" in output


def test_output_that_nobody_can_write_or_reads_ends_no_launch(command: Command) -> None:
    with open("/dev/full", "w") as full:
        line = command.line(*ONE, ranks=0)
        result = subprocess.run(
            line, cwd=command.folder, env=command.environment, stdout=full, stderr=full
        )
    assert result.returncode == 0
    process = command.start(*ONE, "--new")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(LIMIT_S) == 0
    names = json.loads(command("status", "--format", "json").stdout)
    assert names["search"] == "minivit_digits-2"


@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_a_rank_imports_ends_the_launch_with_75(
    command: Command, number: signal.Signals, ranks: int
) -> None:
    """The other rank may wait for it in MPI's initialisation."""
    process = command.start(*ONE, ranks=ranks)
    deadline = time.monotonic() + LIMIT_S
    while not (caught := [p for p in ranks_of(process.pid, ranks) if _catches(p, number)]):
        assert process.poll() is None
        assert time.monotonic() < deadline
    os.kill(caught[0], number)
    assert process.wait(LIMIT_S) == 75
    assert not (command.folder / "searches").exists()


def ranks_of(launched: int, ranks: int) -> list[int]:
    """The ranks that a launch has started so far; without a launcher, the process itself.

    A process that the launcher has forked and that is no rank yet has the launcher's handlers.
    """
    if not ranks:
        return [launched]
    found = []
    for child in psutil.Process(launched).children(recursive=True):
        with suppress(psutil.Error):
            is_rank = any(part.endswith("oialr-search") for part in child.cmdline()[:2])
            found += [child.pid] if is_rank else []
    return found


def _catches(pid: int, number: signal.Signals) -> bool:
    """Has the process a handler for this signal?"""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def test_an_attempt_that_was_never_written_spoils_no_import(
    digits_search: FinishedSearch, tmp_path: Path
) -> None:
    folder = tmp_path / "minivit_digits"
    shutil.copytree(digits_search.database.parent / "minivit_digits", folder)
    (folder / "individual-000002" / "attempt-0").mkdir()
    url = f"sqlite:///{tmp_path}/imported.db"
    result = digits_search.command("import", folder, "--db", url)
    assert "4 individuals imported" in result.stdout
    assert "attempt-0" in result.stderr
    text = digits_search.command("status", "--db", url, "--format", "json").stdout
    assert sum(island["completed"] for island in json.loads(text)["islands"]) == 4
