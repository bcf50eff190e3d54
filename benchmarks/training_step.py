"""A training step at full rank, with weights built at each forward pass, and with ours.

Side by side in one run, for each network and inner rank: "built" makes W = U Σ Vᵀ and multiplies by
it, as the authors' code does; "ours" is `oialr` as it is. Ratios are to full rank.

    python benchmarks/training_step.py [--networks minivit autoformer] [--inner-ranks 100 50 25 10]
        [--device cuda] [--compile] [--threads 1] [--json]

`flop_limit` is the ratio that the counted floating-point operations would allow. `saved_mib` is
what the forward pass keeps for the backward pass, `state_mib` the optimiser's state and gradients.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.autoformer import batch as autoformer_batch
from benchmarks.autoformer import build as build_autoformer
from oialr import OIALR, LowRankConv, LowRankLinear, OIALRSettings
from oialr.decomposition import Factors
from oialr.layers import low_rank_weights
from oialr_training.models import minivit
from oialr_training.models.autoformer import Autoformer
from oialr_training.tasks import load_training
from oialr_training.tasks.minivit import MiniViTCIFAR10

MINIVIT = Path(__file__).parents[1] / "search_spaces/training/minivit_cifar10_baseline.yaml"
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a benchmark trains, on which batch."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], list[Tensor]]
    """Inputs and targets of so many samples."""
    batch_sizes: dict[str, int]


@dataclass(kw_only=True)
class Steps:
    """The step times of one variant, and its parts."""

    total_s: list[float] = field(default_factory=list)
    forward_s: list[float] = field(default_factory=list)
    backward_s: list[float] = field(default_factory=list)
    optimizer_s: list[float] = field(default_factory=list)


def mini_vit() -> nn.Module:
    config = load_training(MINIVIT)
    assert isinstance(config, MiniViTCIFAR10)
    return minivit.build(config.model, num_classes=10)


def timm_model(name: str) -> Callable[[], nn.Module]:
    import timm

    return lambda: timm.create_model(name, num_classes=1000)


def images(size: int, num_classes: int) -> Callable[[int], list[Tensor]]:
    return lambda count: [torch.randn(count, 3, size, size), torch.randint(num_classes, (count,))]


def windows(count: int) -> list[Tensor]:
    return [part[:count] for part in autoformer_batch(96, CPU)]


NETWORKS = {
    "minivit": Network(
        build=mini_vit, inputs=images(32, 10), batch_sizes={"cpu": 64, "cuda": 1024}
    ),
    "vit_b_16": Network(
        build=timm_model("vit_base_patch16_224"),
        inputs=images(224, 1000),
        batch_sizes={"cpu": 4, "cuda": 128},
    ),
    "resnet50": Network(
        build=timm_model("resnet50"),
        inputs=images(224, 1000),
        batch_sizes={"cpu": 4, "cuda": 128},
    ),
    "autoformer": Network(
        build=lambda: build_autoformer(Autoformer, 96, CPU),
        inputs=windows,
        batch_sizes={"cpu": 32, "cuda": 32},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--inner-ranks", type=float, nargs="+", default=[100, 50, 25, 10])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        for row in compare(name, arguments):
            rows.append(row)
            if not arguments.json:
                print("  ".join(f"{k} {_shown(v)}" for k, v in row.items()), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=1))


def compare(name: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a variant; all steps alternate, so that what slows the machine slows all."""
    device = torch.device(arguments.device)
    network = NETWORKS[name]
    torch.manual_seed(0)
    full_rank = network.build().to(device)
    inputs = [part.to(device) for part in network.inputs(network.batch_sizes[device.type])]
    variants = {("full rank", 100.0): full_rank}
    low_rank = convert(full_rank)
    for percent in arguments.inner_ranks:
        ours = cut(copy.deepcopy(low_rank), percent)
        variants["ours", percent] = ours
        variants["built", percent] = with_built_weights(copy.deepcopy(ours))
    trainers = {
        key: Trainer(model, inputs, device, compiled=arguments.compile)
        for key, model in variants.items()
    }
    memory = {key: trainer.memory_mib() for key, trainer in trainers.items()}
    flops = {key: trainer.flops() for key, trainer in trainers.items()}
    for step in range(arguments.steps + 1):
        for trainer in trainers.values():
            trainer.step(keep=step > 0)  # the first one warms up
    full = trainers["full rank", 100.0].steps
    for key, trainer in trainers.items():
        medians = {k: statistics.median(v) for k, v in asdict(trainer.steps).items()}
        yield {
            "network": name,
            "variant": key[0],
            "inner_rank_percent": key[1],
            "ratio": medians["total_s"] / statistics.median(full.total_s),
            "flop_limit": flops[key] / flops["full rank", 100.0],
            **medians,
            **memory[key],
            "gflop": flops[key] / 1e9,
            "batch_size": len(inputs[0]),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
        }


def convert(model: nn.Module) -> nn.Module:
    """Low-rank throughout but for the last layer, as the paper has it, at full inner rank."""
    converted = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(converted.parameters())
    OIALR(
        converted,
        optimizer,
        OIALRSettings(
            delay_steps=0, update_frequency=1, cutoff_fraction=0.0, full_rank_last_layer=True
        ),
    )
    return converted


def cut(model: nn.Module, percent: float) -> nn.Module:
    """Keep this percentage of each inner rank."""
    for weight in low_rank_weights(model):
        r = max(1, round(weight.full_inner_rank * percent / 100))
        sigma = weight.sigma.detach()
        weight.set_factors(
            Factors(
                weight.basis[:, :r].contiguous(),
                sigma[:r, :r].contiguous(),
                weight.cobasis[:r].contiguous(),
            )
        )
    return model


class BuiltLinear(LowRankLinear):
    """Builds the weight at each forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class BuiltConv(LowRankConv):
    """Builds the kernel at each forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.weight, self.bias)


def with_built_weights(model: nn.Module) -> nn.Module:
    built = {LowRankLinear: BuiltLinear, LowRankConv: BuiltConv}
    for module in model.modules():
        module.__class__ = built.get(type(module), type(module))
    return model


class Trainer:
    """Trains a network on one batch with AdamW, under bfloat16 autocast on a GPU."""

    def __init__(
        self, model: nn.Module, inputs: list[Tensor], device: torch.device, *, compiled: bool
    ) -> None:
        self._device = device
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._kept = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
        self._model: Any = torch.compile(model) if compiled else model
        self._optimizer = torch.optim.AdamW(self._parameters, lr=1e-4)
        *self._inputs, self._targets = inputs
        self.steps = Steps()

    def step(self, *, keep: bool) -> None:
        """One step, its parts timed."""
        marks = [self._now()]
        self._optimizer.zero_grad()
        loss = self._loss()
        marks.append(self._now())
        loss.backward()
        marks.append(self._now())
        self._optimizer.step()
        marks.append(self._now())
        if keep:
            parts = [self._between(a, b) for a, b in pairwise(marks)]
            self.steps.forward_s.append(parts[0])
            self.steps.backward_s.append(parts[1])
            self.steps.optimizer_s.append(parts[2])
            self.steps.total_s.append(sum(parts))

    def flops(self) -> float:
        """Counted over forward and backward pass."""
        with FlopCounterMode(display=False) as counter:
            self._loss().backward()
        return float(counter.get_total_flops())

    def memory_mib(self) -> dict[str, float]:
        """Of one step; on a GPU also the allocator's peak."""
        saved: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._kept:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self._loss()
        loss.backward()
        self._optimizer.step()
        state = [t for s in self._optimizer.state.values() for t in s.values()]
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        figures = {
            "saved_mib": sum(saved.values()) / 2**20,
            "state_mib": sum(t.nbytes for t in state + gradients) / 2**20,
        }
        if self._device.type == "cuda":
            figures["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return figures

    def _loss(self) -> Tensor:
        with autocast(self._device):
            outputs = self._model(*self._inputs)
            if self._targets.is_floating_point():
                return F.mse_loss(outputs, self._targets)
            return F.cross_entropy(outputs, self._targets)

    def _now(self) -> Any:
        if self._device.type == "cpu":
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        if self._device.type == "cpu":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


@contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        yield


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
