"""What a person names is evaluated first: what the file starts with, what is queued later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oialr_search import exit_codes
from oialr_search.launch.starting import check_start, named_points
from oialr_search.space.search_file import SearchFile, load_search
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import IndividualRecord, Status, StorageError
from oialr_training.errors import ConfigError

from ..conftest import DIGITS
from .conftest import Launches


def starting_with(entries: str, *assignments: str) -> SearchFile:
    return load_search(DIGITS, [f"search.start_with={entries}", *assignments])


def individuals(launches: Launches) -> list[IndividualRecord]:
    storage, _ = launches.stored()
    with storage:
        return storage.individuals(storage.searches()[0].id)


def queue(launches: Launches, *assignments: str) -> list[tuple[int, bool]]:
    """As a command does it."""
    with open_storage(str(launches.database)) as storage:
        (search,) = storage.searches()
        points, _ = named_points(storage, search, (), assignments, None, 1)
        return storage.queue(search.id, points)


def run(launches: Launches, file: SearchFile, ranks: int = 1, **more: Any) -> int | None:
    return launches(ranks, load=lambda: file, **more)


def test_the_file_s_own_values_come_first(launches: Launches) -> None:
    file = starting_with("[file, file]", "search.evaluations=6", "search.islands=1")
    assert run(launches, file) == exit_codes.FINISHED
    first, *others = individuals(launches)
    assert (first.origin, first.island, first.island_rank, first.generation) == ("given", 0, -1, 0)
    assert first.hyperparameters["optimizer.lr"] == file.training.optimizer.lr  # type: ignore[attr-defined]
    assert first.evaluation
    assert first.evaluation.finish_number == 1
    assert {i.origin for i in others} == {"start"}
    assert [i.generation for i in others] == list(range(5))


def test_they_are_dealt_to_the_islands_in_turn_and_to_all_ranks(
    launches: Launches, tmp_path: Path
) -> None:
    for n in range(5):
        (tmp_path / f"{n}.yaml").write_text(f"optimizer: {{lr: 0.00{n + 1}}}\n")
    entries = ", ".join(f"{{file: {tmp_path}/{n}.yaml}}" for n in range(5))
    file = starting_with(f"[{entries}]", "search.evaluations=8", "search.islands=2")
    assert run(launches, file, ranks=2) == exit_codes.FINISHED
    found = individuals(launches)
    given = [i for i in found if i.origin == "given"]
    assert [i.hyperparameters["optimizer.lr"] for i in given] == [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]
    assert [(i.island, i.generation) for i in given] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    assert len(found) == 8
    ranks = {i.evaluation.world_rank for i in given if i.evaluation}
    assert ranks == {0, 1}


def test_the_best_of_another_search(launches: Launches) -> None:
    assert launches(1, evaluations=5, islands=1) == exit_codes.FINISHED
    best = sorted(individuals(launches), key=lambda i: i.fitness or 0.0)[:2]
    file = starting_with(
        "[{search: minivit_digits, best: 2}]",
        "search.name=next", "search.evaluations=3", "search.islands=1", "oialr.delay_steps=50",
    )  # fmt: skip
    assert run(launches, file) == exit_codes.FINISHED
    with open_storage(str(launches.database), read_only=True) as storage:
        search = storage.find_search("next")
        assert search
        found = storage.individuals(search.id)
    values = [{**i.hyperparameters} for i in best]
    for each in values:
        del each["oialr.delay_steps"]
    assert [i.hyperparameters for i in found[:2]] == values
    assert [i.origin for i in found] == ["given", "given", "start"]


def test_nothing_is_queued_twice_after_a_kill(launches: Launches) -> None:
    """What was running is repeated first, then what waits."""
    entries = "[file, {file: training/minivit_cifar10_baseline.yaml}]"
    file = starting_with(entries, "search.evaluations=4", "search.islands=1")
    kill = {0.3: lambda: launches.stops[0].request(at_once=True)}
    assert run(launches, file, at=kill) == exit_codes.STOPPED
    assert [i.status for i in individuals(launches)] == [Status.LOST, Status.QUEUED]
    assert run(launches, file) == exit_codes.FINISHED
    found = individuals(launches)
    assert [i.origin for i in found] == ["given", "given", "start", "start"]
    finished = [(i.evaluation.finish_number, i.evaluation.attempt) for i in found if i.evaluation]
    assert sorted(finished) == finished
    assert [attempt for _, attempt in finished] == [2, 1, 1, 1]


def test_a_search_is_created_with_what_it_starts_with_or_not_at_all(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[tuple[int, bool]]:
        raise StorageError("no more")

    file = starting_with("[file]", "search.evaluations=2", "search.islands=1")
    with monkeypatch.context() as broken:
        broken.setattr(Storage, "queue", fail)
        assert run(launches, file) == exit_codes.CONFIG
    with open_storage(str(launches.database)) as storage:
        assert storage.searches() == []
    assert run(launches, file) == exit_codes.FINISHED
    assert [i.origin for i in individuals(launches)] == ["given", "start"]


def test_a_running_launch_takes_up_what_is_queued(launches: Launches) -> None:
    queued: list[tuple[int, bool]] = []
    at = {1.2: lambda: queued.extend(queue(launches, "optimizer.lr=0.002"))}
    assert launches(1, at=at, evaluations=6, islands=1) == exit_codes.FINISHED
    ((number, new),) = queued
    found = individuals(launches)
    assert (len(found), new) == (6, True)
    given = next(i for i in found if i.id == number)
    assert given.status is Status.COMPLETED
    assert given.hyperparameters["optimizer.lr"] == 0.002
    assert given.hyperparameters["oialr.delay_steps"] == 120
    assert given.evaluation
    assert given.evaluation.finish_number == number < 6


def test_a_complete_search_evaluates_what_is_queued_beyond_its_evaluations(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launches(2, evaluations=4, islands=2) == exit_codes.FINISHED
    assert queue(launches, "optimizer.lr=0.002") == [(5, True)]
    assert queue(launches, "optimizer.lr=0.002") == [(5, False)]
    capsys.readouterr()
    kill = {0.4: lambda: launches.stops[0].request(at_once=True)}
    assert launches(1, at=kill, evaluations=4, islands=1) == exit_codes.STOPPED
    assert launches(2, evaluations=4, islands=2) == exit_codes.FINISHED
    assert "[5/5]     5 fitness" in capsys.readouterr().out
    found = individuals(launches)
    assert [i.status for i in found] == [Status.COMPLETED] * 5
    assert found[-1].evaluation
    assert found[-1].evaluation.attempt == 2
    assert launches(2, evaluations=4, islands=2) == exit_codes.FINISHED
    out = capsys.readouterr().out
    assert out == "search 'minivit_digits' is complete: 5 evaluations are stored\n"


def test_numbers_beyond_the_space_are_moved_and_told(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    file = starting_with("[file]", "space.optimizer.lr.low=0.004", "search.evaluations=2")
    assert run(launches, file, ranks=2) == exit_codes.FINISHED
    warning = f"warning: `optimizer.lr` = 0.003 moved to 0.004 ({DIGITS})\n"
    assert capsys.readouterr().err == warning
    assert run(launches, file, ranks=2) == exit_codes.FINISHED
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("entries", "assignment", "line"),
    [
        ("[{search: x}]", "epochs=2", "error: no search 'x' in the database; it holds none yet"),
        ("[{file: x.yaml}]", "epochs=2", f"error: cannot read {DIGITS.parent}/x.yaml: No such"),
        (
            "[file]",
            "space.oialr.update_frequency={choices: [20, 60]}",
            "error: `oialr.update_frequency` is one of 20, 60, got 40 (",
        ),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_stored(
    launches: Launches, capsys: pytest.CaptureFixture[str], entries: str, assignment: str, line: str
) -> None:
    assert run(launches, starting_with(entries, assignment), ranks=2) == exit_codes.CONFIG
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(line)
    with open_storage(str(launches.database)) as storage:
        assert storage.searches() == []
    assert {path.name for path in launches.folder.iterdir()} == {"search.db"}


def test_a_file_is_checked_without_other_searches(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optimizer: {lr: 1.0}\n")
    entries = f"[file, {{search: nowhere}}, {{file: {tmp_path}/a.yaml}}]"
    assert check_start(starting_with(entries)) == [
        f"`optimizer.lr` = 1.0 moved to 0.005 ({tmp_path}/a.yaml)"
    ]
    with pytest.raises(ConfigError, match=r"cannot read .*b\.yaml"):
        check_start(starting_with("[{file: b.yaml}]"))


def test_of_nothing_there_is_one_line(launches: Launches) -> None:
    assert launches(1, evaluations=2, islands=1) == exit_codes.FINISHED
    storage, search = launches.stored()
    with storage:
        for asked, line in {
            (): "nothing is named",
            ("optimizer.lrr=1",): "`optimizer.lrr` is not searched; did you mean `optimizer.lr`",
        }.items():
            with pytest.raises(ConfigError, match=line):
                named_points(storage, search, (), asked, None, 1)
        with pytest.raises(ConfigError, match="no search 'minivit_digit' in the database; did you"):
            named_points(storage, search, (), (), "minivit_digit", 1)
