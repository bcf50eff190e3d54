"""Which individual a search comes to in the end: not always the one that measured best.

The least of many noisy measurements is the luckiest one. So who was confirmed with further seeds is
preferred, then who is expected to be best by a model of all.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from oialr_search.space.fitness import Aims, NotMeasured
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    IndividualRecord,
    SearchRecord,
    Status,
    StorageError,
)
from oialr_search.storage.status import UNFINISHED
from oialr_search.terminal.values import shown
from oialr_training.errors import ConfigError
from oialr_training.protocol import Completed

ENOUGH = 12
"""Completed individuals; of fewer no model is made."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An individual, and in a few words how it was chosen."""

    individual: IndividualRecord
    how: str


def final_choice(storage: Storage, search: SearchRecord) -> Choice:
    """The best of the confirmed, else the least expected fitness, else the least measured one.

    Raises:
        StorageError: when none is completed yet.
    """
    best = storage.individuals(search.id, status=Status.COMPLETED, limit=ENOUGH, order="fitness")
    if not best:
        raise StorageError(f"search {search.name!r} has no completed individual yet")
    measured = Choice(individual=best[0], how=measured_as(best[0]))
    if best[0].objectives:
        return measured
    chosen = _best_confirmed(storage, search)
    if chosen is None and len(best) == ENOUGH and not best[0].violation:
        chosen = _least_expected(storage, search)
    return chosen or measured


def measured_as(individual: IndividualRecord) -> str:
    """An individual's fitness, with its deviation where several seeds were measured."""
    if individual.fitness is None:
        return "no fitness"
    text = f"fitness {shown(individual.fitness)}"
    if individual.fitness_deviation is None:
        return text
    return f"{text} ± {shown(individual.fitness_deviation)} over {individual.num_seeds} seeds"


def _best_confirmed(storage: Storage, search: SearchRecord) -> Choice | None:
    """By the mean over all seeds, or of the confirming ones on test data; None: not confirmed.

    One that failed with a seed comes after those that did not.
    """
    confirmations = storage.confirmations(search.id)
    if not confirmations or any(c.status in UNFINISHED for c in confirmations):
        return None
    try:
        confirm = search.search_settings().confirm
        aims = search.aims()
    except ConfigError:  # of another version
        return None
    on_test = confirm is not None and confirm.on == "test"
    by_first: dict[int, list[IndividualRecord]] = {}
    for each in confirmations:
        by_first.setdefault(each.repeat_of or 0, []).append(each)
    found = []
    for number, repeats in by_first.items():
        first = storage.individual(number)
        if first is None or first.fitness is None:  # its row was deleted by hand
            continue
        values = [fitness_on_test(aims, each) if on_test else each.fitness for each in repeats]
        known = [value for value in values if value is not None]
        if known:
            score = statistics.fmean(known) if on_test else first.fitness
            failed = len(known) < len(values)
            found.append(((first.violation, failed, score, first.id), first, len(known)))
    if not found:
        return None
    (_, _, score, _), first, number = min(found, key=lambda entry: entry[0])
    how = f"the best of {len(by_first)} confirmed: {measured_as(first)}"
    if on_test:
        how = (
            f"the best of {len(by_first)} confirmed on test data: {shown(score)} over {number} "
            f"seeds; on validation data {measured_as(first)}"
        )
    return Choice(individual=first, how=how)


def fitness_on_test(aims: Aims, individual: IndividualRecord) -> float | None:
    """What the search minimises, of the test metrics in place of the validation metrics."""
    evaluation = individual.evaluation
    if evaluation is None or evaluation.status is not Status.COMPLETED:
        return None
    completed = Completed(
        metrics=of_test(evaluation.metrics),
        trainable_percent=evaluation.trainable_percent,
        compression_percent=evaluation.compression_percent,
        device=evaluation.device or "cpu",
        duration_s=evaluation.duration_s or math.nan,
        resources=evaluation.resources,
        at=0.0,
    )
    try:
        values = individual.hyperparameters
        return replace(aims, window=1).measured(completed, values, []).fitness
    except NotMeasured:
        return None


def of_test(metrics: Mapping[str, float]) -> dict[str, float]:
    """The test metrics under the names of the validation metrics, which are left out."""
    others = {k: v for k, v in metrics.items() if not k.startswith("validation_")}
    on_test = {k: v for k, v in metrics.items() if k.startswith("test_")}
    return others | {f"validation_{k.removeprefix('test_')}": v for k, v in on_test.items()}


def _least_expected(storage: Storage, search: SearchRecord) -> Choice:
    from oialr_search.surrogate.choosing import least_expected
    from oialr_search.surrogate.individuals import Individuals

    hyperparameters = search.space.hyperparameters
    known = Individuals(hyperparameters, storage.known_after(search.id, 0))
    number, expected = least_expected(known, hyperparameters)
    individual = storage.individual(number)
    assert individual is not None
    measured = measured_as(individual).removeprefix("fitness ")
    how = f"least expected fitness {shown(expected)}; measured {measured}"
    return Choice(individual=individual, how=how)
