"""Epochs that real launches take until they have what Propulate's propagator finds.

A launch with the engine `propulate` and no stopping rule is the yardstick; one with `screened` and
the rule `quantile` follows, of the same file, ranks and seed. Trainings are real, on two ranks.

    python benchmarks/epochs_to_equal_quality.py FOLDER [--evaluations 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

from oialr_search.storage import open_storage
from oialr_search.storage.records import Status

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SMALL = ["data.train_subset=400", "model.depth=2", "model.embed_dim=32", "epochs=8"]
SPACE = {
    "space.oialr.delay_steps.low": 10,
    "space.oialr.delay_steps.high": 40,
    "space.oialr.update_frequency.low": 8,
    "space.oialr.update_frequency.high": 20,
}
WITH = {
    "propulate": ["search.engine=propulate"],
    "screened": ["search.engine=screened", "search.stopping={rule: quantile}"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--share", type=float, default=0.4, help="of them for `screened`")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--islands", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = {}
    for engine, evaluations in (
        ("propulate", arguments.evaluations),
        ("screened", round(arguments.share * arguments.evaluations)),
    ):
        folder = arguments.folder / f"{engine}-{arguments.seed}"
        launch(folder, engine, evaluations, arguments)
        found[engine] = course(folder)
    aim, yardstick = min(fitness for fitness, _ in found["propulate"]), found["propulate"][-1][1]
    print(f"propulate: fitness {aim:.4f} after {yardstick} epochs")
    for fitness, epochs in found["screened"]:
        if fitness <= aim:
            share = 100.0 * epochs / yardstick
            print(f"screened, quantile: {fitness:.4f} after {epochs} epochs, {share:.1f} %")
            return
    best, epochs = min(found["screened"])[0], found["screened"][-1][1]
    print(f"screened, quantile: only {best:.4f} after {epochs} epochs")


def launch(folder: Path, engine: str, evaluations: int, arguments: argparse.Namespace) -> None:
    """Go on with the search of this folder to its end."""
    settings = [*SMALL, *(f"{key}={value}" for key, value in SPACE.items()), *WITH[engine]]
    settings += ["search.metric=validation_loss"]
    command = [BIN / "mpiexec", "-n", arguments.ranks, BIN / "oialr-search", "run"]
    command += [ROOT / "search_spaces" / "minivit_digits.yaml", "--search-dir", folder]
    command += ["--evaluations", evaluations, "--islands", arguments.islands]
    command += ["--seed", arguments.seed]
    command += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)


def course(folder: Path) -> list[tuple[float, int]]:
    """After each evaluation: its fitness, infinite without one, and the epochs trained so far."""
    with open_storage(str(folder / "search.db"), read_only=True) as storage:
        (search,) = storage.searches()
        ended = storage.finished_since(search.id)
    epochs = accumulate((e.last_epoch or 0) - (e.resumed_epoch or 0) for e in ended)
    fitness = (e.fitness if e.status is Status.COMPLETED else None for e in ended)
    return [(math.inf if f is None else f, n) for f, n in zip(fitness, epochs, strict=True)]


if __name__ == "__main__":
    main()
