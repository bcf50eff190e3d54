"""What a rank knows of the search: who breeds on its island and, where asked for, everyone."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from oialr_search.launch.engines import Member
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.storage.database import Storage
from oialr_search.storage.status import UNFINISHED, Status
from oialr_search.surrogate.individuals import Individuals


class Population:
    """The best individuals of an island that breed; every rank of the island keeps one.

    Breeding selects the best `size` only, so only they are kept: a population never grows. An
    individual that is known already (by its id) is not taken in again, or the population would fill
    with copies of the best that other islands send; it takes the new fitness, if it was measured
    again.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._members: list[Member] = []

    def add(self, member: Member) -> bool:
        """Take in an evaluated individual or an immigrant; False if it is there or not fit enough.

        One that was once crowded out never comes back, unless somebody is measured again: else the
        others only get fitter.
        """
        known = [m for m in self._members if m.individual_id == member.individual_id]
        if known and known[0].num_seeds >= member.num_seeds:
            return False
        self._members = [m for m in self._members if m not in known]
        insort(self._members, member, key=lambda m: m.standing)
        del self._members[self.size :]
        return not known and member in self._members

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
        self._last_id = 0
        self._again: set[int] = set()

    @property
    def number(self) -> int:
        """Of individuals that there were at the last look, those that repeat one included."""
        return len(self.known) + int(self.known.num_repeats.sum())

    def look(self, storage: Storage) -> Individuals:
        """All of them.

        Raises:
            StorageUnavailable: when the database is away; the next look reads the same.
        """
        # One that had ended ends again when it is gone on with.
        last_finish, finished = storage.finished_after(self._search_id, self._last_finish)
        again = self._again | {number for number in finished if number <= self._last_id}
        while True:
            found = storage.known_after(self._search_id, self._last_id, again)
            self.known.take(found)
            self._last_id = max(self._last_id, *(k.individual_id for k in found), 0)
            # A repeat that has completed has changed the mean of the first one.
            firsts = {k.repeat_of for k in found if k.status is Status.COMPLETED} - {None}
            unfinished = {k.individual_id for k in found if k.status in UNFINISHED}
            self._again = again = unfinished | {number for number in firsts if number is not None}
            if not firsts:
                self._last_finish = last_finish
                return self.known
