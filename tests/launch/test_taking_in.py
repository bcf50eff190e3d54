"""What the folders hold and the database does not: taken in by a launch, or by `import`."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from oialr_search.storage import open_storage
from oialr_search.storage.records import IndividualRecord

from ..conftest import Command, make_command
from .faults import (
    database_of,
    evaluations,
    faulty,
    finish,
    fitnesses,
    folder_of,
    hanging,
    of_folder,
    query,
    rank_processes,
    run_line,
    wait_until,
)

pytestmark = pytest.mark.slow  # each launch costs seconds of imports

OBSERVED = {"observation": "{interval_steps: 5, lags: [1, 2]}"}


def test_a_result_that_no_rank_has_read_is_stored_and_not_computed_again(
    command: Command,
) -> None:
    """The rank stands still while its worker ends; then the launch is killed."""
    process = faulty(command, {"1/1": ("pause", 0)}).start(*run_line(1), ranks=1)
    folder = folder_of(command) / "individual-000001" / "attempt-1"
    wait_until((folder / "events.jsonl").exists, process)
    (rank,) = rank_processes(process).values()
    rank.suspend()
    wait_until((folder / "result.json").exists)
    killed = [rank, *(p for p in psutil.Process(process.pid).children()), process]
    for one in killed:
        one.kill()
    finish(process)
    wait_until(lambda: not of_folder(command))
    assert [row["status"] for row in evaluations(command)] == ["running"]
    assert not (folder / "outcome.json").exists()
    written = (folder / "result.json").stat().st_mtime_ns

    command(*run_line(1), ranks=1)
    (row,) = evaluations(command)
    told = json.loads((folder / "result.json").read_text())
    assert (row["status"], row["individual_status"], row["attempt"]) == ("completed",) * 2 + (1,)
    assert row["fitness"] == 100.0 - told["metrics"]["validation_top1"]
    assert row["launch_id"] == 1
    epochs = query(database_of(command), "select distinct epoch from metrics order by epoch")
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4]
    assert (folder / "result.json").stat().st_mtime_ns == written


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Three individuals of two ranks: one repeated, one failed for good, one like any other."""
    command = make_command(tmp_path_factory.mktemp("eventful"))
    disturbed = faulty(command, {"1/1": ("kill", 3), "2/*": ("exit", 2)})
    islands = {"search__islands": "2", "search__migration_probability": "1.0"}
    disturbed(*run_line(3, **OBSERVED, **islands), ranks=2)
    return command


@pytest.fixture
def copied(eventful: Command, command: Command) -> Command:
    """A copy of that search in a folder of its own, without its database."""
    shutil.copytree(folder_of(eventful), folder_of(command))
    return command


EVALUATION_TABLES = ("metrics", "rank_updates", "observations")


def stories(command: Command) -> list[dict[str, Any]]:
    """All that is stored of each individual, but for where its files are, and for the order in
    which two ranks were quicker to store."""
    told = []
    with open_storage(str(database_of(command)), read_only=True) as storage:
        (search,) = storage.searches()
        for individual in storage.individuals(search.id):
            attempts = [
                {
                    **vars(replace(e, folder="", log_path=Path(e.log_path).name, finish_number=0)),
                    "epochs": storage.epochs(e.id),
                    "rank_updates": storage.rank_updates(e.id),
                    "observations": storage.observations(e.id),
                }
                for e in storage.evaluations(individual.id)
            ]
            story = {f.name: getattr(individual, f.name) for f in fields(IndividualRecord)}
            told.append({**story, "evaluation": None, "attempts": attempts})
    return told


def test_an_imported_search_is_the_same(eventful: Command, copied: Command) -> None:
    result = copied("import", "searches/minivit_digits")
    assert result.stdout.splitlines()[-1] == "search 'minivit_digits': 3 individuals imported"
    assert not result.stderr
    original = stories(eventful)
    assert stories(copied) == original
    one, two, three = original
    assert [a["status"] for a in one["attempts"]] == ["failed", "completed"]
    assert [a["status"] for a in two["attempts"]] == ["failed", "failed"]
    assert two["attempts"][0]["exit_code"] == 3
    assert three["status"] == "completed"
    assert all(a["observations"] and a["rank_updates"] for a in three["attempts"])
    numbers = "select finish_number from evaluations order by 1"
    assert query(database_of(copied), numbers) == query(database_of(eventful), numbers)
    moved = "select individual_id, source_island, target_island, accepted_at from migrations"
    assert query(database_of(copied), moved) == query(database_of(eventful), moved) != []
    board = "select individual_id, fitness from leaderboard order by fitness, individual_id"
    assert query(database_of(copied), board) == query(database_of(eventful), board)


def test_an_imported_search_goes_on(copied: Command, eventful: Command) -> None:
    copied("import", "searches/minivit_digits")
    copied(*run_line(4, **OBSERVED), ranks=2)
    assert list(fitnesses(copied)) == [1, 2, 3, 4]
    proposals = query(
        database_of(copied), "select distinct island, island_rank, generation from individuals"
    )
    assert len(proposals) == 4
    assert {n: f for n, f in fitnesses(copied).items() if n < 4} == fitnesses(eventful)


@pytest.mark.slow
def test_an_unfinished_individual_is_imported_as_lost_and_goes_on_from_its_state(
    command: Command,
) -> None:
    process = faulty(command, {"1/1": ("hang", 4)}).start(*run_line(1))
    state = folder_of(command) / "individual-000001" / "state.pt"
    wait_until(lambda: hanging(command), process)
    assert state.exists()
    process.send_signal(signal.SIGKILL)
    finish(process)
    wait_until(lambda: not of_folder(command))
    for path in database_of(command).parent.glob("search.db*"):
        path.unlink()
    command("import", "searches/minivit_digits")
    (row,) = evaluations(command)
    assert (row["status"], row["individual_status"]) == ("lost", "lost")
    command(*run_line(1))
    first, second = evaluations(command)
    assert first["status"] == "lost"
    assert second["status"] == second["individual_status"] == "completed"
    assert second["resumed_epoch"] == 2


def cut_off(path: Path) -> None:
    text = path.read_text()
    path.write_text(text[: len(text) // 2])


def test_what_is_left_out_is_told(copied: Command) -> None:
    cut_off(folder_of(copied) / "individual-000001" / "individual.json")
    result = copied("import", "searches/minivit_digits")
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: left out: searches/minivit_digits/individual-000001/indiv")
    assert result.stdout.splitlines()[-1].endswith("2 individuals imported")


def assert_refused(command: Command, *arguments: str, words: list[str]) -> None:
    """One line, 78, and no file is new or changed."""
    before = files(command)
    result = command(*arguments, check=False)
    assert result.returncode == 78
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert files(command) == before


def files(command: Command) -> dict[Path, int]:
    kept = (p for p in command.folder.rglob("*") if not p.name.startswith("search.db-"))
    return {path: path.stat().st_mtime_ns for path in kept if path.is_file()}


def test_a_search_that_is_stored_is_not_imported(eventful: Command) -> None:
    words = ["`minivit_digits`", "is taken", "--db"]
    assert_refused(eventful, "import", "searches/minivit_digits", words=words)


def test_a_folder_without_a_search_is_not_imported(command: Command) -> None:
    assert_refused(command, "import", ".", words=["no search in .", "search.json"])
    assert_refused(command, "import", "nowhere", words=["no search in nowhere"])


def test_all_searches_of_a_folder_are_imported(copied: Command) -> None:
    assert "3 individuals imported" in copied("import", "searches").stdout


def test_a_search_without_its_database_is_refused_or_begun_under_another_name(
    copied: Command,
) -> None:
    words = ["holds evaluations", "`oialr-search import searches/minivit_digits`", "`--new`"]
    assert_refused(copied, *run_line(4, **OBSERVED), words=words)
    assert not database_of(copied).exists()
    before = {path: path.stat().st_mtime_ns for path in folder_of(copied).rglob("*")}
    copied(*run_line(1), "--new")
    assert {path: path.stat().st_mtime_ns for path in folder_of(copied).rglob("*")} == before
    assert query(database_of(copied), "select name from searches") == [{"name": "minivit_digits-2"}]
