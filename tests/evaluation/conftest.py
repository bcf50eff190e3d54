"""A database that costs nothing to make: a copy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage


@pytest.fixture
def storage(empty_database: Path, tmp_path: Path) -> Iterator[Storage]:
    shutil.copy(empty_database, tmp_path / "search.db")
    with open_storage(str(tmp_path / "search.db")) as opened:
        yield opened
