"""Which trainings are not worth going on with: one file a rule, chosen by `search.stopping`.

A rule looks at curves: it is a pure function of those of all trainings of the search and of the one
that runs. The clock, the Pareto front, the database and the worker are not its business.
`tests/launch/test_stopping_rules.py` has the contract as a test that each rule passes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.stopping import StoppingSettings, rule_class
from oialr_search.storage.status import Status


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training of an individual, as far as it has come."""

    individual_id: int
    status: Status
    genes: Mapping[str, float]
    epochs: int
    """Of the whole training."""
    losses: Sequence[float]
    """After each epoch, the less the better; infinite where it was no number."""
    fitness: float | None = None
    """Of one that completed."""
    clock: int | None = None
    """The first epoch after which it may be stopped, if that is known by now."""
    aims: Sequence[Sequence[float]] = ()
    """After each epoch, one for each aim of a search with several, the less the better."""

    def same_time(self, other: Training) -> int | None:
        """The epoch of another training at which that had come as far as this one; None: not yet.

        As far is the same share of all epochs, since schedules end with the last; of a share within
        an epoch, the epoch before, so that this one is not compared with what is further.
        """
        epoch = len(self.losses) * other.epochs // self.epochs
        return epoch if 1 <= epoch <= len(other.losses) else None

    def as_far(self, others: Sequence[Training]) -> list[tuple[Training, float]]:
        """The other trainings that have come as far, and their losses at that time."""
        return [
            (other, other.losses[epoch - 1])
            for other in others
            if (epoch := self.same_time(other)) is not None
        ]


class StoppingRule(ABC):
    """Judges trainings; what it remembers may make it faster, never change a judgement."""

    def __init__(
        self, hyperparameters: Sequence[Hyperparameter], settings: StoppingSettings
    ) -> None:
        self.hyperparameters = tuple(hyperparameters)
        self.settings = settings

    @abstractmethod
    def reason_to_stop(self, training: Training, others: Sequence[Training]) -> str | None:
        """Why a training is to end after its last epoch so far; None: it is to go on.

        `others` are those of all islands, running, pruned and completed ones, each with the epochs
        that it has come to, ordered by their ids.
        """


def rule_for(hyperparameters: Sequence[Hyperparameter], settings: StoppingSettings) -> StoppingRule:
    """The rule that the search file names."""
    rule: StoppingRule = rule_class(settings.rule)(hyperparameters, settings)
    return rule


def expected_fitness(training: Training, others: Sequence[Training]) -> float | None:
    """Where completed trainings ended that had its place when they had come as far.

    None: none has completed.
    """
    losses, ends = [], []
    for other, loss in training.as_far(others):
        if other.fitness is not None:
            losses.append(loss)
            ends.append(other.fitness)
    if not ends:
        return None
    place = sum(loss < training.losses[-1] for loss in losses) / len(losses)
    return float(np.quantile(ends, place))


def on_front(training: Training, others: Sequence[Training]) -> bool:
    """Is nothing that has come as far at least as good in all aims and better in one?"""
    own = [aim[-1] for aim in training.aims]
    for other in others:
        epoch = training.same_time(other)
        if epoch is None:
            continue
        theirs = [aim[epoch - 1] for aim in other.aims]
        if theirs != own and all(t <= o for t, o in zip(theirs, own, strict=True)):
            return False
    return True


def number(value: float) -> str:
    """A loss for people."""
    return "no number" if math.isinf(value) else f"{value:.4g}"
