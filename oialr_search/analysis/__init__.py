"""What people ask of a search; reads the database, never writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna import Study

__all__ = ["load_study"]


def load_study(url: str, name: str | None = None) -> Study:
    """Give a search, by default the one launched last, as an Optuna study that cannot be written.

    It follows the search while that runs: each call of the study's reads what is new.

    Raises:
        StorageError: when there is no such database or search.
        ConfigError: when optuna is not installed.
    """
    from oialr_search import extras

    extras.require("figures", "load_study")
    import optuna

    from oialr_search.analysis.choosing import choose_search
    from oialr_search.analysis.optuna_view import SearchStorage
    from oialr_search.storage import open_storage

    storage = open_storage(url, read_only=True)
    search = choose_search(storage, name)
    return optuna.load_study(study_name=search.name, storage=SearchStorage(storage))
