"""Metrics → fitness."""

from __future__ import annotations

import math

import pytest

from oialr_search.space.fitness import fitness_of
from oialr_training.errors import ConfigError
from oialr_training.tasks import TASKS

from ..oialr_training.margins import Margins

TASK = "minivit_digits"


def test_a_loss_is_its_own_fitness() -> None:
    assert fitness_of({"validation_loss": 0.25}, "validation_loss", TASK) == 0.25


def test_a_percentage_to_maximise_is_turned_round() -> None:
    assert fitness_of({"validation_top1": 96.0}, "validation_top1", TASK) == 4.0


def test_a_high_metric_that_is_no_percentage_is_negated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "margins", Margins)
    assert fitness_of({"validation_margin": 96.0}, "validation_margin", "margins") == -96.0
    assert fitness_of({"validation_margin": -0.5}, "validation_margin", "margins") == 0.5
    assert fitness_of({"validation_margin": math.inf}, "validation_margin", "margins") is None


def test_the_fitness_of_an_unknown_task_is_one_line() -> None:
    with pytest.raises(ConfigError, match="no metric 'validation_margin' of a task 'margins'"):
        fitness_of({"validation_margin": 1.0}, "validation_margin", "margins")


def test_no_number_is_no_fitness() -> None:
    for value in (math.nan, math.inf, -math.inf):
        assert fitness_of({"validation_loss": value}, "validation_loss", TASK) is None
    assert fitness_of({}, "validation_loss", TASK) is None
