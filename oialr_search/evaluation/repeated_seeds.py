"""Trains a configuration with several seeds, each in a worker process of its own, as a search does.

The same worker, request and number of threads as in the search: the same seed gives, on a CPU, the
same fitness to the last digit.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from oialr_search.evaluation.devices import WorkerSettings, with_num_threads
from oialr_search.evaluation.worker_process import WorkerDied, WorkerProcess
from oialr_training.config import TaskConfig
from oialr_training.errors import ConfigError, KnownError, ProtocolError
from oialr_training.protocol import (
    EVENTS_FILE,
    RESULT_FILE,
    Completed,
    Epoch,
    Evaluate,
    Event,
    Failed,
    Prepare,
    decode,
)

METRICS_FILE = "metrics.jsonl"
POLL_S = 0.5


class TrainingFailed(KnownError):  # noqa: N818  (an outcome)
    """A training did not reach its end."""

    cause = "training"


def train(
    config: TaskConfig,
    *,
    folder: Path,
    data_dir: str | None,
    settings: WorkerSettings,
    report: Callable[[Event], None],
    worker_type: Callable[[WorkerSettings, Path], WorkerProcess] = WorkerProcess,
) -> Completed:
    """Train once; writes log, metrics an epoch, result and checkpoint into `folder`.

    Raises:
        ConfigError: when the configuration or the data are wrong.
        TrainingFailed: when it diverges, raises or is killed.
    """
    request = with_num_threads(config.model_dump(mode="json"), settings.num_threads)
    made = _make(folder)
    for name in (RESULT_FILE, EVENTS_FILE):
        (folder / name).unlink(missing_ok=True)
    worker = worker_type(settings, folder / "log.txt")
    try:
        worker.send(Prepare(config=request, data_dir=data_dir))
        worker.send(
            Evaluate(
                config=request,
                folder=str(folder.absolute()),
                evaluate_test=True,
                save_checkpoint=True,
            )
        )
        return _follow(worker, folder, report)
    except ConfigError:
        worker.log_path.unlink()
        for path in reversed(made):
            path.rmdir()
        raise
    finally:
        worker.kill()


def refuse_completed(folder: Path) -> None:
    """A completed training is not overwritten; a failed one is.

    Raises:
        ConfigError: when the folder holds a completed training.
    """
    try:
        result = decode((folder / RESULT_FILE).read_bytes())
    except (OSError, ProtocolError):
        return
    if isinstance(result, Completed):
        raise ConfigError(f"{folder} holds a training already: name another --output")


def summary(results: Sequence[Completed]) -> list[dict[str, float | int | str | None]]:
    """One row a metric: mean and standard deviation (of the sample) over the seeds."""
    columns: dict[str, list[float]] = {}
    for result in results:
        figures: Mapping[str, float] = {
            **result.metrics,
            **result.share_of_parameters,
            "duration_s": result.duration_s,
            **{name: used for name, used in vars(result.resources).items() if used is not None},
        }
        for name, value in figures.items():
            columns.setdefault(name, []).append(value)
    return [
        {
            "metric": name,
            "mean": statistics.fmean(values),
            "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
            "seeds": len(values),
        }
        for name, values in columns.items()
    ]


def _follow(worker: WorkerProcess, folder: Path, report: Callable[[Event], None]) -> Completed:
    with (folder / METRICS_FILE).open("w") as metrics:
        while True:
            try:
                events = worker.receive(POLL_S)
            except WorkerDied as death:
                raise TrainingFailed(f"{death} (log: {worker.log_path})") from None
            for event in events:
                report(event)
                match event:
                    case Epoch():
                        numbers = {
                            k: v if math.isfinite(v) else None for k, v in event.metrics.items()
                        }
                        row = {"epoch": event.epoch, "step": event.step, **numbers}
                        metrics.write(json.dumps(row) + "\n")
                    case Failed(cause="configuration"):
                        (folder / METRICS_FILE).unlink()
                        raise ConfigError(event.reason)
                    case Failed():
                        raise TrainingFailed(f"{event.reason} (log: {worker.log_path})")
                    case Completed():
                        return event


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns the new ones."""
    new = [path for path in reversed([folder, *folder.parents]) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from None
    return new
