"""Which individual to try next: one file an engine, chosen by `search.engine`.

An engine proposes genes in the unit cube. Its proposal is a pure function of what the database
knows and of the random numbers it is handed, so that a resumed search, whatever its ranks, proposes
what the undisturbed one would have from the same knowledge. Islands, migration and budget are not
its business. `tests/launch/test_engines.py` has the contract as a test that each engine passes.
"""

from __future__ import annotations

import importlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.search_file import ENGINES, SearchSettings
from oialr_search.surrogate.individuals import Individuals

ATTEMPTS = 20  # of an engine to propose what meets the constraints


@dataclass(frozen=True, kw_only=True)
class Member:
    """An evaluated individual as islands exchange it."""

    individual_id: int
    genes: dict[str, float]
    fitness: float
    violation: float = 0.0
    """Of constraints; who breaks one comes after who meets all."""
    objectives: tuple[float, ...] = ()
    """Each minimised; empty: the fitness is the only one."""
    num_seeds: int = 1
    """Measurements that the fitness is the mean of."""

    @property
    def standing(self) -> tuple[float, float, int]:
        """The less, the better."""
        return self.violation, self.fitness, self.individual_id

    def dominates(self, other: Member) -> bool:
        """Is it better in one respect, and worse in none? (Deb 2000 for constraints.)"""
        if self.violation != other.violation:
            return self.violation < other.violation
        pairs = list(zip(self.objectives, other.objectives, strict=True))
        return self.objectives != other.objectives and all(own <= its for own, its in pairs)


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What an engine may build a proposal on; none of it changes while it does."""

    island: int
    """The island to propose for."""
    population: Sequence[Member]
    """The fittest individuals of the island that may breed, best first, immigrants included."""
    population_size: int
    """The most there will be of them."""
    individuals: Individuals = field(default_factory=lambda: Individuals(()))
    """All islands' individuals, running and failed ones too; empty unless the engine
    `needs_all_individuals`."""
    number: int = 0
    """Of this proposal, over the whole search, as if the ranks took turns."""
    num_ranks: int = 1


@dataclass(frozen=True, kw_only=True)
class Offspring:
    """Genes to try, and where they come from."""

    genes: dict[str, float]
    """Hyperparameter → number in [0, 1]."""
    parents: tuple[int, ...] = ()
    """Individual ids."""
    origin: str = "random"
    """How it came about, one word for the database."""


class Engine(ABC):
    """Proposes individuals; what it remembers may make it faster, never change a proposal."""

    needs_all_individuals: ClassVar[bool] = False
    """Are `Knowledge.individuals` to be read from the database before each proposal?"""

    def __init__(self, hyperparameters: Sequence[Hyperparameter], settings: SearchSettings) -> None:
        self.hyperparameters = tuple(hyperparameters)
        self.settings = settings

    def population_size(self, num_ranks: int) -> int:
        """How many individuals of an island may breed."""
        return self.settings.population_size or 2 * num_ranks

    @abstractmethod
    def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
        """The next individual to try; all randomness is of `random_numbers`."""


def engine_for(
    hyperparameters: Sequence[Hyperparameter], settings: SearchSettings, island: int = 0
) -> Engine:
    """The engine that the search file names for an island; the others are not even imported."""
    chosen = settings.engines[island] if settings.engines else settings.engine
    module, _, name = ENGINES[chosen].partition(":")
    engine: type[Engine] = getattr(importlib.import_module(module), name)
    return engine(hyperparameters, settings)


def feasible_offspring(
    engine: Engine,
    knowledge: Knowledge,
    random_numbers: random.Random,
    feasible: Callable[[Mapping[str, float]], bool],
) -> Offspring:
    """What the engine proposes, again and again until it is feasible; at last, drawn uniformly."""
    for _ in range(ATTEMPTS):
        offspring = engine.propose(knowledge, random_numbers)
        if feasible(offspring.genes):
            return offspring
    while True:
        genes = {h.name: random_numbers.random() for h in engine.hyperparameters}
        if feasible(genes):
            return Offspring(genes=genes)


def random_numbers(
    seed: int, island: int, island_rank: int, generation: int, purpose: str
) -> random.Random:
    """The random numbers of one rank's n-th proposal: a resumed search never repeats one."""
    return random.Random(f"{seed}/{island}/{island_rank}/{generation}/{purpose}")
