"""How much of the fitness each hyperparameter decides, by two methods of optuna's.

PED-ANOVA (Watanabe et al. 2023) asks what sets the best tenth apart; fANOVA (Hutter et al. 2014)
how much of the variance of the fitness a hyperparameter alone explains. Both divide one among the
hyperparameters.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

from oialr_search.storage import IndividualRecord

PED_ANOVA, FANOVA = "PED-ANOVA", "fANOVA"
# fANOVA's time grows with the square of a tree's leaves: this takes some seconds.
AT_MOST, TREES, TREE_DEPTH = 1000, 32, 8
# Fewer individuals a hyperparameter than this tell little.
A_HYPERPARAMETER = 10

Importances = Mapping[str, Mapping[str, float]]


def importances(
    individuals: Sequence[IndividualRecord], space: Sequence[Mapping[str, Any]]
) -> Importances:
    """Method → hyperparameter → its part; without a method that finds nothing to divide."""
    chosen = sample(individuals)
    study = as_study(chosen, space)
    methods = {
        PED_ANOVA: PedAnovaImportanceEvaluator(),
        FANOVA: FanovaImportanceEvaluator(n_trees=TREES, max_depth=TREE_DEPTH, seed=0),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are few is said in the figure
        parts = {}
        for method, evaluator in methods.items():
            # fANOVA raises where no tree finds a variance: all are alike, or they are very few.
            with suppress(RuntimeError):
                parts[method] = optuna.importance.get_param_importances(study, evaluator=evaluator)
        return parts


def sample(individuals: Sequence[IndividualRecord]) -> Sequence[IndividualRecord]:
    """As many as the methods take, drawn at random, the same each time."""
    if len(individuals) <= AT_MOST:
        return individuals
    return random.Random(0).sample(individuals, AT_MOST)


def as_study(
    individuals: Sequence[IndividualRecord], space: Sequence[Mapping[str, Any]]
) -> optuna.Study:
    """Individuals as what optuna calls a study, in memory."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    optuna.logging.set_verbosity(verbosity)
    distributions = {entry["name"]: _distribution(entry) for entry in space}
    study.add_trials(
        [
            optuna.trial.create_trial(
                value=individual.fitness,
                params={name: individual.hyperparameters[name] for name in distributions},
                distributions=distributions,
            )
            for individual in individuals
        ]
    )
    return study


def _distribution(entry: Mapping[str, Any]) -> BaseDistribution:
    if entry["kind"] in ("bool", "choice"):
        return CategoricalDistribution(entry.get("choices") or [False, True])
    log = entry.get("scale") == "log"
    of_kind = IntDistribution if entry["kind"] == "int" else FloatDistribution
    return of_kind(entry["low"], entry["high"], log=log)
