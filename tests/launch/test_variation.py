"""The operators as Propulate propagators: floats, integers and categories."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from propulate.population import Individual
from propulate.propagators import Compose, Propagator

from oialr_search.launch.engines.variation import (
    CrossoverAndMove,
    DrawOneAnew,
    GaussianOfParents,
    Limits,
    SelectLogRank,
    StepBeyond,
)

LIMITS: Limits = {
    "rate": (0.0, 1.0),
    "blocks": (2, 9),
    "norm": ("layer", "batch", "none"),
    "decay": (-1.0, 3.0),
    "activation": ("relu", "gelu"),
}


def individual(loss: float = 0.0, **genes: float | str) -> Individual:
    middle = {"rate": 0.5, "blocks": 5, "norm": "layer", "decay": 1.0, "activation": "relu"}
    made = Individual({**middle, **genes}, LIMITS)
    made.loss = loss
    return made


def individuals(number: int, rng: random.Random) -> list[Individual]:
    return [
        individual(
            loss=rng.random(),
            rate=rng.random(),
            blocks=rng.randint(2, 9),
            norm=rng.choice(LIMITS["norm"]),
            decay=rng.uniform(-1.0, 3.0),
            activation=rng.choice(LIMITS["activation"]),
        )
        for _ in range(number)
    ]


OPERATORS: dict[str, tuple[int, Callable[[random.Random], Propagator]]] = {
    "gaussian": (7, lambda rng: GaussianOfParents(LIMITS, rng=rng)),
    "step": (2, lambda rng: StepBeyond(LIMITS, rng=rng)),
    "crossover": (2, lambda rng: CrossoverAndMove(LIMITS, rng=rng)),
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_children_are_valid_individuals_in_a_plain_propulate_run(operator: str) -> None:
    """Selected, varied and redrawn as one propagator; what is set is what is read back."""
    rng = random.Random(1)
    parents, vary = OPERATORS[operator]
    propagator = Compose(
        [
            SelectLogRank(parents, rng=rng),
            vary(rng),
            DrawOneAnew(LIMITS, probability=0.5, rng=rng),
        ]
    )
    population = individuals(20, rng)
    before = [dict(parent.items()) for parent in population]
    for _ in range(200):
        child = propagator(population)
        for name, limits in LIMITS.items():
            if isinstance(limits[0], str):
                assert child[name] in limits
            else:
                assert type(child[name]) is type(limits[0])
                assert limits[0] <= child[name] <= limits[1]
        assert len(child.position) == 8
        assert sorted(child.position[2:5]) == [0, 0, 1]
    assert [dict(parent.items()) for parent in population] == before


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_same_numbers_give_the_same_child(operator: str) -> None:
    parents, vary = OPERATORS[operator]
    chosen = individuals(parents, random.Random(2))
    first, again = (vary(random.Random(3))(chosen) for _ in range(2))
    assert dict(first.items()) == dict(again.items())


PLAIN_RUN = """
import random, warnings
warnings.simplefilter("ignore")
from propulate import Propulator
from propulate.propagators import Compose, Conditional, InitUniform
from oialr_search.launch.engines.variation import CrossoverAndMove, DrawOneAnew, SelectLogRank

limits, rng = {"rate": (0.0, 1.0), "blocks": (1, 9), "norm": ("layer", "batch")}, random.Random(0)
breed = Compose(
    [
        SelectLogRank(2, rng=rng),
        CrossoverAndMove(limits, rng=rng),
        DrawOneAnew(limits, probability=0.15, rng=rng),
    ]
)
propulator = Propulator(
    loss_fn=lambda i: (i["rate"] - 0.3) ** 2 + abs(i["blocks"] - 4) + (i["norm"] != "batch"),
    propagator=Conditional(8, breed, InitUniform(limits, rng=rng)),
    rng=rng,
    generations=60,
)
for name in ("_dump_checkpoint", "_dump_final_checkpoint", "_determine_worker_dumping_next"):
    setattr(propulator, name, lambda *_: None)  # its message to itself hangs on MPICH
propulator.propulate(logging_interval=1000, debug=0)
print(sorted(individual.loss for individual in propulator.population)[0] < 0.05)
"""


def test_a_plain_propulate_run_breeds_with_them(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PLAIN_RUN], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert run.stdout.splitlines()[-1:] == ["True"], run.stderr


def test_the_fitter_are_selected_more_often_and_only_those_of_the_pool() -> None:
    population = [individual(loss=float(n)) for n in range(10)]
    random.Random(0).shuffle(population)
    select = SelectLogRank(1000, pool=3, rng=random.Random(4))
    losses = [chosen.loss for chosen in select(population)]
    counts = [losses.count(loss) for loss in (0.0, 1.0, 2.0)]
    assert sum(counts) == 1000
    # log(3.5 / place), normalised
    assert counts == pytest.approx([645, 288, 79], abs=50)


def test_a_normal_distribution_of_parents_varies_as_they_do() -> None:
    parents = [individual(rate=0.4 + 0.02 * n, decay=1.0) for n in range(11)]
    children = [GaussianOfParents(LIMITS, rng=random.Random(n))(parents) for n in range(2000)]
    rates = [child["rate"] for child in children]
    assert statistics.fmean(rates) == pytest.approx(0.5, abs=0.01)
    assert statistics.median(abs(rate - 0.5) for rate in rates) == pytest.approx(0.033, abs=0.01)
    assert {child["decay"] for child in children} == {1.0}


def test_a_step_goes_on_beyond_the_better_one_and_moves_a_gene() -> None:
    better, other = individual(rate=0.5, decay=1.0), individual(rate=0.4, decay=1.0, blocks=9)
    moved = 0
    for n in range(300):
        child = StepBeyond(LIMITS, rng=random.Random(n))([better, other])
        moved += not 0.5 <= child["rate"] <= 0.6
        assert child["blocks"] <= 5 or child["rate"] <= 0.6
    assert moved < 300 / 3


def test_most_moves_of_an_integer_change_it_and_a_category_becomes_another() -> None:
    parent = individual()
    children = [
        CrossoverAndMove(LIMITS, moves=5.0, rng=random.Random(n))([parent, parent])
        for n in range(300)
    ]
    assert all(child["blocks"] != 5 for child in children)
    assert {child["norm"] for child in children} == {"batch", "none"}
    moves = [abs(child["rate"] - 0.5) for child in children]
    assert min(moves) < 1e-3
    assert max(moves) > 0.3


def test_a_gene_that_stands_for_discrete_values_moves_by_most_of_a_step() -> None:
    parent = individual()
    vary = CrossoverAndMove(
        LIMITS, moves=5.0, steps={"rate": lambda gene: 0.2 * gene}, rng=random.Random(5)
    )
    assert all(abs(vary([parent, parent])["rate"] - 0.5) > 0.0599 for _ in range(300))


def test_one_gene_is_drawn_anew_with_its_probability() -> None:
    parent = individual()
    draw = DrawOneAnew(LIMITS, probability=0.3, rng=random.Random(6))
    children = [draw(parent) for _ in range(500)]
    assert sum(child is not parent for child in children) == pytest.approx(150, abs=30)
    for child in children:
        assert sum(child[name] != parent[name] for name in LIMITS) <= 1
