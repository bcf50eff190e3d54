"""The training loop: one configuration, trained and validated epoch by epoch with OIALR."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from oialr import OIALR, NotFiniteError, Observer, OIALRSettings
from oialr_training.config import TrainingConfig
from oialr_training.data import Batch, Batches, Cut, LoadSettings, Splits
from oialr_training.errors import ConfigError, DeviceError, DivergedError
from oialr_training.protocol import (
    Completed,
    Epoch,
    Event,
    EventReader,
    Observation,
    Progressed,
    RankUpdate,
    Started,
    StopReason,
    encode,
)
from oialr_training.resources import Meter
from oialr_training.schedules import CosineSchedule
from oialr_training.sections import ObservationConfig, OIALRConfig
from oialr_training.state import StateFile, identity, random_states, set_random_states
from oialr_training.trainer import Interrupted

PROGRESS_INTERVAL_S = 5.0

# A state that is written faster than this is written after every epoch, another so seldom that
# writing stays a small share of the training.
CHEAP_WRITE_S = 0.25
MAX_WRITE_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, ready to start: everything that its configuration decides."""

    config: TrainingConfig
    splits: Splits
    model: nn.Module
    optimizer: torch.optim.AdamW
    oialr: OIALR | None
    observer: Observer | None
    device: torch.device
    total_steps: int
    num_parameters: int
    """Trainable parameters before any conversion."""


def device_of(config: TrainingConfig) -> torch.device:
    """The device of a training.

    Raises:
        DeviceError: when a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise DeviceError("no GPU is visible for `device`, got 'cuda'")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def load_settings(config: TrainingConfig) -> LoadSettings:
    """How this training wants its batches."""
    return LoadSettings(
        batch_size=config.batch_size,
        seed=config.seed,
        device=device_of(config),
        num_threads=config.num_threads or os.cpu_count() or 1,
    )


def set_up(config: TrainingConfig, cut: Cut) -> Training:
    """Seed all generators, then build the network and what trains it."""
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    device = device_of(config)
    splits = cut(load_settings(config))
    model = config.network(splits)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"`network` of the task {config.task} returns a torch.nn.Module, got {model!r:.60}"
        )
    model = model.to(device)
    num_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
    )
    oialr = None
    if config.oialr is not None:
        oialr = OIALR(model, optimizer, OIALRSettings(**config.oialr.model_dump()))
    observer = None
    if config.observation is not None:
        watched = config.observation
        observer = Observer(model, interval=watched.interval_steps, lags=watched.lags)
    return Training(
        config=config,
        splits=splits,
        model=model,
        optimizer=optimizer,
        oialr=oialr,
        observer=observer,
        device=device,
        total_steps=config.epochs * splits.train.num_batches,
        num_parameters=num_parameters,
    )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training that reached its end."""

    completed: Completed
    model: nn.Module
    """The network that the metrics are of."""


def train(
    training: Training,
    report: Callable[[Event], None],
    *,
    evaluate_test: bool = False,
    state_file: StateFile | None = None,
    stop: Callable[[], StopReason | None] = lambda: None,
    meter: Meter | None = None,
) -> Trained:
    """Train to the end; `report` is handed an event at the start and after each epoch.

    With a `state_file` the training goes on where that stands, and is kept there after each epoch
    that is not the last; not after each where writing would take a good part of the time. `stop` is
    asked after each of these; what is not worth going on with need not end its epoch. The `meter`
    measures what this attempt uses.

    Raises:
        DivergedError: when the training loss is no finite number, or the result's validation loss.
        Interrupted: when `stop` gave a reason.
    """
    config = training.config
    best = _Best(training, keep_network=config.result_epoch == "best")
    epochs: list[Epoch] = []
    earlier_s = 0.0  # trained by earlier attempts
    if state_file and (state := state_file.read(identity(config, training.device))):
        epochs, earlier_s = _restore(training, best, state)
    meter = meter or Meter()
    meter.start(training.device)
    start = written = time.monotonic()
    write_s = 0.0
    report(
        Started(
            at=time.time(),
            total_steps=training.total_steps,
            parameters=training.num_parameters,
            layers=describe_layers(training),
            warnings=settings_without_effect(training),
            resumed_epoch=len(epochs),
            trained_s=earlier_s,
            device=visible_device(training.device),
        )
    )
    for event in epochs:
        report(event)
    pulse = _Pulse(report, meter, stop)
    pulse.epochs = len(epochs)
    for epoch in range(len(epochs) + 1, config.epochs + 1):
        event = _run_epoch(training, epoch, pulse, meter)
        report(event)
        epochs.append(event)
        pulse.epochs = epoch
        metrics = {"epoch": float(epoch), **event.metrics}  # a result says of which epoch it is
        _require_finite("train_loss", metrics)
        if not best.keep_network:
            _require_finite("validation_loss", metrics)
        best.compare(metrics)
        if best.epochs_since >= (config.early_stopping_patience or math.inf):
            break
        if epoch == config.epochs:
            break
        stopping, now = stop(), time.monotonic()
        worthwhile = write_s <= max(CHEAP_WRITE_S, MAX_WRITE_SHARE * (now - written))
        if state_file and (stopping or worthwhile):
            state = _state(training, best, epochs, earlier_s + now - start)
            state_file.write(identity(config, training.device), state)
            written = time.monotonic()
            write_s = written - now
        if stopping:
            raise Interrupted(epoch, stopping)
    pulse.stop = lambda: None
    model = training.model
    if best.keep_network:
        metrics = best.metrics or metrics
        _require_finite("validation_loss", metrics)
        model = best.network()
    if evaluate_test:
        test = _evaluate(training, model, training.splits.test, pulse)
        metrics = metrics | {f"test_{name}": value for name, value in test.items()}
    completed = Completed(
        metrics=metrics,
        trainable_percent=metrics["trainable_percent"],
        compression_percent=metrics["compression_percent"],
        device=_device_name(training.device),
        duration_s=earlier_s + time.monotonic() - start,
        at=time.time(),
        resources=meter.read(),
    )
    return Trained(completed=completed, model=model)


def _state(
    training: Training, best: _Best, epochs: list[Epoch], trained_s: float
) -> dict[str, Any]:
    """All that the rest of the training follows from, as `torch.load` reads it without pickle.

    The order of the samples is not in it: it follows from seed and epoch.
    """
    oialr, observer = training.oialr, training.observer
    return {
        "epochs": [encode(event).decode() for event in epochs],
        "trained_s": trained_s,
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "oialr": oialr.state_dict() if oialr else None,
        "observer": observer.state_dict() if observer else None,
        "best": best.state_dict(),
        "random": random_states(training.device),
    }


def _restore(training: Training, best: _Best, state: dict[str, Any]) -> tuple[list[Epoch], float]:
    """Put a fresh training where the state stands; its epochs, and the seconds they took."""
    if training.oialr:
        training.oialr.load_state_dict(state["oialr"])  # first: the others' sizes follow from it
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    if training.observer:
        training.observer.load_state_dict(state["observer"])
    best.load_state_dict(state["best"])
    set_random_states(state["random"], training.device)
    lines = [line for epoch in state["epochs"] for line in epoch.splitlines()]
    return [e for e in EventReader().read(lines) if isinstance(e, Epoch)], state["trained_s"]


class _Best:
    """The epoch with the lowest validation loss so far; one whose loss is no number is never it."""

    def __init__(self, training: Training, *, keep_network: bool) -> None:
        self._training = training
        self.keep_network = keep_network
        self._network: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.epochs_since = 0

    def compare(self, metrics: dict[str, float]) -> None:
        """Take in the latest epoch."""
        lowest = self.metrics.get("validation_loss", math.inf)
        if not metrics["validation_loss"] < lowest:
            self.epochs_since += 1
            return
        self.metrics, self.epochs_since = metrics, 0
        if self.keep_network:
            oialr, weights = self._training.oialr, self._training.model.state_dict()
            self._network = {
                "model": {name: tensor.clone() for name, tensor in weights.items()},
                "oialr": oialr.state_dict() if oialr else None,
            }

    def network(self) -> nn.Module:
        """A network of its own, as the trained one was then."""
        training = self._training
        model = training.config.network(training.splits).to(training.device)
        if training.oialr:
            # Dense at first, so that nothing is decomposed only to be overwritten.
            settings = replace(training.oialr.settings, full_rank_warmup=True, delay_steps=1)
            oialr = OIALR(model, torch.optim.AdamW(model.parameters()), settings)
            oialr.load_state_dict(self._network["oialr"])
        model.load_state_dict(self._network["model"])
        return model

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {
            "metrics": self.metrics,
            "epochs_since": self.epochs_since,
            "network": self._network,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.metrics, self.epochs_since = state["metrics"], state["epochs_since"]
        self._network = state["network"]


class _Pulse:
    """Tells from time to time that the training moves, and ends it when it is given up."""

    def __init__(
        self,
        report: Callable[[Event], None],
        meter: Meter,
        stop: Callable[[], StopReason | None],
    ) -> None:
        self._report = report
        self._meter = meter
        self._told = time.monotonic()
        self.stop = stop
        self.step = self.epochs = 0

    def beat(self) -> None:
        """A batch is done.

        Raises:
            Interrupted: when the training is not worth going on with.
        """
        if self.stop() == "pruned":
            raise Interrupted(self.epochs, "pruned")
        now = time.monotonic()
        if now - self._told >= PROGRESS_INTERVAL_S:
            self._told = now
            self._report(Progressed(step=self.step))
            self._meter.look()


class _Watched:
    """Batches that make the pulse beat."""

    def __init__(self, batches: Batches, pulse: _Pulse) -> None:
        self.batches = batches
        self.num_batches = batches.num_batches
        self._pulse = pulse

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See `oialr_training.data.Batches.epoch`."""
        for batch in self.batches.epoch(epoch):
            yield batch
            self._pulse.beat()


def _run_epoch(training: Training, epoch: int, pulse: _Pulse, meter: Meter) -> Epoch:
    """Train and validate."""
    started = time.perf_counter()
    trained = _train_epoch(training, epoch, pulse)
    meter.add(trained.num_samples, time.perf_counter() - started)
    validation = _evaluate(training, training.model, training.splits.validation, pulse)
    metrics = {
        "train_loss": trained.loss,
        **{f"validation_{name}": value for name, value in validation.items()},
        "lr": trained.lr,
        "epoch_s": time.perf_counter() - started,
        "trainable_percent": trainable_percent(training),
        "compression_percent": compression_percent(training),
    }
    return Epoch(
        epoch=epoch,
        step=epoch * training.splits.train.num_batches,
        metrics=metrics,
        rank_updates=trained.rank_updates,
        observations=trained.observations,
    )


class _FirstBatch:
    """Only the first of many batches."""

    num_batches = 1

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See `oialr_training.data.Batches.epoch`."""
        yield next(iter(self._batches.epoch(epoch)))


def require_metrics(training: Training) -> None:
    """See that what a task measures is what it says, on one batch.

    Raises:
        ConfigError: when it is not.
    """
    training.model.eval()
    with _autocast(training):
        first = _FirstBatch(training.splits.validation)
        measured = training.config.measure(training.model, first)
    promised = [metric.name for metric in training.config.metrics]
    if set(measured) != set(promised):
        raise ConfigError(
            f"the task {training.config.task} measures {', '.join(measured) or 'nothing'}, "
            f"its `metrics` are {', '.join(promised)}"
        )


def _require_finite(name: str, metrics: Mapping[str, float]) -> None:
    if not math.isfinite(metrics[name]):
        epoch = int(metrics["epoch"])
        raise DivergedError(f"diverged: {name} is {metrics[name]} after epoch {epoch}")


def trainable_percent(training: Training) -> float:
    """Trainable parameters as % of the full-rank network's."""
    return training.oialr.trainable_percent if training.oialr else 100.0


def compression_percent(training: Training) -> float:
    """All parameters as % of the full-rank network's; can pass 100 %."""
    return training.oialr.compression_percent if training.oialr else 100.0


def describe_layers(training: Training) -> str:
    """Which layers stay dense, and why."""
    if training.oialr is None:
        return "full rank throughout"
    dense = [f"{name} ({reason})" for name, reason in training.oialr.dense_layers.items()]
    return f"all become low-rank but {', '.join(dense) or 'none'}"


def settings_without_effect(training: Training) -> list[str]:
    """A sentence for each setting that this training never comes to use."""
    config, warnings = training.config, []
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu and config.device == "auto" and training.device.type == "cpu":
        warnings.append(f"training on the CPU: torch cannot use the visible GPU {gpu}")
    warnings += _oialr_without_effect(config.oialr, training.total_steps) if config.oialr else []
    if config.observation is not None:
        warnings += _observation_without_effect(config.observation, training.total_steps)
    schedule = config.scheduler
    if isinstance(schedule, CosineSchedule) and schedule.warmup_epochs >= config.epochs:
        warnings.append(
            f"the warm-up never ends: `scheduler.warmup_epochs` = "
            f"{schedule.warmup_epochs}, the training has {config.epochs} epochs"
        )
    data = getattr(config, "data", None)
    if config.validation == "test" and getattr(data, "validation_subset", None):
        warnings.append("`data.validation_subset` has no effect: `validation` is `test`")
    return warnings


def _oialr_without_effect(config: OIALRConfig, total_steps: int) -> list[str]:
    name = "delay_steps" if config.delay_steps else "update_frequency"
    first_update = config.delay_steps or config.update_frequency
    if first_update <= total_steps:
        return []
    consequence = "OIALR never starts" if config.full_rank_warmup else "inner ranks are never cut"
    return [f"{consequence}: `oialr.{name}` = {first_update}, the training has {total_steps} steps"]


def _observation_without_effect(config: ObservationConfig, total_steps: int) -> list[str]:
    interval, longest = config.interval_steps, max(config.lags)
    if interval > total_steps:
        setting = f"`observation.interval_steps` = {interval}"
        return [f"nothing is observed: {setting}, the training has {total_steps} steps"]
    if longest * interval > total_steps:
        setting = f"`observation.lags` has {longest}"
        return [f"nothing is that far apart: {setting}, the training {total_steps // interval}"]
    return []


@dataclass(frozen=True, kw_only=True)
class _TrainedEpoch:
    """What one epoch's training steps came to."""

    loss: float
    """Mean over the samples."""
    num_samples: int
    lr: float
    """The last step's."""
    rank_updates: list[RankUpdate]
    observations: list[Observation]


def _train_epoch(training: Training, epoch: int, pulse: _Pulse) -> _TrainedEpoch:
    training.model.train()
    total_loss, num_samples = torch.zeros((), device=training.device), 0
    updates: list[RankUpdate] = []
    observations: list[Observation] = []
    steps_per_epoch = training.splits.train.num_batches
    lr, num_updates = math.nan, (epoch - 1) * steps_per_epoch
    for inputs, targets in _Watched(training.splits.train, pulse).epoch(epoch):
        lr = training.config.learning_rate(num_updates, steps_per_epoch)
        for group in training.optimizer.param_groups:
            group["lr"] = lr
        training.optimizer.zero_grad()
        with _autocast(training):
            loss = training.config.training_step(training.model, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        training.optimizer.step()
        total_loss += loss.detach() * len(targets)
        num_samples += len(targets)
        num_updates += 1
        pulse.step = num_updates
        with _divergence(num_updates):
            if training.oialr:
                updates += [RankUpdate(**vars(update)) for update in training.oialr.step()]
            if training.observer:
                observations += [Observation(**vars(o)) for o in training.observer.step()]
    return _TrainedEpoch(
        loss=total_loss.item() / num_samples,  # and so, also on a GPU, all steps are done
        num_samples=num_samples,
        lr=lr,
        rank_updates=updates,
        observations=observations,
    )


@contextmanager
def _divergence(num_updates: int) -> Iterator[None]:
    """Call by its name what an SVD refuses."""
    try:
        yield
    except NotFiniteError as error:
        raise DivergedError(f"diverged: {error}") from None
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        # The SVD of a matrix that is finite, but barely.
        raise DivergedError(f"diverged: step {num_updates}: {error}") from None


def _evaluate(
    training: Training, model: nn.Module, batches: Batches, pulse: _Pulse
) -> dict[str, float]:
    model.eval()
    with _autocast(training):
        return training.config.measure(model, _Watched(batches, pulse))


def _autocast(training: Training) -> torch.autocast:
    choice = training.config.autocast
    enabled = choice == "bfloat16" or (choice == "auto" and training.device.type == "cuda")
    return torch.autocast(training.device.type, dtype=torch.bfloat16, enabled=enabled)


def visible_device(device: torch.device) -> str:
    """As `Started.device` names it: this process sees its GPU as the first one, whichever it is."""
    if device.type == "cpu":
        return "cpu"
    index = device.index or 0
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return f"cuda:{visible[index] if index < len(visible) and visible[index] else index}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
