"""Propulate's evolution on one island: which individual to try next.

The only module that imports propulate. Its individuals and propagators are used as they are; its
own loop is not (see docs/design.md): asynchrony, budget and messages are the controller's.
"""

from __future__ import annotations

import random
import warnings
from bisect import insort
from dataclasses import dataclass

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)  # GPy, which propulate imports
    from propulate.population import Individual as PropulateIndividual
    from propulate.propagators import (
        Compose,
        CrossoverUniform,
        InitUniform,
        IntervalMutationNormal,
        PointMutation,
        SelectMin,
        SelectUniform,
    )

from oialr_search.space.search_file import SearchSettings

PARENT_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Member:
    """An evaluated individual as islands exchange it."""

    individual_id: int
    genes: dict[str, float]
    fitness: float


@dataclass(frozen=True, kw_only=True)
class Offspring:
    """Genes to try, and where they come from."""

    genes: dict[str, float]
    parents: tuple[int, ...]
    """Individual ids; empty when random."""
    origin: str
    """`random` or `bred`."""


class Population:
    """The best individuals of an island that breed; every rank of the island keeps one.

    Breeding selects the best `size` only, so only they are kept: a population never grows. An
    individual that is known already (by its id) is not taken in again, or the population would fill
    with copies of the best that other islands send.
    """

    def __init__(self, names: tuple[str, ...], settings: SearchSettings, size: int) -> None:
        self._limits = dict.fromkeys(names, (0.0, 1.0))
        self._settings = settings
        self._size = size
        self._members: list[Member] = []

    def add(self, member: Member) -> bool:
        """Take in an evaluated individual or an immigrant; False if it is there or not fit enough.

        One that was once crowded out never comes back: the others only get fitter.
        """
        if any(known.individual_id == member.individual_id for known in self._members):
            return False
        insort(self._members, member, key=lambda m: (m.fitness, m.individual_id))
        del self._members[self._size :]
        return member in self._members

    def best(self) -> Member | None:
        """The fittest individual, if there is one."""
        return self._members[0] if self._members else None

    def breed(self, rng: random.Random) -> Offspring:
        """Propulate's default: select, cross, mutate; now and then a random individual.

        `get_default_propagator` passes the crossover probability on as the share of the first
        parent; here it is what it is called, and both parents give half.
        """
        everyone = InitUniform(self._limits, rng=rng)
        if len(self._members) < self._size:
            return self._random(everyone())
        settings = self._settings
        select = Compose([SelectMin(self._size), SelectUniform(2, rng=rng)])
        vary = Compose(
            [
                CrossoverUniform(PARENT_SHARE, probability=settings.crossover_probability, rng=rng),
                PointMutation(self._limits, probability=settings.mutation_probability, rng=rng),
                IntervalMutationNormal(self._limits, sigma_factor=settings.mutation_sigma, rng=rng),
            ]
        )
        parents = select([self._as_propulate(member) for member in self._members])
        child = vary(parents)
        replace = InitUniform(
            self._limits, parents=1, probability=settings.random_init_probability, rng=rng
        )
        final = replace(child)
        if final is not child:
            return self._random(final)
        return Offspring(
            genes=self._genes(child), parents=tuple(p.generation for p in parents), origin="bred"
        )

    def _as_propulate(self, member: Member) -> PropulateIndividual:
        # `generation` is the one field that propagators copy and never read: it carries the id.
        individual = PropulateIndividual(
            dict(member.genes), self._limits, generation=member.individual_id
        )
        individual.loss = member.fitness
        return individual

    def _random(self, individual: PropulateIndividual) -> Offspring:
        return Offspring(genes=self._genes(individual), parents=(), origin="random")

    def _genes(self, individual: PropulateIndividual) -> dict[str, float]:
        return {name: float(individual[name]) for name in self._limits}


def random_numbers(
    seed: int, island: int, island_rank: int, generation: int, purpose: str
) -> random.Random:
    """The random numbers of one rank's n-th proposal: a resumed search never repeats one."""
    return random.Random(f"{seed}/{island}/{island_rank}/{generation}/{purpose}")
