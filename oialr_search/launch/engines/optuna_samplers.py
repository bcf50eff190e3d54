"""Optuna's samplers as engines, for comparison."""

from __future__ import annotations

import copy
import random
from abc import abstractmethod
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from oialr_search.launch.engines import Engine, Knowledge, Offspring
from oialr_search.space.hyperparameters import Hyperparameter, SearchSpace
from oialr_search.surrogate.individuals import Individuals

SOME_TIME = datetime(2000, 1, 1)  # a study wants one, no sampler asks


class KnownTrial(FrozenTrial):
    """Nothing in it changes, so a study need not copy it deeply, which took most of its time."""

    def __deepcopy__(self, memo: dict[int, Any]) -> KnownTrial:
        return copy.copy(self)


class OptunaEngine(Engine):
    """A study in memory for each proposal: only the database remembers."""

    needs_all_individuals = True
    best, newest = 250, 250
    """How many of all individuals a proposal is built on."""

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """The sampler that a proposal asks."""

    def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
        """What the sampler suggests."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            directions=["minimize"] * len(self.settings.objectives or [None]),
            sampler=self.sampler(random_numbers.getrandbits(31)),
        )
        distributions = {h.name: distribution(h) for h in self.hyperparameters}
        study.add_trials(self._trials(knowledge.individuals, distributions))
        values = study.ask(distributions).params
        genes = {h.name: min(max(h.encode(values[h.name]), 0.0), 1.0) for h in self.hyperparameters}
        return Offspring(genes=genes, origin="sampled")

    def _trials(
        self, known: Individuals, distributions: dict[str, BaseDistribution]
    ) -> list[FrozenTrial]:
        """The best and the newest individuals, in the order of their ids."""
        space = SearchSpace(self.hyperparameters)
        rows = np.arange(len(known))
        if len(rows) > self.best + self.newest:
            older = rows[: -self.newest]
            best = older[np.argsort(known.standing[older], kind="stable")[: self.best]]
            rows = np.sort(np.concatenate([best, rows[-self.newest :]]))
        trials: list[FrozenTrial] = []
        several = self.settings.objectives is not None
        measured = known.objectives if several else known.fitness[:, None]
        for row in rows:
            running, completed = np.isnan(known.fitness[row]), np.isfinite(known.fitness[row])
            ended = TrialState.COMPLETE if completed else TrialState.FAIL
            excesses = known.constraints[row].tolist() if completed else []
            genes = dict(zip(distributions, known.genes[row].tolist(), strict=True))
            params = space.decode(genes)
            trials.append(
                KnownTrial(
                    number=-1,  # the study gives number and id
                    trial_id=-1,
                    state=TrialState.RUNNING if running else ended,
                    value=None,
                    values=measured[row].tolist() if completed else None,
                    datetime_start=SOME_TIME,
                    datetime_complete=None if running else SOME_TIME,
                    params=params,
                    distributions={name: distributions[name] for name in params},
                    user_attrs={},
                    system_attrs={"constraints": excesses} if excesses else {},
                    intermediate_values={},
                )
            )
        return trials


class TPE(OptunaEngine):
    """The tree-structured Parzen estimator (Bergstra et al. 2011); running ones count as bad."""

    def sampler(self, seed: int) -> BaseSampler:
        """As Optuna sets it, and for asynchronous searches."""
        return TPESampler(seed=seed, constant_liar=True)


class GP(OptunaEngine):
    """A Gaussian process and expected improvement; the controllers import torch for it."""

    best, newest = 75, 75  # its cost grows with the third power

    def sampler(self, seed: int) -> BaseSampler:
        """As Optuna sets it."""
        return GPSampler(seed=seed)


def distribution(hyperparameter: Hyperparameter) -> BaseDistribution:
    """The hyperparameter as Optuna knows it."""
    h = hyperparameter
    if h.choices is not None:
        return CategoricalDistribution(h.choices)
    assert h.low is not None
    assert h.high is not None
    log = h.scale == "log"
    if h.kind == "int":
        step = 1 if log or h.step is None else int(h.step)
        return IntDistribution(int(h.low), int(h.high), log=log, step=step)
    return FloatDistribution(h.low, h.high, log=log, step=None if log else h.step)
