"""Searches to be disturbed: workers that misbehave where a test says, and what is left of them.

A worker misbehaves by a `sitecustomize.py` on PYTHONPATH. It sees in Python's audit events that the
worker writes to `events.jsonl`, so it strikes in the middle of a real training, at the same place
each time: 1 is the training's start, 2 the end of its first epoch.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from ..conftest import DIGITS, ROOT, TINY, Command, settings

DEADLINE_S = 240.0

# Random individuals on one island: the n-th of one rank is the same in every search.
VALUES = TINY | {
    "search.islands": "1",
    "search.engine": "random",
    "search.failures_in_a_row": "100",
    "model.embed_dim": "16",
    "num_threads": "1",
    "epochs": "4",
}

SITECUSTOMIZE = """
import ctypes, itertools, json, os, re, resource, signal, sys, time

def act(action):
    events = int(sys.argv[sys.argv.index("--events") + 1])
    match action:
        case "kill": os.kill(os.getpid(), signal.SIGKILL)
        case "segfault": ctypes.string_at(0)
        case "exit": print("goodbye", flush=True); os._exit(3)
        case "memory": bytearray(1 << 62)
        case "hang": os.kill(os.getpid(), signal.SIGSTOP)
        case "garbage": os.write(events, b"no JSON\\n"); time.sleep(3600)
        case "endless":
            while True: os.write(events, b"x" * 65536)
        case "flood": print("flood\\n" * 500_000, flush=True); time.sleep(3600)
        case "full disk": resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        case "pause": time.sleep(0.5)

if sys.orig_argv[2:4] == ["-m", "oialr_training"]:
    faults = json.loads(open(os.path.join(os.path.dirname(__file__), "faults.json")).read())
    rank = open(f"/proc/{os.getppid()}/environ").read()
    world_rank = re.search(r"(PMI|OMPI_COMM_WORLD)_RANK=([0-9]+)|$", rank)[2] or "0"
    said = itertools.count(1)

    def hook(event, args):
        if event != "open" or not str(args[0]).endswith("/events.jsonl"):
            return
        number = next(said)
        whose = re.search(r"individual-0*([0-9]+)/attempt-([0-9]+)", str(args[0]))
        for key in (f"{whose[1]}/{whose[2]}", f"{whose[1]}/*", f"rank {world_rank}", "*"):
            action, when = faults.get(key, ("", 0))
            if when in (number, 0):
                act(action)

    sys.addaudithook(hook)
"""


def faulty(command: Command, faults: dict[str, tuple[str, int]]) -> Command:
    """The same command with workers that misbehave.

    `faults` says for `individual/attempt`, `individual/*`, `rank N` or `*` what happens at the n-th
    thing that the worker says (0: at each).
    """
    folder = command.folder / "hooks"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (folder / "faults.json").write_text(json.dumps(faults))
    return with_hooks(command)


def with_hooks(command: Command) -> Command:
    """The same command with the folder `hooks` before all others that Python imports from."""
    path = f"{command.folder / 'hooks'}{os.pathsep}{ROOT}{os.pathsep}{ROOT / 'workers'}"
    return replace(command, environment=command.environment | {"PYTHONPATH": path})


def run_line(evaluations: int, **changes: str) -> list[str]:
    """Arguments of a small search; `search__retries` is a dotted path."""
    values = VALUES | {path.replace("__", "."): value for path, value in changes.items()}
    return ["run", str(DIGITS), "--evaluations", str(evaluations), *settings(values)]


def database_of(command: Command) -> Path:
    return command.folder / "searches" / "search.db"


def folder_of(command: Command) -> Path:
    return command.folder / "searches" / "minivit_digits"


def query(database: Path, sql: str) -> list[dict[str, Any]]:
    """Rows of a plain SQL query."""
    connection = sqlite3.connect(database, timeout=30)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(sql)]
    finally:
        connection.close()


def evaluations(command: Command) -> list[dict[str, Any]]:
    """All evaluations, with what became of their individuals."""
    return query(
        database_of(command),
        "select e.*, i.status individual_status, i.fitness individual_fitness, i.hyperparameters "
        "from evaluations e join individuals i on i.id = e.individual_id "
        "order by individual_id, attempt",
    )


def fitnesses(command: Command) -> dict[int, float | None]:
    """The fitness of each individual."""
    rows = query(database_of(command), "select id, fitness from individuals order by id")
    return {row["id"]: row["fitness"] for row in rows}


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Poll, with a deadline; a process given must live meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        if process is not None and process.poll() is not None:
            output = process.stdout.read() if process.stdout else ""
            raise AssertionError(f"ended with {process.returncode}: {output}")
        time.sleep(0.02)


def has_said(command: Command, individual: int, attempt: int, text: str) -> Callable[[], bool]:
    """Has the worker of an evaluation said this?"""
    name = f"individual-{individual:06d}/attempt-{attempt}/events.jsonl"
    path = folder_of(command) / name
    return lambda: path.exists() and text in path.read_text()


def rank_processes(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The ranks of a launch by their number; `{0: itself}` without mpiexec."""
    found = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    ranks = {}
    for child in found:
        arguments = child.cmdline()
        if not any(part.endswith("oialr-search") for part in arguments[:2]):
            continue
        environment = child.environ()
        names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
        number = next((environment[name] for name in names if name in environment), "0")
        ranks[int(number)] = child
    return ranks


def of_folder(command: Command) -> list[psutil.Process]:
    """All processes that work in the command's folder."""
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        at_home = process.info["cwd"] == str(command.folder)
        if at_home and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def hanging(command: Command) -> bool:
    """Does a worker stand still?"""
    return any(p.status() == psutil.STATUS_STOPPED for p in of_folder(command))


def finish(process: subprocess.Popen[str], timeout_s: float = DEADLINE_S) -> tuple[int, str]:
    """The exit code and the output of a process that is about to end."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output
