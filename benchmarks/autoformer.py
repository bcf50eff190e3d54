"""A training step of Autoformer against the published algorithm written out plainly.

Both networks have the same weights, data and optimiser; their steps alternate in one process, and
the figures are medians. Peak memory is that of the fast network alone, in a process of its own.

    python benchmarks/autoformer.py [--pred-len 96 720] [--device cpu] [--threads 1] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.plain_autoformer import PlainAutoformer
from oialr_training.models.autoformer import Autoformer
from oialr_training.sections import AutoformerModel

SEQ_LEN, LABEL_LEN, NUM_SERIES, NUM_TIME_FEATURES, BATCH_SIZE = 96, 48, 7, 5, 32
CONFIG = AutoformerModel(d_model=512, d_ff=2048, num_heads=8, encoder_layers=2, decoder_layers=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pred-len", type=int, nargs="+", default=[96, 720])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    rows = [compare(length, device, arguments.steps) for length in arguments.pred_len]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            "  ".join(
                f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )


def compare(pred_len: int, device: torch.device, steps: int) -> dict[str, float | int | str]:
    """Step times of both networks in turn."""
    fast = build(Autoformer, pred_len, device)
    plain = build(PlainAutoformer, pred_len, device)
    plain.load_state_dict(
        {k: w[..., None] if "feed_forward" in k else w for k, w in fast.state_dict().items()}
    )
    times: dict[str, list[float]] = {"fast": [], "plain": []}
    networks = {"fast": trainer(fast, pred_len, device), "plain": trainer(plain, pred_len, device)}
    for step in range(steps + 1):
        for name, train in networks.items():
            elapsed = timed(train, device)
            if step:  # the first one warms up
                times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "pred_len": pred_len,
        "fast_s": medians["fast"],
        "plain_s": medians["plain"],
        "ratio": medians["fast"] / medians["plain"],
        "peak_memory_gib": peak_memory_gib(pred_len, device),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def build(network: type[nn.Module], pred_len: int, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return network(
        CONFIG,
        num_series=NUM_SERIES,
        num_time_features=NUM_TIME_FEATURES,
        label_len=LABEL_LEN,
        pred_len=pred_len,
    ).to(device)


def trainer(model: nn.Module, pred_len: int, device: torch.device) -> Callable[[], None]:
    """One step of AdamW on a fixed batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    *inputs, targets = batch(pred_len, device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(*inputs), targets).backward()
        optimizer.step()

    return step


def batch(pred_len: int, device: torch.device) -> list[Tensor]:
    shapes = [
        (SEQ_LEN, NUM_SERIES),
        (SEQ_LEN, NUM_TIME_FEATURES),
        (LABEL_LEN + pred_len, NUM_TIME_FEATURES),
        (pred_len, NUM_SERIES),
    ]
    return [torch.randn(BATCH_SIZE, *shape, device=device) for shape in shapes]


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds; on a CPU those of the processor, which other processes disturb less."""
    if device.type == "cpu":
        started = time.process_time()
        step()
        return time.process_time() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def peak_memory_gib(pred_len: int, device: torch.device) -> float:
    """Of two steps (the second has the optimiser's state), the whole process on a CPU."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory_gib, (pred_len, device))


def _peak_memory_gib(pred_len: int, device: torch.device) -> float:
    step = trainer(build(Autoformer, pred_len, device), pred_len, device)
    step()
    step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
