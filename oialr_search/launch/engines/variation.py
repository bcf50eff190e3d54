"""Operators for few evaluations, as Propulate propagators: steps of all sizes.

Propulate's default moves one gene by one fixed σ. These draw the scale of each move anew, from a
thousandth of a gene's range to a third of it, so that none needs tuning and the search narrows down
as far as it pays. They know Propulate's three types of genes (float, int and str) and work in a
plain Propulate run: `Compose([SelectLogRank(2, rng=rng), CrossoverAnew(limits, rng=rng), ...])`.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)  # GPy, which propulate imports
    from propulate.population import Individual
    from propulate.propagators import Propagator

Limits = Mapping[str, tuple[Any, ...]]  # as Propulate has them: two floats, two ints, or strings
Step = Callable[[float], float]

SMALLEST_SIGMA, LARGEST_SIGMA = -3.0, -0.5  # exponents of ten, in parts of a gene's range
LEAST_STEP = 0.6  # of the distance between two integers, so that most moves change the value


class SelectLogRank(Propagator):  # type: ignore[misc]  # untyped
    """Some of the fittest, the better the likelier: by log(pool + 1/2) − log(place), as CMA-ES.

    Drawn with replacement; places count from 1.
    """

    def __init__(self, offspring: int, pool: int = 6, *, rng: random.Random) -> None:
        super().__init__(-1, offspring, rng)
        self._pool = pool

    def __call__(self, inds: Sequence[Individual]) -> list[Individual]:
        """`offspring` of `inds`."""
        fittest = sorted(inds, key=lambda ind: ind.loss)[: self._pool]
        last = len(fittest) + 0.5
        weights = [math.log(last / place) for place in range(1, len(fittest) + 1)]
        chosen: list[Individual] = self.rng.choices(fittest, weights, k=self.offspring)
        return chosen


class _Variation(Propagator):  # type: ignore[misc]
    """A child of some parents, built anew: Propulate cannot set a categorical gene again."""

    def __init__(
        self,
        limits: Limits,
        *,
        parents: int,
        rng: random.Random,
        steps: Mapping[str, Step] | None = None,
    ) -> None:
        """Vary genes within `limits`.

        `steps`: for a float gene that stands for discrete values, how far the next one is from a
        gene.
        """
        super().__init__(parents, 1, rng)
        self._limits = limits
        self._steps = steps or {}

    def _child(self, genes: Mapping[str, Any]) -> Individual:
        return Individual(
            {name: self._within(name, genes[name]) for name in self._limits}, self._limits
        )

    def _within(self, name: str, gene: Any) -> Any:
        low, high = self._limits[name][0], self._limits[name][-1]
        if isinstance(low, str):
            return gene
        clipped = min(max(gene, low), high)
        return round(clipped) if isinstance(low, int) else float(clipped)

    def _drawn(self, name: str) -> Any:
        low, high = self._limits[name][0], self._limits[name][-1]
        if isinstance(low, str):
            return self.rng.choice(self._limits[name])
        if isinstance(low, int):
            return self.rng.randint(low, high)
        return self.rng.uniform(low, high)

    def _moved(self, name: str, gene: Any) -> Any:
        """By a normal deviate whose σ is log-uniform; a category becomes another one."""
        low, high = self._limits[name][0], self._limits[name][-1]
        if isinstance(gene, str):
            return self.rng.choice([other for other in self._limits[name] if other != gene])
        sigma = 10 ** self.rng.uniform(SMALLEST_SIGMA, LARGEST_SIGMA)
        move = self.rng.gauss(0.0, sigma) * (high - low)
        if isinstance(low, int):
            least = LEAST_STEP
        elif name in self._steps:
            least = LEAST_STEP * self._steps[name](gene)
        else:
            least = 0.0
        return gene + math.copysign(max(abs(move), least), move)


class GaussianOfParents(_Variation):
    """A draw from the normal distribution of all parents, widened or narrowed at random.

    Mean + s · Σ zᵢ (parentᵢ − mean) / √parents with standard normal zᵢ has the parents' covariance
    times s²; s = 10^U(−0.7, 0.4). A category is that of one of the parents.
    """

    def __init__(self, limits: Limits, *, rng: random.Random) -> None:
        super().__init__(limits, parents=-1, rng=rng)

    def __call__(self, inds: Sequence[Individual]) -> Individual:
        """A child of all of `inds`."""
        scale = 10 ** self.rng.uniform(-0.7, 0.4) / math.sqrt(len(inds))
        weights = [scale * self.rng.gauss(0.0, 1.0) for _ in inds]
        genes: dict[str, Any] = {}
        for name in self._limits:
            values = [ind[name] for ind in inds]
            if isinstance(values[0], str):
                genes[name] = self.rng.choice(values)
            else:
                mean = sum(values) / len(values)
                genes[name] = mean + sum(
                    w * (value - mean) for w, value in zip(weights, values, strict=True)
                )
        return self._child(genes)


class StepBeyond(_Variation):
    """From the first parent away from the second, by up to their distance; one gene moves too."""

    def __init__(
        self, limits: Limits, *, rng: random.Random, steps: Mapping[str, Step] | None = None
    ) -> None:
        super().__init__(limits, parents=2, rng=rng, steps=steps)

    def __call__(self, inds: Sequence[Individual]) -> Individual:
        """A child of two parents, the better one first."""
        better, other = inds
        length = self.rng.random()
        genes: dict[str, Any] = {
            name: better[name]
            if isinstance(better[name], str)
            else better[name] + length * (better[name] - other[name])
            for name in self._limits
        }
        moved = self.rng.choice(list(self._limits))
        genes[moved] = self._moved(moved, genes[moved])
        return self._child(genes)


class CrossoverAndMove(_Variation):
    """Uniform crossover of two parents, half of the time; then genes move, 1.5 on average."""

    def __init__(
        self,
        limits: Limits,
        *,
        rng: random.Random,
        probability: float = 0.5,
        moves: float = 1.5,
        steps: Mapping[str, Step] | None = None,
    ) -> None:
        super().__init__(limits, parents=2, rng=rng, steps=steps)
        self._probability = probability
        self._move_probability = moves / len(limits)

    def __call__(self, inds: Sequence[Individual]) -> Individual:
        """A child of two parents; without crossover, of the first."""
        first, second = inds if self.rng.random() < self._probability else (inds[0], inds[0])
        genes: dict[str, Any] = {
            name: (first if self.rng.random() < 0.5 else second)[name] for name in self._limits
        }
        for name in self._limits:
            if self.rng.random() < self._move_probability:
                genes[name] = self._moved(name, genes[name])
        return self._child(genes)


class DrawOneAnew(_Variation):
    """With some probability one gene, whichever, is drawn anew."""

    def __init__(self, limits: Limits, *, probability: float, rng: random.Random) -> None:
        super().__init__(limits, parents=1, rng=rng)
        self._probability = probability

    def __call__(self, ind: Individual) -> Individual:
        """The individual itself or its child."""
        if self.rng.random() >= self._probability:
            return ind
        drawn = self.rng.choice(list(self._limits))
        return self._child({**{n: ind[n] for n in self._limits}, drawn: self._drawn(drawn)})
