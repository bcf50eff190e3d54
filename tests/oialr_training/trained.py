"""Trainings in the process of the tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from oialr_training.__main__ import Worker
from oialr_training.protocol import (
    Completed,
    Epoch,
    Evaluate,
    Event,
    Progressed,
    Stop,
    decode,
)
from oialr_training.state import StateFile
from oialr_training.tasks import validate_training
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
    events = list[Event]()
    training = set_up(config, config.load_data(data_dir))
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


def work_here(
    message: Evaluate, then: Callable[[Event, list[Stop]], None] = lambda *_: None
) -> list[Event]:
    """What the worker says that trains in this process; `then` may ask it to stop."""
    end, pipe = os.pipe()
    stops: list[Stop] = []

    class Here(Worker):
        def report(self, event: Event) -> None:
            super().report(event)
            then(event, stops)

    Path(message.folder).mkdir(exist_ok=True)
    torch.set_num_threads(message.config["num_threads"])
    with os.fdopen(end, "rb") as said:
        with os.fdopen(pipe, "wb"):
            Here(pipe).evaluate(message, stops)
        events = [decode(line) for line in said]
    return [event for event in events if not isinstance(event, Progressed)]


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
