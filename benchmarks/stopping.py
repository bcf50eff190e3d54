"""How many epochs does stopping early save, and what does it cost?

Two simulations of 8 asynchronous workers that take random times for an epoch, on the trainings of
the digits that `make_curves.py` stored; each rule with the clock `first_truncation + 1`.

table     the stored trainings in a random order: share of the epochs used, how many of the best
          five are trained to their end
searches  `screened` with the rule until its best full training is at least as good as that of
          `propulate` without after 200 evaluations: share of `propulate`'s epochs

A search proposes what is not stored. Its curve is the logarithm of the validation loss after each
epoch by one smooth function of the genes for each epoch (`RBFInterpolator`, as the problem `oialr`
of `search_problems.py`), and noise: what is left of a stored training drawn at random, all epochs
of it together, so that a training that is better than its genes tell remains so. It converts, and
so first truncates, after `oialr.delay_steps`, as all stored ones did. "As good" compares the
smooth function at the end, without the noise, of what measured best. A stopped training ends with
the epoch after which it is judged. To the model of `screened` it counts as what completed trainings
came to that had its place then; or (`--breeding`) as its last loss, as the worst, or as the model
of the rule `model` expects it to end.

    python benchmarks/stopping.py results.jsonl [--rules none,quantile,...] [--seeds 20]
        [--breeding place|last|clipped|model] [--curves FILE]

Whatever ends is a line of the results; a second call does what is missing.
"""

from __future__ import annotations

import argparse
import heapq
import json
import lzma
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import RBFInterpolator

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other modules of benchmarks/

from benchmarks.make_curves import DIGITS
from oialr_search.launch.engines import Knowledge, Member, engine_for, random_numbers
from oialr_search.launch.population import Population
from oialr_search.launch.stopping import StoppingRule, Training, expected_fitness, rule_for
from oialr_search.launch.stopping.model import ModelRule
from oialr_search.space.search_file import SearchSettings, load_search
from oialr_search.space.stopping import StoppingSettings
from oialr_search.storage.records import Known, Status
from oialr_search.surrogate.individuals import Individuals

CURVES = Path(__file__).parent / "digits_curves.jsonl.xz"
RULES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "quantile": {},
    "quantile .5": {"worst": 0.5},
    "quantile .75": {"worst": 0.75},
    "median": {"rule": "median"},
    "asha": {"rule": "asha"},
    "asha from epoch 1": {"rule": "asha", "after": "1 epoch"},
    "hyperband": {"rule": "hyperband"},
    "patience": {"rule": "patience"},
    "model": {"rule": "model"},
    "model .05": {"rule": "model", "chance": 0.05},
    "model .2": {"rule": "model", "chance": 0.2},
}
BREEDING = ("place", "last", "clipped", "model")
WORKERS, EVALUATIONS, BEST = 8, 200, 5
MOST = 0.4
"""Of the epochs of the paper's engine: where a search with a rule ends."""
SHARES = (0.125, 0.25, 0.375)
HYPERPARAMETERS = load_search(DIGITS).space.hyperparameters
NAMES = [h.name for h in HYPERPARAMETERS]


@dataclass(kw_only=True)
class Run:
    """One that is trained in the simulation."""

    training: Training
    curve: Sequence[float]
    truth: float
    generation: tuple[int, int] = (0, 0)
    losses: list[float] = field(default_factory=list)


class Trainings:
    """The stored ones, and the function that is as they are."""

    def __init__(self, path: Path) -> None:
        with lzma.open(path, "rt") as file:
            lines = [json.loads(line) for line in file]
        done = [line for line in lines if line["completed"] and line["seed"] == 0]
        self.genes = [line["genes"] for line in done]
        points = np.array([[genes[name] for name in NAMES] for genes in self.genes])
        self.steps = done[0]["epochs"][0]["step"]
        self.curves = np.array(
            [[epoch["metrics"]["validation_loss"] for epoch in line["epochs"]] for line in done]
        )
        for line in done:
            first = next(n for n, epoch in enumerate(line["epochs"], 1) if epoch["truncated"])
            assert first == self.truncation(line["genes"])
        self._smooth = RBFInterpolator(
            points, np.log(self.curves), kernel="linear", smoothing=1.0, degree=1
        )
        self._noise = np.log(self.curves) - self._smooth(points)
        self.epochs = self.curves.shape[1]

    def truncation(self, genes: dict[str, float]) -> int:
        """The epoch in which an inner rank is first cut."""
        delay = next(h for h in HYPERPARAMETERS if h.name == "oialr.delay_steps")
        return math.ceil(int(delay.decode(genes[delay.name])) / self.steps)

    def curve(self, genes: dict[str, float], rng: random.Random) -> tuple[list[float], float]:
        """Losses with noise, and the last one without."""
        (smooth,) = self._smooth(np.array([[genes[name] for name in NAMES]]))
        noise = self._noise[rng.randrange(len(self._noise))]
        return np.exp(smooth + noise).tolist(), float(np.exp(smooth[-1]))


def simulate(
    trainings: Trainings,
    settings: StoppingSettings | None,
    seed: int,
    propose: Callable[[int, list[Training]], Run | None],
) -> Iterator[tuple[Run, int, list[Training]]]:
    """Each training as it ends, the epochs trained by then by all, and what is known."""
    rule = rule_for(HYPERPARAMETERS, settings) if settings else None
    draw = random.Random(f"{seed}/durations")
    events: list[tuple[float, int, float, Run]] = []
    known: dict[int, Training] = {}
    trained = 0

    def start(worker: int, now: float) -> None:
        run = propose(worker, list(known.values()))
        if run is not None:
            known[run.training.individual_id] = run.training
            duration = math.exp(draw.gauss(0.0, 0.2))
            heapq.heappush(events, (now + duration, worker, duration, run))

    for worker in range(WORKERS):
        start(worker, 0.0)
    while events:
        now, worker, duration, run = heapq.heappop(events)
        trained += 1
        run.losses.append(run.curve[len(run.losses)])
        training = replace(run.training, losses=tuple(run.losses))
        if len(run.losses) == training.epochs:
            loss = training.losses[-1]
            training = replace(training, status=Status.COMPLETED, fitness=loss)
        elif stops(rule, training, [t for t in known.values() if t is not run.training]):
            training = replace(training, status=Status.PRUNED)
        run.training = known[training.individual_id] = training
        if training.status is Status.RUNNING:
            heapq.heappush(events, (now + duration, worker, duration, run))
        else:
            yield run, trained, list(known.values())
            start(worker, now)


def stops(rule: StoppingRule | None, training: Training, others: Sequence[Training]) -> bool:
    if rule is None or training.clock is None:
        return False
    clock = rule.settings.clock
    since = clock.number if clock.unit == "epochs" else training.clock + clock.number
    return len(training.losses) >= since and rule.reason_to_stop(training, others) is not None


def new(trainings: Trainings, number: int, genes: dict[str, float]) -> Training:
    return Training(
        individual_id=number,
        status=Status.RUNNING,
        genes=genes,
        epochs=trainings.epochs,
        losses=(),
        clock=trainings.truncation(genes),
    )


def table(trainings: Trainings, settings: StoppingSettings | None, seed: int) -> dict[str, Any]:
    """The stored trainings in a random order."""
    order = list(range(len(trainings.genes)))
    random.Random(seed).shuffle(order)
    waiting = iter(order)

    def propose(worker: int, known: list[Training]) -> Run | None:
        number = next(waiting, None)
        if number is None:
            return None
        training = new(trainings, len(known) + 1, trainings.genes[number])
        return Run(training=training, curve=trainings.curves[number], truth=float(number))

    full, used = set[int](), 0
    for run, used, _ in simulate(trainings, settings, seed, propose):  # noqa: B007
        if run.training.status is Status.COMPLETED:
            full.add(int(run.truth))
    best = np.argsort(trainings.curves[:, -1])[:BEST].tolist()
    share = used / (len(order) * trainings.epochs)
    return {"share": share, "kept": len(full & set(best)), "best": best[0] in full}


def search(
    trainings: Trainings,
    engine_name: str,
    settings: StoppingSettings | None,
    seed: int,
    breeding: str = "place",
    most_epochs: float = math.inf,
) -> dict[str, Any]:
    """A search of 200 evaluations, or so many epochs; after how many what measured best changed."""
    engine = engine_for(
        HYPERPARAMETERS,
        SearchSettings(
            name="stopping",
            metric="validation_loss",
            evaluations=EVALUATIONS,
            islands=1,
            engine=engine_name,
            seed=seed,
        ),
    )
    population = Population(engine.population_size(WORKERS))
    individuals = Individuals(HYPERPARAMETERS)
    noise, generations = random.Random(f"{seed}/noise"), [0] * WORKERS
    model = ModelRule(HYPERPARAMETERS, StoppingSettings(rule="model"))

    def propose(worker: int, known: list[Training]) -> Run | None:
        if len(known) == EVALUATIONS:
            return None
        knowledge = Knowledge(
            island=0,
            population=population.members,
            population_size=population.size,
            individuals=individuals,
            number=len(known),
            num_ranks=WORKERS,
        )
        numbers = random_numbers(seed, 0, worker, generations[worker], "breeding")
        generations[worker] += 1
        training = new(trainings, len(known) + 1, engine.propose(knowledge, numbers).genes)
        individuals.take([as_known(training)])
        curve, truth = trainings.curve(dict(training.genes), noise)
        return Run(training=training, curve=curve, truth=truth)

    least, ended, pruned, used = math.inf, 0, 0, 0
    bests: list[tuple[int, int, float]] = []
    for run, used, known in simulate(trainings, settings, seed, propose):
        training, ended = run.training, ended + 1
        loss = training.losses[-1]
        if training.status is Status.COMPLETED:
            individuals.take([as_known(training, fitness=loss)])
            population.add(
                Member(
                    individual_id=training.individual_id, genes=dict(training.genes), fitness=loss
                )
            )
            if loss < least:
                least = loss
                bests.append((used, ended, run.truth))
        if used >= most_epochs:
            break
        if training.status is Status.COMPLETED:
            continue
        pruned += 1
        believed = None
        if breeding == "last":
            believed = loss
        elif breeding == "place":
            believed = expected_fitness(training, known)
        elif breeding == "model":
            believed = model.expected(training, [t for t in known if t is not training])
        individuals.take([as_known(training, believed=believed)])
    return {"bests": bests, "epochs": used, "evaluations": ended, "pruned": pruned}


def reached(run: dict[str, Any], truth: float) -> tuple[float, float]:
    """The epochs and evaluations after which what measured best was really so good."""
    found = ((used, ended) for used, ended, best in run["bests"] if best <= truth)
    return next(found, (math.inf, math.inf))


def best_after(run: dict[str, Any], epochs: float) -> float:
    """What measured best after so many epochs, as it really is."""
    return next((best for used, _, best in reversed(run["bests"]) if used <= epochs), math.inf)


def as_known(
    training: Training, fitness: float | None = None, believed: float | None = None
) -> Known:
    return Known(
        individual_id=training.individual_id,
        island=0,
        status=training.status,
        genes=training.genes,
        fitness=fitness,
        objectives=[] if believed is None else [believed],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--breeding", default="place", choices=BREEDING)
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--only", choices=["table", "searches"])
    arguments = parser.parse_args()
    trainings = Trainings(arguments.curves)
    arguments.results.touch()
    done: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in arguments.results.read_text().splitlines():
        found = json.loads(line)
        done[tuple(found["key"])] = found

    def once(key: tuple[Any, ...], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in done:
            started = time.process_time()
            found = {"key": key, **work(), "cpu_s": time.process_time() - started}
            done[key] = json.loads(json.dumps(found))
            with arguments.results.open("a") as file:
                file.write(json.dumps(found) + "\n")
        return done[key]

    number, breeding = len(trainings.genes), arguments.breeding
    budget = EVALUATIONS * trainings.epochs
    rows = [["rule", "epochs used", f"of the best {BEST}", "the best kept"]]
    rows[0] += ["epochs to equal quality [quartiles]", "evaluations", "pruned"]
    rows[0] += [f"loss after {share:.1%}" for share in SHARES]
    for name in arguments.rules.split(","):
        options = RULES[name]
        settings = None if options is None else StoppingSettings.model_validate(options)
        row = [name]
        if arguments.only != "searches":
            tables = [
                once((number, "table", name, s), partial(table, trainings, settings, s))
                for s in range(arguments.seeds)
            ]
            row += [f"{statistics.fmean(t['share'] for t in tables):.0%}"]
            row += [f"{statistics.fmean(t[key] for t in tables):.2f}" for key in ("kept", "best")]
        if arguments.only != "table":
            shares, evaluations, runs = [], [], []
            for s in range(arguments.seeds):
                paper = once(
                    (number, "propulate", s), partial(search, trainings, "propulate", None, s)
                )
                most = MOST * budget
                ours = once(
                    (number, "screened", name, breeding, s),
                    partial(search, trainings, "screened", settings, s, breeding, most),
                )
                used, ended = reached(ours, best_after(paper, math.inf))
                shares.append(used / paper["epochs"])
                evaluations.append(ended)
                runs.append(ours)
            low, middle, high = statistics.quantiles(shares, n=4, method="inclusive")
            row += [f"{middle:.1%} [{low:.1%}, {high:.1%}]", f"{statistics.median(evaluations):g}"]
            pruned = sum(r["pruned"] for r in runs) / sum(r["evaluations"] for r in runs)
            row += [f"{pruned:.0%}"]
            for share in SHARES:
                losses = [best_after(run, share * budget) for run in runs]
                row.append(f"{statistics.fmean(losses):.4f}")
        rows.append(row)
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))


if __name__ == "__main__":
    main()
