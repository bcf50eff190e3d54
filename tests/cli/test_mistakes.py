"""The user's mistakes: one clear line, the right exit code, nothing half-made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..conftest import CIFAR10, DIGITS, SEARCH_SPACES, Command

BASELINE = SEARCH_SPACES / "training" / "minivit_cifar10_baseline.yaml"


def assert_one_line(command: Command, *arguments: str | Path, code: int, words: list[str]) -> None:
    """The command fails with one line on standard error, and leaves the folder as it was."""
    before = files(command)
    result = command(*arguments, check=False)
    assert result.returncode == code, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert files(command) == before


def files(command: Command) -> set[Path]:
    """All files, but for those that SQLite makes for a reader."""
    return {path for path in command.folder.rglob("*") if not path.name.startswith("search.db-")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: [", ["not valid YAML", "wrong.yaml", "line 1"]),
        ("- a\n- b\n", ["a mapping", "wrong.yaml"]),
        ("", ["a mapping", "wrong.yaml"]),
        ("task: minivit_digits\nsearch: {}\n", ["`space` is missing", "wrong.yaml"]),
    ],
)
def test_a_bad_file(command: Command, text: str, words: list[str]) -> None:
    path = command.folder / "wrong.yaml"
    path.write_text(text)
    assert_one_line(command, "validate", path, code=78, words=words)


def test_a_bad_file_is_not_run(command: Command) -> None:
    path = command.folder / "wrong.yaml"
    path.write_text("- a\n- b\n")
    assert_one_line(command, "run", path, code=78, words=["a mapping", "wrong.yaml"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "optimizer.lrr=1"], ["unknown key `optimizer.lrr`", "`lr`", "minivit_digits"]),
        (["--set", "epochs=many"], ["`epochs`", "integer", "'many'"]),
        (["--set", "task=minivit_cifar"], ["unknown task 'minivit_cifar'", "minivit_cifar10"]),
        (["--set", "search.metric=loss"], ["unknown metric 'loss'", "validation_loss"]),
        (["--set", "device=gpu"], ["`device`", "'gpu'"]),
        (
            ["--set", "space.optimizer.lr={low: 1, high: 0.1}"],
            ["`low < high` must hold for `space.optimizer.lr`", "low=1", "high=0.1"],
        ),
    ],
)
def test_a_wrong_setting(command: Command, options: list[str], words: list[str]) -> None:
    assert_one_line(command, "validate", DIGITS, *options, code=78, words=words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "search.metric=loss"], ["unknown metric 'loss'", "validation_loss"]),
        (["--db", "mysql://localhost/x"], ["mysql"]),
    ],
)
def test_a_wrong_setting_is_not_run(command: Command, options: list[str], words: list[str]) -> None:
    options = ["--islands", "1", *options]
    assert_one_line(command, "run", DIGITS, *options, code=78, words=words)


def test_a_gpu_that_is_not_there(command: Command) -> None:
    options = ["--islands", "1", "--set", "device=cuda"]
    without = Command(command.folder, command.environment | {"CUDA_VISIBLE_DEVICES": ""})
    assert_one_line(without, "run", DIGITS, *options, code=78, words=["no GPU", "'cuda'"])


@pytest.mark.slow
def test_missing_data(command: Command) -> None:
    words = ["no CIFAR-10 train images", "cifar-10-batches-py", str(command.folder), "--data-dir"]
    folder = command.folder / "data"
    folder.mkdir()
    options = ["--islands", "1", "--data-dir", str(folder)]
    assert_one_line(command, "run", CIFAR10, *options, code=78, words=words)


def test_an_unreadable_file(command: Command) -> None:
    assert_one_line(command, "run", "no.yaml", code=78, words=["cannot read no.yaml"])


def test_an_unwritable_folder(command: Command) -> None:
    in_the_way = command.folder / "file"
    in_the_way.touch()
    options = ["--islands", "1", "--search-dir", str(in_the_way / "x")]
    assert_one_line(command, "run", DIGITS, *options, code=78, words=["cannot write", "file/x"])


@pytest.mark.parametrize("name", ["status", "leaderboard", "export"])
def test_no_database(command: Command, name: str) -> None:
    assert_one_line(command, name, code=78, words=["no database", "search.db", "--db"])


def test_nothing_to_upgrade(command: Command) -> None:
    assert_one_line(command, "upgrade", code=78, words=["no database to upgrade", "--db"])


def test_upgrading_what_is_up_to_date(searched: Command) -> None:
    before = searched("leaderboard", "--format", "csv").stdout
    assert "this version's schema" in searched("upgrade").stdout
    assert searched("leaderboard", "--format", "csv").stdout == before


def test_no_such_individual_or_search(searched: Command) -> None:
    assert_one_line(searched, "show", "999", code=78, words=["no individual 999"])
    assert_one_line(searched, "export", "--individual", "999", code=78, words=["999"])
    arguments = ["leaderboard", "--search", "other"]
    assert_one_line(searched, *arguments, code=78, words=["'other'", "minivit_digits"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", str(DIGITS), "--evaluations", "0"],
        ["run", str(DIGITS), "--evaluations", "many"],
        ["run", str(DIGITS), "--time-limit", "soon"],
        ["run", str(DIGITS), "--nonsense"],
        ["nonsense"],
        ["show", "best"],
        ["leaderboard", "--format", "xml"],
    ],
)
def test_wrong_usage_is_2(command: Command, arguments: list[str]) -> None:
    result = command.in_process(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert not list(command.folder.iterdir())


def test_mistakes_are_told_once_under_mpiexec(command: Command) -> None:
    for option, code in (("--set=epochs=x", 78), ("--nonsense", 2)):
        result = command("run", DIGITS, option, ranks=3, check=False)
        assert result.returncode == code
        told = [line for line in result.stderr.splitlines() if "epochs" in line or "--non" in line]
        assert len(told) == 1


def test_every_command_has_help_with_an_example(command: Command) -> None:
    text = command("--help").stdout
    for name in ("run", "status", "leaderboard", "show", "export", "train", "validate", "upgrade"):
        assert name in text
        help_text = command(name, "--help").stdout
        assert "Example" in help_text
        assert f"oialr-search {name}" in help_text


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(command: Command) -> None:
    locked = command.folder / "locked"
    locked.mkdir(mode=0o500)
    options = ["--islands", "1", "--search-dir", str(locked / "x")]
    assert_one_line(command, "run", DIGITS, *options, code=78, words=["cannot write"])
