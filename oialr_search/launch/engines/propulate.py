"""Propulate's evolution on one island: select, cross, mutate.

Individuals and propagators are used as they are; Propulate's own loop is not (see docs/design.md):
asynchrony, budget and messages are the controller's.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence

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

from oialr_search.launch.engines import Engine, Knowledge, Member, Offspring
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.search_file import SearchSettings

PARENT_SHARE = 0.5


class PropulateEngine(Engine):
    """Propulate's default propagator; individuals are random until the population is full.

    `get_default_propagator` passes the crossover probability on as the share of the first parent;
    here it is what it is called, and both parents give half.
    """

    def __init__(self, hyperparameters: Sequence[Hyperparameter], settings: SearchSettings) -> None:
        super().__init__(hyperparameters, settings)
        self._limits = {h.name: (0.0, 1.0) for h in hyperparameters}

    def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
        """Two of the population have a child; now and then a random individual takes its place."""
        rng, settings = random_numbers, self.settings
        if len(knowledge.population) < knowledge.population_size:
            return Offspring(genes=self._genes(InitUniform(self._limits, rng=rng)()))
        select = Compose([SelectMin(knowledge.population_size), SelectUniform(2, rng=rng)])
        vary = Compose(
            [
                CrossoverUniform(PARENT_SHARE, probability=settings.crossover_probability, rng=rng),
                PointMutation(self._limits, probability=settings.mutation_probability, rng=rng),
                IntervalMutationNormal(self._limits, sigma_factor=settings.mutation_sigma, rng=rng),
            ]
        )
        parents = select([self._as_propulate(member) for member in knowledge.population])
        child = vary(parents)
        replace = InitUniform(
            self._limits, parents=1, probability=settings.random_init_probability, rng=rng
        )
        final = replace(child)
        if final is not child:
            return Offspring(genes=self._genes(final))
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

    def _genes(self, individual: PropulateIndividual) -> dict[str, float]:
        return {name: float(individual[name]) for name in self._limits}
