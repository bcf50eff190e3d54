"""Inference at full rank, as trained, and exported as two factors a layer, in turn in one run.

    python benchmarks/inference.py [--networks minivit vit_b_16] [--inner-ranks 50 25 10]
        [--batch-size 8] [--device cuda] [--threads 1] [--calls 5] [--json]

Ratios are to full rank. "trained" has U, Σ and Vᵀ as OIALR leaves them; "smallest" is
`oialr.export(model, "smallest")`, torch's own layers; "dense" is `oialr.export(model)`, which is
the full-rank network again with other numbers.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.training_step import NETWORKS, convert, cut
from oialr import export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["minivit", "vit_b_16"])
    parser.add_argument("--inner-ranks", type=float, nargs="+", default=[50, 25, 10])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [row for name in arguments.networks for row in compare(name, arguments)]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("  ".join(shown))


def compare(name: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a variant; all calls alternate, so that what slows the machine slows all."""
    torch.manual_seed(0)
    full_rank = NETWORKS[name].build().to(arguments.device)
    inputs = [part.to(arguments.device) for part in NETWORKS[name].inputs(arguments.batch_size)]
    variants = {("full rank", 100.0): full_rank}
    low_rank = convert(full_rank)
    for percent in arguments.inner_ranks:
        trained = cut(copy.deepcopy(low_rank), percent)
        variants["trained", percent] = trained
        variants["smallest", percent] = export(trained, "smallest")
        variants["dense", percent] = export(trained)
    seconds: dict[tuple[str, float], list[float]] = {key: [] for key in variants}
    for call in range(arguments.calls + 1):
        for key, model in variants.items():
            took = call_s(model.eval(), inputs[:-1], arguments.device)
            if call:  # the first one warms up
                seconds[key].append(took)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    for key, model in variants.items():
        yield {
            "network": name,
            "variant": key[0],
            "inner_rank_percent": key[1],
            "ratio": medians[key] / medians["full rank", 100.0],
            "call_s": medians[key],
            "numbers": size(model) / size(full_rank),
        }


@torch.inference_mode()
def call_s(model: nn.Module, inputs: list[torch.Tensor], device: str) -> float:
    """CPU seconds of one call; of a GPU its own."""
    if device == "cpu":
        began = time.process_time()
        model(*inputs)
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    model(*inputs)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def size(model: nn.Module) -> int:
    """How many numbers a model holds."""
    return sum(tensor.numel() for tensor in model.state_dict().values())


if __name__ == "__main__":
    main()
