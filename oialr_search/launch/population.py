"""What a rank knows of the search: who breeds on its island and, where asked for, everyone."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

import numpy as np

from oialr_search.launch.engines import Member
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.storage.database import Storage
from oialr_search.surrogate.individuals import Individuals


class Population:
    """The best individuals of an island that breed; every rank of the island keeps one.

    Breeding selects the best `size` only, so only they are kept: a population never grows. An
    individual that is known already (by its id) is not taken in again, or the population would fill
    with copies of the best that other islands send.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._members: list[Member] = []

    def add(self, member: Member) -> bool:
        """Take in an evaluated individual or an immigrant; False if it is there or not fit enough.

        One that was once crowded out never comes back: the others only get fitter.
        """
        if any(known.individual_id == member.individual_id for known in self._members):
            return False
        insort(self._members, member, key=lambda m: m.standing)
        del self._members[self.size :]
        return member in self._members

    def best(self) -> Member | None:
        """The fittest individual, if there is one."""
        return self._members[0] if self._members else None

    @property
    def members(self) -> Sequence[Member]:
        """Best first; of equals, the one with the lower id."""
        return tuple(self._members)


class AllIndividuals:
    """The individuals of all islands; each look reads what is new and what may have changed."""

    def __init__(self, search_id: int, hyperparameters: Sequence[Hyperparameter]) -> None:
        self._search_id = search_id
        self.known = Individuals(hyperparameters)
        self._last_finish: int | None = None

    def look(self, storage: Storage) -> Individuals:
        """All of them.

        Raises:
            StorageUnavailable: when the database is away; the next look reads the same.
        """
        known = self.known
        last_id = int(known.ids[-1]) if len(known) else 0
        again = set(known.ids[np.isnan(known.fitness)].tolist())
        # One that had ended ends again when it is gone on with.
        last_finish, finished = storage.finished_after(self._search_id, self._last_finish)
        again |= {individual_id for individual_id in finished if individual_id <= last_id}
        known.take(storage.known_after(self._search_id, last_id, again))
        self._last_finish = last_finish
        return known
