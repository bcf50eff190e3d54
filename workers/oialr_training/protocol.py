"""What a controller and its worker process say to each other: one JSON object a line.

Messages go to the worker's standard input; events come back on a pipe of their own, so that nothing
that a library prints can break them. No torch: both sides import it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import nan
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import TypeAdapter

from oialr_training.errors import Cause, ProtocolError
from oialr_training.whole_files import written_whole

PROTOCOL = 1
"""It goes up when one side of an earlier version would not understand the other."""
EVENTS_FILE = "events.jsonl"
RESULT_FILE = "result.json"
MAX_RECORDS = 500
"""Rank updates and observations in one line, which so stays under 150 kB."""

StopReason = Literal["launch_stops", "pruned"]
"""Why a training ends early: the launch ends and another goes on with it, or it is not worth going
on with."""


class Record:
    """What is read from JSON has exactly these fields, of exactly these types."""

    __pydantic_config__: ClassVar = {"strict": True, "extra": "forbid"}

    @classmethod
    def __get_pydantic_core_schema__(cls, kind: Any, handler: Any) -> Any:
        """The same, made of a mapping: what JSON has in the place of a dataclass."""
        return handler(kind) | {"strict": False}


@dataclass(frozen=True, kw_only=True)
class Prepare(Record):
    """To the worker: import, load the data and run one step of this configuration, then wait."""

    config: Mapping[str, Any]
    data_dir: str | None


@dataclass(frozen=True, kw_only=True)
class Evaluate(Record):
    """To the worker: train this configuration, then end."""

    config: Mapping[str, Any]
    folder: str
    """Existing folder of the evaluation; the worker writes its result there."""
    evaluate_test: bool = False
    """Also measure the trained network on the test set."""
    save_checkpoint: bool = False
    """Write the trained network as safetensors."""
    state_file: str | None = None
    """Where the state of the training is kept: read if it is there, written after each epoch;
    None: nowhere."""


@dataclass(frozen=True, kw_only=True)
class Stop(Record):
    """To the worker: end after the epoch that is running, its state written; when it is `pruned`,
    at once, with the state of the epochs before."""

    reason: StopReason = "launch_stops"


@dataclass(frozen=True, kw_only=True)
class Hello(Record):
    """The first that a worker says, at once."""

    protocol: int
    versions: Mapping[str, str]
    """Of Python and of what trains there, as far as it is installed."""


@dataclass(frozen=True, kw_only=True)
class Ready(Record):
    """Everything is imported and loaded."""


@dataclass(frozen=True, kw_only=True)
class Started(Record):
    """The first training step begins."""

    at: float
    """Seconds since the epoch (UTC)."""
    total_steps: int
    parameters: int
    """Trainable parameters of the full-rank network."""
    layers: str
    """Which layers stay dense, and why; for people."""
    warnings: list[str] = field(default_factory=list)
    """Settings that have no effect in this training."""
    resumed_epoch: int = 0
    """Epochs that an earlier attempt had trained; they are reported again."""
    trained_s: float = 0.0
    """Seconds which these took."""
    device: str | None = None
    """What it really trains on: `cpu`, or `cuda:` and the index, UUID or MIG name by which the GPU
    was made visible; None: said by a version that did not tell."""


@dataclass(frozen=True, kw_only=True)
class Progressed(Record):
    """The training moves; sent every few seconds."""

    step: int


@dataclass(frozen=True, kw_only=True)
class RankUpdate(Record):
    """One layer's basis update."""

    step: int
    layer: str
    inner_rank: int
    full_inner_rank: int
    stability: float | None
    """Eq. (4), before against after the update."""


@dataclass(frozen=True, kw_only=True)
class Observation(Record):
    """How far one layer's bases and mixings have come between two instants."""

    step: int
    earlier_step: int
    layer: str
    stability: float
    """Eq. (4)."""
    mixing_similarity: float
    """Eq. (5)."""
    relative_mixing_similarity: float
    """Eq. (5) with the difference relative to the mixings' norms; NaN where either is unknown."""


@dataclass(frozen=True, kw_only=True)
class EpochPart(Record):
    """What one line has no room for of the epoch that is told next; see `EventReader`."""

    rank_updates: list[RankUpdate]
    observations: list[Observation]


@dataclass(frozen=True, kw_only=True)
class Epoch(Record):
    """One epoch of training and its validation."""

    epoch: int
    step: int
    metrics: Mapping[str, float]
    rank_updates: list[RankUpdate] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)


def _figure(label: str, unit: str) -> Any:
    """A resource's figure that may be unknown, with its label and unit for people."""
    return field(default=None, metadata={"label": label, "unit": unit})


@dataclass(frozen=True, kw_only=True)
class Resources(Record):
    """What one attempt used from its first training step on; None: nothing measured it.

    Each field's `metadata` has its `label` and `unit`.
    """

    gpu_energy_j: float | None = _figure("energy of the GPU", "J")
    """Of the whole GPU meanwhile."""
    cpu_energy_j: float | None = _figure("energy of the CPUs", "J")
    """Of all CPU packages of the machine meanwhile."""
    peak_host_memory_bytes: int | None = _figure("most memory, host", "B")
    """Since the process started; with its loader processes."""
    peak_gpu_memory_bytes: int | None = _figure("most memory, GPU", "B")
    """All tensors; without the context of CUDA and what the allocator keeps in reserve."""
    samples_per_s: float | None = _figure("samples a second", "1/s")
    """Images or windows trained, a second of training; validation is left out."""


@dataclass(frozen=True, kw_only=True)
class Stopped(Record):
    """The training ended early, as asked; its state is kept."""

    epoch: int
    reason: StopReason = "launch_stops"
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True, kw_only=True)
class Completed(Record):
    """The training reached its end."""

    metrics: Mapping[str, float]
    trainable_percent: float | None = None
    """None: what was trained does not say."""
    compression_percent: float | None = None
    device: str
    """`cpu`, or what the GPU is called."""
    duration_s: float
    at: float
    resources: Resources = field(default_factory=Resources)

    @property
    def share_of_parameters(self) -> dict[str, float]:
        """Trainable parameters and all, in percent of full rank's, where they are known."""
        named = {
            "trainable_percent": self.trainable_percent,
            "compression_percent": self.compression_percent,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Failed(Record):
    """The training cannot go on."""

    reason: str
    at: float
    cause: Cause
    """What is at fault; where nobody foresaw it, also that of a training that raised."""
    resources: Resources = field(default_factory=Resources)


Message = Prepare | Evaluate | Stop
Event = Hello | Ready | Started | Progressed | EpochPart | Epoch | Stopped | Completed | Failed
_TYPES: dict[str, Any] = {
    kind.__name__.lower(): kind for kind in (*get_args(Message), *get_args(Event))
}


def encode(message: Message | Event) -> bytes:
    """A line of JSON that ends in a newline; an epoch with many records takes several."""
    return b"".join(map(_line, _cut(message) if isinstance(message, Epoch) else [message]))


def _cut(epoch: Epoch) -> Iterator[EpochPart | Epoch]:
    """The epoch, before it what it has over `MAX_RECORDS`."""
    updates, observations = epoch.rank_updates, epoch.observations
    while len(updates) + len(observations) > MAX_RECORDS:
        room = max(MAX_RECORDS - len(updates), 0)
        yield EpochPart(rank_updates=updates[:MAX_RECORDS], observations=observations[:room])
        updates, observations = updates[MAX_RECORDS:], observations[room:]
    yield replace(epoch, rank_updates=updates, observations=observations)


def _line(message: Message | Event) -> bytes:
    content = {"type": type(message).__name__.lower(), **vars(message)}
    return json.dumps(content, default=vars).encode() + b"\n"


def decode(line: bytes | str) -> Any:
    """The message or event of one line.

    Raises:
        ProtocolError: when the line holds something else.
    """
    try:
        content = json.loads(line, parse_int=_int64)
        kind = _TYPES[content.pop("type")]
        for observation in content.get("observations", ()) if kind is Epoch else ():
            _name_similarities(observation)
        return _validator(kind).validate_python(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{line!r:.200} ({str(error)!r:.200})"
        raise ProtocolError(f"no message of this protocol: {reason}") from None


def _name_similarities(observation: dict[str, Any]) -> None:
    """Version 0.1.0 had the relative similarity only, under the name of Eq. (5)."""
    if "relative_mixing_similarity" not in observation:
        observation["relative_mixing_similarity"] = observation["mixing_similarity"]
        observation["mixing_similarity"] = nan


class EventReader:
    """Lines → events, an epoch in one piece again."""

    def __init__(self) -> None:
        self._parts: list[EpochPart | Epoch] = []

    def read(self, lines: Iterable[bytes | str]) -> Iterator[Event]:
        """The events of these lines, which follow those of the last call.

        Raises:
            ProtocolError: see `decode`.
        """
        for event in map(decode, lines):
            match event:
                case EpochPart():
                    self._parts.append(event)
                case Epoch():
                    parts, self._parts = [*self._parts, event], []
                    yield replace(
                        event,
                        rank_updates=[update for part in parts for update in part.rank_updates],
                        observations=[seen for part in parts for seen in part.observations],
                    )
                case _:
                    yield event


def _int64(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        raise ValueError("an integer has 64 bits")  # in the database, too
    return number


_validator = cache(TypeAdapter[Any])


def write_result(folder: Path, result: Completed | Failed) -> None:
    """Put the result into the evaluation's folder: whole or not at all."""
    with written_whole(folder / RESULT_FILE) as aside:
        aside.write_bytes(encode(result))
