"""What a worker measured → fitness, the scalar that the search minimises; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from oialr_training.errors import ConfigError
from oialr_training.tasks import metric_of


def fitness_of(metrics: Mapping[str, float], metric: str, task: str) -> float | None:
    """See `Metric.fitness`; the less, the better.

    None when the metric is missing or no finite number: then the evaluation has failed.

    Raises:
        ConfigError: when the task is unknown here, or has no such metric.
    """
    known = metric_of(task, metric)
    if known is None:
        raise ConfigError(f"no metric {metric!r:.80} of a task {task!r:.80} is known")
    value = metrics.get(metric, math.nan)
    return known.fitness(value) if math.isfinite(value) else None
