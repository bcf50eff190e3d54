"""Files that appear whole or not at all, whoever is killed or runs out of disk meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path, aside: Path | None = None) -> Iterator[Path]:
    """Give a path beside `path` to write to; at the end it is moved into place.

    Where the writing fails, `path` is as it was, and nothing is left beside it. Who is killed
    leaves `aside`: name one for a file that is written again and again, by one process at a time.

    Raises:
        OSError: when it cannot be moved into place.
    """
    aside = aside or path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
