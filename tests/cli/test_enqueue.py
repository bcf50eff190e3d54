"""`enqueue`: configurations that a person names, for the launch that runs or the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from oialr_search.storage import open_storage
from oialr_search.storage.records import IndividualRecord, Status

from ..conftest import Command


def queued(searched: Command) -> list[IndividualRecord]:
    with open_storage(f"{searched.folder}/searches/search.db", read_only=True) as storage:
        return storage.individuals(storage.searches()[0].id, status=Status.QUEUED)


def test_files_and_assignments(searched: Command) -> None:
    searched("export", "-o", "best.yaml")
    told = searched("enqueue", "best.yaml", "--set", "optimizer.lr=0.002").stdout
    told += searched("enqueue", "--set", "oialr.delay_steps=77").stdout
    first, second = queued(searched)
    assert told == f"individual {first.id} queued\nindividual {second.id} queued\n"
    assert first.hyperparameters["optimizer.lr"] == 0.002
    assert second.hyperparameters["oialr.delay_steps"] == 77
    assert second.hyperparameters["optimizer.lr"] == 0.003  # the search file's own
    again = searched("enqueue", "best.yaml").stdout
    assert again.endswith(" has these values already\n")
    assert "2 queued" in searched("status").stdout
    assert '"queued": 2' in searched("status", "--format", "json").stdout


def test_the_best_of_a_search(searched: Command) -> None:
    """Of the same one here, so that all are known."""
    told = searched("enqueue", "--from-search", "minivit_digits", "--best", "2").stdout
    assert [line.split(maxsplit=2)[2] for line in told.splitlines()] == [
        "has these values already"
    ] * 2
    assert queued(searched) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ([], "nothing is named: give a file"),
        (["nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--set", "optimizer.weight_decay=1"], "`optimizer.weight_decay` is not searched"),
        (["--set", "optimizer.lr=fast"], "`optimizer.lr` is a number, got 'fast'"),
        (["--from-search", "digits"], "no search 'digits' in the database"),
        (["--search", "digits", "--set", "optimizer.lr=1e-3"], "no search named 'digits'"),
    ],
)
def test_mistakes(searched: Command, line: list[str], words: str) -> None:
    result = searched("enqueue", *line, check=False)
    (told,) = result.stderr.splitlines()
    assert result.returncode == 78
    assert told.startswith(f"error: {words}")
    assert queued(searched) == []


def test_a_number_beyond_its_range_is_moved(searched: Command) -> None:
    result = searched("enqueue", "--set", "optimizer.lr=1")
    assert result.stderr == (
        "warning: `optimizer.lr` = 1 moved to 0.005 (search 'minivit_digits')\n"
    )
    assert [i.hyperparameters["optimizer.lr"] for i in queued(searched)] == [0.005]


def test_no_database(command: Command, tmp_path: Path) -> None:
    result = command("enqueue", "--set", "optimizer.lr=1", check=False)
    assert result.returncode == 78
    assert "no database at" in result.stderr
