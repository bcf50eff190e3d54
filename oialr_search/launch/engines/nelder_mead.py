"""Nelder and Mead's simplex (1965) by the steps of Propulate's propagator, for comparison.

That propagator remembers which step it took last; here the simplex is whoever is best by what the
database knows, and the step follows from how the newest individual compares with it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from propulate.population import Individual
from propulate.propagators import ParallelNelderMead

from oialr_search.launch.engines import Engine, Knowledge, Offspring
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.search_file import SearchSettings

AROUND = 0.1  # of a range: how far from the best a point is drawn that nobody has


class NelderMead(Engine):
    """Asynchronous: steps of the same simplex have drawn lengths, so that ranks' differ."""

    needs_all_individuals = True

    def __init__(self, hyperparameters: Sequence[Hyperparameter], settings: SearchSettings) -> None:
        super().__init__(hyperparameters, settings)
        self._limits = {h.name: (0.0, 1.0) for h in hyperparameters}

    def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
        """Random until there is a simplex; then a step that leads to where nobody has been."""
        known, rng, names = knowledge.individuals, random_numbers, list(self._limits)
        standing = known.standing
        ended = np.flatnonzero(np.isfinite(standing))
        _, first = np.unique(known.genes[ended], axis=0, return_index=True)
        ended = ended[np.sort(first)]
        simplex = ended[np.argsort(standing[ended], kind="stable")][: len(names) + 1]
        if len(simplex) <= len(names):
            return Offspring(genes={name: rng.random() for name in names})
        propagator = ParallelNelderMead(
            self._limits,
            rng=rng,
            start=known.genes[simplex[0]],
            alpha=rng.uniform(0.8, 1.2),
            gamma=rng.uniform(1.5, 2.5),
            rho=rng.uniform(0.3, 0.7),
        )
        propagator.simplex = [Individual(known.genes[row], self._limits) for row in simplex]
        reflect, contract = propagator.reflect, propagator.innercontract
        newest = ended[-1]
        steps = [reflect, contract] if newest in simplex else [contract, reflect]
        if newest == simplex[0]:
            steps.insert(0, propagator.expand)
        for step in [*steps, propagator.shrink]:
            genes = np.clip(step().position, 0.0, 1.0)
            if not known.include(known.at_middles(genes[None])[0]):
                break
        else:
            best = known.genes[simplex[0]].tolist()
            genes = np.clip([rng.gauss(gene, AROUND) for gene in best], 0.0, 1.0)
        return Offspring(
            genes=dict(zip(names, genes.tolist(), strict=True)),
            parents=tuple(int(known.ids[row]) for row in simplex),
            origin="simplex",
        )
