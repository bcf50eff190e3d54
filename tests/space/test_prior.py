"""What a search file may say of where good hyperparameters are expected."""

from __future__ import annotations

import pytest

from oialr_search.space.prior import Prior
from oialr_search.space.search_file import load_search, stored_search_settings
from oialr_training.errors import ConfigError

from ..conftest import DIGITS

CHOICES = "space.oialr.full_rank_last_layer={choices: [false, true]}"
PRIORS = """search.prior={
    optimizer.lr: {around: 2.0e-3, factor: 3},
    oialr.cutoff_fraction: {around: 0.5, within: 0.1},
    oialr.delay_steps: {around: 100, within: 20},
    oialr.full_rank_last_layer: {around: true, probability: 0.8}}"""


def test_a_belief_is_of_the_kind_of_its_hyperparameter() -> None:
    file = load_search(DIGITS, [CHOICES, PRIORS, "search.prior.optimizer.lr.factor=2"])
    assert file.search.prior == {
        "optimizer.lr": Prior(around=2e-3, factor=2.0),
        "oialr.cutoff_fraction": Prior(around=0.5, within=0.1),
        "oialr.delay_steps": Prior(around=100, within=20.0),
        "oialr.full_rank_last_layer": Prior(around=True, probability=0.8),
    }
    assert stored_search_settings(file.as_json(), "stored") == file.search


def test_of_what_is_no_longer_searched_nothing_is_believed() -> None:
    file = load_search(DIGITS, [CHOICES, PRIORS, "optimizer.lr=1e-3"])
    assert "optimizer.lr" not in file.search.prior
    assert len(file.search.prior) == 3


@pytest.mark.parametrize(
    ("prior", "line"),
    [
        ("optimizer.lrr: {around: 1, factor: 3}", "optimizer.lrr`: `optimizer.lrr` is not sear"),
        (
            "optimizer.lr: {around: 1e-3}",
            "has a log scale: it needs `around` and `factor`, got non",
        ),
        ("optimizer.lr: {around: 1e-3, within: 1}", "it needs `around` and `factor`, got within"),
        ("oialr.delay_steps: {around: 99, factor: 2}", "has a linear scale: it needs `around` and"),
        ("optimizer.lr: {around: 1, factor: 3}", "around a number from 0.0005 to 0.005, got 1"),
        ("optimizer.lr: {around: a, factor: 3}", "around a number from 0.0005 to 0.005, got 'a'"),
        ("optimizer.lr: {around: 1e-3, factor: 1}", "factor` should be greater than 1, got 1"),
        ("oialr.delay_steps: {around: 99.5, within: 9}", "around an integer, got 99.5"),
        ("oialr.full_rank_last_layer: {around: 1, probability: 0.5}", "one of False, True, got 1"),
        ("oialr.full_rank_last_layer: {around: true, within: 1}", "has choices: it needs `around`"),
    ],
)
def test_anything_else_is_one_line(prior: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_search(DIGITS, [CHOICES, f"search.prior={{{prior}}}"])
    (told,) = str(error.value).splitlines()
    assert told.startswith("`search.prior.")
    assert line in told
    assert told.endswith(f"({DIGITS})")


@pytest.mark.parametrize(("engine", "warned"), [("screened", False), ("tpe", True)])
def test_other_engines_heed_no_prior(engine: str, warned: bool) -> None:
    file = load_search(DIGITS, [CHOICES, PRIORS, f"search.engine={engine}"])
    assert file.without_effect == ({"prior": "screened"} if warned else {})
    assert load_search(DIGITS, ["search.engine=tpe"]).without_effect == {}
