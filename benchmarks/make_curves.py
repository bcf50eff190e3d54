"""Trains a search file's space all over, and keeps every curve: what a search would have met.

Each individual is a point of one Latin hypercube, each seed another training of it. One JSON object
a training, in its order; a second call goes on where the first one ended.

    python benchmarks/make_curves.py curves.jsonl [--individuals 220] [--seeds 1] [--file FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oialr import NotFiniteError
from oialr_search.space.hyperparameters import with_hyperparameters
from oialr_search.space.search_file import SearchFile, load_search
from oialr_training.errors import DivergedError
from oialr_training.protocol import Epoch, Event
from oialr_training.tasks import validate_training
from oialr_training.training import set_up, train

DIGITS = Path(__file__).parents[1] / "search_spaces" / "minivit_digits.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--file", type=Path, default=DIGITS)
    parser.add_argument("--individuals", type=int, default=220)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    search_file = load_search(arguments.file)
    torch.set_num_threads(1)
    wanted = [(n, s) for s in range(arguments.seeds) for n in range(arguments.individuals)]
    arguments.output.touch()
    done = len(arguments.output.read_text().splitlines())
    points = latin_hypercube(arguments.individuals, len(search_file.space.hyperparameters))
    for number, seed in wanted[done:]:
        names = (h.name for h in search_file.space.hyperparameters)
        genes = dict(zip(names, points[number].tolist(), strict=True))
        line = {"individual": number, "seed": seed, "genes": genes}
        line |= trained(search_file, genes, search_file.training.seed + seed, arguments.data_dir)
        with arguments.output.open("a") as file:
            file.write(json.dumps(line) + "\n")


def latin_hypercube(number: int, genes: int) -> np.ndarray:
    """(number, genes): one point in each of `number` equal parts of each gene's range."""
    rng = np.random.default_rng(0)
    parts = rng.permuted(np.tile(np.arange(number)[:, None], (1, genes)), axis=0)
    return (parts + rng.random(parts.shape)) / number


def trained(
    search_file: SearchFile, genes: dict[str, float], seed: int, data_dir: Path | None
) -> dict[str, Any]:
    """The curves of one training; `completed` is False when it diverged."""
    hyperparameters = search_file.space.decode(genes)
    content = with_hyperparameters(search_file.training.model_dump(mode="json"), hyperparameters)
    config = validate_training({**content, "seed": seed, "device": "cpu"}, "curves")
    epochs, started = list[dict[str, Any]](), time.process_time()

    def report(event: Event) -> None:
        if isinstance(event, Epoch):
            truncated = any(u.inner_rank < u.full_inner_rank for u in event.rank_updates)
            metrics = rounded(event.metrics)
            epochs.append({"step": event.step, "metrics": metrics, "truncated": truncated})

    result: dict[str, Any] = {"hyperparameters": hyperparameters, "epochs": epochs}
    try:
        training = set_up(config, config.load_data(data_dir))
        completed = train(training, report, evaluate_test=True).completed
        result |= {
            "metrics": rounded(completed.metrics),
            "trainable_percent": completed.trainable_percent,
            "compression_percent": completed.compression_percent,
        }
    except (DivergedError, NotFiniteError):
        pass
    return result | {"completed": "metrics" in result, "cpu_s": time.process_time() - started}


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}


if __name__ == "__main__":
    main()
