"""Trainings in the process of the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from oialr_training.config import validate_training
from oialr_training.protocol import Completed, Epoch, Event, Progressed
from oialr_training.state import StateFile
from oialr_training.tasks import task_of
from oialr_training.training import Interrupted, Trained, set_up, train


def train_here(
    content: Mapping[str, Any],
    data_dir: Path | None = None,
    state: Path | None = None,
    stop: Callable[[list[Event]], bool] = lambda _: False,
    **more: Any,
) -> tuple[list[Event], Trained | None]:
    """Train as a worker process does; all events, and what came of it if it was not stopped.

    But for what a slow machine sends, which would make the test hang on the clock.
    """
    config = validate_training(content, "test")
    torch.set_num_threads(config.num_threads or 1)
    task, events = task_of(config), list[Event]()
    training = set_up(config, task, task.load_data(data_dir))
    if state:
        more["state_file"] = StateFile(state)

    def report(event: Event) -> None:
        if not isinstance(event, Progressed):
            events.append(event)

    try:
        trained = train(training, report, stop=lambda: "pruned" if stop(events) else None, **more)
    except Interrupted:
        return events, None
    return [*events, trained.completed], trained


def told(events: list[Event]) -> list[Any]:
    """Epochs and result, without what a clock measured."""
    return [
        (type(event), timeless(event.metrics), *lists(event))
        for event in events
        if isinstance(event, Epoch | Completed)
    ]


def lists(event: Event) -> tuple[Any, ...]:
    if isinstance(event, Epoch):
        return event.epoch, event.rank_updates, event.observations
    return ()


def timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith("_s")}
