"""What a rank knows of the search: who breeds on its island and, where asked for, everyone."""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Iterator, Sequence
from itertools import groupby

from oialr_search.launch.engines import Member
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.pareto import best_spread
from oialr_search.storage.database import Storage
from oialr_search.storage.status import UNFINISHED
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

    def emissary(self, rng: random.Random) -> Member | None:
        """Who visits other islands: the fittest individual, if there is one."""
        return self._members[0] if self._members else None

    @property
    def members(self) -> Sequence[Member]:
        """Best first; of equals, the one with the lower id."""
        return tuple(self._members)


class ParetoPopulation(Population):
    """The same with several objectives: front after front, the least crowded first (Deb 2002).

    Kept are those whom fewer than `size` others dominate, which are few more. So who breeds depends
    on who was evaluated, not on the order of that.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._dominators: dict[int, int] = {}
        self._breeding: tuple[Member, ...] | None = None

    def add(self, member: Member) -> bool:
        """Take in an individual; False if it is there or dominated by too many."""
        number = sum(known.dominates(member) for known in self._members)
        if member.individual_id in self._dominators or number >= self.size:
            return False
        for known in self._members:
            self._dominators[known.individual_id] += member.dominates(known)
        insort(self._members, member, key=lambda m: m.standing)
        self._dominators[member.individual_id] = number
        self._members = [m for m in self._members if self._dominators[m.individual_id] < self.size]
        self._dominators = {
            m.individual_id: self._dominators[m.individual_id] for m in self._members
        }
        self._breeding = None
        return True

    def emissary(self, rng: random.Random) -> Member | None:
        """Anyone of the front."""
        front = [m for m in self._members if not self._dominators[m.individual_id]]
        return rng.choice(front) if front else None

    @property
    def members(self) -> Sequence[Member]:
        """The first `size` of all fronts."""
        if self._breeding is None:
            ordered = list[Member]()
            for _, alike in groupby(self._members, lambda member: member.violation):
                group = list(alike)
                ordered += [group[n] for n in best_spread([m.objectives for m in group])]
            self._breeding = tuple(ordered[: self.size])
        return self._breeding


def evaluated_on_island(
    storage: Storage, search_id: int, island: int, num_islands: int
) -> Iterator[Member]:
    """All that were bred on an island, or accepted there, and completed; see `breeders`."""
    accepted = {
        migration.individual_id
        for migration in storage.migrations(search_id)
        if migration.target_island % num_islands == island
    }
    for known in storage.known_after(search_id, 0):
        here = known.island % num_islands == island or known.individual_id in accepted
        if here and known.fitness is not None and known.repeat_of is None:
            yield Member(
                individual_id=known.individual_id,
                genes=dict(known.genes),
                fitness=known.fitness,
                violation=known.violation,
                objectives=tuple(known.objectives),
            )


class AllIndividuals:
    """The individuals of all islands; each look reads what is new and what may have changed."""

    def __init__(self, search_id: int, hyperparameters: Sequence[Hyperparameter]) -> None:
        self._search_id = search_id
        self.known = Individuals(hyperparameters)
        self._last_finish: int | None = None
        self._last_id = 0
        self._unfinished: set[int] = set()

    @property
    def number(self) -> int:
        """Of individuals that there were at the last look, those that repeat one included."""
        return len(self.known) + int(self.known.num_repeats.sum())

    def look(self, storage: Storage) -> Individuals:
        """All of them.

        Raises:
            StorageUnavailable: when the database is away; the next look reads the same.
        """
        # One that had ended ends again when it is gone on with, or has another mean.
        last_finish, finished = storage.finished_after(self._search_id, self._last_finish)
        again = self._unfinished | {number for number in finished if number <= self._last_id}
        found = storage.known_after(self._search_id, self._last_id, again)
        self.known.take(found)
        self._last_id = max(self._last_id, *(k.individual_id for k in found), 0)
        self._unfinished = {k.individual_id for k in found if k.status in UNFINISHED}
        self._last_finish = last_finish
        return self.known
