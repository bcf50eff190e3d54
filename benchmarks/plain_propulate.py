"""Propulate as it comes, with a loss that costs nothing, for `benchmarks/controller.py`.

Started under mpiexec. Each rank writes into `FOLDER/cost-RANK.json` what it spent on the
evaluations before each of the sizes below, as it reaches them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
import warnings
from pathlib import Path

from mpi4py import MPI

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)
    from propulate import Islands
    from propulate.utils import get_default_propagator

SIZES = (1000, 5000, 10000)
WINDOW = 200  # evaluations before each size, over all ranks
GENES = {f"x{number}": (0.0, 1.0) for number in range(8)}
ISLANDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    comm = MPI.COMM_WORLD
    ends = {size // comm.size: size for size in SIZES}
    begins = {(size - WINDOW) // comm.size for size in SIZES}
    count, begun = 0, (0, 0.0, 0.0)
    costs: dict[int, dict[str, float]] = {}

    def loss(genes: dict[str, float]) -> float:
        nonlocal count, begun
        count += 1
        now, cpu = time.monotonic(), time.process_time()
        if count in begins:
            begun = (count, now, cpu)
        if count in ends:
            first, since, used = begun
            spent = {"evaluations": count - first, "wall_s": now - since, "cpu_s": cpu - used}
            costs[ends[count]] = spent
            (folder / f"cost-{comm.rank}.json").write_text(json.dumps(costs))
        return sum(math.log(genes[name] + 1e-3) ** 2 for name in GENES)

    rng = random.Random(comm.rank)
    size = 2 * comm.size
    propagator = get_default_propagator(pop_size=size, limits=GENES, rng=rng)
    islands = Islands(
        loss_fn=loss,
        propagator=propagator,
        rng=rng,
        generations=max(ends) + 1,
        num_islands=ISLANDS,
        migration_probability=0.9,
        pollination=True,
        checkpoint_path=folder,
    )
    islands.propulate(logging_interval=10**9)


if __name__ == "__main__":
    main()
