"""A damaged database is one line and exit code 78, whichever command asks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

from oialr_search import cli
from oialr_search.storage.records import StorageError

from ..conftest import Command
from ..seen import fill

ASKED = (
    ["leaderboard"],
    ["leaderboard", "--where", "lr < 1", "--pareto", "fitness,delay_steps", "--format", "json"],
    ["status"],
    ["show", "5"],
    ["log", "9"],
)


def garbage_at_the_beginning(path: Path) -> None:
    path.write_bytes(b"no database at all, " * 500)


def garbage_in_the_middle(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    for place in range(4096, len(content)):
        content[place] = 0xA5
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes()[:20_000])


def broken_json(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE individuals SET hyperparameters = '{\"optimizer.lr\": '")
        connection.commit()


def no_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE evaluations")
        connection.commit()


def fails_in_one_line(url: str, arguments: list[str]) -> str:
    """In this process: a command's own start takes longer than its work."""
    with pytest.raises(StorageError) as error:
        CliRunner().invoke(
            cli.app, [*arguments, "--db", url], catch_exceptions=False, standalone_mode=False
        )
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "damage", [garbage_at_the_beginning, garbage_in_the_middle, cut_off, no_table]
)
def test_a_damaged_file(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "search.db"
    fill(f"sqlite:///{path}")
    damage(path)
    for arguments in ASKED:
        assert str(path) in fails_in_one_line(f"sqlite:///{path}", arguments)


def test_a_damaged_value(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "search.db"
    fill(f"sqlite:///{path}")
    broken_json(path)
    for arguments in (["leaderboard"], ["show", "5"], ASKED[1]):
        assert "JSON" in fails_in_one_line(f"sqlite:///{path}", arguments)
    result = command("leaderboard", "--db", f"sqlite:///{path}", check=False)
    assert result.returncode == 78
    assert len(result.stderr.splitlines()) == 1


def test_a_damaged_postgresql(new_url: Callable[[str], str]) -> None:
    url = new_url("postgresql")
    fill(url)
    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE evaluations CASCADE")
    for arguments in ASKED:
        assert "evaluations" in fails_in_one_line(url, arguments)
