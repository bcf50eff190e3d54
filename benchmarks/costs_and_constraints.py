"""What constraints and costs in the model are worth, by simulated searches of 8 workers.

`constraint`: least true validation loss of the stored trainings' surrogate with at most 3.6 %
trainable parameters, which a tenth of the stored trainings meets; by evaluations.
`digits`: the same loss without a constraint, by CPU seconds of all trainings, 3 to 7 s each.
`cost`: least error of boosted trees (`search_problems.boosting`), whose evaluations take their real
CPU time, from a millisecond to a tenth of a second; by CPU seconds of all evaluations.

    python benchmarks/costs_and_constraints.py {constraint,digits,cost} [--seeds 8]
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other modules of benchmarks/

from benchmarks.search_problems import Values, boosting, encoded, trainings
from benchmarks.two_aims import oialr
from oialr_search.launch.engines import Knowledge, Member, engine_for, random_numbers
from oialr_search.launch.population import Population
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.search_file import SearchSettings
from oialr_search.storage.records import Known, Status
from oialr_search.surrogate.individuals import Individuals

WORKERS = 8
MOST_PERCENT = 3.6
EVALUATIONS = (25, 50, 100, 200)
CPU_SECONDS = (100.0, 200.0, 400.0, 800.0)
SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0)

Evaluation = tuple[float, dict[str, Any], float]
"""The true value that counts, what the search is told, and the seconds that it took."""


def search(
    hyperparameters: Sequence[Hyperparameter],
    evaluate: Callable[[Values], Evaluation],
    done: Callable[[int, float], bool],
    seed: int,
    **settings: Any,
) -> list[tuple[float, float]]:
    """(seconds spent by all evaluations, the true value) of each evaluation, as they ended."""
    search = SearchSettings(name="s", metric="m", evaluations=1, islands=1, seed=seed, **settings)
    engine = engine_for(hyperparameters, search)
    population = Population(engine.population_size(WORKERS))
    individuals = Individuals(hyperparameters)
    running: list[tuple[float, int, int, Known, Evaluation]] = []
    ended: list[tuple[float, float]] = []
    free, number, now, spent_s = list(range(WORKERS)), 0, 0.0, 0.0
    generations = [0] * WORKERS
    while not done(len(ended), spent_s):
        while free:
            worker = free.pop(0)
            genes = engine.propose(
                Knowledge(
                    island=0,
                    population=population.members,
                    population_size=population.size,
                    individuals=individuals,
                    number=number,
                    num_ranks=WORKERS,
                ),
                random_numbers(seed, 0, worker, generations[worker], "breeding"),
            ).genes
            generations[worker] += 1
            number += 1
            known = Known(
                individual_id=number, island=0, status=Status.RUNNING, genes=genes, fitness=None
            )
            individuals.take([known])
            found = evaluate({h.name: h.decode(genes[h.name]) for h in hyperparameters})
            heapq.heappush(running, (now + found[2], number, worker, known, found))
        now, _, worker, known, (truth, told, took_s) = heapq.heappop(running)
        free.append(worker)
        spent_s += took_s
        ended.append((spent_s, truth))
        if math.isfinite(told["fitness"]):
            individuals.take([replace(known, status=Status.COMPLETED, cost_s=took_s, **told)])
            member = {name: told[name] for name in ("fitness", "violation") if name in told}
            population.add(
                Member(individual_id=known.individual_id, genes=dict(known.genes), **member)
            )
        else:
            individuals.take([replace(known, status=Status.FAILED, cost_s=took_s)])
    return ended


def constraint(engine: str, seed: int) -> list[float]:
    """The least true loss that meets the constraint after so many evaluations."""
    problem = oialr()
    noise, durations = random.Random(f"{seed}/noise"), random.Random(f"{seed}/durations")

    def evaluate(values: Values) -> Evaluation:
        loss, percent = problem.truth(values)
        excess = percent - MOST_PERCENT
        measured = loss * math.exp(noise.gauss(0.0, problem.noise))
        if engine == "screened, fitness of its own":  # as one would without constraints
            told: dict[str, Any] = {"fitness": measured * (1.0 + max(excess, 0.0))}
        else:
            told = {
                "fitness": measured,
                "constraints": [excess],
                "violation": max(excess, 0.0) / MOST_PERCENT,
            }
        truth = loss if excess <= 0.0 else math.inf
        return truth, told, durations.lognormvariate(0.0, 0.5)

    subject = {} if "," in engine else {"subject_to": [f"trainable_percent <= {MOST_PERCENT}"]}
    ended = search(
        problem.hyperparameters,
        evaluate,
        lambda number, _: number >= EVALUATIONS[-1],
        seed,
        engine=engine.partition(",")[0],
        **subject,
    )
    return [min(truth for _, truth in ended[:n]) for n in EVALUATIONS]


def cost(engine: str, seed: int) -> list[float]:
    """The least error after so many seconds."""
    problem = boosting(seed)

    def evaluate(values: Values) -> Evaluation:
        began = time.process_time()
        error = problem.truth(values)
        return error, {"fitness": error}, time.process_time() - began

    ended = search(
        problem.hyperparameters,
        evaluate,
        lambda _, spent_s: spent_s >= SECONDS[-1],
        seed,
        engine=engine.partition(",")[0],
        cost_aware="," in engine,
    )
    return [min((e for spent, e in ended if spent <= s), default=math.inf) for s in SECONDS]


@cache
def cpu_seconds() -> Callable[[Values], float]:
    """A smooth surrogate of what the stored trainings took."""
    from scipy.interpolate import RBFInterpolator

    space = oialr().hyperparameters
    genes = np.array([[line["genes"][h.name] for h in space] for line in trainings()])
    seconds = np.log([line["cpu_s"] for line in trainings()])
    smooth = RBFInterpolator(genes, seconds, kernel="linear", degree=1)
    return lambda values: math.exp(float(smooth([[encoded(h, values[h.name]) for h in space]])[0]))


def digits(engine: str, seed: int) -> list[float]:
    """The least true loss after so many CPU seconds of trainings."""
    problem, noise = oialr(), random.Random(f"{seed}/noise")

    def evaluate(values: Values) -> Evaluation:
        loss, _ = problem.truth(values)
        measured = loss * math.exp(noise.gauss(0.0, problem.noise))
        return loss, {"fitness": measured}, cpu_seconds()(values)

    ended = search(
        problem.hyperparameters,
        evaluate,
        lambda _, spent_s: spent_s >= CPU_SECONDS[-1],
        seed,
        engine=engine.partition(",")[0],
        cost_aware="," in engine,
    )
    return [min(loss for spent, loss in ended if spent <= s) for s in CPU_SECONDS]


KINDS: Mapping[str, tuple[Callable[[str, int], list[float]], Sequence[str], Sequence[float]]] = {
    "constraint": (
        constraint,
        ("screened", "screened, fitness of its own", "propulate", "tpe", "random"),
        EVALUATIONS,
    ),
    "digits": (digits, ("screened", "screened, cost-aware", "random"), CPU_SECONDS),
    "cost": (cost, ("screened", "screened, cost-aware", "random"), SECONDS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    run, engines, shown = KINDS[arguments.kind]
    print("| engine |", " | ".join(f"at {n:g} [quartiles]" for n in shown), "|")
    for engine in engines:
        found = [run(engine, seed) for seed in range(arguments.seeds)]
        cells = []
        for values in zip(*found, strict=True):
            low, _, high = np.percentile(values, [25, 50, 75], method="nearest")
            cells.append(f"{statistics.median(values):.4f} [{low:.4f}, {high:.4f}]")
        print("|", engine, "|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
