"""The covariance matrix adaptation evolution strategy (Hansen 2016), for comparison.

By the library `cmaes`, which Optuna's sampler is made of, too. Its state is rebuilt for each
proposal: all that ended, in the order of the individuals' ids, is told generation by generation.
"""

from __future__ import annotations

import random

import numpy as np
from cmaes import CMA

from oialr_search.launch.engines import Engine, Knowledge, Offspring

NEWEST = 1000  # of those that ended: what the state is rebuilt from
SIGMA = 1.0 / 6.0  # as Optuna begins


class CMAES(Engine):
    """Asynchronous: a generation is any individuals that ended, whichever it sampled them for."""

    needs_all_individuals = True

    def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
        """A sample of the distribution as it stands; failures count as the worst known."""
        known, number = knowledge.individuals, len(self.hyperparameters)
        ended = np.flatnonzero(~np.isnan(known.fitness))[-NEWEST:]
        standing = known.standing[ended]
        finite = standing[np.isfinite(standing)]
        standing = np.minimum(standing, finite.max() if len(finite) else 0.0)
        strategy = CMA(
            mean=np.full(number, 0.5),
            sigma=SIGMA,
            bounds=np.tile([0.0, 1.0], (number, 1)),
            seed=random_numbers.getrandbits(31),
        )
        size = strategy.population_size
        for first in range(0, len(ended) - size + 1, size):
            rows = slice(first, first + size)
            genes = known.genes[ended[rows]]
            strategy.tell(list(zip(genes, standing[rows].tolist(), strict=True)))
        names = (h.name for h in self.hyperparameters)
        return Offspring(
            genes=dict(zip(names, strategy.ask().tolist(), strict=True)), origin="sampled"
        )
