"""Is what `status` says of another 50 evaluations true?

Simulates searches as `search_quality.py` does, and tells what 50 evaluations more brought after 15,
25, 50, 100 and 150, in distances from the best to the fifth best by then: the quartiles are what
`surrogate/outlook.py` promises. Whatever ends is a line of the results; a second call does what is
missing.

    python benchmarks/outlook.py results.jsonl [--engines screened,propulate] [--seeds 5]
        [--problems bbob-5,svm,...] [--first-seed 0] [--workers 8]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other modules of benchmarks/

from benchmarks.search_problems import problem
from benchmarks.search_quality import search
from oialr_search.surrogate.individuals import Individuals
from oialr_search.surrogate.outlook import AHEAD, HIGH, LOW, distance_of_the_best

PROBLEMS = ("bbob-5", "bbob-mixint-5", "svm", "sgd", "oialr", "bbob-10")
AFTER = (15, 25, 50, 100, 150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--engines", default="screened")
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=8)
    arguments = parser.parse_args()
    arguments.results.touch()
    lines = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    done = {(line["problem"], line["engine"], line["seed"]) for line in lines}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name in arguments.problems.split(","):
            for engine in arguments.engines.split(","):
                if (name, engine, seed) in done:
                    continue
                gains = gains_of(name, engine, seed, arguments.workers)
                line = {"problem": name, "engine": engine, "seed": seed, "gains": gains}
                lines.append(line)
                with arguments.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print(table(lines))


def gains_of(name: str, engine: str, seed: int, workers: int) -> list[float | None]:
    """What each outlook was, in the distances that it is told in; None where there was none."""
    told: list[float | None] = []
    bests: list[float] = []

    def watch(known: Individuals) -> None:
        fitness = np.sort(known.fitness[np.isfinite(known.fitness)])
        bests.append(float(fitness[0]) if len(fitness) else math.inf)
        if len(bests) in AFTER:
            told.append(distance_of_the_best(fitness.tolist()))

    search(problem(name, seed), engine, workers, max(AFTER) + AHEAD, seed, watch=watch)
    return [
        distance and (bests[n - 1] - bests[n + AHEAD - 1]) / distance
        for n, distance in zip(AFTER, told, strict=True)
    ]


def table(lines: Sequence[dict[str, object]]) -> str:
    """Quartiles of the gains, and how many came within what is promised."""
    groups: dict[tuple[object, str], list[float]] = defaultdict(list)
    for line in lines:
        for n, gain in zip(AFTER, line["gains"], strict=True):  # type: ignore[call-overload]
            if gain is not None:
                for group in (f"after {n}", str(line["problem"]), "all"):
                    groups[line["engine"], group].append(gain)
    rows = [["engine", "", "outlooks", "quartiles of the gain", f"from {LOW} to {HIGH}"]]
    for (engine, group), gains in groups.items():
        quartiles = statistics.quantiles(gains, n=4, method="inclusive") if gains[1:] else gains
        within = statistics.fmean(LOW <= gain <= HIGH for gain in gains)
        shown = ", ".join(f"{q:.2f}" for q in quartiles)
        rows.append([str(engine), group, str(len(gains)), shown, f"{within:.2f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    main()
