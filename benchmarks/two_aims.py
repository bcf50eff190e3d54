"""Two objectives at once: how much hypervolume do searches reach, by how many evaluations?

Simulates asynchronous searches as `search_quality.py` does. `oialr`: validation loss, as noisy as
trainings are, and trainable parameters of the trainings that `make_curves.py` stored;
`bbob-biobj-D`: a pair of functions of COCO for each seed. Counted are the true objectives of all
that was evaluated, below the medians of the stored trainings or of uniform draws, as a share of
what all runs on the same problem reached together. Whatever ends is a line of the results; a second
call does what is missing.

    python benchmarks/two_aims.py results.jsonl [--searchers screened,random,tpe,nsga2]
        [--problems oialr,bbob-biobj-5] [--evaluations 200] [--seeds 10] [--workers 8]
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cocoex
import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other modules of benchmarks/

from benchmarks.search_problems import Values, encoded, real, stored_trainings, trainings
from oialr_search.launch.engines import Knowledge, Member, engine_for, random_numbers
from oialr_search.launch.engines.optuna_samplers import distribution
from oialr_search.launch.population import ParetoPopulation
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.pareto import hypervolume
from oialr_search.space.search_file import SearchSettings
from oialr_search.storage.records import Known, Status
from oialr_search.surrogate.individuals import Individuals

SHOWN_AT = (25, 50, 100, 200)
Objectives = tuple[float, float]
Genes = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Two objectives to minimise."""

    hyperparameters: tuple[Hyperparameter, ...]
    truth: Callable[[Values], Objectives]
    reference: Objectives
    noise: float = 0.0
    """Of the logarithm of the first, as measured."""


def problem(name: str, seed: int) -> Problem:
    if name == "oialr":
        return oialr()
    return biobjective(int(name.rpartition("-")[2]), seed)


@cache
def oialr() -> Problem:
    """Validation loss and trainable parameters, smooth surrogates of the stored trainings."""
    from scipy.interpolate import RBFInterpolator

    space, loss, noise = stored_trainings()
    done = trainings()
    genes = np.array([[line["genes"][h.name] for h in space] for line in done])
    percents = np.array([line["trainable_percent"] for line in done])
    share = RBFInterpolator(genes, np.log(percents), kernel="linear", degree=1)

    def truth(values: Values) -> Objectives:
        at = [[encoded(h, values[h.name]) for h in space]]
        return math.exp(float(loss(at)[0])), math.exp(float(share(at)[0]))

    losses = [line["metrics"]["validation_loss"] for line in done]
    return Problem(
        hyperparameters=space,
        truth=truth,
        reference=(statistics.median(losses), float(np.median(percents))),
        noise=noise,
    )


def biobjective(dimension: int, seed: int) -> Problem:
    """Seeds go through the 55 pairs, seven at a time."""
    suite = cocoex.Suite("bbob-biobj", "", f"dimensions:{dimension} instance_indices:1")
    found = suite.get_problem(seed * 7 % 55)

    def at(point: Sequence[float]) -> Objectives:
        first, second = found(point)
        return float(first), float(second)

    draw = random.Random(seed)
    drawn = [at([draw.uniform(-5.0, 5.0) for _ in range(dimension)]) for _ in range(1001)]
    first, second = (statistics.median(values) for values in zip(*drawn, strict=True))
    return Problem(
        hyperparameters=tuple(real(f"x{i}", -5.0, 5.0) for i in range(dimension)),
        truth=lambda values: at([float(value) for value in values.values()]),
        reference=(first, second),
    )


class Searcher(ABC):
    """Proposes for a worker, and is told what came of it."""

    @abstractmethod
    def ask(self, worker: int) -> tuple[Any, Genes]: ...

    @abstractmethod
    def tell(self, asked: Any, objectives: Objectives, cost_s: float) -> None: ...


class OfEngine(Searcher):
    """One of the search's engines, on one island."""

    def __init__(self, problem: Problem, name: str, workers: int, seed: int) -> None:
        settings = SearchSettings(
            name="two",
            objectives=["a", "b"],
            evaluations=1,
            islands=1,
            engine=name,
            seed=seed,
        )
        self.engine = engine_for(problem.hyperparameters, settings)
        self.population = ParetoPopulation(self.engine.population_size(workers))
        self.individuals = Individuals(problem.hyperparameters)
        self.workers, self.seed, self.number = workers, seed, 0
        self.generations = [0] * workers

    def ask(self, worker: int) -> tuple[Any, Genes]:
        knowledge = Knowledge(
            island=0,
            population=self.population.members,
            population_size=self.population.size,
            individuals=self.individuals,
            number=self.number,
            num_ranks=self.workers,
        )
        numbers = random_numbers(self.seed, 0, worker, self.generations[worker], "breeding")
        genes = self.engine.propose(knowledge, numbers).genes
        self.generations[worker] += 1
        self.number += 1
        known = Known(
            individual_id=self.number, island=0, status=Status.RUNNING, genes=genes, fitness=None
        )
        self.individuals.take([known])
        return known, genes

    def tell(self, asked: Any, objectives: Objectives, cost_s: float) -> None:
        measured = {"fitness": objectives[0], "objectives": objectives}
        self.individuals.take([replace(asked, status=Status.COMPLETED, cost_s=cost_s, **measured)])
        self.population.add(
            Member(individual_id=asked.individual_id, genes=asked.genes, **measured)
        )


class OfOptuna(Searcher):
    """One of Optuna's samplers, as its users call it."""

    def __init__(self, problem: Problem, sampler: optuna.samplers.BaseSampler) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
        self.hyperparameters = problem.hyperparameters
        self.distributions = {h.name: distribution(h) for h in problem.hyperparameters}

    def ask(self, worker: int) -> tuple[Any, Genes]:
        trial = self.study.ask(self.distributions)
        return trial, {h.name: h.encode(trial.params[h.name]) for h in self.hyperparameters}

    def tell(self, asked: Any, objectives: Objectives, cost_s: float) -> None:
        self.study.tell(asked, list(objectives))


def searcher(problem: Problem, name: str, workers: int, seed: int) -> Searcher:
    if name == "nsga2":
        return OfOptuna(problem, optuna.samplers.NSGAIISampler(seed=seed))
    if name == "tpe":
        return OfOptuna(problem, optuna.samplers.TPESampler(seed=seed, constant_liar=True))
    if name == "optuna-gp":
        return OfOptuna(problem, optuna.samplers.GPSampler(seed=seed))
    return OfEngine(problem, name, workers, seed)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One search: the true objectives of what was evaluated, in the order in which it ended."""

    problem: str
    searcher: str
    workers: int
    seed: int
    points: list[Objectives]
    cpu_ms: float
    """A proposal."""


def search(name: str, searcher_name: str, workers: int, evaluations: int, seed: int) -> Run:
    task = problem(name, seed)
    asked = searcher(task, searcher_name, workers, seed)
    durations, noise = random.Random(f"{seed}/durations"), random.Random(f"{seed}/noise")
    running: list[tuple[float, int, int, Any, Genes, float]] = []
    points: list[Objectives] = []
    free, number, now, cpu_s = list(range(workers)), 0, 0.0, 0.0
    while len(points) < evaluations:
        while free and number < evaluations:
            worker = free.pop(0)
            started = time.process_time()
            trial, genes = asked.ask(worker)
            cpu_s += time.process_time() - started
            took = durations.lognormvariate(0.0, 0.5)
            heapq.heappush(running, (now + took, number, worker, trial, genes, took))
            number += 1
        now, _, worker, trial, genes, took = heapq.heappop(running)
        first, second = task.truth({h.name: h.decode(genes[h.name]) for h in task.hyperparameters})
        measured = first * math.exp(noise.gauss(0.0, task.noise)) if task.noise else first
        free.append(worker)
        asked.tell(trial, (measured, second), took)
        points.append((first, second))
    return Run(
        problem=name,
        searcher=searcher_name,
        workers=workers,
        seed=seed,
        points=points,
        cpu_ms=1e3 * cpu_s / evaluations,
    )


def shares(runs: Sequence[Run], shown: Sequence[int]) -> dict[tuple[str, str], list[list[float]]]:
    """(problem, searcher) → for each run the shares after so many evaluations."""
    alike: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in runs:
        # The trainings are one problem, COCO has another for each seed.
        alike[run.problem, 0 if run.problem == "oialr" else run.seed].append(run)
    found: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for (name, seed), together in alike.items():
        reference = problem(name, seed).reference
        all_points = [point for run in together for point in run.points]
        most = hypervolume(all_points, reference)
        for run in together:
            reached = [hypervolume(run.points[:n], reference) / most for n in shown]
            found[name, run.searcher].append(reached)
    return found


def table(runs: Sequence[Run]) -> str:
    """Medians and quartiles."""
    shown = [n for n in SHOWN_AT if n <= min(len(run.points) for run in runs)]
    rows = [["problem", "searcher", "runs", *(f"at {n} [quartiles]" for n in shown), "CPU ms"]]
    for (name, searcher_name), found in shares(runs, shown).items():
        row = [name, searcher_name, str(len(found))]
        for values in zip(*found, strict=True):
            low, middle, high = np.percentile(values, [25, 50, 75])
            row.append(f"{middle:.4f} [{low:.4f}, {high:.4f}]")
        spent = [r.cpu_ms for r in runs if (r.problem, r.searcher) == (name, searcher_name)]
        rows.append([*row, f"{statistics.fmean(spent):.1f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--searchers", default="screened,propulate,random,tpe,nsga2")
    parser.add_argument("--problems", default="oialr")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.results.touch()
    runs = [Run(**json.loads(line)) for line in arguments.results.read_text().splitlines()]
    found = {(r.problem, r.searcher, r.seed): r for r in runs if r.workers == arguments.workers}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    chosen = []
    for seed in seeds:
        for name in arguments.problems.split(","):
            for searcher_name in arguments.searchers.split(","):
                run = found.get((name, searcher_name, seed))
                if run is None or len(run.points) < arguments.evaluations:
                    run = search(
                        name, searcher_name, arguments.workers, arguments.evaluations, seed
                    )
                    with arguments.results.open("a") as file:
                        file.write(json.dumps(vars(run)) + "\n")
                chosen.append(run)
    print(table(chosen))


if __name__ == "__main__":
    main()
