"""Sobol's sequence: points that fill the cube evenly, whatever the others came to."""

from __future__ import annotations

import random
import warnings

from scipy.stats import qmc

from oialr_search.launch.engines import Engine, Knowledge, Offspring

ATTEMPTS = 16


class SobolSequence(Engine):
    """Scrambled by the search's seed; the n-th proposal is the n-th point that nobody has yet."""

    needs_all_individuals = True

    def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
        """No random numbers are drawn."""
        sequence = qmc.Sobol(len(self.hyperparameters), seed=self.settings.seed)
        if knowledge.number:
            sequence.fast_forward(knowledge.number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # so few points are not balanced
            points = sequence.random(ATTEMPTS)
        known = knowledge.individuals
        rows = zip(points.tolist(), known.at_middles(points), strict=True)
        point = next((point for point, row in rows if not known.include(row)), points[0].tolist())
        names = (h.name for h in self.hyperparameters)
        return Offspring(genes=dict(zip(names, point, strict=True)), origin="sobol")
