"""Commands beside a search that never ran."""

from __future__ import annotations

import pytest

from oialr_search.space.search_file import load_search
from oialr_search.storage import open_storage

from ..conftest import DIGITS, Command
from ..invented import statuses_of, store_search


@pytest.fixture
def searched(command: Command) -> Command:
    """Commands in a folder with a search of a few individuals, two of which run."""
    folder = command.folder / "searches"
    folder.mkdir()
    with open_storage(f"{folder}/search.db", create=True) as storage:
        store_search(storage, load_search(DIGITS), statuses_of(6, running=2), folder=folder)
    return command
