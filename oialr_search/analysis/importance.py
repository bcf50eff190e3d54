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

import optuna
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

from oialr_search.analysis.distributions import params_of, space_of, widened
from oialr_search.space.hyperparameters import SearchSpace
from oialr_search.storage.records import IndividualRecord

PED_ANOVA, FANOVA = "PED-ANOVA", "fANOVA"
# fANOVA's time grows with the square of a tree's leaves: this takes some seconds.
AT_MOST, TREES, TREE_DEPTH = 1000, 32, 8
# Fewer individuals a hyperparameter than this tell little.
A_HYPERPARAMETER = 10

Importances = Mapping[str, Mapping[str, float]]


def importances(individuals: Sequence[IndividualRecord], space: SearchSpace) -> Importances:
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


def as_study(individuals: Sequence[IndividualRecord], space: SearchSpace) -> optuna.Study:
    """Individuals as what optuna calls a study, in memory."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    optuna.logging.set_verbosity(verbosity)
    stored = space_of(space)
    found = [params_of(individual, stored) for individual in individuals]
    distributions = widened(stored, found)
    study.add_trials(
        [
            optuna.trial.create_trial(
                value=individual.fitness,
                params=params,
                distributions={name: distributions[name] for name in params},
            )
            for individual, params in zip(individuals, found, strict=True)
        ]
    )
    return study
