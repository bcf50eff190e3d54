"""Lets a script of your own tell `oialr-search` how it gets on.

    from oialr_search_report import report, state_dir

    for epoch in range(1, 11):
        ...  # train, and save a checkpoint into state_dir()
        if report(epoch=epoch, validation_loss=loss):
            break  # it was asked to stop: another attempt goes on from the checkpoint

Or, without a change to the script, where it writes a CSV file with a column `epoch`:

    python -m oialr_search_report FOLDER/summary.csv python train.py --output FOLDER

One file that needs nothing but Python 3.8; a search puts it on the script's PYTHONPATH. Without a
search, nothing is reported and nobody asks to stop.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import subprocess
import sys
import time
from typing import Any

_noted = False


def report(epoch: int | None = None, step: int | None = None, **metrics: Any) -> bool:
    """Report metrics: with `epoch` (from 1 on, growing) those of an epoch, else those of the end.

    Every metric that the search file declares is to be in the last epoch's report or in that of
    the end. Returns True when the script is to save its state and end: see `should_stop`.
    """
    line: dict[str, Any] = {name: float(value) for name, value in metrics.items()}
    if epoch is not None:
        line["epoch"] = int(epoch)
    if step is not None:
        line["step"] = int(step)
    _append(line)
    return should_stop()


def should_stop() -> bool:
    """Is the search about to end, or this training not worth going on with?"""
    global _noted
    stop = os.environ.get("OIALR_STOP")
    if not stop or not os.path.exists(stop):
        return False
    if not _noted:
        _noted = True
        _append({"stops": True})
    return True


def state_dir(default: str = "state") -> str:
    """The folder for what another attempt goes on from, made if need be.

    It outlives this process, is the same one for the next attempt at this evaluation, and is
    removed when the evaluation has ended. Without a search it is `default`.
    """
    folder = os.environ.get("OIALR_STATE_DIR") or default
    os.makedirs(folder, exist_ok=True)
    return folder


def follow(pattern: str, command: list[str]) -> int:
    """Run a program and report each row that it adds to a CSV file; returns its exit code.

    Of the files that fit the pattern, such as `out/**/summary.csv`, the newest is meant. Its
    columns are metrics; `epoch` counts from 0 or 1.
    """
    child, told = subprocess.Popen(command), 0
    while True:
        ended = child.poll() is not None  # asked first: what it has written is there then
        rows = _rows(pattern)
        for row in rows[told:]:
            numbers = {name: value for name, value in row.items() if name != "epoch"}
            report(int(row["epoch"]) + (rows[0]["epoch"] == 0), None, **numbers)
        told = len(rows)
        if ended:
            return child.returncode if child.returncode >= 0 else 128 - child.returncode
        if should_stop():
            child.terminate()
            child.wait()
            return 75
        time.sleep(0.2)


def _rows(pattern: str) -> list[dict[str, float]]:
    """The whole rows, their numbers."""
    found = sorted(glob.glob(pattern, recursive=True), key=os.path.getmtime)
    if not found:
        return []
    with open(found[-1], newline="") as file:
        text = file.read()
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    numbers = [{name: _number(text) for name, text in row.items() if name} for row in rows]
    known = [{name: x for name, x in row.items() if x is not None} for row in numbers]
    return [row for row in known if "epoch" in row]


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _append(line: dict[str, Any]) -> None:
    path = os.environ.get("OIALR_REPORT")
    if path:
        with open(path, "ab", buffering=0) as file:  # one write a line
            file.write(json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m oialr_search_report FILE.csv PROGRAM [ARGUMENT]...")
    sys.exit(follow(sys.argv[1], sys.argv[2:]))
