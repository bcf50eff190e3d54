"""Which search or individual is meant, where a command or a script names one, or none."""

from __future__ import annotations

from oialr_search.storage.database import Storage
from oialr_search.storage.records import IndividualRecord, SearchRecord, StorageError


def choose_search(storage: Storage, name: str | None) -> SearchRecord:
    """The search of that name, or the one launched last.

    Raises:
        StorageError: when there is none.
    """
    searches = storage.searches()
    if not searches:
        raise StorageError("the database holds no search yet")
    if name is None:
        return searches[0]
    found = storage.find_search(name)
    if found is None:
        known = ", ".join(search.name for search in searches)
        raise StorageError(f"no search named {name!r} in the database; it holds {known}")
    return found


def find_individual(storage: Storage, individual_id: int) -> tuple[IndividualRecord, SearchRecord]:
    """The individual of that number, and its search.

    Raises:
        StorageError: when there is none.
    """
    individual = storage.individual(individual_id)
    if individual is None:
        raise StorageError(f"no individual {individual_id} in the database")
    return individual, next(s for s in storage.searches() if s.id == individual.search_id)


def choose(
    storage: Storage, search: str | None, individual_id: int | None
) -> tuple[SearchRecord, IndividualRecord | None]:
    """The search asked for, or the individual asked for and the search it is of.

    Raises:
        StorageError: when there is none, or the one is not of the other.
    """
    chosen = choose_search(storage, search)
    if individual_id is None:
        return chosen, None
    individual, its_search = find_individual(storage, individual_id)
    if search is not None and its_search.id != chosen.id:
        raise StorageError(f"individual {individual_id} is not of search {search!r}")
    return its_search, individual
