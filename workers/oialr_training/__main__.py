"""The worker process: `python -m oialr_training --events FD --parent PID`.

It waits for messages on its standard input, trains one evaluation and ends. It never outlives the
process that started it: end-of-file on its input or the death of its parent kills its whole group.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from oialr_training.errors import DataError, ProtocolError
from oialr_training.parent_death import die_with
from oialr_training.protocol import (
    EVENTS_FILE,
    Completed,
    Epoch,
    Evaluate,
    Event,
    Failed,
    Prepare,
    Progressed,
    Ready,
    Started,
    Stop,
    Stopped,
    decode,
    encode,
    write_result,
)
from oialr_training.tasks import validate_training
from oialr_training.whole_files import written_whole

if TYPE_CHECKING:
    from torch import nn

    from oialr_training.config import TrainingConfig
    from oialr_training.data import Cut
    from oialr_training.training import Training

log = logging.getLogger("oialr_training")
READ_BYTES = 1 << 16
WITHOUT_TORCH = f"{sys.executable} has no torch: run pip install 'oialr-search[train]'"
CHECKPOINT_FILE = "checkpoint.safetensors"


class Worker:
    """The state of one worker process: what it has loaded, and its pipe to the controller."""

    def __init__(self, events_fd: int) -> None:
        self._events_fd = events_fd
        self._folder: Path | None = None
        self._data_dir: Path | None = None
        self._data_settings: object = None
        self._cut: Cut | None = None

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
        from oialr_training.failures import TOLD, failed

        self._data_dir = Path(message.data_dir) if message.data_dir else None
        try:
            self._warm_up(self._set_up(validate_training(message.config, "request")))
        except Exception as error:
            if not isinstance(error, TOLD):
                log.exception("what the preparation raised:")
            self.report(replace(failed(error), cause="configuration"))
            sys.exit(1)
        self.report(Ready())

    def evaluate(self, message: Evaluate, stops: Sequence[Stop]) -> None:
        """Train; the result is written to the evaluation's folder, then reported."""
        from oialr_training.failures import TOLD, failed
        from oialr_training.resources import Meter
        from oialr_training.state import StateFile
        from oialr_training.training import Interrupted, train

        self._folder = Path(message.folder)
        state_file = StateFile(Path(message.state_file)) if message.state_file else None
        result: Completed | Failed
        meter = Meter()
        try:
            training = self._set_up(validate_training(message.config, "request"))
            trained = train(
                training,
                self.report,
                evaluate_test=message.evaluate_test,
                state_file=state_file,
                stop=lambda: stops[0].reason if stops else None,
                meter=meter,
            )
            result = trained.completed
            if message.save_checkpoint:
                _save_checkpoint(trained.model, self._folder / CHECKPOINT_FILE)
        except Interrupted as end:
            self.report(Stopped(epoch=end.epoch, reason=end.reason, resources=meter.read()))
            return
        except TOLD as error:
            result = replace(failed(error), resources=meter.read())
        except Exception as error:  # whatever a training raises is that evaluation's result
            log.exception("what the training raised:")
            result = replace(failed(error), resources=meter.read())
        try:
            write_result(self._folder, result)
        except OSError as error:
            log.warning("cannot write the result to %s: %s", self._folder, error.strerror)
        else:
            if state_file and not (isinstance(result, Failed) and result.cause == "machine"):
                state_file.delete()
        self.report(result)

    def _set_up(self, config: TrainingConfig) -> Training:
        import torch

        from oialr_training.training import set_up

        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        if self._cut is None or config.data_settings != self._data_settings:
            try:
                self._cut = config.load_data(self._data_dir)
            except OSError as error:
                raise DataError(f"cannot read {self._data_dir}: {error.strerror}") from None
            self._data_settings = config.data_settings
        return set_up(config, self._cut)

    @staticmethod
    def _warm_up(training: Training) -> None:
        """One tiny step and one SVD: the first of each loads libraries and starts threads."""
        import torch

        from oialr_training.resources import Meter
        from oialr_training.training import require_metrics

        inputs, targets = next(iter(training.splits.train.epoch(0)))
        two = tuple(part[:2] for part in inputs)
        loss = training.config.training_step(training.model, two, targets[:2])
        loss.backward()  # type: ignore[no-untyped-call]
        training.optimizer.step()
        require_metrics(training)
        torch.linalg.svd(torch.rand(4, 4, device=training.device))
        Meter().start(training.device)  # opens NVML


def log_event(event: Event) -> None:
    """One line for each event in the evaluation's log."""
    match event:
        case Started():
            log.info("training starts on %s: %d steps", event.device, event.total_steps)
            if event.resumed_epoch:
                log.info("going on after epoch %d", event.resumed_epoch)
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


def _save_checkpoint(model: nn.Module, path: Path) -> None:
    """Dense weights, which the network loads as it is built, without OIALR."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from oialr import export

    try:
        with written_whole(path) as aside:
            save_file({k: v.contiguous() for k, v in export(model).state_dict().items()}, aside)
    except (SafetensorError, OSError) as error:
        raise OSError(f"cannot write {path}: {error}") from None


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


def main() -> None:
    """Serve one `Prepare` (optional) and one `Evaluate`, which a `Stop` ends early."""
    parser = argparse.ArgumentParser(prog="python -m oialr_training", description=__doc__)
    parser.add_argument("--events", type=int, required=True, help="descriptor of the event pipe")
    parser.add_argument("--parent", type=int, required=True, help="process id of the starter")
    arguments = parser.parse_args()
    die_with(arguments.parent)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.set_inheritable(arguments.events, False)
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    stops: list[Stop] = []
    threading.Thread(target=_read_messages, args=(messages, stops), daemon=True).start()
    worker = Worker(arguments.events)
    if find_spec("torch") is None:
        worker.report(Failed(reason=WITHOUT_TORCH, at=time.time(), cause="configuration"))
        sys.exit(1)
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
