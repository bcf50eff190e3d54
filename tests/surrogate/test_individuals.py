"""Genes as a model sees them: equal rows are equal configurations."""

from __future__ import annotations

import random

import numpy as np

from oialr_search.space.hyperparameters import Hyperparameter, SearchSpace
from oialr_search.surrogate.individuals import NOWHERE, Individuals

SPACE = SearchSpace(
    (
        Hyperparameter(name="kind", kind="choice", choices=("a", "b", None)),
        Hyperparameter(name="bias", kind="bool", choices=(False, True), when=(("kind", ("b",)),)),
        Hyperparameter(
            name="size", kind="int", low=1, high=16, step=5, scale="linear",
            when=(("kind", ("a", None)),),
        ),
        Hyperparameter(name="share", kind="float", low=0.2, high=1.0, step=0.2, scale="log"),
        Hyperparameter(name="depth", kind="int", low=2, high=9, when=(("bias", (True,)),)),
    )
)  # fmt: skip
NAMES = [h.name for h in SPACE.hyperparameters]


def test_equal_rows_are_equal_configurations() -> None:
    draw = random.Random(0).random
    genes = np.array([[draw() for _ in NAMES] for _ in range(2000)])
    known = Individuals(SPACE.hyperparameters)
    rows, counting = known.at_middles(genes), known.counting(genes)
    values = [SPACE.decode(dict(zip(NAMES, g, strict=True))) for g in genes.tolist()]
    of_rows = [SPACE.decode(dict(zip(NAMES, r, strict=True))) for r in rows.tolist()]
    assert of_rows == values
    for row, counts, value in zip(rows, counting, values, strict=True):
        assert [name for name, c in zip(NAMES, counts, strict=True) if c] == list(value)
        assert (row[~counts] == NOWHERE).all()
    configurations = {tuple(value.items()) for value in values}
    assert len(np.unique(rows, axis=0)) == len(configurations) < 200
