"""What a rank asks of its stopping rule: is its training worth going on with?

Reads the curves of all islands' trainings from the database, so many at most; those that have ended
are read once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oialr_search.launch.stopping import Training, expected_fitness, on_front, rule_for
from oialr_search.space.fitness import Aim
from oialr_search.space.search_file import SearchFile
from oialr_search.space.stopping import Clock, StoppingSettings
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Curve, Status
from oialr_training.config import Metric, Metrics

NEWEST, BEST = 400, 100
STOPPED_LAST, ASKED_ANEW = 50, 4


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A training is not worth going on with."""

    reason: str
    expected: float | None
    """The fitness that it would have come to, as far as others tell."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    evaluation_id: int
    training: Training


class Judge:
    """Asks the rule, with what the database knows."""

    def __init__(self, search_id: int, search_file: SearchFile, settings: StoppingSettings) -> None:
        self._search_id = search_id
        self._rule = rule_for(search_file.space.hyperparameters, settings)
        self._clock = settings.clock
        self._goes_on = settings.go_on
        self._epochs = search_file.training.epochs
        self._name = settings.metric or search_file.search.metric
        self._metric = _metric(search_file.training.reported, self._name)
        self._aims = _aims_of_epochs(search_file)
        self._names = sorted({self._name, *(n for aim in self._aims for n in aim.expression.names)})
        self._known: dict[int, _Known] = {}

    def verdict(self, storage: Storage, individual_id: int) -> Verdict | None:
        """Is the training of an individual to end after its last epoch? None: it is not.

        Raises:
            StorageUnavailable: when the database is away.
        """
        trainings = self._look(storage)
        training = trainings.pop(individual_id, None)
        if training is None or not training.losses or len(training.losses) >= training.epochs:
            return None
        others = list(trainings.values())
        reason = self._judged(training, others)
        if reason is None:
            return None
        return Verdict(reason=reason, expected=expected_fitness(training, others))

    def promising(self, storage: Storage) -> int | None:
        """The stopped individual to go on with: one that the rule no longer would stop.

        Asked anew are a few of those that were stopped last: those with the best places among what
        had come as far.

        Raises:
            StorageUnavailable: when the database is away.
        """
        if not self._goes_on:
            return None
        trainings = self._look(storage)
        stopped = [t for t in trainings.values() if t.status is Status.PRUNED and t.losses]
        others = {
            training.individual_id: [t for t in trainings.values() if t is not training]
            for training in stopped[-STOPPED_LAST:]
        }

        def place(individual_id: int) -> float:
            training = trainings[individual_id]
            losses = [loss for _, loss in training.as_far(others[individual_id])]
            return sum(loss < training.losses[-1] for loss in losses) / (len(losses) or 1)

        for individual_id in sorted(others, key=place)[:ASKED_ANEW]:
            if self._judged(trainings[individual_id], others[individual_id]) is None:
                return individual_id
        return None

    def _judged(self, training: Training, others: Sequence[Training]) -> str | None:
        if training.clock is None or len(training.losses) < training.clock:
            return None
        if training.aims and on_front(training, others):
            return None
        return self._rule.reason_to_stop(training, others)

    def _look(self, storage: Storage) -> dict[int, Training]:
        """All trainings there are to compare, by individual."""
        listed = storage.trainings(self._search_id, newest=NEWEST, best=BEST)
        self._known = {
            individual_id: known
            for individual_id, status, evaluation_id in listed
            if (known := self._known.get(individual_id)) is not None
            and known.evaluation_id == evaluation_id
            and known.training.status is status is not Status.RUNNING
        }
        missing = [
            individual_id for individual_id, *_ in listed if individual_id not in self._known
        ]
        for curve in storage.curves(missing, self._names):
            self._known[curve.individual_id] = _Known(
                evaluation_id=curve.evaluation_id, training=self._training(curve)
            )
        return {
            individual_id: self._known[individual_id].training
            for individual_id, *_ in listed
            if individual_id in self._known
        }

    def _training(self, curve: Curve) -> Training:
        epochs = curve.hyperparameters.get("epochs", self._epochs)
        assert isinstance(epochs, int)
        losses = [_loss(self._metric, epoch.metrics.get(self._name)) for epoch in curve.epochs]
        columns = [{**curve.hyperparameters, **epoch.metrics} for epoch in curve.epochs]
        return Training(
            individual_id=curve.individual_id,
            status=curve.status,
            genes=curve.genes,
            epochs=epochs,
            losses=losses,
            fitness=curve.fitness,
            clock=_epoch_of(self._clock, curve),
            aims=[[_aimed(aim, known) for known in columns] for aim in self._aims],
        )


def _epoch_of(clock: Clock, curve: Curve) -> int | None:
    """The first epoch after which a training may be stopped, if it is known by now."""
    if clock.unit == "epochs":
        return max(clock.number, 1)
    if clock.unit == "steps":
        step, later = clock.number, 0
    elif curve.first_truncation is None:
        return None
    else:
        step, later = curve.first_truncation, clock.number
    reached = (epoch.epoch + later for epoch in curve.epochs if epoch.step >= step)
    return next(reached, None)


def _aims_of_epochs(search_file: SearchFile) -> list[Aim]:
    """The aims of a search with several; not those that only a whole training tells."""
    known = {*search_file.training.reported.epoch_names} | {
        h.name for h in search_file.space.hyperparameters
    }
    return [aim for aim in search_file.aims.objectives if known.issuperset(aim.expression.names)]


def _aimed(aim: Aim, columns: Mapping[str, Any]) -> float:
    """What is minimised after an epoch."""
    values = {name: columns.get(name, math.nan) for name in aim.expression.names}
    value = aim.of(aim.expression.value(values))
    return value if math.isfinite(value) else math.inf


def _metric(metrics: Metrics, name: str) -> Metric:
    metric = metrics.find(name)
    assert metric is not None  # the search file was checked
    return metric


def _loss(metric: Metric, value: float | None) -> float:
    return metric.fitness(value) if value is not None and math.isfinite(value) else math.inf
