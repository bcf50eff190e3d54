"""Stopped by signals and clocks, and gone on with: not an epoch is lost, nor a digit changed."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace

import pytest

from oialr_search.cli.time_limit import END_MARGIN_S, deadline

from ..conftest import Command, make_command
from .faults import (
    database_of,
    evaluations,
    faulty,
    finish,
    fitnesses,
    folder_of,
    hanging,
    has_said,
    of_folder,
    query,
    rank_processes,
    run_line,
    wait_until,
)

pytestmark = pytest.mark.slow  # each launch costs seconds of imports

EPOCHS = "30"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float | None]:
    """What the first two individuals of one rank come to when nothing happens."""
    command = make_command(tmp_path_factory.mktemp("undisturbed"))
    command(*run_line(2, epochs=EPOCHS))
    return fitnesses(command)


def slow(command: Command) -> Command:
    """The first attempts at individuals take half a second an epoch."""
    return faulty(command, {f"{n}/1": ("pause", 0) for n in range(1, 5)})


def epochs_of(command: Command, individual: int, attempt: int) -> int:
    """The last epoch that an evaluation's worker has told of."""
    name = f"individual-{individual:06d}/attempt-{attempt}/events.jsonl"
    lines = (folder_of(command) / name).read_text().splitlines()
    return max((json.loads(line).get("epoch", 0) for line in lines), default=0)


def assert_stopped(command: Command, code: int, output: str) -> None:
    """Nothing runs, nothing failed, and it is said how to go on."""
    assert code == 75, output
    assert "the same command goes on" in output
    assert {row["status"] for row in evaluations(command)} <= {"completed", "lost"}
    assert {row["individual_status"] for row in evaluations(command)} <= {"completed", "lost"}
    launch = query(database_of(command), "select exit_code, ended_at from launches order by id")[-1]
    assert launch["exit_code"] == 75
    assert launch["ended_at"] is not None
    wait_until(lambda: not of_folder(command))
    assert not list(folder_of(command).glob("worker-*.log"))


def test_the_first_signal_lets_epochs_end_and_the_next_launch_goes_on_from_there(
    command: Command, undisturbed: dict[int, float | None]
) -> None:
    """And on with another number of ranks and islands, and to a higher total."""
    process = slow(command).start(*run_line(1, epochs=EPOCHS))
    wait_until(has_said(command, 1, 1, '"epoch"'), process)
    process.send_signal(signal.SIGTERM)
    assert_stopped(command, *finish(process))
    (row,) = evaluations(command)
    stopped = epochs_of(command, 1, 1)
    assert 1 <= stopped < int(EPOCHS)
    assert row["reason"] == f"the search was stopped after epoch {stopped}"
    assert row["last_epoch"] == stopped
    assert (folder_of(command) / "individual-000001" / "state.pt").exists()
    command(*run_line(3, epochs=EPOCHS, search__islands="2"), ranks=2)
    rows = evaluations(command)
    assert [(row["individual_id"], row["attempt"]) for row in rows] == [
        (1, 1), (1, 2), (2, 1), (3, 1)
    ]  # fmt: skip
    assert rows[1]["resumed_epoch"] == stopped
    assert rows[1]["num_threads"] == rows[0]["num_threads"]
    assert {row["status"] for row in rows[1:]} == {"completed"}
    assert fitnesses(command)[1] == undisturbed[1]
    stored = query(
        database_of(command),
        "select evaluation_id, count(*) n from metrics where name = 'train_loss' group by 1",
    )
    assert {row["n"] for row in stored if row["evaluation_id"] != 1} == {int(EPOCHS)}


@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGINT, "mpiexec"),
        pytest.param(signal.SIGTERM, "mpiexec", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, "mpiexec", marks=pytest.mark.slow),
        (signal.SIGUSR2, "rank 1"),
        pytest.param(signal.SIGUSR1, "rank 0", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_any_process_stops_all_ranks(
    command: Command, number: signal.Signals, to: str
) -> None:
    process = slow(command).start(*run_line(4, epochs=EPOCHS), ranks=2)
    for individual in (1, 2):
        wait_until(has_said(command, individual, 1, '"epoch"'), process)
    if to == "mpiexec":
        process.send_signal(number)
    else:
        rank_processes(process)[int(to.split()[1])].send_signal(number)
    code, output = finish(process)
    assert_stopped(command, code, output)
    rows = evaluations(command)
    assert [row["individual_id"] for row in rows] == [1, 2]
    for row in rows:
        last = epochs_of(command, row["individual_id"], 1)
        assert row["reason"] == f"the search was stopped after epoch {last}"


def test_a_signal_to_an_idle_rank_stops_the_one_that_works(command: Command) -> None:
    """One individual for two ranks; the idle rank is the other than its rank."""
    process = slow(command).start(*run_line(1, epochs=EPOCHS), ranks=2)
    wait_until(has_said(command, 1, 1, '"epoch"'), process)
    (rank,) = json.loads(command("status", "--format", "json").stdout)["ranks"]
    assert 0 <= rank["silent_s"] < rank["running_s"]
    idle = 1 - evaluations(command)[0]["world_rank"]
    rank_processes(process)[idle].send_signal(signal.SIGTERM)
    assert_stopped(command, *finish(process))


def test_a_second_signal_waits_for_no_epoch(command: Command) -> None:
    process = faulty(command, {"1/1": ("hang", 3)}).start(*run_line(2, epochs=EPOCHS))
    wait_until(lambda: hanging(command), process)
    process.send_signal(signal.SIGUSR1)
    # The next worker is not needed any more; the running one may end its epoch.
    wait_until(
        lambda: sum("oialr_training" in p.cmdline() for p in of_folder(command)) == 1, process
    )
    process.send_signal(signal.SIGTERM)
    assert_stopped(command, *finish(process, 40.0))
    assert evaluations(command)[0]["reason"] == "the search was stopped"
    assert (folder_of(command) / "individual-000001" / "state.pt").exists()


def test_the_grace_ends_what_does_not_reach_the_end_of_its_epoch(command: Command) -> None:
    command = faulty(command, {"1/1": ("hang", 2)})
    process = command.start(*run_line(1), "--grace", "2s")
    wait_until(lambda: hanging(command), process)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, output = finish(process, 40.0)
    assert time.monotonic() - begun > 2
    assert_stopped(command, code, output)
    assert evaluations(command)[0]["reason"] == "the search was stopped"


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["option", "Slurm"])
def test_the_time_limit_stops_in_time(command: Command, limit: str) -> None:
    """The user's, or the end that the batch system tells."""
    grace_s, limit_s, command = 20.0, 60.0, slow(command)
    end = time.time() + limit_s + grace_s + END_MARGIN_S
    slurm = {"SLURM_JOB_END_TIME": str(int(end))} if limit == "Slurm" else {}
    option = ["--time-limit", f"{limit_s:g}s"] if limit == "option" else []
    command = replace(command, environment=command.environment | slurm)
    process = command.start(*run_line(1, epochs="3000"), "--grace", f"{grace_s:g}s", *option)
    code, output = finish(process)
    assert end - grace_s - END_MARGIN_S - 1 < time.time() < end
    assert_stopped(command, code, output)
    assert "after epoch" in evaluations(command)[0]["reason"]


def test_deadlines() -> None:
    now = time.time()
    assert deadline(None, 60.0, {}) is None
    limit = deadline(90.0, 60.0, {})
    assert limit is not None
    assert 89.0 <= limit - now <= 95.0
    end = str(int(now) + 600)
    assert deadline(None, 60.0, {"SLURM_JOB_END_TIME": end}) == int(end) - 60.0 - END_MARGIN_S
    earlier = deadline(10.0, 60.0, {"SLURM_JOB_END_TIME": end})
    assert earlier is not None
    assert earlier - now < 11
