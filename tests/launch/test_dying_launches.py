"""A launch that loses a rank ends at once; and nothing that it says or leaves holds a password."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest

from ..conftest import Command
from .faults import (
    evaluations,
    finish,
    has_said,
    of_folder,
    rank_processes,
    run_line,
    wait_until,
    with_hooks,
)

# An exception out of the blue, as a mistake of ours would be: raised in a rank by a signal.
RAISING = """
import os, signal, sys

def fail(number, frame):
    raise LookupError("out of the blue")
if "oialr-search" in " ".join(sys.orig_argv):
    signal.signal(signal.SIGALRM, fail)
"""


def training(command: Command) -> subprocess.Popen[str]:
    """A launch of two ranks, both training."""
    process = command.start(*run_line(4, epochs="100000"), ranks=2)
    for individual in (1, 2):
        wait_until(has_said(command, individual, 1, '"epoch"'), process)
    return process


@pytest.mark.slow
def test_a_rank_that_raises_ends_the_launch_and_is_named(command: Command) -> None:
    hooks = command.folder / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(RAISING)
    process = training(with_hooks(command))
    rank_processes(process)[1].send_signal(signal.SIGALRM)
    code, output = finish(process, 20.0)
    assert code == 70, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    match = re.fullmatch(
        r"error: world rank 1 on (\S+) failed: LookupError\('out of the blue'\) \(log: (.*)\)", line
    )
    assert match, line
    assert match[1] == os.uname().nodename
    log = (command.folder / match[2]).read_text()
    assert "Traceback" in log
    assert "out of the blue" in log
    assert "Traceback" not in output
    wait_until(lambda: not of_folder(command))


def test_a_killed_rank_ends_the_launch(command: Command) -> None:
    process = training(command)
    rank_processes(process)[1].kill()
    code, _ = finish(process, 20.0)
    assert code != 0
    wait_until(lambda: not of_folder(command))
    assert [row["status"] for row in evaluations(command)] == ["running"] * 2
