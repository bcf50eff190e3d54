"""What a worker measured → what the search minimises, and by how much constraints are not met.

The one place that knows what a search is after: a metric, an expression, several objectives. Pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from oialr_search.space.expressions import Bound, Expression, parse_bounds, parse_expression
from oialr_search.space.hyperparameters import SearchSpace, Value
from oialr_training.config import Metric, Metrics
from oialr_training.errors import ConfigError
from oialr_training.protocol import Completed, Resources

if TYPE_CHECKING:
    from oialr_search.space.search_file import SearchSettings

WAYS = ("min", "max")
OF_EACH = ("train_loss", "trainable_percent", "compression_percent")
"""Columns besides the metrics to judge by, where they are reported; `duration_s` always is."""
PROBES = (0.3, 0.9, 3.0, 30.0, 90.0)
"""Values of columns at which an expression is asked which way it goes."""


class NotMeasured(Exception):  # noqa: N818  (an outcome)
    """An aim has no value in an evaluation; the text says why, in a few words."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Something to minimise."""

    expression: Expression
    metric: Metric | None = None
    """The expression is this metric, whose own way is the better one."""
    maximised: bool = False

    def of(self, value: float) -> float:
        """What is minimised, for a value of the expression."""
        if self.metric is not None:
            return self.metric.fitness(value)
        return -value if self.maximised else value

    @property
    def label(self) -> str:
        """How what is minimised is made."""
        text = self.expression.text
        if self.metric is not None:
            return self.metric.fitness_label(text)
        return f"−({text})" if self.maximised else text


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an evaluation has come to."""

    fitness: float
    objectives: list[float]
    """Each minimised; empty: the fitness is the only one."""
    constraints: list[float]
    """Excesses in the columns' units; up to 0 where met."""
    violation: float
    """Sum of the positive excesses, each as a share of its bound."""


@dataclass(frozen=True, kw_only=True)
class Aims:
    """What a search is after."""

    metric: str
    """The metric of one epoch that stands for the aims: curves and stopping rules need one."""
    fitness: Aim
    objectives: tuple[Aim, ...] = ()
    """Empty: the fitness alone; else the first of them is the fitness."""
    constraints: tuple[Bound, ...] = ()
    window: int = 1
    """Each of `windowed` counts as its mean over so many last epochs."""
    windowed: frozenset[str] = frozenset()
    """The metrics by which a search may judge."""

    def measured(
        self,
        completed: Completed,
        hyperparameters: Mapping[str, Value],
        epochs: Sequence[Mapping[str, float]],
    ) -> Measured:
        """What a training has come to; `epochs` are the metrics of its epochs, its last ones last.

        Raises:
            NotMeasured: when one of the aims has no finite value.
        """
        columns = self._columns(completed, hyperparameters, epochs)
        objectives = [_finite(aim.expression, aim.expression.value(columns)) for aim in self._all]
        minimised = [aim.of(value) for aim, value in zip(self._all, objectives, strict=True)]
        excesses = [_finite(bound, bound.excess(columns)) for bound in self.constraints]
        scaled = zip(excesses, self.constraints, strict=True)
        return Measured(
            fitness=minimised[0],
            objectives=minimised if self.objectives else [],
            constraints=excesses,
            violation=sum(max(excess, 0.0) / bound.scale for excess, bound in scaled),
        )

    @property
    def _all(self) -> tuple[Aim, ...]:
        return self.objectives or (self.fitness,)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that count."""
        sides = [side for bound in self.constraints for side in (bound.low, bound.high)]
        expressions = [*(aim.expression for aim in self._all), *sides]
        return tuple(dict.fromkeys(name for e in expressions for name in e.names))

    def _columns(
        self,
        completed: Completed,
        hyperparameters: Mapping[str, Value],
        epochs: Sequence[Mapping[str, float]],
    ) -> dict[str, float]:
        known: dict[str, object] = {
            **hyperparameters,
            **completed.metrics,
            **completed.share_of_parameters,
            "duration_s": completed.duration_s,
            **vars(completed.resources),
        }
        number = min(self.window, int(completed.metrics.get("epoch", self.window)))
        columns = {}
        for name in self.names:
            value = known.get(name)
            if self.window > 1 and name in self.windowed:
                last = [epoch[name] for epoch in epochs[-number:] if name in epoch]
                value = statistics.fmean(last) if len(last) == number else None
            if not isinstance(value, int | float):
                raise NotMeasured(f"{name} was not measured")
            if not math.isfinite(value):
                raise NotMeasured(f"{name} is {value}")
            columns[name] = float(value)
        return columns


def _finite(of: Expression | Bound, value: float) -> float:
    if not math.isfinite(value):
        raise NotMeasured(f"{of.text} is {value}")
    return value


def aims_of(search: SearchSettings, metrics: Metrics, space: SearchSpace, source: str) -> Aims:
    """What a search is after, checked against what its trainings report.

    Raises:
        ConfigError: when no metric is known, a name is none of a column, or the aims contradict.
    """
    if not metrics.searched:
        raise ConfigError(f"no metric {search.metric!r:.80} of this task is known ({source})")
    try:
        return _aims_of(search, metrics, space)
    except ConfigError as error:
        raise ConfigError(f"{error} ({source})") from None


def _aims_of(search: SearchSettings, metrics: Metrics, space: SearchSpace) -> Aims:
    numbers = [h.name for h in space.hyperparameters if _is_number(h.choices)]
    resources = [resource.name for resource in fields(Resources)]
    of_each = [name for name in OF_EACH if metrics.find(name)]
    known = dict.fromkeys([*metrics.names, *of_each, "duration_s", *resources, *numbers])
    if search.fitness is not None and search.objectives is not None:
        raise ConfigError(
            "`search.fitness` is for one aim, `search.objectives` for several: the first of them "
            "is the fitness"
        )
    objectives = tuple(_objective(text, list(known), metrics) for text in search.objectives or ())
    if search.fitness is not None:
        fitness = Aim(expression=parse_expression(search.fitness, list(known), "search.fitness"))
        _refuse_wrong_way(fitness.expression, metrics, "search.fitness")
    elif objectives:
        fitness = objectives[0]
    else:
        expression = parse_expression(search.metric, metrics.names, "search.metric")
        fitness = Aim(expression=expression, metric=metrics.find(search.metric))
    named = [name for aim in objectives or (fitness,) for name in aim.expression.names]
    return Aims(
        metric=search.metric
        or next((name for name in named if name in metrics.names), metrics.names[0]),
        fitness=fitness,
        objectives=objectives,
        constraints=tuple(
            bound
            for text in search.subject_to
            for bound in parse_bounds(text, list(known), "search.subject_to")
        ),
        window=search.fitness_window,
        windowed=frozenset(metrics.names),
    )


def _objective(text: str, known: Sequence[str], metrics: Metrics) -> Aim:
    """`expression`, `expression:min` or `expression:max`; the better way of a metric is known."""
    key = "search.objectives"
    written, _, way = text.partition(":")
    way = way.strip()
    if way not in ("", *WAYS):
        raise ConfigError(f"`{key}`: `:min` or `:max` may follow {written}, got `:{way:.80}`")
    expression = parse_expression(written, known, key)
    metric = metrics.find(expression.text)
    if metric is not None and way in ("", "max" if metric.better == "higher" else "min"):
        return Aim(expression=expression, metric=metric)
    if not way:
        _refuse_wrong_way(expression, metrics, key)
    return Aim(expression=expression, maximised=way == "max")


def _refuse_wrong_way(expression: Expression, metrics: Metrics, key: str) -> None:
    """What is minimised must not always gain by a worse metric: nobody would search for that."""
    for name in expression.names:
        metric = metrics.find(name)
        if metric is None or name not in metrics.names:
            continue
        better = 1.01 if metric.better == "higher" else 0.99
        slopes = []
        for probe in PROBES:
            columns = dict.fromkeys(expression.names, probe)
            before = expression.value(columns)
            slopes.append(expression.value({**columns, name: better * probe}) - before)
        slopes = [slope for slope in slopes if math.isfinite(slope)]
        if slopes and min(slopes) > 0.0:
            instead = metric.fitness_label(name).replace("−", "-")
            hint = f"write `{instead}`" if instead != name else f"write `{name}` without a minus"
            raise ConfigError(
                f"`{key}` is minimised, but {expression.text:.80} grows with a better {name}: "
                f"{hint}"
            )


def _is_number(choices: Sequence[Value] | None) -> bool:
    return all(isinstance(c, int | float) for c in choices or ())


def fitness_of(measured: Mapping[str, float], metric: str, metrics: Metrics) -> float | None:
    """One metric alone as a search minimises it, see `Metric.fitness`; None: no finite number.

    Raises:
        ConfigError: when there is no such metric.
    """
    known = metrics.find(metric)
    if known is None:
        raise ConfigError(f"no metric {metric!r:.80} of this task is known")
    value = measured.get(metric, math.nan)
    return known.fitness(value) if math.isfinite(value) else None
