"""Files that appear whole or not at all, whoever is killed or runs out of disk meanwhile."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path, aside: Path | None = None) -> Iterator[Path]:
    """Give a path beside `path` to write to; at the end it is moved into place.

    A link is written through, and a file that was there keeps its mode. What is no regular file,
    a device or a pipe, is written to itself. Where the writing fails, `path` is as it was, and
    nothing is left beside it. Who is killed leaves `aside`: name one for a file that is written
    again and again, by one process at a time.

    Raises:
        OSError: when it cannot be moved into place.
    """
    before = path.stat().st_mode if path.exists() else None
    if before is not None and not stat.S_ISREG(before):
        yield path
        return
    path = path.resolve()
    aside = aside or path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.touch()
        mode = before or aside.stat().st_mode  # who writes may replace it by one with another
        yield aside
        with suppress(OSError):
            aside.chmod(stat.S_IMODE(mode))
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
