"""Random search: each individual is drawn uniformly, whatever the others came to."""

from __future__ import annotations

import random

from oialr_search.launch.engines import Engine, Knowledge, Offspring


class RandomSearch(Engine):
    """What any other engine has to beat."""

    def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
        """Each gene by itself."""
        return Offspring(genes={h.name: random_numbers.random() for h in self.hyperparameters})
