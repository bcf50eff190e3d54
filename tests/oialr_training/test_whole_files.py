"""What a file is written over."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from oialr_training.whole_files import written_whole


def write(path: Path, text: str = "new") -> None:
    with written_whole(path) as aside:
        aside.write_text(text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_keeps_its_mode_and_a_new_one_has_the_usual(tmp_path: Path) -> None:
    there, new, usual = tmp_path / "there", tmp_path / "new", tmp_path / "usual"
    there.write_text("old")
    there.chmod(0o640)
    usual.touch()
    write(there)
    with written_whole(new) as aside:
        aside.unlink()
        os.close(os.open(aside, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does it
    assert (there.read_text(), mode(there)) == ("new", 0o640)
    assert mode(new) == mode(usual)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "there", "usual"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    target, link, dangling = tmp_path / "target", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old")
    link.symlink_to("target")
    dangling.symlink_to(tmp_path / "made")
    write(link)
    write(dangling)
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert target.read_text() == (tmp_path / "made").read_text() == "new"


def test_a_device_or_a_pipe_is_written_to(tmp_path: Path) -> None:
    write(Path("/dev/null"))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    code = (
        "from pathlib import Path; from oialr_training.whole_files import written_whole\n"
        "with written_whole(Path('/dev/stdout')) as aside: aside.write_text('said')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "said"
    with pytest.raises(IsADirectoryError):
        write(tmp_path)


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(IsADirectoryError), written_whole(path) as aside:
        aside.parent.write_text("half")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
