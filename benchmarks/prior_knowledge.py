"""What is it worth to a search to know something already: a prior, another search's best?

Simulates searches with `screened` as `search_quality.py` does, each problem and seed

    none      with nothing known
    right     with a prior about each hyperparameter: a standard deviation of a tenth of the range,
              its centre drawn around the best known with that deviation; a category's best has .8
    wrong     with one as sure of what is far from the best: at least .4 of the range away
    related   with the five best of a search of 100 evaluations of the problem of seed + 2: for svm
              and sgd the same data split otherwise, for COCO another function

and says when each finds what `none` has at its end. Whatever ends is a line of the results; a
second call does what is missing.

    python benchmarks/prior_knowledge.py results.jsonl [--problems bbob-5,...] [--seeds 8]
        [--kinds none,right,wrong,related] [--evaluations 200] [--workers 8]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other modules of benchmarks/

from benchmarks.search_problems import Problem, problem
from benchmarks.search_quality import Run, quartiles, search
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.surrogate.individuals import Individuals

PROBLEMS = ("bbob-5", "bbob-10", "bbob-mixint-5", "svm", "oialr")
KINDS = ("none", "right", "wrong", "related")
DEVIATION, FAR, PROBABILITY = 0.1, 0.4, 0.8
RELATED_EVALUATIONS, RELATED_BEST = 100, 5
LASTS = {"none": 1.0, "wrong": 1.1, "right": 0.5, "related": 0.5}
"""Of the evaluations that are compared."""

Genes = Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--workers", type=int, default=8)
    arguments = parser.parse_args()
    arguments.results.touch()
    runs = [Run(**json.loads(line)) for line in arguments.results.read_text().splitlines()]
    done = {(r.problem, r.engine, r.seed) for r in runs}
    for seed in range(arguments.seeds):
        for name in arguments.problems.split(","):
            for kind in arguments.kinds.split(","):
                if (name, kind, seed) in done:
                    continue
                run = searched(name, kind, seed, arguments.workers, arguments.evaluations)
                runs.append(run)
                with arguments.results.open("a") as file:
                    file.write(json.dumps(vars(run)) + "\n")
    print(table(runs, arguments.evaluations))


def searched(name: str, kind: str, seed: int, workers: int, evaluations: int) -> Run:
    """One search, under the kind's name instead of an engine's."""
    posed = problem(name, seed)
    prior, given = {}, list[Genes]()
    if kind in ("right", "wrong"):
        rng = random.Random(f"{seed}/{name}/prior")
        best = best_known(posed, seed)
        prior = {h.name: believed(h, best[h.name], kind, rng) for h in posed.hyperparameters}
    if kind == "related":
        given = best_of(problem(name, seed + 2), seed + 100, RELATED_EVALUATIONS, RELATED_BEST)
    number = round(LASTS[kind] * evaluations)
    run = search(posed, "screened", workers, number, seed, prior=prior, given=given)
    return Run(**(vars(run) | {"engine": kind}))


def best_known(posed: Problem, seed: int) -> Genes:
    """The optimum's genes, or those of the best of a search of its own."""
    if posed.best is not None:
        return {h.name: h.encode(posed.best[h.name]) for h in posed.hyperparameters}
    return best_of(posed, seed + 1000, 300, 1)[0]


def best_of(posed: Problem, seed: int, evaluations: int, number: int) -> list[Genes]:
    """The genes of the best of a search."""
    found: list[Individuals] = []
    search(posed, "screened", 8, evaluations, seed, watch=lambda known: found.append(known))
    known = found[-1]
    fitness = np.where(np.isnan(known.fitness), math.inf, known.fitness)
    names = [h.name for h in posed.hyperparameters]
    return [
        dict(zip(names, known.genes[row].tolist(), strict=True))
        for row in np.argsort(fitness)[:number]
    ]


def believed(h: Hyperparameter, gene: float, kind: str, rng: random.Random) -> dict[str, Any]:
    """A prior as a search file has it."""
    if h.choices is not None:
        best = h.decode(gene)
        others = [choice for choice in h.choices if choice != best]
        around = best if kind == "right" else rng.choice(others)
        return {"around": around, "probability": PROBABILITY}
    if kind == "right":
        centre = rng.gauss(gene, DEVIATION)
    else:
        centre = rng.choice([c / 20 for c in range(21) if abs(c / 20 - gene) >= FAR])
    around = h.decode(min(max(centre, 0.0), 1.0))
    low, high = h.bounds
    if h.scale == "log":
        return {"around": around, "factor": (high / low) ** DEVIATION}
    return {"around": around, "within": DEVIATION * (high - low)}


def table(runs: Sequence[Run], evaluations: int) -> str:
    """How soon each finds what `none` has at the end, and the regrets at a quarter and the end."""
    found = {(r.problem, r.engine, r.seed): r for r in runs}
    names = list(dict.fromkeys(r.problem for r in runs))
    shown = (evaluations // 4, evaluations, round(LASTS["wrong"] * evaluations))
    rows = [["problem", "kind", "searches", *(f"there by {n}" for n in shown)]]
    rows[0] += [f"regret at {n} [quartiles]" for n in shown]
    for name in [*names, None]:
        for kind in KINDS:
            pairs = [
                (found[r.problem, "none", r.seed], r)
                for r in runs
                if r.engine == kind and name in (r.problem, None)
                and (r.problem, "none", r.seed) in found
            ]  # fmt: skip
            row = [name or "all", kind, str(len(pairs))]
            there = [[r.bests[n - 1] <= none.bests[evaluations - 1] for none, r in pairs
                      if n <= len(r.bests)] for n in shown]  # fmt: skip
            row += [f"{statistics.fmean(each):.2f}" if each else "" for each in there]
            for n in shown:
                regrets = [regret(none, r, n) for none, r in pairs if n <= len(r.bests)]
                row.append(shown_quartiles(regrets) if regrets else "")
            rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def shown_quartiles(values: Sequence[float]) -> str:
    low, middle, high = quartiles(values)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def regret(none: Run, run: Run, n: int) -> float:
    """0 is the least known, 1 what was found after 25 evaluations with nothing known."""
    least = none.least if none.least is not None else min(none.bests[-1], run.bests[-1])
    span = max(none.bests[24] - least, 1e-12)
    return (run.bests[n - 1] - least) / span


if __name__ == "__main__":
    main()
