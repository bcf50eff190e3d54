"""What a worker measured → fitness, the scalar that the search minimises; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime

from oialr_search.storage import Outcome, Status
from workers.config import TASKS
from workers.protocol import Completed, Failed


def fitness_of(metrics: Mapping[str, float], metric: str, task: str) -> float | None:
    """The metric itself, or 100 − metric for a percentage that should be high.

    None when the metric is missing or no finite number: then the evaluation has failed.
    """
    value = metrics.get(metric, math.nan)
    if not math.isfinite(value):
        return None
    return value if TASKS[task].metrics[metric] == "lower" else 100.0 - value


def outcome_of(result: Completed | Failed, metric: str, task: str) -> Outcome:
    """How an evaluation ended whose worker came to this result."""
    at = datetime.fromtimestamp(result.at, UTC)
    if isinstance(result, Failed):
        return Outcome(
            status=Status.FAILED, reason=result.reason, finished_at=at, **vars(result.resources)
        )
    fitness = fitness_of(result.metrics, metric, task)
    if fitness is None:
        reason = f"{metric} is {result.metrics.get(metric)}"
        return Outcome(
            status=Status.FAILED, reason=reason, finished_at=at, **vars(result.resources)
        )
    return Outcome(
        status=Status.COMPLETED,
        fitness=fitness,
        metrics=result.metrics,
        trainable_percent=result.trainable_percent,
        compression_percent=result.compression_percent,
        finished_at=at,
        **vars(result.resources),
    )
