"""What more evaluations may bring, by the distances between the best."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from oialr_search.analysis.status import status
from oialr_search.space.search_file import load_search
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Status
from oialr_search.surrogate.outlook import distance_of_the_best, outlook
from oialr_search.terminal.screens import status_screen
from oialr_search.terminal.tables import make_console

from ..conftest import DIGITS
from ..invented import statuses_of, store_search


def test_it_is_that_to_the_fifth() -> None:
    assert distance_of_the_best([1.0, 1.5, 2.0, 2.5, 4.0, 9.0]) == 3.0
    assert distance_of_the_best([-3.0, -3.0, -3.0, -3.0, -2.0]) == 1.0


def test_where_these_are_equal_to_a_later_one_which_counts_less() -> None:
    fitness = [1.0] * 19 + [3.0]
    assert distance_of_the_best(fitness) == pytest.approx(2.0 / 8)


@pytest.mark.parametrize("fitness", [[], [1.0, 2.0, 3.0, 4.0], [1.0] * 40])
def test_of_too_few_or_equal_ones_nothing_is_said(fitness: list[float]) -> None:
    assert distance_of_the_best(fitness) is None


@pytest.fixture
def searched(empty_database: Path, tmp_path: Path) -> Iterator[tuple[Storage, int]]:
    shutil.copy(empty_database, tmp_path / "search.db")
    with open_storage(str(tmp_path / "search.db")) as storage:
        yield storage, store_search(storage, load_search(DIGITS), statuses_of(40)).id


def test_it_is_of_the_best_that_are_stored(searched: tuple[Storage, int]) -> None:
    storage, search_id = searched
    best = storage.individuals(search_id, status=Status.COMPLETED, order="fitness")
    fitness = [i.fitness for i in best if i.fitness is not None]
    found = outlook(storage, search_id)
    assert found
    assert found.evaluations == 50
    assert found.middle == pytest.approx(0.6 * (fitness[4] - fitness[0]))
    assert 0.0 < found.low < found.middle < found.high <= fitness[0]
    (search,) = storage.searches()
    told = status(storage, search)
    assert told["outlook"] == {
        "evaluations": 50,
        "gain": found.middle,
        "gain_quartiles": [found.low, found.high],
    }
    shown = make_console()
    with shown.capture() as text:
        shown.print(status_screen(told, shown, datetime.now(UTC)))
    assert "another 50 evaluations may lower it by" in text.get()


def test_of_few_nothing_is_said(empty_database: Path, tmp_path: Path) -> None:
    for completed, said in ((11, False), (12, True)):
        path = tmp_path / f"{completed}.db"
        shutil.copy(empty_database, path)
        with open_storage(str(path)) as storage:
            statuses = dict.fromkeys(range(1, completed + 1), Status.COMPLETED)
            search = store_search(storage, load_search(DIGITS), statuses)
            assert (outlook(storage, search.id) is not None) is said
