"""Terminals, wide and narrow, and pipes: what is drawn again, and how that ends."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from oialr_search.terminal.screens import _searched, duration

from ..conftest import Command


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (7505, "2 h 5 min"),
     (90000, "1 d 1 h"), (-3, "0 s")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_watching_a_terminal_draws_again_and_ends_by_ctrl_c(
    seen_urls: dict[str, str], command: Command
) -> None:
    ours, theirs = pty.openpty()
    environment = command.environment | {"COLUMNS": "220", "LINES": "50", "TERM": "xterm"}
    options = [
        "leaderboard",
        "--db",
        seen_urls["sqlite"],
        "--top",
        "1",
        "--watch",
        "--every",
        "0.1",
    ]
    process = subprocess.Popen(
        command.line(*options, ranks=0),
        cwd=command.folder, env=environment, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    killer = threading.Timer(30, process.kill)
    killer.start()
    shown = b""
    while shown.count(b"seen: minivit_digits") < 3:
        shown += os.read(ours, 1 << 16)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            shown += os.read(ours, 1 << 16)
        except OSError:  # its end of the terminal is closed
            break
    assert process.wait() == 0
    killer.cancel()
    os.close(ours)
    assert b"Traceback" not in shown
    assert b"\x1b[1A" in shown or b"\x1b[2K" in shown  # drawn over, not under
    assert shown.count(b"\x1b[?25h") == shown.count(b"\x1b[?25l") == 1  # the cursor is back


def test_watching_through_a_pipe_prints_again(seen_urls: dict[str, str], command: Command) -> None:
    process = command.start("status", "--db", seen_urls["sqlite"], "--watch", "--every", "0.1")
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line.startswith("expected end")
        assert "\x1b" not in line
        if seen == 2:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(30) == 0
    assert "Traceback" not in rest


def test_a_reader_that_has_seen_enough_gets_no_traceback(
    seen_urls: dict[str, str], command: Command
) -> None:
    line = " ".join(command.line("leaderboard", "--db", seen_urls["sqlite"], ranks=0))
    result = subprocess.run(
        ["bash", "-c", f"{line} --watch --every 0.1 | head -n 3; echo ${{PIPESTATUS[0]}}"],
        cwd=command.folder, env=command.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert not result.stderr
    assert result.stdout.splitlines()[-1] == "1"


def test_a_narrow_terminal(seen_urls: dict[str, str], tmp_path: Path, command: Command) -> None:
    ours, theirs = pty.openpty()
    environment = command.environment | {"COLUMNS": "80", "TERM": "dumb"}
    for options in (["status"], ["show", "7"]):
        subprocess.run(
            command.line(*options, "--db", seen_urls["sqlite"], ranks=0),
            cwd=tmp_path, env=environment, stdout=theirs, check=True,
        )  # fmt: skip
        lines = os.read(ours, 1 << 18).decode().splitlines()
        assert [line for line in lines if len(line) > 80] == []
    os.close(theirs)
    os.close(ours)


def test_what_is_searched_is_shown_with_step_condition_and_null() -> None:
    when = (("model.kind", ("cnn", None)),)
    limits = {"low": 3, "high": 7, "scale": "linear", "step": 2, "when": when}
    assert _searched(limits) == "3 to 7, step 2, when model.kind is cnn | null"
    assert _searched({"choices": (None, 0.1), "when": ()}) == "null | 0.1"
    assert _searched({}) == ""
