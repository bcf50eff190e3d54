"""Workers that fail in every way: each is a row, and the search goes on."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from ..conftest import CIFAR10, SMALL_CIFAR10, Command, make_command, settings
from ..oialr_training.test_data import make_images
from .faults import (
    database_of,
    evaluations,
    faulty,
    finish,
    fitnesses,
    folder_of,
    has_said,
    of_folder,
    query,
    rank_processes,
    run_line,
    wait_until,
)

pytestmark = pytest.mark.slow  # each launch costs seconds of imports

ONE_RANK = 0  # without mpiexec


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float | None]:
    """What the first individuals come to when nothing happens."""
    command = make_command(tmp_path_factory.mktemp("undisturbed"))
    command(*run_line(2))
    return fitnesses(command)


MISBEHAVIOURS = {
    "kill": ("failed", "the worker was killed by SIGKILL", None, signal.SIGKILL),
    "segfault": ("failed", "the worker was killed by SIGSEGV", None, signal.SIGSEGV),
    # Not the machine's fault: the pauses after such begin anew.
    "flood": ("failed", "a log of more than 1 MiB", None, None),
    "full disk": ("completed", None, None, None),
    "exit": ("failed", "the worker ended with exit code 3: goodbye", 3, None),
    "memory": ("failed", "out of memory", None, None),
    "garbage": ("failed", "garbage on the worker's pipe: no message", None, None),
    "endless": ("failed", "garbage on the worker's pipe: a line without end", None, None),
    "hang": ("timed_out", "no progress for 8 s", None, None),
}


def test_every_misbehaviour_is_a_row(command: Command) -> None:
    faults = {f"{n}/1": (what, 2) for n, what in enumerate(MISBEHAVIOURS, start=1)}
    limits = {
        "search__no_progress_limit_s": "8",
        "search__log_limit_mib": "1",
        "search__retries": "0",
    }
    faulty(command, faults)(*run_line(len(faults), **limits), ranks=2)
    rows = evaluations(command)
    assert len(rows) == len(MISBEHAVIOURS)
    for row, (status, reason, exit_code, exit_signal) in zip(
        rows, MISBEHAVIOURS.values(), strict=True
    ):
        assert row["status"] == row["individual_status"] == status, row
        assert (row["exit_code"], row["exit_signal"]) == (exit_code, exit_signal), row
        assert row["training_started_at"] is not None
        if reason is None:
            assert row["reason"] is None
            assert row["fitness"] == row["individual_fitness"] is not None
            continue
        assert row["reason"].startswith(reason)
        assert len(row["reason"].splitlines()) == 1
        assert row["fitness"] is row["individual_fitness"] is None
        assert row["log_tail"]
        assert row["log_tail"] in Path(row["log_path"]).read_text()
    by_name = dict(zip(MISBEHAVIOURS, rows, strict=True))
    assert "Fatal Python error: Segmentation fault" in by_name["segfault"]["log_tail"]
    assert "MemoryError" in by_name["memory"]["log_tail"]
    assert not list(folder_of(command).glob("individual-*/state.pt"))
    assert not of_folder(command)


def test_the_machine_s_fault_is_repeated_from_its_state_and_then_final(
    command: Command, undisturbed: dict[int, float | None]
) -> None:
    """Individual 1 fails once, 2 always."""
    command = faulty(command, {"1/1": ("kill", 4), "2/*": ("exit", 3)})
    command(*run_line(2))
    told = [
        (row["individual_id"], row["attempt"], row["status"], row["resumed_epoch"])
        for row in evaluations(command)
    ]
    assert told == [
        (1, 1, "failed", 0),
        (1, 2, "completed", 2),
        (2, 1, "failed", 0),
        (2, 2, "failed", 1),
    ]
    assert fitnesses(command) == {1: undisturbed[1], 2: None}
    steps = query(database_of(command), "select count(*) n, count(distinct step) steps "
                  "from metrics where evaluation_id = 2 and name = 'train_loss'")  # fmt: skip
    assert steps == [{"n": 4, "steps": 4}]  # also those of the first attempt


@pytest.mark.slow
def test_data_that_vanish_between_two_evaluations(command: Command) -> None:
    """A loaded data set is in memory: only the second evaluation's worker misses it."""
    images = make_images(command.folder / "images")
    values = SMALL_CIFAR10 | {
        "data.train_subset": "null", "data.test_subset": "null", "search.islands": "1",
        "search.name": "minivit_digits",
        "search.failures_in_a_row": "2", "batch_size": "8",
    }  # fmt: skip
    command = faulty(command, {"1/1": ("pause", 0)})
    options = ["--evaluations", "2", "--data-dir", str(images), *settings(values)]
    process = command.start("run", CIFAR10, *options)
    wait_until(has_said(command, 1, 1, "started"), process)
    shutil.rmtree(images)
    code, output = finish(process)
    rows = evaluations(command)
    told = [(row["individual_id"], row["attempt"], row["status"]) for row in rows]
    assert told[-1] == (2, 2, "failed")
    assert str(images) in rows[-1]["reason"]
    assert rows[-1]["log_tail"]
    assert code == 0, output


def test_nothing_outlives_a_killed_rank(command: Command) -> None:
    images = make_images(command.folder / "images")
    values = SMALL_CIFAR10 | {
        "data.train_subset": "null", "data.test_subset": "null", "search.islands": "1",
        "search.name": "minivit_digits",
        "epochs": "10000", "batch_size": "8", "data.num_loader_processes": "2",
    }  # fmt: skip
    options = ["--evaluations", "2", "--data-dir", str(images), *settings(values)]
    process = command.start("run", CIFAR10, *options)
    wait_until(has_said(command, 1, 1, '"epoch"'), process)
    # The worker with its two loader processes, and the next worker.
    wait_until(
        lambda: sum("oialr_training" in p.cmdline() for p in of_folder(command)) >= 4, process
    )
    rank_processes(process)[0].kill()
    finish(process)
    wait_until(lambda: not of_folder(command))
