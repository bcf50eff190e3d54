"""What a worker measured → fitness, the scalar that the search minimises; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from oialr_training.config import TASKS


def fitness_of(metrics: Mapping[str, float], metric: str, task: str) -> float | None:
    """The metric itself, or 100 − metric for a percentage that should be high.

    None when the metric is missing or no finite number: then the evaluation has failed.
    """
    value = metrics.get(metric, math.nan)
    if not math.isfinite(value):
        return None
    return value if TASKS[task].metrics[metric] == "lower" else 100.0 - value
