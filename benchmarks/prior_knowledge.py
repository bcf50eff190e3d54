"""What is it worth to a search to know something already: a prior, another search's best?

Simulates searches with `screened` as `search_quality.py` does, each problem and seed

    none      with nothing known
    again     the same with other random numbers: what differs from `none` by chance
    right     with a prior about each hyperparameter: a standard deviation of a tenth of the range,
              its centre drawn around the best known with that deviation; a category's best has .8
    wrong     with one as sure of what is far from the best: at least .4 of the range away
    related   with the five best of a search of 100 evaluations of the problem of seed + 2: for svm
              and sgd the same data split otherwise, for COCO another function

and says what each has found after how many evaluations. Regret is normalised for each problem and
seed: 0 is the least known, 1 what `none` has found after 25. Whatever ends is a line of the
results; a second call does what is missing.

    python benchmarks/prior_knowledge.py results.jsonl [--problems bbob-5,...] [--seeds 8]
        [--kinds none,again,right,wrong,related] [--evaluations 100] [--workers 8]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other modules of benchmarks/

from benchmarks.search_problems import Problem, problem
from benchmarks.search_quality import Run, search
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.surrogate.individuals import Individuals

PROBLEMS = ("bbob-5", "bbob-10", "bbob-mixint-5", "svm", "oialr")
KINDS = ("none", "again", "right", "wrong", "related")
DEVIATION, FAR, PROBABILITY = 0.1, 0.4, 0.8
RELATED_EVALUATIONS, RELATED_BEST = 100, 5
BEST_OF = 150
"""Evaluations of the search whose best is the best known, where the optimum is not."""
SHOWN_AT = (12, 25, 50, 100)

Genes = Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--evaluations", type=int, default=100)
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
    print(table(runs))


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
    numbers = seed + 500 if kind == "again" else seed
    run = search(posed, "screened", workers, evaluations, numbers, prior=prior, given=given)
    return Run(**(vars(run) | {"engine": kind, "seed": seed}))


def best_known(posed: Problem, seed: int) -> Genes:
    """The optimum's genes, or those of the best of a search of its own."""
    if posed.best is not None:
        return {h.name: h.encode(posed.best[h.name]) for h in posed.hyperparameters}
    return best_of(posed, seed + 1000, BEST_OF, 1)[0]


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


def table(runs: Sequence[Run]) -> str:
    """Regrets after so many evaluations, and how many it takes to what `none` found."""
    alike: dict[tuple[str, int], dict[str, Run]] = defaultdict(dict)
    for run in runs:
        alike[run.problem, run.seed][run.engine] = run
    names = list(dict.fromkeys(run.problem for run in runs))
    rows = [["problem", "kind", "searches", *(f"regret at {n}" for n in SHOWN_AT)]]
    rows[0] += [f"to none's best at {n}" for n in SHOWN_AT[1:]]
    for name in [*names, None]:
        for kind in KINDS:
            paired = [
                (regrets(kinds, kind), regrets(kinds, "none"))
                for (problem, _), kinds in alike.items()
                if name in (problem, None) and {"none", kind} <= kinds.keys()
            ]
            curves = [curve for curve, _ in paired]
            row = [name or "all", kind, str(len(curves))]
            for n in SHOWN_AT:
                seen = [curve[n - 1] for curve in curves if n <= len(curve)]
                row.append(f"{statistics.median(seen):.3f}" if seen else "")
            for n in SHOWN_AT[1:]:
                row.append(shown_quartiles([reached(c, goal[n - 1]) for c, goal in paired]))
            rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def regrets(kinds: Mapping[str, Run], kind: str) -> list[float]:
    """0 is the least known, 1 what is found in 25 evaluations with nothing known."""
    none = kinds["none"]
    least = none.least if none.least is not None else min(run.bests[-1] for run in kinds.values())
    span = max(none.bests[24] - least, 1e-12)
    return [(best - least) / span for best in kinds[kind].bests]


def reached(curve: Sequence[float], goal: float) -> float:
    """After how many evaluations; without end where it does not."""
    return next((n for n, regret in enumerate(curve, start=1) if regret <= goal), math.inf)


def shown_quartiles(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, middle, high = (sorted(values)[int(q * (len(values) - 1))] for q in (0.25, 0.5, 0.75))
    return f"{middle:.0f} [{low:.0f}, {high:.0f}]"


if __name__ == "__main__":
    main()
