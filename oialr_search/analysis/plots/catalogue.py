"""Name → figure: reads what a plot needs from the database and has it drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import plotly.graph_objects as go

from oialr_search.analysis.labels import (
    aim_labels,
    describe_search,
    fitness_label,
    metric_label,
    plain,
)
from oialr_search.analysis.plots import space
from oialr_search.analysis.plots.ancestors import ancestors
from oialr_search.analysis.plots.axes import Axis, axes_of
from oialr_search.analysis.plots.bases import inner_ranks, stability
from oialr_search.analysis.plots.convergence import convergence
from oialr_search.analysis.plots.names import PlotName
from oialr_search.analysis.plots.palette import evenly
from oialr_search.analysis.plots.tradeoff import Across, pareto
from oialr_search.analysis.plots.trainings import Training, learning_rates, metrics_over_epochs
from oialr_search.storage.database import Storage
from oialr_search.storage.records import (
    EpochRecord,
    EvaluationRecord,
    IndividualRecord,
    SearchRecord,
    Status,
    StorageError,
)
from oialr_training.config import TrainingConfig
from oialr_training.errors import ConfigError

R = TypeVar("R")

NUM_BEST = 5  # lines that can be told apart at a glance
MANY_TRAININGS = 100  # of which all epochs are read
MANY_CANDIDATES = 200

NO_OBSERVATIONS = (
    "no observations; a search records them with `--set observation.interval_steps=100`"
)
NO_LEARNING_RATES = "no `lr` of the epochs to draw: nothing has reported it"
NO_SHARE = "no `trainable_percent` to draw the fitness against: nothing has reported it"
NO_RANK_UPDATES = "no inner ranks; they are there after the conversion, and never at full rank"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A search to draw, its individuals read once for however many figures."""

    storage: Storage
    search: SearchRecord
    individual: IndividualRecord | None = None  # the one asked for

    @cached_property
    def everyone(self) -> list[IndividualRecord]:
        """All of them, those too that repeat another with another seed."""
        return self.storage.individuals(self.search.id)

    @cached_property
    def individuals(self) -> list[IndividualRecord]:
        """One for each configuration; the fitness is the mean over its seeds."""
        return [i for i in self.everyone if i.repeat_of is None]

    @cached_property
    def completed(self) -> list[IndividualRecord]:
        """Those with a fitness.

        Raises:
            StorageError: when there is none.
        """
        found = [i for i in self.individuals if i.fitness is not None]
        if not found:
            raise StorageError(f"search {self.search.name!r} has no completed individual yet")
        return found

    @cached_property
    def by_fitness(self) -> list[IndividualRecord]:
        """Those with a fitness, the best first."""
        return sorted(self.completed, key=lambda i: (i.violation, i.fitness or 0.0, i.id))

    @property
    def chosen(self) -> IndividualRecord:
        """The individual asked for, or the best.

        Raises:
            StorageError: when it has no fitness.
        """
        chosen = self.individual or self.by_fitness[0]
        if chosen.fitness is None:
            raise StorageError(f"individual {chosen.id} has no fitness: it is {chosen.status}")
        return chosen

    @property
    def best(self) -> list[IndividualRecord]:
        """The few to set off: the one asked for, or the best."""
        return [self.individual] if self.individual else self.by_fitness[:NUM_BEST]

    @property
    def subtitle(self) -> str:
        """Which search it is, and how far."""
        return describe_search(self.search, self.individuals)

    @property
    def fitness_label(self) -> str:
        """What the fitness is made of."""
        return fitness_label(self.search)

    @property
    def axes(self) -> list[Axis]:
        """The hyperparameters."""
        return axes_of(self.search)

    @cached_property
    def baseline(self) -> IndividualRecord | None:
        """The best individual of a search of the same task at full rank, if there is one."""
        if is_full_rank(self.search):
            return None
        for search in self.storage.searches():
            if search.task == self.search.task and is_full_rank(search):
                best = self.storage.individuals(
                    search.id, status=Status.COMPLETED, limit=1, order="fitness"
                )
                if best and search.metric == self.search.metric:
                    return best[0]
        return None


Plot = Callable[[Source], go.Figure]


def is_full_rank(search: SearchRecord) -> bool:
    """Does a search train without OIALR?"""
    training = search.settings.get("training")
    return isinstance(training, Mapping) and training.get("oialr", {}) is None


def _convergence(source: Source) -> go.Figure:
    _ = source.completed  # there must be one
    return convergence(
        source.individuals,
        source.storage.migrations(source.search.id),
        source.fitness_label,
        source.subtitle,
    )


def _importance(source: Source) -> go.Figure:
    # Not above: optuna's importance loads scikit-learn, which takes as long as all else.
    from oialr_search.analysis import importance as analysis

    completed, num_axes = source.completed, len(source.axes)
    if len(completed) < 2:
        raise StorageError(
            f"search {source.search.name!r} has 1 completed individual: importance needs two, "
            f"and {num_axes * analysis.A_HYPERPARAMETER} to mean much"
        )
    enough = num_axes * analysis.A_HYPERPARAMETER
    warning = ""
    if len(completed) < enough:
        warning = (
            f"Too few to rely on: {len(completed)} individuals for {num_axes} hyperparameters; "
            f"{enough} and more tell something."
        )
    subtitle = source.subtitle
    if len(completed) > analysis.AT_MOST:
        some = f"{analysis.AT_MOST:,} of {len(completed):,}"
        subtitle += f"<br>computed from {some}, drawn at random"
    parts = analysis.importances(completed, source.search.space)
    if analysis.FANOVA not in parts:
        subtitle += "<br>no fANOVA: it found no variance to explain"
    return space.importance(parts, subtitle, warning)


def _parallel_coordinates(source: Source) -> go.Figure:
    return space.parallel_coordinates(
        source.completed, source.axes, source.fitness_label, source.chosen, source.subtitle
    )


def _slice(source: Source) -> go.Figure:
    return space.slices(
        source.completed, source.axes, source.fitness_label, source.chosen, source.subtitle
    )


def _pareto(source: Source) -> go.Figure:
    if not source.search.objectives:
        measured = (i.evaluation for i in source.completed if i.evaluation)
        if all(evaluation.trainable_percent is None for evaluation in measured):
            raise StorageError(NO_SHARE)
        return pareto(
            source.completed, source.baseline, source.fitness_label, source.chosen, source.subtitle
        )
    first, second, *_ = aim_labels(source.search)
    return pareto(
        source.completed,
        None,  # its objectives are others
        first,
        source.chosen,
        source.subtitle,
        across=Across(label=second, of=lambda i: i.objectives[1], title="The first two objectives"),
    )


def _lineage(source: Source) -> go.Figure:
    individual = source.individual or source.by_fitness[0]
    everyone = {i.id: i for i in source.individuals}
    return ancestors(individual, everyone, describe(source.search, individual))


def _learning_rates(source: Source) -> go.Figure:
    best = _best_trainings(source)
    if not any("lr" in epoch.metrics for training in best for epoch in training.epochs):
        raise StorageError(NO_LEARNING_RATES)
    references = [*_planned(source, best[0].epochs), *_baseline_training(source)]
    return learning_rates(best, references, source.subtitle)


def _epochs(source: Source) -> go.Figure:
    best = _best_trainings(source)
    others = [i for i in source.individuals if i.id not in {i.id for i in source.best}]
    rest = evenly(others, MANY_TRAININGS)
    note = ""
    if len(rest) < len(others):
        note = f"{len(rest):,} of the {len(others):,} others drawn, evenly"
    return metrics_over_epochs(
        best,
        [training for i in rest if (training := _training(source, i)).epochs],
        _baseline_training(source),
        source.search.metric,
        metric_label(source.search.metric, source.search),
        source.subtitle,
        note,
    )


def _best_trainings(source: Source) -> list[Training]:
    """Those of the best, or of the one asked for.

    Raises:
        StorageError: when none has an epoch.
    """
    trainings = [_training(source, individual) for individual in source.best]
    found = [training for training in trainings if training.epochs]
    if not found:
        raise StorageError(f"search {source.search.name!r} has no epochs to draw yet")
    return found


def _training(source: Source, individual: IndividualRecord, name: str = "") -> Training:
    evaluation = individual.evaluation
    fitness = individual.status.value
    if individual.fitness is not None:
        fitness = f"fitness {individual.fitness:.4g}"
    return Training(
        name=name or f"individual {individual.id}, {fitness}",
        epochs=source.storage.epochs(evaluation.id) if evaluation else [],
    )


def _planned(source: Source, epochs: Sequence[EpochRecord]) -> list[Training]:
    """The schedule that the search file asks for: the training as it was before the search."""
    steps_per_epoch = epochs[-1].step // epochs[-1].epoch if epochs[-1].epoch else 0
    if not steps_per_epoch:
        return []
    try:
        config = source.search.training()
    except ConfigError:  # of another version
        return []
    if not isinstance(config, TrainingConfig):
        return []
    rates = [
        EpochRecord(
            epoch=epoch,
            step=epoch * steps_per_epoch,
            metrics={"lr": config.learning_rate(epoch * steps_per_epoch - 1, steps_per_epoch)},
        )
        for epoch in range(1, config.epochs + 1)
    ]
    return [Training(name="untuned: the search file's values", epochs=rates)]


def _baseline_training(source: Source) -> list[Training]:
    if source.baseline is None:
        return []
    name = f"baseline at full rank (individual {source.baseline.id})"
    training = _training(source, source.baseline, name)
    return [training] if training.epochs else []


def _stability(source: Source) -> go.Figure:
    individual, evaluation, observations = find_recorded(
        source, source.storage.observations, NO_OBSERVATIONS
    )
    updates = source.storage.rank_updates(evaluation.id)
    return stability(observations, updates, describe(source.search, individual))


def _inner_ranks(source: Source) -> go.Figure:
    individual, evaluation, updates = find_recorded(
        source, source.storage.rank_updates, NO_RANK_UPDATES
    )
    epochs = source.storage.epochs(evaluation.id)
    return inner_ranks(updates, epochs[-1].step, describe(source.search, individual))


PLOTS: Mapping[PlotName, Plot] = {
    PlotName.CONVERGENCE: _convergence,
    PlotName.IMPORTANCE: _importance,
    PlotName.PARALLEL_COORDINATES: _parallel_coordinates,
    PlotName.SLICE: _slice,
    PlotName.PARETO: _pareto,
    PlotName.LINEAGE: _lineage,
    PlotName.LEARNING_RATES: _learning_rates,
    PlotName.EPOCHS: _epochs,
    PlotName.INNER_RANKS: _inner_ranks,
    PlotName.STABILITY: _stability,
}


def draw(name: PlotName, source: Source) -> go.Figure:
    """Draw a figure.

    Raises:
        StorageError: when what it shows is not there.
    """
    if not source.individuals:
        raise StorageError(f"search {source.search.name!r} has no individual yet")
    return PLOTS[name](source)


def find_recorded(
    source: Source,
    read: Callable[[int], list[R]],
    otherwise: str,
) -> tuple[IndividualRecord, EvaluationRecord, list[R]]:
    """The latest attempt with such records, of the individual or of the best that has one.

    Raises:
        StorageError: when there is none.
    """
    search, individual = source.search, source.individual
    candidates = [individual] if individual else _likely(source)
    for candidate in candidates:
        for evaluation in reversed(source.storage.evaluations(candidate.id)):
            if records := read(evaluation.id):
                return candidate, evaluation, records
    if individual is not None:
        raise StorageError(f"individual {individual.id} has {otherwise}")
    raise StorageError(f"no individual of search {search.name!r} can be drawn: {otherwise}")


def _likely(source: Source) -> list[IndividualRecord]:
    """The best, those without a fitness last: what is recorded, most have."""
    return source.storage.individuals(source.search.id, limit=MANY_CANDIDATES, order="fitness")


def describe(search: SearchRecord, individual: IndividualRecord) -> str:
    """Which training a figure shows."""
    text = f"search {plain(search.name)}, individual {individual.id}, task {plain(search.task)}"
    if individual.fitness is None:
        return f"{text}, {individual.status.value}"
    return f"{text}, fitness {individual.fitness:.4g} ({plain(search.metric)})"
