"""What a worker came to → the outcome that is stored."""

from __future__ import annotations

from datetime import UTC, datetime

from oialr_training.protocol import Completed, Failed

from oialr_search.space.fitness import fitness_of
from oialr_search.storage.records import Outcome, Status


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
