"""Problems for `benchmarks/search_quality.py`, from scikit-learn, COCO and our own trainings.

bbob-D, bbob-mixint-D   a function of COCO for each seed (Hansen et al. 2021)
svm, sgd, boosting      scikit-learn trainings of a few milliseconds
oialr                   a noisy surrogate of the trainings that `make_curves.py` stored
"""

from __future__ import annotations

import json
import lzma
import math
import random
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cocoex
import numpy as np

from oialr_search.space.hyperparameters import Hyperparameter, Value

CURVES = Path(__file__).parent / "digits_curves.jsonl.xz"
Values = Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a search minimises."""

    name: str
    hyperparameters: tuple[Hyperparameter, ...]
    truth: Callable[[Values], float]
    """The fitness without noise; infinite where an evaluation fails."""
    noise: float = 0.0
    """Standard deviation of what is measured."""
    least: float | None = None
    """The least there is, where it is known."""
    best: Values | None = None
    """Where it is."""

    def measured(self, values: Values, rng: random.Random) -> tuple[float, float]:
        """Truth and measured fitness."""
        truth = self.truth(values)
        return truth, truth + rng.gauss(0.0, self.noise) if self.noise else truth


def problem(name: str, seed: int) -> Problem:
    """The problem of a family that belongs to a seed."""
    family, _, dimension = name.rpartition("-")
    if family in ("bbob", "bbob-mixint"):
        return coco(name, family, int(dimension), seed)
    return {"svm": svm, "sgd": sgd, "boosting": boosting, "oialr": oialr}[name](seed)


def coco(name: str, suite: str, dimension: int, seed: int) -> Problem:
    """Seeds go through the 24 functions, seven at a time, so that few already show all kinds."""
    function, instance = seed * 7 % 24 + 1, seed // 24 + 1
    options = f"dimensions:{dimension} instance_indices:{instance}"
    found = cocoex.Suite(suite, "", options).get_problem(function - 1)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        found._best_parameter("print")
        optimum = np.loadtxt("._bbob_problem_best_parameter.txt").ravel()
    integers = found.number_of_integer_variables
    bounds = zip(found.lower_bounds, found.upper_bounds, strict=True)
    hyperparameters = tuple(
        Hyperparameter(name=f"x{i}", kind="int", low=int(low), high=int(high))
        if i < integers
        else Hyperparameter(name=f"x{i}", kind="float", low=float(low), high=float(high))
        for i, (low, high) in enumerate(bounds)
    )
    return Problem(
        name=name,
        hyperparameters=hyperparameters,
        truth=lambda values: float(found([float(v) for v in values.values()])),
        least=float(found(optimum)),
        best={
            h.name: int(value) if h.kind == "int" else float(value)
            for h, value in zip(hyperparameters, optimum, strict=True)
        },
    )


def real(name: str, low: float, high: float, scale: Any = "linear") -> Hyperparameter:
    return Hyperparameter(name=name, kind="float", low=low, high=high, scale=scale)


def integer(name: str, low: int, high: int, scale: Any = "linear") -> Hyperparameter:
    return Hyperparameter(name=name, kind="int", low=low, high=high, scale=scale)


def choice(name: str, *choices: Value) -> Hyperparameter:
    return Hyperparameter(name=name, kind="choice", choices=choices)


@cache
def halves(name: str, seed: int) -> tuple[Any, Any, Any, Any]:
    """Scaled training and validation data of one of scikit-learn's sets, split by the seed."""
    from sklearn import datasets, model_selection, preprocessing

    data, target = getattr(datasets, f"load_{name}")(return_X_y=True)
    scaled = preprocessing.StandardScaler().fit_transform(data)
    x, x_, y, y_ = model_selection.train_test_split(
        scaled, target, train_size=min(300, len(data) // 2), random_state=seed
    )
    return x, x_[:400], y, y_[:400]


def log_loss(model: Any, name: str, seed: int) -> float:
    """Of a classifier on the validation half; infinite when it cannot be trained."""
    from sklearn import config_context

    x, x_, y, y_ = halves(name, seed)
    faster = config_context(assume_finite=True, skip_parameter_validation=True)
    with warnings.catch_warnings(), np.errstate(all="ignore"), faster:
        warnings.simplefilter("ignore")
        try:
            scores = model.fit(x, y).decision_function(x_)
        except (ValueError, FloatingPointError):
            return math.inf
    # The best of temperatures, so that scores count and not their scale.
    scores = scores if scores.ndim > 1 else np.stack([-scores, scores], axis=1)
    scores = scores / (np.abs(scores).mean() + 1e-12)
    losses = []
    for temperature in (0.3, 1.0, 3.0):
        exponents = np.exp(temperature * (scores - scores.max(axis=1, keepdims=True)))
        right = exponents[np.arange(len(y_)), y_] / exponents.sum(axis=1)
        losses.append(-float(np.log(np.maximum(right, 1e-15)).mean()))
    return min(losses)


def svm(seed: int) -> Problem:
    """A support vector machine: which kernel decides which of the others matter."""
    from sklearn.svm import SVC

    return Problem(
        name="svm",
        hyperparameters=(
            choice("kernel", "rbf", "poly", "sigmoid"),
            real("C", 1e-2, 1e3, "log"),
            real("gamma", 1e-4, 1.0, "log"),
            real("coef0", -1.0, 1.0),
            integer("degree", 2, 5),
            choice("class_weight", "balanced", "none"),
        ),
        truth=lambda values: log_loss(
            SVC(
                **{k: v for k, v in values.items() if k != "class_weight"},
                class_weight=None if values["class_weight"] == "none" else "balanced",
                max_iter=500,
                random_state=0,
            ),
            ("digits", "breast_cancer")[seed % 2],
            seed,
        ),
    )


def sgd(seed: int) -> Problem:
    """A linear classifier by stochastic gradient descent: rates, schedules and penalties."""
    from sklearn.linear_model import SGDClassifier

    return Problem(
        name="sgd",
        hyperparameters=(
            choice("loss", "hinge", "log_loss", "modified_huber", "squared_hinge"),
            choice("penalty", "l2", "l1", "elasticnet"),
            choice("learning_rate", "constant", "optimal", "invscaling", "adaptive"),
            real("alpha", 1e-7, 1e-1, "log"),
            real("eta0", 1e-5, 1.0, "log"),
            real("power_t", 0.1, 0.9),
            real("l1_ratio", 0.0, 1.0),
            integer("max_iter", 2, 60, "log"),
            choice("average", True, False),
        ),
        truth=lambda values: log_loss(
            SGDClassifier(**values, tol=None, random_state=0),
            ("breast_cancer", "digits")[seed % 2],
            seed,
        ),
    )


def boosting(seed: int) -> Problem:
    """Regression trees, boosted: diabetes, mean squared error."""
    from sklearn.ensemble import GradientBoostingRegressor

    def truth(values: Values) -> float:
        x, x_, y, y_ = halves("diabetes", seed)
        predicted = GradientBoostingRegressor(**values, random_state=0).fit(x, y).predict(x_)
        return float(((predicted - y_) ** 2).mean() / y_.var())

    return Problem(
        name="boosting",
        hyperparameters=(
            choice("loss", "squared_error", "absolute_error", "huber"),
            real("learning_rate", 1e-3, 1.0, "log"),
            integer("n_estimators", 2, 60, "log"),
            integer("max_depth", 1, 6),
            real("subsample", 0.2, 1.0),
            integer("min_samples_leaf", 1, 50, "log"),
            real("max_features", 0.1, 1.0),
        ),
        truth=truth,
    )


@cache
def trainings() -> list[Any]:
    """What `digits_curves.jsonl.xz` holds of trainings that completed."""
    with lzma.open(CURVES, "rt") as file:
        lines = [json.loads(line) for line in file]
    return [line for line in lines if line["completed"]]


@cache
def stored_trainings() -> tuple[tuple[Hyperparameter, ...], Any, float]:
    """Space, smooth surrogate of genes, and noise of the trainings in `digits_curves.jsonl.xz`."""
    from scipy.interpolate import RBFInterpolator

    from benchmarks.make_curves import DIGITS
    from oialr_search.space.search_file import load_search

    space = load_search(DIGITS).space.hyperparameters
    done = trainings()
    genes = np.array([[line["genes"][h.name] for h in space] for line in done])
    losses = np.log([line["metrics"]["validation_loss"] for line in done])
    smooth = RBFInterpolator(genes, losses, kernel="linear", smoothing=1.0, degree=1)
    return space, smooth, float(np.std(smooth(genes) - losses))


def oialr(seed: int) -> Problem:
    """The logarithm of the validation loss after the last epoch, as noisy as trainings are."""
    space, smooth, noise = stored_trainings()

    def truth(values: Values) -> float:
        genes = [[encoded(h, values[h.name]) for h in space]]
        return float(smooth(genes)[0])

    return Problem(name="oialr", hyperparameters=space, truth=truth, noise=noise)


def encoded(hyperparameter: Hyperparameter, value: Value) -> float:
    """A gene of a number."""
    low, high = hyperparameter.low, hyperparameter.high
    assert low is not None
    assert high is not None
    if hyperparameter.scale == "log":
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)
