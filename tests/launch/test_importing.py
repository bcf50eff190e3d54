"""A lost database is made anew from the folders; what is damaged is left out with a line each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from oialr_search.evaluation.files import FolderError, add_migration, search_folders
from oialr_search.launch.importing import import_search
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import IndividualRecord, NewMigration, StorageError

from ..evaluation.scripted import completed
from .left_behind import TRAINED, LeftBehind, failed


@pytest.fixture
def eventful(left: LeftBehind) -> LeftBehind:
    """Two launches: one individual repeated, one failed for good, one completed, one unfinished."""
    left.leave(*TRAINED, result=failed("machine"), generation=0)
    left.leave(*TRAINED, result=failed("training", "it diverged"), generation=1)
    left.leave(*TRAINED, result=completed(80.0), generation=2, island=1)
    left.launch()
    left.leave(*TRAINED, result=completed(90.0), generation=3)  # the first again
    left.leave(*TRAINED[:2], generation=4)
    left.launch()
    migration = NewMigration(search_id=1, individual_id=3, source_island=1, target_island=0)
    left.storage.record_migration(migration)
    add_migration(left.folder, migration)
    return left


@pytest.fixture
def empty(empty_database: Path, tmp_path: Path) -> Iterator[Storage]:
    shutil.copy(empty_database, tmp_path / "other.db")
    with open_storage(str(tmp_path / "other.db")) as storage:
        yield storage


def told(storage: Storage) -> list[dict[str, Any]]:
    """All that is stored of each individual, but for the order in which evaluations ended."""
    stories = []
    (search,) = storage.searches()
    for individual in storage.individuals(search.id):
        attempts = [
            {
                **vars(replace(e, finish_number=0)),
                "epochs": storage.epochs(e.id),
                "rank_updates": storage.rank_updates(e.id),
                "observations": storage.observations(e.id),
            }
            for e in storage.evaluations(individual.id)
        ]
        of_individual = {f.name: getattr(individual, f.name) for f in fields(IndividualRecord)}
        stories.append({**of_individual, "evaluation": None, "attempts": attempts})
    return stories


def fitnesses(storage: Storage) -> dict[int, float | None]:
    (search,) = storage.searches()
    return {individual.id: individual.fitness for individual in storage.individuals(search.id)}


def test_all_comes_back(eventful: LeftBehind, empty: Storage) -> None:
    search, number, mistakes = import_search(empty, eventful.folder)
    assert (search, number, mistakes) == (eventful.storage.find_search(search.name), 4, [])
    original, imported = told(eventful.storage), told(empty)
    lost = original.pop(), imported.pop()  # nobody wrote into its folder when it was lost
    assert imported == original
    for story in lost:
        (attempt,) = story["attempts"]
        assert (story["status"], attempt["status"], attempt["last_epoch"]) == ("lost", "lost", 1)
    assert [[a["status"] for a in story["attempts"]] for story in imported] == [
        ["failed", "completed"], ["failed"], ["completed"]
    ]  # fmt: skip
    assert empty.launches(1) == eventful.storage.launches(1)
    assert empty.migrations(1) == eventful.storage.migrations(1) != []
    assert [e.finish_number for e in empty.finished_since(1)] == [1, 2, 3, 4, 5]


def test_it_goes_on(eventful: LeftBehind, empty: Storage) -> None:
    import_search(empty, eventful.folder)
    eventful.storage = empty
    eventful.launch()
    again = eventful.claim(generation=9)
    assert (again.individual.id, again.evaluation.attempt, again.repeated) == (4, 2, True)
    assert eventful.claim(generation=10).individual.id == 5


def test_as_often_as_a_launch_would_repeat(left: LeftBehind, empty: Storage) -> None:
    """The second failure that may be the machine's is for good, and nobody has said so yet."""
    left.leave(result=failed("machine"))
    left.launch()
    left.leave(result=failed("machine"))
    left.leave(result=failed("machine"), generation=1)
    left.leave(result=failed("training"), generation=2)
    import_search(empty, left.folder)
    statuses = [i.status.value for i in empty.individuals(1)]
    assert statuses == ["failed", "lost", "failed"]
    left.launch()
    assert [i.status.value for i in left.storage.individuals(1)] == statuses


def cut_off(path: Path) -> None:
    text = path.read_text()
    path.write_text(text[: len(text) // 2])


def copy_beside(path: Path) -> None:
    shutil.copytree(path.parent, path.parent.with_name(f"{path.parent.name}-old"))


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str, int]] = {
    "no individual": ("individual.json", Path.unlink, "cannot read", 3),
    "half an individual": ("individual.json", cut_off, "is damaged", 3),
    "half an evaluation": ("attempt-1/evaluation.json", cut_off, "is damaged", 3),
    "a wrong type": (
        "individual.json",
        lambda path: path.write_text(path.read_text().replace('"random"', "7")),
        "`origin`",
        3,
    ),
    "a copy": ("individual.json", copy_beside, "is not where individual 3 belongs", 4),
    "a copied attempt": (
        "attempt-1/evaluation.json",
        lambda path: shutil.copytree(path.parent, path.parent.with_name("attempt-1.old")),
        "is not where evaluation",
        4,
    ),
    "an attempt that was never begun": (
        "attempt-1/evaluation.json",
        lambda path: path.parents[1].joinpath("attempt-2").mkdir(),
        "attempt-2",
        4,
    ),
    "nothing": (
        "attempt-1/evaluation.json",
        lambda path: shutil.rmtree(path.parent),
        "holds no evaluation",
        3,
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_left_out_with_one_line(
    eventful: LeftBehind, empty: Storage, damage: str
) -> None:
    name, do, words, left_over = DAMAGES[damage]
    do(eventful.folder / "individual-000003" / name)
    _, number, (line,) = import_search(empty, eventful.folder)
    assert words in line
    assert "individual-000003" in line
    assert number == left_over == len(fitnesses(empty))
    assert fitnesses(empty)[1] == 10.0


@pytest.mark.parametrize("do", [Path.unlink, cut_off])
def test_a_launch_is_made_of_what_its_evaluations_tell(
    eventful: LeftBehind, empty: Storage, do: Callable[[Path], object]
) -> None:
    do(eventful.folder / "launch-000001.json")
    _, _, mistakes = import_search(empty, eventful.folder)
    assert len(mistakes) == (do is cut_off)
    assert all("launch-000001.json is damaged" in line for line in mistakes)
    assert fitnesses(empty) == fitnesses(eventful.storage)
    launch, original = empty.launches(1)[0], eventful.storage.launches(1)[0]
    assert (launch.id, launch.world_size, launch.num_islands) == (1, 3, original.num_islands)
    assert launch.hostname == "node1"


def test_an_individual_whose_launch_is_lost_with_its_first_attempt(
    eventful: LeftBehind, empty: Storage
) -> None:
    path = eventful.folder / "individual-000003" / "individual.json"
    path.write_text(path.read_text().replace('"launch_id": 1', '"launch_id": 9'))
    import_search(empty, eventful.folder)
    assert [(launch.id, launch.hostname) for launch in empty.launches(1)][-1] == (9, "unknown")


def test_a_damaged_migration_is_left_out(eventful: LeftBehind, empty: Storage) -> None:
    (book,) = eventful.folder.glob("migrations-*.jsonl")
    with book.open("a") as lines:
        lines.write('{"search_id": 1, "indiv')
    _, _, (line,) = import_search(empty, eventful.folder)
    assert line == f"{book} is damaged in line 2"
    assert len(empty.migrations(1)) == 1


def test_what_is_stored_is_not_imported(eventful: LeftBehind) -> None:
    with all_stays(eventful), pytest.raises(StorageError, match=r"`minivit_digits`.* is taken"):
        import_search(eventful.storage, eventful.folder)


@contextmanager
def all_stays(left: LeftBehind) -> Iterator[None]:
    before = told(left.storage)
    yield
    assert told(left.storage) == before


def test_a_folder_without_a_search_is_not_imported(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FolderError, match=f"no search in {folder}: .* search.json"):
            search_folders(folder)


@pytest.fixture
def repeated(left: LeftBehind) -> LeftBehind:
    """An individual that two others repeat, and one beside it."""
    left.leave(*TRAINED, result=completed(80.0), generation=0)
    left.leave(*TRAINED, result=completed(70.0), generation=1)
    left.launch()  # stores them
    for generation, seed, top1 in ((2, 7, 90.0), (3, 8, 94.0)):
        again = replace(left.proposal(generation), repeat_of=1, seed=seed, origin="repeat")
        left.leave(*TRAINED, result=completed(top1), proposal=again)
    left.launch()
    return left


def test_repeats_come_back_and_their_means_are_made_anew(
    repeated: LeftBehind, empty: Storage
) -> None:
    import_search(empty, repeated.folder)
    assert told(empty) == told(repeated.storage)
    first = empty.individual(1)
    assert first is not None
    assert (first.fitness, first.num_seeds) == (pytest.approx(12.0), 3)
    assert first.fitness_deviation == pytest.approx(7.211103)
    assert [i.seed for i in empty.repeats(1, 1)] == [7, 8]
    assert empty.progress(1).best_individual_id == 1


def test_a_mean_is_of_what_is_left(repeated: LeftBehind, empty: Storage) -> None:
    cut_off(repeated.folder / "individual-000003" / "individual.json")
    import_search(empty, repeated.folder)
    assert fitnesses(empty) == {1: pytest.approx(13.0), 2: 30.0, 4: 6.0}


def test_repeats_whose_first_is_lost_are_individuals_by_themselves(
    repeated: LeftBehind, empty: Storage
) -> None:
    shutil.rmtree(repeated.folder / "individual-000001")
    _, number, mistakes = import_search(empty, repeated.folder)
    assert (number, mistakes) == (3, [])
    found = empty.individuals(1)
    assert [(i.id, i.fitness, i.repeat_of, i.seed) for i in found] == [
        (2, 30.0, None, None), (3, 10.0, None, 7), (4, 6.0, None, 8)
    ]  # fmt: skip
    assert [i.id for i in empty.breeders(1, 0, 1, 9)] == [4, 3, 2]
