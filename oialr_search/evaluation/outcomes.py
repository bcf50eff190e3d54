"""What a worker came to → the outcome that is stored, and whether another attempt follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from oialr_search.space.fitness import Aims, NotMeasured
from oialr_search.space.hyperparameters import Value
from oialr_search.storage.records import Outcome, Status
from oialr_training.protocol import Completed, Epoch, Failed, Stopped


def outcome_of(
    result: Completed | Failed,
    aims: Aims,
    hyperparameters: Mapping[str, Value],
    epochs: Sequence[Mapping[str, float]],
) -> Outcome:
    """How an evaluation ended whose worker came to this result, after epochs with these metrics."""
    at = datetime.fromtimestamp(result.at, UTC)
    try:
        if isinstance(result, Failed):
            raise NotMeasured(result.reason)
        measured = aims.measured(result, hyperparameters, epochs)
    except NotMeasured as error:
        return Outcome(
            status=Status.FAILED, reason=str(error), finished_at=at, resources=result.resources
        )
    return Outcome(
        status=Status.COMPLETED,
        **vars(measured),
        metrics=result.metrics,
        trainable_percent=result.trainable_percent,
        compression_percent=result.compression_percent,
        finished_at=at,
        resources=result.resources,
    )


def pruned_outcome(
    stopped: Stopped,
    last_epoch: Epoch | None,
    reason: str,
    expected: float | None,
    aims: Aims,
    hyperparameters: Mapping[str, Value],
    epochs: Sequence[Mapping[str, float]],
) -> Outcome:
    """How an evaluation ended that was not worth going on with: what it had come to is kept.

    A single objective is the fitness that is expected of it. Constraints, several objectives, and
    one of which nothing is expected, are as if its last epoch had been the last of all; they are
    left out where one of them needs more.
    """
    metrics = {"epoch": float(last_epoch.epoch), **last_epoch.metrics} if last_epoch else {}
    so_far = Completed(
        metrics=metrics,
        trainable_percent=metrics.get("trainable_percent"),
        compression_percent=metrics.get("compression_percent"),
        device="",
        duration_s=math.nan,
        at=0.0,
    )
    come_to: dict[str, Any] = {}
    with suppress(NotMeasured):
        measured = aims.measured(so_far, hyperparameters, epochs)
        come_to = {name: vars(measured)[name] for name in ("constraints", "violation")}
        come_to["objectives"] = measured.objectives or [measured.fitness]
    if expected is not None and not aims.objectives:
        come_to["objectives"] = [expected]
    return Outcome(
        status=Status.PRUNED,
        reason=f"stopped after epoch {stopped.epoch}: {reason}",
        **come_to,
        metrics=metrics,
        trainable_percent=metrics.get("trainable_percent"),
        compression_percent=metrics.get("compression_percent"),
        resources=stopped.resources,
    )


def is_of_machine(result: Completed | Failed) -> bool:
    """Does the worker itself hold the machine responsible?"""
    return isinstance(result, Failed) and result.cause == "machine"


def is_repeated(outcome: Outcome, *, machine: bool, failures: int, retries: int) -> bool:
    """Is the individual to be evaluated again?

    A lost evaluation always is. What may be the machine's fault is when fewer than `retries`
    earlier attempts have failed or timed out; what is the configuration's or the training's never.
    """
    return outcome.status is Status.LOST or (machine and failures < retries)
