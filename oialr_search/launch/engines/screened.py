"""Offspring screened by a Gaussian process: for searches of some dozens to hundreds of evaluations.

A few dozen candidates are bred, or drawn, and a small model of all islands' individuals chooses the
one that promises most: expected improvement (Jones et al. 1998) below the least posterior mean.
Shapes: n individuals, m candidates, d genes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from propulate.population import Individual
from scipy.special import ndtr
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

from oialr_search.launch.engines import Engine, Knowledge, Member, Offspring
from oialr_search.launch.engines.variation import (
    CrossoverAndMove,
    DrawOneAnew,
    GaussianOfParents,
    Limits,
    SelectLogRank,
    Step,
    StepBeyond,
)
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.search_file import SearchSettings
from oialr_search.surrogate.belief import Belief
from oialr_search.surrogate.individuals import Array, Individuals, share
from oialr_search.surrogate.modelling import FEASIBLE, Indices, Model, Modelling
from oialr_search.surrogate.scalarisation import drawn_scalarisation

START = 12
UNIFORM, UNSCREENED = 0.03, 0.10
CANDIDATES, UNIFORM_CANDIDATES = 30, 0.15
GAUSSIAN, STEP = 0.30, 0.25  # of the offspring; the others by crossover
DRAWN_ANEW = 0.15
RANKED_BY_MODEL = 0.5
RUNNING = 100
BELIEVED_START = 3  # to so many of the first, one as the prior has it
BELIEVED_CANDIDATES = 0.5
PRIOR_STRENGTH = 20.0  # β: evaluations after which the prior counts once
PRIOR_FORGOTTEN = 1000  # evaluations
UNSCREENED_ATTEMPTS = 5
ATTEMPTS = 200
BEYOND = 1e6  # all that fitness can be, standardised


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Genes in the order of the hyperparameters, and the ids of their parents."""

    genes: Sequence[float]
    parents: tuple[int, ...] = ()


class ScreenedEngine(Engine):
    """Breeds candidates, and tries the one that its model thinks most of."""

    needs_all_individuals = True

    def __init__(self, hyperparameters: Sequence[Hyperparameter], settings: SearchSettings) -> None:
        super().__init__(hyperparameters, settings)
        self._belief = Belief(self.hyperparameters, settings.prior) if settings.prior else None
        # So small matrices gain nothing from threads, which the trainings would miss.
        threadpool_limits(1, user_api="blas")
        self._num_elite = len(self.hyperparameters) + 4
        self._modelling = Modelling(self.hyperparameters, cost_aware=settings.cost_aware)
        self._limits: Limits = {
            h.name: (0.0, 1.0) if h.choices is None else tuple(map(str, range(len(h.choices))))
            for h in self.hyperparameters
        }
        self._steps: dict[str, Step] = {
            h.name: partial(_step, h) for h in self.hyperparameters if h.unit is not None
        }

    def population_size(self, num_ranks: int) -> int:
        """As many as the normal distribution of parents needs, at least."""
        return max(super().population_size(num_ranks), 2 * self._num_elite)

    def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
        """A point of the Latin hypercube; then a screened offspring, now and then another one."""
        known, rng = knowledge.individuals, random_numbers
        start = self._start(knowledge.num_ranks)
        if knowledge.number < len(start) and len(known) < len(start):
            point = Candidate(genes=start[knowledge.number].tolist())
            return self._first_new(known, [point], "start", rng)
        # The population is in order, and operators ask for no more.
        parents = [self._individual(m, place) for place, m in enumerate(knowledge.population)]
        if self.settings.objectives is not None and known.objectives.shape[1]:
            aim = drawn_scalarisation(known, rng)
            known = known.aiming_at(aim.of(known.objectives))
            for parent, member in zip(parents, knowledge.population, strict=True):
                (loss,) = aim.of(np.array([member.objectives]))
                parent.loss = float(loss) + BEYOND * member.violation
        if len(parents) < 2 or rng.random() < UNIFORM:
            return self._first_new(known, [], "random", rng)
        if rng.random() < UNSCREENED:
            bred = [self._bred(parents, rng) for _ in range(UNSCREENED_ATTEMPTS)]
            return self._first_new(known, bred, "bred", rng)
        model = self._modelling.of(known, rng)
        if rng.random() < RANKED_BY_MODEL:
            genes = known.at_middles(np.array([self._genes(parent) for parent in parents]))
            likely = model.log_feasibility(genes) >= FEASIBLE
            means = model.fitness.mean(genes) + np.where(likely, 0.0, BEYOND)
            for parent, mean in zip(parents, means, strict=True):
                parent.loss = float(mean)
        strength = self._strength(known)
        candidates = [self._candidate(parents, strength, rng) for _ in range(CANDIDATES)]
        rows = known.at_middles(np.array([candidate.genes for candidate in candidates]))
        running = known.genes[np.isnan(known.fitness)][-RUNNING:]
        expected = strength * self._belief.log_density(rows) if self._belief is not None else 0.0
        promising = by_promise(model, running, rows, expected)
        return self._first_new(known, [candidates[n] for n in promising], "screened", rng)

    def _first_new(
        self, known: Individuals, candidates: Sequence[Candidate], origin: str, rng: random.Random
    ) -> Offspring:
        """The first whose configuration nobody has, else a drawn one; any, if all are known."""
        drawn = (self._uniform(rng) for _ in range(ATTEMPTS))
        for candidate in chain(candidates, drawn):
            rows = np.array([candidate.genes])
            (genes,) = known.at_middles(rows)
            if not known.include(genes):
                break
        # What does not count is drawn, for a child with which it does.
        for column in np.flatnonzero(~known.counting(rows)[0]):
            genes[column] = rng.random()
        names = (h.name for h in self.hyperparameters)
        return Offspring(
            genes=dict(zip(names, genes.tolist(), strict=True)),
            parents=candidate.parents,
            origin=origin,
        )

    def _start(self, num_ranks: int) -> Array:
        """(n, d): a Latin hypercube; where there is a prior, one more of its own, in between."""
        number = max(START, num_ranks)
        points = self._latin_hypercube(number)
        if self._belief is None:
            return points
        believed = self._belief.quantiles(self._latin_hypercube(number // BELIEVED_START))
        return np.insert(
            points, np.arange(0, number, BELIEVED_START)[: len(believed)], believed, axis=0
        )

    def _candidate(
        self, parents: Sequence[Individual], strength: float, rng: random.Random
    ) -> Candidate:
        """A uniform one, one as the prior has it while that counts, or an offspring."""
        kind = rng.random()
        if kind < UNIFORM_CANDIDATES:
            return self._uniform(rng)
        if kind < UNIFORM_CANDIDATES + BELIEVED_CANDIDATES * min(strength, 1.0):
            assert self._belief is not None
            (genes,) = self._belief.quantiles(np.array([self._uniform(rng).genes]))
            return Candidate(genes=genes.tolist())
        return self._bred(parents, rng)

    def _strength(self, known: Individuals) -> float:
        """What the prior counts: less with each evaluation, nothing where these contradict it.

        β / n (Hvarfner et al. 2022, "πBO"), times the rank correlation of how probable the
        evaluated ones were with how good they are, less what chance may give.
        """
        ended = np.flatnonzero(~np.isnan(known.fitness))
        if self._belief is None or not 2 <= len(ended) <= PRIOR_FORGOTTEN:
            return 0.0
        fitness = known.fitness[ended]
        worst = fitness[np.isfinite(fitness)].max(initial=0.0)
        ranks = [
            rankdata(values)
            for values in (self._belief.log_density(known.genes[ended]), np.minimum(fitness, worst))
        ]
        agreement = -np.corrcoef(ranks)[0, 1] if all(map(np.ptp, ranks)) else 0.0
        by_chance = 1.0 / math.sqrt(len(ended))
        return PRIOR_STRENGTH / len(ended) * max(float(agreement) - by_chance, 0.0)

    def _latin_hypercube(self, number: int) -> Array:
        """(number, d): the same on all ranks; each gene has one point in each of equal parts."""
        rng = np.random.default_rng(self.settings.seed)
        parts = np.tile(np.arange(number)[:, None], (1, len(self.hyperparameters)))
        points: Array = (rng.permuted(parts, axis=0) + rng.random(parts.shape)) / number
        return points

    def _uniform(self, rng: random.Random) -> Candidate:
        return Candidate(genes=[rng.random() for _ in self.hyperparameters])

    def _bred(self, parents: Sequence[Individual], rng: random.Random) -> Candidate:
        """A child of some of the parents, by one of the operators."""
        limits, steps = self._limits, self._steps
        operator = rng.random()
        ranked = sorted(parents, key=lambda parent: parent.loss)
        if operator < GAUSSIAN:
            chosen = ranked[: self._num_elite]
            child = GaussianOfParents(limits, rng=rng)(chosen)
        elif operator < GAUSSIAN + STEP:
            chosen = [ranked[0], *SelectLogRank(1, rng=rng)(ranked[1:])]
            child = StepBeyond(limits, steps=steps, rng=rng)(chosen)
        else:
            chosen = SelectLogRank(2, rng=rng)(ranked)
            child = CrossoverAndMove(limits, steps=steps, rng=rng)(chosen)
        child = DrawOneAnew(limits, probability=DRAWN_ANEW, rng=rng)(child)
        ids = dict.fromkeys(parent.generation for parent in chosen)
        return Candidate(genes=self._genes(child), parents=tuple(ids))

    def _individual(self, member: Member, place: float) -> Individual:
        # `generation` carries the id, as no operator reads it.
        genes = {
            h.name: member.genes[h.name]
            if h.choices is None
            else str(h.choices.index(h.decode(member.genes[h.name])))
            for h in self.hyperparameters
        }
        individual = Individual(genes, self._limits, generation=member.individual_id)
        individual.loss = place
        return individual

    def _genes(self, individual: Individual) -> list[float]:
        return [
            individual[h.name]
            if h.choices is None
            else (int(individual[h.name]) + 0.5) / len(h.choices)
            for h in self.hyperparameters
        ]


def by_promise(
    model: Model, running: Array, candidates: Array, expected: Array | float = 0.0
) -> Indices:
    """(m,): the candidates (m, d), most promising first, given that others (n, d) run already.

    `expected` is the logarithm of what else speaks for each.
    """
    process, points = model.fitness, model.fitness.points
    likely = model.log_feasibility(points) >= FEASIBLE
    means = process.mean(points)[likely]
    if len(running):
        process = process.believing(running)
    mean, deviation = process.posterior(candidates)
    expected = expected + model.log_feasibility(candidates)
    if model.cost is not None:  # an improvement a second
        expected = expected - model.cost.mean(candidates)
    if not len(means):  # first of all, constraints are to be met
        return np.argsort(-expected, kind="stable")
    z = (means.min() - mean) / deviation
    improvement = deviation * (z * ndtr(z) + np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi))
    improvement = improvement * np.exp(expected - np.max(expected))
    # Where no improvement is representable, the nearest to one.
    order: Indices = np.lexsort((-z, -improvement))
    return order


def _step(hyperparameter: Hyperparameter, gene: float) -> float:
    """How much of the gene's range belongs to its number."""
    below, above = share(hyperparameter, np.array([gene]))
    return float(above[0] - below[0])
