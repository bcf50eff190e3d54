"""Metrics → fitness."""

from __future__ import annotations

import math

from oialr_search.fitness import fitness_of

TASK = "minivit_digits"


def test_a_loss_is_its_own_fitness() -> None:
    assert fitness_of({"validation_loss": 0.25}, "validation_loss", TASK) == 0.25


def test_a_percentage_to_maximise_is_turned_round() -> None:
    assert fitness_of({"validation_top1": 96.0}, "validation_top1", TASK) == 4.0


def test_no_number_is_no_fitness() -> None:
    for value in (math.nan, math.inf, -math.inf):
        assert fitness_of({"validation_loss": value}, "validation_loss", TASK) is None
    assert fitness_of({}, "validation_loss", TASK) is None
