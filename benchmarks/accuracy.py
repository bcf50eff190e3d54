"""Accuracy of OIALR against full rank, in turn in one run, on a part of CIFAR-10.

The paper's mini-ViT, small, on real images: `search_spaces/training/minivit_cifar10_baseline.yaml`
and `..._untuned.yaml` with the changes below, each seed in a worker process of its own.

    python benchmarks/accuracy.py DATA_DIR [--seeds 3] [--epochs 12] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from oialr_search.evaluation.devices import (
    WorkerSettings,
    affinity,
    choose_gpu,
    visible_gpus,
)
from oialr_search.evaluation.repeated_seeds import train
from oialr_training.protocol import Completed
from oialr_training.tasks import load_training

TRAININGS = Path(__file__).parents[1] / "search_spaces" / "training"
SMALL = {
    "batch_size": "64", "data.train_subset": "5000", "data.test_subset": "2000",
    "data.auto_augment": "null", "data.random_erasing": "0.0",
    "model.embed_dim": "96", "model.depth": "3", "model.num_heads": "3",
    "model.drop_path_rate": "0.0",
    "optimizer.lr": "1.0e-3", "scheduler.warmup_epochs": "1", "scheduler.lr_k_decay": "1.0",
}  # fmt: skip
EARLY = {
    "oialr.delay_steps": "300", "oialr.update_frequency": "60",
    "oialr.cutoff_fraction": "0.1", "oialr.layer_fraction": "0.2",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: dict[str, list[Completed]] = {"baseline": [], "untuned": []}
    for seed in range(arguments.seeds):
        for kind, done in results.items():
            done.append(run(kind, seed, arguments.epochs, arguments.data_dir))
            top1 = done[-1].metrics["validation_top1"]
            print(f"seed {seed}, {kind}: {top1:.2f} %", file=sys.stderr)
    figures = {
        f"{kind}_{name}": value
        for kind, done in results.items()
        for name, value in summary(done).items()
    }
    figures["difference"] = figures["untuned_top1"] - figures["baseline_top1"]
    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            print(f"{name:>28} {value:.2f}")


def run(kind: str, seed: int, epochs: int, data_dir: str) -> Completed:
    """Train once; the result."""
    changes = SMALL | {"seed": str(seed), "epochs": str(epochs)}
    changes |= EARLY if kind == "untuned" else {}
    path = TRAININGS / f"minivit_cifar10_{kind}.yaml"
    config = load_training(path, [f"{key}={value}" for key, value in changes.items()])
    gpu = choose_gpu(config.device, visible_gpus({}), 0)
    settings = WorkerSettings(gpu=gpu, num_threads=len(affinity()))
    with tempfile.TemporaryDirectory() as folder:
        return train(
            config,
            folder=Path(folder),
            data_dir=data_dir,
            settings=settings,
            report=lambda event: None,
        )


def summary(results: list[Completed]) -> dict[str, float]:
    """Means over the seeds, and the deviation of the accuracy."""
    top1 = [result.metrics["validation_top1"] for result in results]
    return {
        "top1": statistics.fmean(top1),
        "top1_deviation": statistics.stdev(top1) if len(top1) > 1 else 0.0,
        "trainable_percent": statistics.fmean(r.trainable_percent for r in results),
        "duration_s": statistics.fmean(r.duration_s for r in results),
    }


if __name__ == "__main__":
    main()
