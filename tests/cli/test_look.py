"""`status`, `leaderboard`, `show` and `log`: for people, for programs, to files."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from oialr_search.analysis.choosing import choose_search
from oialr_search.analysis.individual import describe
from oialr_search.analysis.leaderboard import leaderboard
from oialr_search.cli.options import options_of_database
from oialr_search.storage import open_storage
from oialr_search.terminal.tables import as_parquet
from oialr_training.errors import ConfigError

from ..conftest import Command
from ..storage.storage_examples import new_search


def everyone(url: str) -> list[dict[str, Any]]:
    """The rows of all that completed."""
    with open_storage(url, read_only=True) as storage:
        return leaderboard(storage, choose_search(storage, None), None)


def test_the_status_command(seen_urls: dict[str, str], command: Command) -> None:
    options = ["status", "--db", seen_urls["postgresql"]]
    text = command(*options).stdout
    assert "\x1b" not in text
    for words in (
        "seen: minivit_digits, validation_top1",
        "12 of 20 begun: 8 completed, 1 running, 2 failed, 1 timed out",
        "individual 5, fitness 2, 40 % trainable",
        "1: 2 rank(s) on 2 island(s), from node1",
        "evaluations an hour",
        "1 of 3",
        "diverged: train_loss is",
    ):
        assert words in text
    assert "\nisland,individuals,running" in "\n" + command(*options, "--format", "csv").stdout


def test_show_for_people(seen_urls: dict[str, str], command: Command) -> None:
    options = ["--db", seen_urls["postgresql"]]
    text = command("show", "7", *options).stdout
    rows = [line.split() for line in text.splitlines()]
    assert ["optimizer.lr", "0.0001", "0.001", "0.01", "0.01", "1e-05", "to", "0.1,", "log"] in rows
    assert ["oialr.delay_steps", "500", "200", "same", "7", "0", "to", "1000"] in rows
    assert ["validation_loss", "3", "0.5", "2", "1", "3"] in rows
    failed = command("show", "9", *options).stdout
    assert "loss [/nan]" in failed  # no markup, no colours of the worker's
    assert "\x1b" not in failed
    assert "(not on this machine)" in failed
    again = [line for line in text.splitlines() if "oialr-search export" in line]
    assert again == [f"  oialr-search export --individual 7 -o individual-7.yaml "
                     f"--db {shlex.quote(seen_urls['postgresql'])}"]  # fmt: skip


def test_show_for_programs(seen_urls: dict[str, str], command: Command) -> None:
    options = ["show", "9", "--db", seen_urls["sqlite"], "--format"]
    read = json.loads(command(*options, "json").stdout)
    assert read == yaml.safe_load(command(*options, "yaml").stdout)
    with open_storage(seen_urls["sqlite"], read_only=True) as storage:
        expected = describe(storage, 9, ["--db", seen_urls["sqlite"]])
    assert read == json.loads(json.dumps(expected))


def test_log(seen_urls: dict[str, str], command: Command) -> None:
    options = ["--db", seen_urls["sqlite"]]
    end = command("log", "9", *options)
    assert end.stdout.endswith("Traceback\n")
    assert end.stderr.startswith("warning: /nowhere/individual-000009/attempt-1/log.txt of node1")
    for arguments, words in (
        (["log", "1"], "and the database has no end of it"),
        (["log", "1", "--attempt", "2"], "individual 1 has no attempt 2"),
    ):
        result = command(*arguments, *options, check=False)
        assert result.returncode == 78
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_password_is_in_no_command_that_is_told(tmp_path: Path, command: Command) -> None:
    assert options_of_database("postgresql://me:secret@host/db", Path("searches")) == []
    assert options_of_database("postgresql://me@host/db", Path("searches")) == [
        "--db", "postgresql://me@host/db"
    ]  # fmt: skip
    assert options_of_database(None, Path("searches")) == []
    assert options_of_database(None, Path("a b")) == ["--search-dir", "a b"]


def test_a_search_without_individuals(kind: str, new_url: Any, command: Command) -> None:
    url = new_url(kind)
    with open_storage(url, create=True) as storage:
        empty = command("status", "--db", url, check=False)
        assert empty.returncode == 78
        assert empty.stderr == "error: the database holds no search yet\n"
        storage.create_search(new_search())
    text = command("status", "--db", url).stdout
    assert "0 of 3 begun" in text
    assert "unknown: no epoch has ended yet" in text
    assert "no such individual" in command("leaderboard", "--db", url).stdout


def test_the_leaderboard_in_all_formats(url: str, command: Command) -> None:
    options = ["leaderboard", "--db", url, "--where", "trainable_percent < 15", "--top", "2"]
    table = command(*options, "--pareto", "fitness,trainable_percent").stdout
    assert "\x1b" not in table
    assert [line.split()[:4] for line in table.splitlines()[4:7]] == [
        ["2", "yes", "2", "3"], ["3", "yes", "7", "3.5"], []
    ]  # fmt: skip
    assert "2 on the Pareto front of fitness, trainable_percent" in table
    written = [("a.json", json.loads), ("a.yml", None), ("a.yaml", yaml.safe_load)]
    for name, load in written:
        result = command(*options, "-o", name)
        assert result.stdout == f"2 individuals written to {name}\n"
        if load:
            rows = load((command.folder / name).read_text())
            assert [row["individual"] for row in rows] == [2, 7]
    read = list(csv.DictReader(io.StringIO(command(*options, "--format", "csv").stdout)))
    assert [float(row["optimizer.lr"]) for row in read] == [0.001, 0.0001]
    assert list(read[0]) == list(rows[0])
    assert {path.name for path in command.folder.iterdir()} == {name for name, _ in written}


def test_nothing_found_is_said(seen_urls: dict[str, str], command: Command) -> None:
    options = ["leaderboard", "--db", seen_urls["sqlite"], "--where", "fitness < 0"]
    assert command(*options).stdout.endswith("no such individual\n")
    assert json.loads(command(*options, "--format", "json").stdout) == []
    header = command(*options, "--format", "csv").stdout
    assert header.startswith("place,individual,fitness,deviation,seeds,validation_loss")
    assert len(header.splitlines()) == 1


def test_mistakes_about_the_leaderboard(seen_urls: dict[str, str], command: Command) -> None:
    options = ["leaderboard", "--db", seen_urls["sqlite"]]
    wrong = command(*options, "--where", "fitnes < 1", check=False)
    assert wrong.returncode == 78
    assert wrong.stderr == "error: `--where`: unknown column `fitnes`; did you mean `fitness`?\n"
    unnamed = command(*options, "--format", "parquet", check=False)
    assert unnamed.returncode == 2
    assert "name a file with -o FILE" in unnamed.stderr
    assert not unnamed.stdout
    nowhere = command(*options, "-o", "missing/a.csv", check=False)
    assert nowhere.returncode == 78
    assert nowhere.stderr == "error: cannot write missing/a.csv: No such file or directory\n"
    both = command(*options, "--watch", "--format", "json", check=False)
    assert both.returncode == 2
    assert not list(command.folder.iterdir())


def _has_pyarrow() -> bool:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.skipif(not _has_pyarrow(), reason="no pyarrow that works with this NumPy")
def test_parquet_keeps_types_and_places(url: str, command: Command) -> None:
    import pyarrow.parquet as pq

    command("leaderboard", "--db", url, "--top", "0", "-o", "best.parquet")
    table = pq.read_table(command.folder / "best.parquet")
    assert table.to_pylist() == everyone(url)
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert types["optimizer.lr"] == "double"
    assert types["oialr.delay_steps"] == types["place"] == "int64"
    assert (types["oialr.full_rank_first"], types["device"]) == ("bool", "string")
    command("leaderboard", "--db", url, "--where", "fitness < 0", "-o", "none.parquet")
    assert pq.read_table(command.folder / "none.parquet").schema.equals(table.schema)


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'oialr-search\[parquet\]'"):
        as_parquet([], [])
