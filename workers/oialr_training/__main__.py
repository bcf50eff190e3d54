"""The worker process: `python -m oialr_training --events FD --parent PID`.

It waits for messages on its standard input, trains one evaluation and ends. It never outlives the
process that started it: end-of-file on its input or the death of its parent kills its whole group.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import platform
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from oialr_training.config import TaskConfig
from oialr_training.errors import ConfigError, ProtocolError
from oialr_training.failures import failed, is_told
from oialr_training.parent_death import die_with
from oialr_training.protocol import (
    EVENTS_FILE,
    PROTOCOL,
    Completed,
    Epoch,
    Evaluate,
    Event,
    Failed,
    Hello,
    Prepare,
    Progressed,
    Ready,
    Resources,
    Started,
    Stop,
    Stopped,
    decode,
    encode,
    write_result,
)
from oialr_training.tasks import validate_training
from oialr_training.tasks.command import CommandTraining
from oialr_training.trainer import Interrupted, Trainer

log = logging.getLogger("oialr_training")
READ_BYTES = 1 << 16
WITHOUT_TORCH = f"{sys.executable} has no torch: run pip install 'oialr-search[train]'"


class Worker:
    """The state of one worker process: what it has loaded, and its pipe to the controller."""

    def __init__(self, events_fd: int) -> None:
        self._events_fd = events_fd
        self._folder: Path | None = None
        self._data_dir: Path | None = None
        self._trainer: Trainer[Any] | None = None

    def report(self, event: Event) -> None:
        """Write one event to the folder and the pipe, and what people want of it to the log."""
        log_event(event)
        line = encode(event)
        path = self._folder and self._folder / EVENTS_FILE
        if path and isinstance(event, Progressed):
            with suppress(OSError):  # told where a line cannot be written
                os.utime(path)  # when it was last heard
        elif path:
            try:
                _append(line, path)
            except OSError as error:
                log.warning("cannot write %s: %s", path, error.strerror)
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._events_fd, rest) :]

    def prepare(self, message: Prepare) -> None:
        """Import everything, load the data and train one step, so that an evaluation starts warm.

        Reports `Ready`, or `Failed` when the configuration or the data are wrong.
        """
        self._data_dir = Path(message.data_dir) if message.data_dir else None
        try:
            config = validate_training(message.config, "request")
            self._trainer = self._trainer_of(config)
            self._trainer.prepare(config)
        except Exception as error:
            if not is_told(error):
                log.exception("what the preparation raised:")
            self.report(replace(failed(error), cause="configuration"))
            sys.exit(1)
        self.report(Ready())

    def evaluate(self, message: Evaluate, stops: Sequence[Stop]) -> None:
        """Train; the result is written to the evaluation's folder, then reported."""
        self._folder = Path(message.folder)
        result: Completed | Failed
        trainer = self._trainer
        try:
            config = validate_training(message.config, "request")
            trainer = trainer or self._trainer_of(config)
            result = trainer.evaluate(config, message, self.report, stops)
        except Interrupted as end:
            used = trainer.resources() if trainer else Resources()
            self.report(Stopped(epoch=end.epoch, reason=end.reason, resources=used))
            return
        except Exception as error:  # whatever a training raises is that evaluation's result
            if not is_told(error):
                log.exception("what the training raised:")
            used = trainer.resources() if trainer else Resources()
            result = replace(failed(error), resources=used)
        try:
            write_result(self._folder, result)
        except OSError as error:
            log.warning("cannot write the result to %s: %s", self._folder, error.strerror)
        else:
            if trainer and not (isinstance(result, Failed) and result.cause == "machine"):
                trainer.forget(message)
        self.report(result)

    def _trainer_of(self, config: TaskConfig) -> Trainer[Any]:
        """What evaluates such a configuration; its imports are a good part of a worker's start.

        Raises:
            ConfigError: when torch is needed and missing.
        """
        if isinstance(config, CommandTraining):
            from oialr_training.command_trainer import CommandTrainer

            return CommandTrainer(self._data_dir)
        if find_spec("torch") is None:
            raise ConfigError(WITHOUT_TORCH)
        from oialr_training.network_trainer import NetworkTrainer

        return NetworkTrainer(self._data_dir)


def log_event(event: Event) -> None:
    """One line for each event in the evaluation's log."""
    match event:
        case Started():
            if event.device:  # else it is a program's, which has said its command line
                log.info("training starts on %s: %d steps", event.device, event.total_steps)
            if event.resumed_epoch:
                log.info("going on after epoch %d", event.resumed_epoch)
            if event.layers:
                log.info("layers: %s", event.layers)
            for warning in event.warnings:
                log.warning("%s", warning)
        case Epoch():
            for update in event.rank_updates:
                log.info(
                    "step %d: %s has inner rank %d of %d",
                    update.step, update.layer, update.inner_rank, update.full_inner_rank,
                )  # fmt: skip
            metrics = "  ".join(f"{name} {value:.6g}" for name, value in event.metrics.items())
            log.info("epoch %d: %s", event.epoch, metrics)
        case Stopped():
            log.info("stopped after epoch %d: %s", event.epoch, event.reason)
        case Completed():
            log.info("completed after %.1f s", event.duration_s)
        case Failed():
            log.error("failed: %s", event.reason)


def _append(line: bytes, path: Path) -> None:
    """Add a whole line to a file, or nothing."""
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(end)
            raise


def _read_messages(messages: queue.SimpleQueue[bytes], stops: list[Stop]) -> None:
    """Pass on standard input line by line; its end kills this process and its children.

    A `Stop` is also added to `stops`, as whoever trains takes no message.

    Read without Python's buffer, whose lock aborts an interpreter that ends meanwhile.
    """
    buffer = b""
    while chunk := os.read(sys.stdin.fileno(), READ_BYTES):
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            messages.put(line)
            with suppress(ProtocolError):  # told by the main thread
                if isinstance(message := decode(line), Stop):
                    stops.append(message)
    os.killpg(0, signal.SIGKILL)


def _versions() -> dict[str, str]:
    """Nothing is imported for it."""
    found = {"python": platform.python_version()}
    for package in ("oialr-training", "torch", "numpy"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def main() -> None:
    """Serve one `Prepare` (optional) and one `Evaluate`, which a `Stop` ends early."""
    parser = argparse.ArgumentParser(prog="python -m oialr_training", description=__doc__)
    parser.add_argument(
        "--events", type=int, required=True,
        help="descriptor of the event pipe; 1: standard output, and what is printed goes to "
        "standard error",
    )  # fmt: skip
    parser.add_argument("--parent", type=int, help="process id of the starter, if that is our own")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        die_with(arguments.parent)
    if arguments.events == 1:
        arguments.events = os.dup(1)
        os.dup2(2, 1)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.set_inheritable(arguments.events, False)
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    stops: list[Stop] = []
    threading.Thread(target=_read_messages, args=(messages, stops), daemon=True).start()
    worker = Worker(arguments.events)
    worker.report(Hello(protocol=PROTOCOL, versions=_versions()))
    while True:
        match decode(messages.get()):
            case Prepare() as message:
                worker.prepare(message)
            case Evaluate() as message:
                worker.evaluate(message, stops)
                return
            case Stop():
                return


if __name__ == "__main__":
    main()
