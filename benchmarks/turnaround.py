"""How long a rank trains nothing between two evaluations, each in a fresh process.

Runs a real search with one rank on scikit-learn's digits and reads from its database the time from
the end of each evaluation to the first training step of the next. Beside it, in the same run: the
first evaluation of the launch, whose worker was started cold. Evaluations must last longer than a
worker needs to get warm, as all real ones do: `--epochs`.

    python benchmarks/turnaround.py [--evaluations 5] [--epochs 40] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from oialr_search.storage import open_storage
from oialr_search.storage.records import EvaluationRecord

SEARCH_FILE = Path(__file__).parents[1] / "search_spaces" / "minivit_digits.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        run_search(Path(folder), arguments.evaluations, arguments.epochs)
        with open_storage(f"{folder}/search.db", read_only=True) as storage:
            (search,) = storage.searches()
            evaluations = storage.finished_since(search.id)
    gaps = [gap_s(a, b) for a, b in pairwise(evaluations)]
    first = evaluations[0].training_started_at
    assert first is not None
    figures = {
        "evaluations": len(evaluations),
        "evaluation_s": statistics.median(e.duration_s or 0.0 for e in evaluations),
        "gap_median_s": statistics.median(gaps),
        "gap_max_s": max(gaps),
        "cold_start_s": first.timestamp() - started,
    }
    figures["gap_to_cold_start"] = figures["gap_median_s"] / figures["cold_start_s"]
    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            print(f"{name:>20} {value:.3f}")


def run_search(folder: Path, evaluations: int, epochs: int) -> None:
    """One rank, so no mpiexec."""
    command = [str(Path(sys.executable).with_name("oialr-search")), "run", str(SEARCH_FILE)]
    command += ["--search-dir", str(folder), "--islands", "1", "--evaluations", str(evaluations)]
    command += ["--set", f"epochs={epochs}", "--set", "num_threads=1"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def gap_s(before: EvaluationRecord, after: EvaluationRecord) -> float:
    """Seconds from the end of one evaluation to the first training step of the next."""
    assert before.finished_at is not None
    assert after.training_started_at is not None
    return (after.training_started_at - before.finished_at).total_seconds()


if __name__ == "__main__":
    main()
