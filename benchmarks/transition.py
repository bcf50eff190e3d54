"""The training loss around the conversion, by what becomes of the optimiser's moments.

A mini-ViT on scikit-learn's digits, all three variants from one seed and in the same order of
samples. Printed: the mean loss of the 20 steps before the conversion, of the 20 steps after
it, and of the 20 steps from the 30th on, over all seeds.

    python benchmarks/transition.py [--seeds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from oialr import OIALR, OIALRSettings
from oialr_training.tasks import validate_training
from oialr_training.tasks.minivit import MiniViTDigits
from oialr_training.training import load_settings
from oialr_training.yaml_files import read_yaml

SEARCH_FILE = Path(__file__).parents[1] / "search_spaces" / "minivit_digits.yaml"
DELAY_STEPS, STEPS_AFTER = 150, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [summary(mode, arguments.seeds) for mode in ("rotate", "cut", "reset")]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            "  ".join(
                f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )


def summary(mode: str, seeds: int) -> dict[str, Any]:
    traces = [losses(mode, seed) for seed in range(seeds)]

    def mean(start: int) -> float:
        """Of 20 steps, the first being so many after the conversion."""
        first = DELAY_STEPS + start
        return statistics.fmean(x for trace in traces for x in trace[first : first + 20])

    return {"optimizer_state": mode, "before": mean(-20), "after": mean(0), "later": mean(30)}


def losses(mode: str, seed: int) -> list[float]:
    """The loss of each step; no truncation, so that the conversion alone shows."""
    content = {k: v for k, v in read_yaml(SEARCH_FILE).items() if k not in ("search", "space")}
    config = validate_training(content | {"seed": seed, "num_threads": 1}, str(SEARCH_FILE))
    assert isinstance(config, MiniViTDigits)
    torch.manual_seed(seed)
    splits = config.load_data(None)(load_settings(config))
    batches, model = splits.train, config.network(splits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    settings = OIALRSettings(
        delay_steps=DELAY_STEPS,
        update_frequency=10_000,
        cutoff_fraction=0.0,
        optimizer_state=mode,  # type: ignore[arg-type]
    )
    oialr = OIALR(model, optimizer, settings)
    trace: list[float] = []
    for epoch in range(1, 1000):
        for inputs, targets in batches.epoch(epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(*inputs), targets)
            loss.backward()
            optimizer.step()
            oialr.step()
            trace.append(loss.item())
            if len(trace) == DELAY_STEPS + STEPS_AFTER:
                return trace
    raise AssertionError


if __name__ == "__main__":
    main()
