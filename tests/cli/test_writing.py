"""What commands write appears whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from oialr_training.whole_files import written_whole

from ..conftest import Command


@pytest.mark.parametrize("line", [["export"], ["plot", "slice"], ["report"], ["leaderboard"]])
def test_what_cannot_be_written_leaves_nothing(searched: Command, line: list[str]) -> None:
    in_the_way = searched.folder / "out.html"
    in_the_way.mkdir()
    result = searched(*line, "-o", "out.html", check=False)
    assert result.returncode == 78
    assert result.stderr == "error: cannot write out.html: Is a directory\n"
    assert {path.name for path in searched.folder.iterdir()} == {"out.html", "searches"}
    assert not list(in_the_way.iterdir())


def test_an_export_is_told_without_rounding_noise(searched: Command) -> None:
    told = searched("export", "-o", "best.yaml").stdout
    assert re.fullmatch(r"individual \d \(fitness \d\d?\.\d\d?\d?\) written to best.yaml\n", told)
    assert not [path for path in searched.folder.iterdir() if path.name.startswith(".")]


def test_a_file_is_as_it_was_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), written_whole(path) as aside:
        aside.write_text("no\ud800")
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_text() == "old"
    with written_whole(path, tmp_path / "a.part") as aside:
        aside.write_text("new")
        assert sorted(os.listdir(tmp_path)) == ["a", "a.part"]
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_text() == "new"
