"""The state of a training on disk, from which another process goes on bit for bit.

A file is a line that names its format, the SHA-256 digest of the rest, and the rest as `torch.save`
writes it; it is read without what pickle can execute (`weights_only`). It is moved into place
whole, but not forced to the disk: what a power failure damages is told by the digest.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from oialr_training.config import TrainingConfig
from oialr_training.errors import ConfigError
from oialr_training.tasks import validate_training
from oialr_training.whole_files import written_whole

log = logging.getLogger("oialr_training")

FORMAT = b"oialr training state 1\n"
DIGEST_BYTES = hashlib.sha256().digest_size
READ_BYTES = 1 << 20

# What changes no digit of a result. The device and its threads are told apart as they really are.
_WITHOUT_EFFECT: dict[str, Any] = {
    "provenance": True,
    "device": True,
    "num_threads": True,
    "data": {"num_loader_processes"},
}


def identity(config: TrainingConfig, device: torch.device) -> str:
    """What the digits of a training follow from, as text: equal texts, equal trainings.

    Sums depend on the kind of device, on torch, and on a CPU on the number of threads. GPUs are not
    told apart: they do not promise the last digit even to themselves.
    """
    machine: dict[str, Any] = {"torch": torch.__version__, "device": device.type}
    if device.type == "cpu":
        machine["num_threads"] = torch.get_num_threads()
    return _as_text(config, machine) if isinstance(config, TrainingConfig) else None


def _as_text(config: TrainingConfig, machine: Mapping[str, Any]) -> str:
    content = config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    return json.dumps({**content, **machine}, sort_keys=True)


def _as_of_today(identity: str) -> str | None:
    """What an earlier version's identity is today: fields that came later have their defaults."""
    stored = json.loads(identity)
    of_machine = stored.keys() & {"torch", "device", "num_threads"}
    machine = {name: stored.pop(name) for name in of_machine}
    try:
        config = validate_training(stored, "state")
    except ConfigError:
        return None
    return _as_text(config, machine) if isinstance(config, TrainingConfig) else None


class StateFile:
    """The file that keeps the state of one training."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # One name whoever writes: what a killed worker left half-written, the next overwrites.
        self._aside = path.with_name(f"{path.name}.part")

    def write(self, identity: str, content: dict[str, Any]) -> None:
        """Replace the state; where that fails, the old one stays and a line in the log says so."""
        payload = None
        try:
            with written_whole(self._path, self._aside) as aside, aside.open("wb") as file:
                file.write(FORMAT + bytes(DIGEST_BYTES))
                payload = _Digested(file)
                torch.serialization.set_crc32_options(False)  # slower than the digest
                torch.save({"identity": identity, **content}, cast(IO[bytes], payload))
                file.seek(len(FORMAT))
                file.write(payload.digest())
        except (OSError, RuntimeError) as error:
            # torch makes a RuntimeError of a failing write.
            cause = payload.error if payload and payload.error else error
            if not isinstance(cause, OSError):
                raise
            log.warning("cannot keep the training's state in %s: %s", self._path, cause.strerror)

    def read(self, identity: str) -> dict[str, Any] | None:
        """The state of this training; None, and a line in the log, if the file holds no such."""
        try:
            with self._path.open("rb") as file:
                content = _read(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            known = error.strerror if isinstance(error, OSError) else None
            reason = known or str(error).partition("\n")[0]
            log.warning("starting from the beginning: cannot use %s: %s", self._path, reason)
            return None
        if identity not in (content["identity"], _as_of_today(content["identity"])):
            reason = "it is of another configuration or machine"
            log.warning("starting from the beginning: cannot use %s: %s", self._path, reason)
            return None
        return content

    def delete(self) -> None:
        """Remove the state, which nobody needs any more."""
        for path in (self._path, self._aside):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("cannot remove %s: %s", path, error.strerror)


class _Digested:
    """Passes on what is written, and takes its digest."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        self._digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Nothing to do before the digest stands in front; torch asks for it."""

    def digest(self) -> bytes:
        return self._digest.digest()


def _read(file: io.BufferedReader) -> dict[str, Any]:
    if file.read(len(FORMAT)) != FORMAT:
        raise ValueError("it is no state of a training in this format")
    digest = file.read(DIGEST_BYTES)
    found = hashlib.sha256()
    while chunk := file.read(READ_BYTES):
        found.update(chunk)
    if found.digest() != digest:
        raise ValueError("it is damaged")
    file.seek(len(FORMAT) + DIGEST_BYTES)
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return content


def random_states(device: torch.device) -> dict[str, Any]:
    """Where all random number generators stand."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    generator = numpy_state["state"]
    return {
        "python": random.getstate(),
        "numpy": {
            **numpy_state,
            "state": {"key": generator["key"].tolist(), "pos": generator["pos"]},
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Put all random number generators where they stood."""
    random.setstate(states["python"])
    generator = states["numpy"]["state"]
    key = np.array(generator["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {"key": key, "pos": generator["pos"]}})
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
