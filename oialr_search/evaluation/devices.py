"""What the workers of a rank train on: a GPU of the node or none, and their share of its cores."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pynvml

from oialr_search.space.workers import WorkerConfig


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What all workers of one controller rank share."""

    gpu: str | None
    """Index, UUID or MIG name of the one visible GPU; None: train on the CPU."""
    num_threads: int
    start: WorkerConfig = field(default_factory=WorkerConfig)
    """How they are started."""


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use, by index, UUID or MIG name, as they were given."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1")]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def choose_gpu(device: str, gpus: Sequence[str], local_rank: int) -> str | None:
    """The GPU of the rank with this node-local number; ranks share when there are too few.

    Raises:
        LookupError: when a GPU is asked for and none is visible.
    """
    if device == "cuda" and not gpus:
        raise LookupError(f"no GPU is visible on {socket.gethostname()} for `device`, got 'cuda'")
    return gpus[local_rank % len(gpus)] if gpus and device != "cpu" else None


def affinity() -> frozenset[int]:
    """The CPU cores that this process may run on."""
    return frozenset(os.sched_getaffinity(0))


def threads_per_rank(own: frozenset[int], on_node: Sequence[frozenset[int]]) -> int:
    """CPU threads of one rank's trainings: its cores, shared with the ranks bound to the same.

    `on_node` lists the cores of all ranks of the node, this one's among them.
    """
    return max(1, len(own) // sum(1 for cores in on_node if cores & own))


def with_num_threads(training: Mapping[str, Any], num_threads: int) -> dict[str, Any]:
    """The training configuration with its number of threads decided."""
    decided = dict(training)
    if decided.get("num_threads") is None:
        decided["num_threads"] = num_threads
    return decided
