"""How good is what a search finds, by how many evaluations, with which engine?

Simulates asynchronous searches: each of some workers proposes, with what has ended and what runs by
then, and takes a random time for the evaluation. Whatever ends is a line of the results; a second
call does what is missing. Regret is normalised for each problem and seed: 0 is the least known, 1
the median of all engines after 25 evaluations.

    python benchmarks/search_quality.py results.jsonl [--small] [--engines screened,tpe,...]
        [--problems bbob-5,svm,...] [--workers 8] [--evaluations 200] [--seeds 20] [--plot FILE]
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
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other modules of benchmarks/

from benchmarks.search_problems import Problem, problem
from oialr_search.launch.engines import (
    Knowledge,
    Member,
    engine_for,
    random_numbers,
)
from oialr_search.launch.population import Population
from oialr_search.launch.repeating import next_repeat
from oialr_search.space.repeats import RepeatSettings
from oialr_search.space.search_file import SearchSettings
from oialr_search.storage.records import Known, Status
from oialr_search.surrogate.individuals import Individuals

MIX = ("svm", "sgd", "oialr", "bbob-mixint-5", "bbob-mixint-10", "bbob-5", "bbob-10")
COMPARED = ("random", "propulate", "tpe", "cmaes", "screened")
SMALL = {"problems": "svm,bbob-mixint-5,bbob-5", "seeds": 2, "evaluations": 50}
NORMALISED_AT = 25
SHOWN_AT = (25, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One search: `bests[n - 1]` is the true fitness of what was the best after n evaluations."""

    problem: str
    engine: str
    workers: int
    seed: int
    bests: list[float]
    least: float | None
    cpu_ms: float
    """A proposal."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--small", action="store_true", help="a few minutes on one core")
    parser.add_argument("--engines", default=",".join(COMPARED))
    parser.add_argument("--problems", default=",".join(MIX))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.small:
        vars(arguments).update(SMALL)
    arguments.results.touch()
    runs = [Run(**json.loads(line)) for line in arguments.results.read_text().splitlines()]
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    engines, problems = arguments.engines.split(","), arguments.problems.split(",")
    wanted = [(p, e, s) for s in seeds for p in problems for e in engines]
    done = {
        (r.problem, r.engine, r.seed)
        for r in runs
        if r.workers == arguments.workers and len(r.bests) >= arguments.evaluations
    }
    for name, engine, seed in wanted:
        if (name, engine, seed) in done:
            continue
        run = search(problem(name, seed), engine, arguments.workers, arguments.evaluations, seed)
        runs.append(run)
        with arguments.results.open("a") as file:
            file.write(json.dumps(vars(run)) + "\n")
    found = {(r.problem, r.engine, r.seed): r for r in runs if r.workers == arguments.workers}
    chosen = [found[key] for key in wanted]
    print(table(chosen))
    if arguments.plot:
        plot(chosen, arguments.plot)


def search(
    problem: Problem,
    engine_name: str,
    workers: int,
    evaluations: int,
    seed: int,
    *,
    prior: Mapping[str, Any] | None = None,
    given: Sequence[Mapping[str, float]] = (),
    watch: Callable[[Individuals], None] = lambda _: None,
) -> Run:
    """One search of as many evaluations; `watch` is shown all individuals whenever one has ended.

    For `prior` and `given` see `simulate`.
    """
    bests, least, best, cpu_s = list[float](), math.inf, math.inf, 0.0
    for ended in simulate(
        problem, engine_name, workers, evaluations, seed, prior=prior, given=given
    ):
        if ended.measured < least:
            least, best = ended.measured, ended.truth
        bests.append(best)
        cpu_s = ended.cpu_s
        watch(ended.individuals)
    return Run(
        problem=problem.name,
        engine=engine_name,
        workers=workers,
        seed=seed,
        bests=bests,
        least=problem.least,
        cpu_ms=1e3 * cpu_s / evaluations,
    )


@dataclass(frozen=True, kw_only=True)
class Ended:
    """An evaluation has ended; `individuals` are known by then."""

    individual_id: int
    truth: float
    measured: float
    individuals: Individuals
    cpu_s: float
    """Of all proposals so far."""


def simulate(
    problem: Problem,
    engine_name: str,
    workers: int,
    evaluations: int,
    seed: int,
    *,
    prior: Mapping[str, Any] | None = None,
    given: Sequence[Mapping[str, float]] = (),
    repeats: RepeatSettings | None = None,
) -> Iterator[Ended]:
    """One search, evaluation by evaluation; those `given`, by their genes, come first."""
    settings = SearchSettings(
        name="quality",
        metric="validation_loss",
        evaluations=evaluations,
        islands=1,
        engine=engine_name,
        seed=seed,
        prior=dict(prior or {}),
    )
    engine = engine_for(problem.hyperparameters, settings)
    population = Population(engine.population_size(workers))
    individuals = Individuals(problem.hyperparameters)
    queued = [
        Known(individual_id=n, island=0, status=Status.QUEUED, genes=genes, fitness=None)
        for n, genes in enumerate(given, start=1)
    ]
    individuals.take(queued)
    durations, noise = random.Random(f"{seed}/durations"), random.Random(f"{seed}/noise")
    running: list[tuple[float, int, int, Known]] = []
    measurements: dict[int, list[float]] = defaultdict(list)
    genes: dict[int, dict[str, float]] = {}
    generations = [0] * workers
    cpu_s, number, now = 0.0, 0, 0.0
    free = list(range(workers))
    for _ in range(evaluations):
        while free and number < evaluations:
            worker = free.pop(0)
            repeat = next_repeat(individuals, repeats, workers) if repeats else None
            if queued:
                known = queued.pop(0)
            elif repeat is not None:
                known = Known(
                    individual_id=number + 1,
                    island=0,
                    status=Status.RUNNING,
                    genes=genes[repeat.individual_id],
                    fitness=None,
                    repeat_of=repeat.individual_id,
                )
                generations[worker] += 1
            else:
                started = time.process_time()
                offspring = engine.propose(
                    Knowledge(
                        island=0,
                        population=population.members,
                        population_size=population.size,
                        individuals=individuals,
                        number=number - len(given),
                        num_ranks=workers,
                    ),
                    random_numbers(seed, 0, worker, generations[worker], "breeding"),
                )
                cpu_s += time.process_time() - started
                known = Known(
                    individual_id=number + 1,
                    island=0,
                    status=Status.RUNNING,
                    genes=offspring.genes,
                    fitness=None,
                )
                generations[worker] += 1
            individuals.take([known])
            genes[known.individual_id] = dict(known.genes)
            end = now + durations.lognormvariate(0.0, 0.5)
            heapq.heappush(running, (end, number, worker, known))
            number += 1
        now, _, worker, known = heapq.heappop(running)
        values = {h.name: h.decode(known.genes[h.name]) for h in problem.hyperparameters}
        truth, measured = problem.measured(values, noise)
        free.append(worker)
        first = known.repeat_of or known.individual_id
        if math.isfinite(measured):
            measurements[first].append(measured)
            mean = statistics.fmean(measurements[first])
            told = replace(
                known,
                individual_id=first,
                repeat_of=None,
                status=Status.COMPLETED,
                fitness=mean,
                num_seeds=len(measurements[first]),
                fitness_deviation=statistics.stdev(measurements[first])
                if len(measurements[first]) > 1
                else None,
            )
            individuals.take([told])
            population.add(
                Member(
                    individual_id=first,
                    genes=known.genes,
                    fitness=mean,
                    num_seeds=len(measurements[first]),
                )
            )
        elif known.repeat_of is None:
            individuals.take([replace(known, status=Status.FAILED)])
        yield Ended(
            individual_id=first,
            truth=truth,
            measured=measured,
            individuals=individuals,
            cpu_s=cpu_s,
        )


def regrets(runs: Sequence[Run]) -> Iterator[tuple[Run, list[float]]]:
    """Each run with its normalised regret after 1, 2, ... evaluations."""
    alike: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in runs:
        alike[run.problem, run.seed].append(run)
    for together in alike.values():
        known = [run.least for run in together if run.least is not None]
        least = min(known or [min(run.bests) for run in together])
        reached = statistics.median(run.bests[NORMALISED_AT - 1] for run in together)
        span = max(reached - least, 1e-12 * max(abs(least), 1.0))
        for run in together:
            yield run, [(best - least) / span for best in run.bests]


def table(runs: Sequence[Run]) -> str:
    """Medians, quartiles and mean ranks, over all runs and for each problem."""
    by_engine: dict[str, list[tuple[Run, list[float]]]] = defaultdict(list)
    for run, regret in regrets(runs):
        by_engine[run.engine].append((run, regret))
    longest = min(len(run.bests) for run in runs)
    shown = [n for n in SHOWN_AT if n <= longest]
    ranks = mean_ranks(runs, shown)
    rows = [["engine", "runs", *(f"at {n} [quartiles]" for n in shown)]]
    rows[0] += [*(f"rank at {n}" for n in shown), "CPU ms"]
    for engine, found in by_engine.items():
        row = [engine, str(len(found))]
        for n in shown:
            low, middle, high = quartiles([regret[n - 1] for _, regret in found])
            row.append(f"{middle:.3f} [{low:.3f}, {high:.3f}]")
        row += [f"{ranks[engine, n]:.2f}" for n in shown]
        row.append(f"{statistics.fmean(run.cpu_ms for run, _ in found):.1f}")
        rows.append(row)
    names = list(dict.fromkeys(run.problem for run in runs))
    for n in shown[1:]:
        rows += [[], [f"at {n}", *names, "mean"]]
        for engine, found in by_engine.items():
            medians = [
                statistics.median(regret[n - 1] for run, regret in found if run.problem == name)
                for name in names
            ]
            rows.append([engine, *(f"{m:.3f}" for m in [*medians, statistics.fmean(medians)])])
    return "\n".join("| " + " | ".join(row) + " |" if row else "" for row in rows)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def mean_ranks(runs: Sequence[Run], shown: Sequence[int]) -> dict[tuple[str, int], float]:
    """Of each engine among those that searched the same; equal ones share their places."""
    alike: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in runs:
        alike[run.problem, run.seed].append(run)
    ranks: dict[tuple[str, int], list[float]] = defaultdict(list)
    for together in alike.values():
        for n in shown:
            bests = [run.bests[n - 1] for run in together]
            for run, best in zip(together, bests, strict=True):
                better, equal = sum(b < best for b in bests), sum(b == best for b in bests)
                ranks[run.engine, n].append(better + (equal + 1) / 2)
    return {key: statistics.fmean(values) for key, values in ranks.items()}


def plot(runs: Sequence[Run], path: Path) -> None:
    """Median and quartiles of the regret by evaluations."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    by_engine: dict[str, list[Any]] = defaultdict(list)
    for run, regret in regrets(runs):
        by_engine[run.engine].append(regret)
    for engine, found in by_engine.items():
        low, middle, high = zip(*(quartiles(at) for at in zip(*found, strict=False)), strict=True)
        evaluations = range(1, len(middle) + 1)
        (line,) = axes.plot(evaluations, middle, label=engine)
        axes.fill_between(evaluations, low, high, color=line.get_color(), alpha=0.12, lw=0)
    axes.set(xscale="log", yscale="log", ylim=(1e-3, 10), xlim=(5, None))
    axes.set(xlabel="evaluations", ylabel="normalised regret")
    axes.legend(frameon=False)
    figure.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    main()
