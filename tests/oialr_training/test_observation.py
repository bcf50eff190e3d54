"""Stability and mixing similarity of every layer, recorded while a network trains."""

from __future__ import annotations

import math
from typing import Any

import pytest

from oialr_training.errors import ConfigError
from oialr_training.protocol import Epoch, Event, Observation, Started
from oialr_training.tasks import validate_training

from .process import digits
from .trained import told, train_here


def observed(**changes: Any) -> list[Event]:
    return train_here(digits(observation={"interval_steps": 5, "lags": [1, 3]}, **changes))[0]


def observations(events: list[Event]) -> list[list[Observation]]:
    return [event.observations for event in events if isinstance(event, Epoch)]


@pytest.mark.parametrize("changes", [{}, {"oialr": None}], ids=["oialr", "full rank"])
def test_every_layer_is_compared_at_every_instant(changes: dict[str, Any]) -> None:
    by_epoch = observations(observed(**changes))
    found = [observation for epoch in by_epoch for observation in epoch]
    layers = {observation.layer for observation in found}
    assert len(layers) == 10
    instants = {(o.step, o.earlier_step) for o in found}
    steps = range(5, 53, 5)
    assert instants == {(s, s - 5 * lag) for s in steps for lag in (1, 3) if s >= 5 * lag}
    assert len(found) == len(instants) * len(layers)
    for number, epoch in enumerate(by_epoch):
        assert all(13 * number < o.step <= 13 * (number + 1) for o in epoch)
    assert all(0 < o.stability <= 1 + 1e-6 and 0 < o.mixing_similarity < 1 for o in found)


def test_a_basis_between_updates_is_steadier_than_a_trained_weight() -> None:
    last = [o for o in observations(observed())[-1] if o.step - o.earlier_step == 5]
    dense = [o for o in observations(observed(oialr=None))[-1] if o.step - o.earlier_step == 5]
    assert math.fsum(o.stability for o in last) > math.fsum(o.stability for o in dense)


@pytest.mark.parametrize("changes", [{}, {"oialr": None}], ids=["oialr", "full rank"])
def test_observing_changes_no_result(changes: dict[str, Any]) -> None:
    def metrics(events: list[Event]) -> list[Any]:
        return [entry[:2] for entry in told(events)]

    plain, _ = train_here(digits(**changes))
    assert not any(observations(plain))
    assert metrics(observed(**changes)) == metrics(plain)


@pytest.mark.parametrize(
    ("observation", "warning"),
    [
        ({"interval_steps": 52}, None),
        ({"interval_steps": 53}, "nothing is observed: `observation.interval_steps` = 53"),
        ({"interval_steps": 13, "lags": [1, 5]}, "`observation.lags` has 5, the training 4"),
    ],
)
def test_an_observation_without_effect_is_told(
    observation: dict[str, Any], warning: str | None
) -> None:
    events, _ = train_here(digits(observation=observation))
    (started,) = [event for event in events if isinstance(event, Started)]
    assert bool(started.warnings) == (warning is not None)
    assert warning is None or warning in started.warnings[0]


@pytest.mark.parametrize(
    ("observation", "line"),
    [
        ({"interval_steps": 0}, "`observation.interval_steps` should be greater than or equal"),
        ({"interval_steps": 5, "lags": []}, "`observation.lags`"),
        ({"interval_steps": 5, "lags": [0]}, "`observation.lags.0`"),
        ({"interval": 5}, "unknown key `observation.interval`; did you mean `interval_steps`?"),
        ({}, "`observation.interval_steps` is missing"),
    ],
)
def test_mistakes_are_named(observation: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_training(digits() | {"observation": observation}, "test")
    assert line in str(caught.value)
