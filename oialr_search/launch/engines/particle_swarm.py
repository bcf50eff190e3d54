"""A particle swarm by Propulate's propagator, for comparison.

The database knows no particles: individual k of the search is where particle k modulo their number
was, and its velocity is how far it went from where it was before.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from propulate.population import Individual
from propulate.propagators import CanonicalPSO

from oialr_search.launch.engines import Engine, Knowledge, Offspring
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.search_file import SearchSettings
from oialr_search.surrogate.individuals import Individuals

PULL = 2.05  # to the particle's best and to the swarm's (Eberhart and Shi 2000)
AROUND = 0.1  # of a range: how far the best particle looks about


class ParticleSwarm(Engine):
    """Asynchronous: who asks moves the particle whose turn it is, whoever moved it before."""

    needs_all_individuals = True

    def __init__(self, hyperparameters: Sequence[Hyperparameter], settings: SearchSettings) -> None:
        super().__init__(hyperparameters, settings)
        self._limits = {h.name: (0.0, 1.0) for h in hyperparameters}

    def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
        """A particle's first place is drawn; then it is pulled to its best and to the swarm's."""
        known, names = knowledge.individuals, list(self._limits)
        size = 10 + int(2 * math.sqrt(len(names)))  # as the standard swarm of 2006 has it
        own = np.arange(len(known) % size, len(known), size)
        if not np.isfinite(known.standing[own]).any():
            return Offspring(genes={name: random_numbers.random() for name in names})
        best = own[np.nanargmin(known.standing[own])]
        swarms_best = int(np.nanargmin(known.standing))
        particles = [self._particle(known, swarms_best, size, -1)]
        particles += [self._particle(known, row, size, own[0]) for row in (own[-1], best)]
        move = CanonicalPSO(PULL, PULL, own[0], self._limits, rng=random_numbers)
        position = move(particles).position
        if (
            known.genes[[best, swarms_best]] == known.genes[own[-1]]
        ).all():  # nothing pulls it (van den Bergh and Engelbrecht 2002)
            position += [random_numbers.gauss(0.0, AROUND) for _ in names]
        turned = np.mod(position, 2.0)  # who would leave comes back from the border
        genes = np.minimum(turned, 2.0 - turned)
        parents = {int(known.ids[row]): None for row in (own[-1], best, swarms_best)}
        return Offspring(
            genes=dict(zip(names, genes.tolist(), strict=True)),
            parents=tuple(parents),
            origin="moved",
        )

    def _particle(self, known: Individuals, row: int, size: int, rank: int) -> Individual:
        """The individual of a row, as a particle that belongs to a rank."""
        before = row - size if row >= size else row
        particle = Individual(
            known.genes[row],
            self._limits,
            velocity=known.genes[row] - known.genes[before],
            generation=row,
            rank=rank,
        )
        standing = known.standing[row]
        particle.loss = standing if np.isfinite(standing) else math.inf
        return particle
