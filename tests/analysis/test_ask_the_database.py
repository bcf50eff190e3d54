"""The page's queries run as they stand, and say the same on SQLite and PostgreSQL."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import Any

import psycopg
import pytest

from oialr_search import open_search

from ..conftest import ROOT
from ..seen import COMPLETED, sqlite_path

PAGE = (ROOT / "docs" / "ask-the-database.md").read_text()
QUERIES = {
    " ".join(question.split()): sql
    for question, sql in re.findall(r"\n\n([^\n]+)\n\n```sql\n(.*?)```", PAGE, re.DOTALL)
}


def ask(url: str, sql: str) -> list[tuple[Any, ...]]:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(f"file:{sqlite_path(url)}?mode=ro", uri=True)) as connection:
            return connection.execute(sql).fetchall()
    with psycopg.connect(url, options="-c timezone=UTC") as connection:
        return connection.execute(sql).fetchall()


def comparable(rows: list[tuple[Any, ...]]) -> list[list[Any]]:
    return [
        [
            pytest.approx(float(value), abs=1e-6)
            if isinstance(value, float | int) or hasattr(value, "as_tuple")
            else str(value)[:19]
            for value in row
        ]
        for row in rows
    ]


def test_a_dozen_and_more() -> None:
    assert len(QUERIES) == PAGE.count("```sql") > 12


@pytest.mark.parametrize("question", QUERIES)
def test_a_query(seen_urls: dict[str, str], question: str) -> None:
    lite, post = (ask(seen_urls[kind], QUERIES[question]) for kind in ("sqlite", "postgresql"))
    assert lite or question.startswith("How much do seeds differ")  # nothing is repeated here
    assert comparable(lite) == comparable(post)


def answer(seen_urls: dict[str, str], beginning: str) -> list[tuple[Any, ...]]:
    (sql,) = [sql for question, sql in QUERIES.items() if question.startswith(beginning)]
    return ask(seen_urls["sqlite"], sql)


def test_what_they_say(seen_urls: dict[str, str]) -> None:
    by_fitness = sorted(COMPLETED, key=lambda n: COMPLETED[n][0])
    assert [row[1] for row in answer(seen_urls, "The ten best")] == by_fitness
    assert [row[1] for row in answer(seen_urls, "The best of the small")] == [2, 7, 4, 6]
    assert [row[1] for row in answer(seen_urls, "Is it still improving")] == [1, 2, 5]
    assert [row[4] for row in answer(seen_urls, "What runs now")] == [12]
    assert [row[:2] for row in answer(seen_urls, "Where does the best come")] == [
        (5, 0), (2, 1), (4, 1)
    ]  # fmt: skip
    assert answer(seen_urls, "How far did OIALR")[0][1:] == (16, 64, 25.0)
    assert answer(seen_urls, "Do migrants matter") == [(1, 0, 2, 1)]
    assert answer(seen_urls, "What was tried more") == [(5, "completed", 2, 1)]
    # 5 and 7 of (2, 4), 6 of (1, 2), 7 of (2, 5); 12 has no fitness yet
    gains = [3 - 2, 4 - 2, 5 - 7, 3 - 7, 3 - 3.5, 2 - 3.5]
    assert answer(seen_urls, "Does breeding help") == [
        ("bred", 6, pytest.approx(sum(gains) / 6), pytest.approx(100 * 2 / 6))
    ]


def test_the_frames_have_the_columns_and_types_that_the_page_names(
    seen_urls: dict[str, str],
) -> None:
    with open_search(seen_urls["sqlite"]) as search:
        individuals = search.individuals()
        for names, dtype in re.findall(
            r"^\| ((?:`\w+` ?)+)\| ([\w\[\], ]+) \|", PAGE, re.MULTILINE
        ):
            for name in re.findall(r"\w+", names):
                assert str(individuals[name].dtype) == dtype, name
        for name, row in re.findall(r"^\| `(\w+)\(\)` \| (.*) \|$", PAGE, re.MULTILINE):
            frame = getattr(search, name)()
            for column in re.findall(r"`(\w+)`", row):
                assert column in frame, (name, column)
