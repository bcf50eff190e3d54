"""How good is what a search chooses in the end, when what it measures is noisy?

Searches on the surrogate of our own trainings (`oialr` of `search_problems.py`), with and without
racing (`search.repeats`). After 50, 100 and 200 evaluations each choice is told by its true
fitness, less the least that is known of the problem: who measured least, who is expected to be
least, and who is best of the three best after three more measurements each (`search.confirm`),
these nine counted among the evaluations. A second call does what is missing.

    python benchmarks/noise.py results.jsonl [--seeds 24] [--workers 8]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other modules of benchmarks/

from benchmarks.search_problems import Problem, problem
from benchmarks.search_quality import simulate
from oialr_search.space.repeats import ConfirmSettings, RepeatSettings
from oialr_search.surrogate.choosing import least_expected
from oialr_search.surrogate.individuals import Individuals

AT = (50, 100, 200)
CONFIRM = ConfirmSettings()
SEARCHES = {
    "each once": None,
    "racing, 3 seeds": RepeatSettings(seeds=3, share=0.2),
    "racing, 3 seeds, a tenth": RepeatSettings(seeds=3, share=0.1),
}
Truths = dict[int, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--searches", default=";".join(SEARCHES))
    arguments = parser.parse_args()
    arguments.results.touch()
    runs = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    done = {(run["search"], run["seed"]) for run in runs}
    for name in arguments.searches.split(";"):
        for seed in range(arguments.seeds):
            if (name, seed) not in done:
                found = choices(problem("oialr", seed), arguments.workers, seed, SEARCHES[name])
                runs.append({"search": name, "seed": seed, "choices": found})
                with arguments.results.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    print(table(runs))


def choices(
    problem: Problem, workers: int, seed: int, repeats: RepeatSettings | None
) -> dict[str, dict[str, float]]:
    """Evaluations → choice → the true fitness of what is chosen."""
    extra = CONFIRM.top * CONFIRM.seeds
    truths: Truths = {}
    found: dict[str, dict[str, float]] = {str(n): {} for n in AT}
    ended = simulate(problem, "screened", workers, max(AT), seed, repeats=repeats)
    for number, each in enumerate(ended, start=1):
        truths[each.individual_id] = each.truth
        known = each.individuals
        if number in AT:
            at = found[str(number)]
            at["the best there is"] = min(truths.values())
            at["least measured"] = truths[int(known.ids[np.nanargmin(known.fitness)])]
            at["least expected"] = truths[least_expected(known, problem.hyperparameters)[0]]
        if number + extra in AT:
            rng = random.Random(f"{seed}/{number}/confirm")
            at = found[str(number + extra)]
            at["confirmed"] = truths[best_confirmed(known, truths, problem.noise, rng)]
    return found


def best_confirmed(known: Individuals, truths: Truths, noise: float, rng: random.Random) -> int:
    """The id of the best by the mean over all its measurements, of those measured best so far."""
    means = {}
    for row in np.argsort(known.fitness)[: CONFIRM.top]:
        number, measured = int(known.ids[row]), int(known.num_seeds[row])
        further = [truths[number] + rng.gauss(0.0, noise) for _ in range(CONFIRM.seeds)]
        total = known.fitness[row] * measured + sum(further)
        means[number] = float(total) / (measured + CONFIRM.seeds)
    return min(means, key=means.__getitem__)


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and median, over the searches, above the least true fitness that any search found."""
    least = min(run["choices"][str(n)]["the best there is"] for run in runs for n in AT)
    rows = [["search", "choice", "searches", *(f"at {n}: mean, median" for n in AT)]]
    rows.append(["---"] * len(rows[0]))
    above: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for n in AT:
            for choice, truth in run["choices"][str(n)].items():
                above[run["search"], choice][n].append(truth - least)
    for (search, choice), values in above.items():
        shown = [f"{statistics.fmean(v):.3f}, {statistics.median(v):.3f}" for v in values.values()]
        rows.append([search, choice, str(len(values[AT[0]])), *shown])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    main()
