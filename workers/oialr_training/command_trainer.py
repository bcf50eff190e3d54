"""Runs a program as an evaluation: it says how it gets on in a file, and may be of any language.

The program finds in its environment:

    OIALR_REPORT         file to which it adds a line of JSON for each epoch, and at its end perhaps
                         one without `epoch`: {"epoch": 3, "validation_loss": 0.41}
    OIALR_STATE_DIR      folder that the next attempt at this evaluation finds as this one left it
    OIALR_FOLDER         folder of this attempt; what is left there stays
    OIALR_STOP           when this file appears, the program is to save its state and end, with exit
                         code 75 or after adding the line {"stops": true}; a program that catches
                         SIGTERM is sent that, too
    OIALR_SEED           what `{seed}` is
    OIALR_EVALUATE_TEST  1 where metrics of test data are wanted, too
    OIALR_DATA           the folder of --data-dir, where one is named
    CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS, MKL_NUM_THREADS
                         its GPU and its share of the CPU
    PYTHONPATH           with `oialr_search_report` on it, which does all this for Python

What it prints is the evaluation's log. It and all that it starts are in the worker's process group,
and die with it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from oialr_training.errors import ConfigError, DivergedError, KnownError
from oialr_training.failures import of_machine
from oialr_training.protocol import (
    Completed,
    Epoch,
    Evaluate,
    Event,
    Progressed,
    Resources,
    Started,
    Stop,
)
from oialr_training.resources import CpuEnergy, peak_host_memory, visible_gpu_energy
from oialr_training.tasks import refuse_lacking
from oialr_training.tasks.command import CommandTraining
from oialr_training.trainer import Interrupted, Trainer

log = logging.getLogger("oialr_training")

REPORT_FILE, EPOCHS_FILE = "report.jsonl", "epochs.jsonl"
"""Beside the state: what the program says, and what was told of it."""
STOP_FILE = "stop"
REPORT_MODULE = Path(__file__).parent / "report"
"""Folder of `oialr_search_report.py`, and of nothing else."""
STOPPED_EARLY = 75
"""The exit code of a program that ended because it was asked to."""
POLL_S = 0.1
PROGRESS_INTERVAL_S = 5.0
END_GRACE_S = 5.0
MAX_LINE_BYTES = 1 << 16
MAX_NAME_CHARACTERS = 100
OF_RESOURCES = {f.name for f in fields(Resources)}
SCRIPTS = (".py", ".sh", ".R", ".jl")


class ProgramError(KnownError):
    """The program did not do its part, as far as one can tell by its own fault."""

    cause = "training"


class ProgramKilled(KnownError):  # noqa: N818  (an event of the program's life)
    """A signal or what looks like the machine ended the program: another attempt may succeed."""

    cause = "machine"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a line of the report says."""

    epoch: int | None = None
    step: int | None = None
    stops: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


def read_report(line: bytes) -> Report:
    """One line of a report.

    Raises:
        ProgramError: when it is none.
    """
    try:
        content = json.loads(line)
        epoch, step = content.pop("epoch", None), content.pop("step", None)
        stops = content.pop("stops", False)
        metrics = {name: _number(name, value) for name, value in content.items()}
        for name, count in (("epoch", epoch), ("step", step)):
            if count is not None and (not isinstance(count, int) or not 0 <= count < 2**63):
                raise ValueError(f"`{name}` is a whole number, got {count!r:.60}")
        if epoch == 0:
            raise ValueError("epochs count from 1, got 0")
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ProgramError(
            f"the program reported what is no line of metrics: {line!r:.200} ({str(error)!r:.100})"
        ) from None
    return Report(epoch=epoch, step=step, stops=bool(stops), metrics=metrics)


def _number(name: str, value: object) -> float:
    if not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
        raise ValueError(f"no metric is called {name!r:.80}")
    if not isinstance(value, int | float):
        raise ValueError(f"`{name}` is a number, got {value!r:.60}")
    return float(value)


def _epoch_of(number: int, said: Report) -> Epoch:
    step = number if said.step is None else said.step
    return Epoch(epoch=number, step=step, metrics=said.metrics)


def _lines_of(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError:
        return []


class _Lines:
    """The lines that are added to a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._rest = b""

    def new(self, *, all_of_them: bool) -> Iterator[bytes]:
        """The whole lines that have come; at the end also one without a line break."""
        while chunk := self._file.read(MAX_LINE_BYTES):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > MAX_LINE_BYTES:
                raise ProgramError("the program reported a line without end")
            yield from filter(bytes.strip, lines)
        if all_of_them and self._rest.strip():
            yield self._rest
            self._rest = b""

    def close(self) -> None:
        self._file.close()


class CommandTrainer(Trainer[CommandTraining]):
    """Starts the program, passes on what it reports, and sees to its end."""

    def __init__(self, data_dir: Path | None) -> None:
        self._data_dir = data_dir
        self._cpu: CpuEnergy | None = None
        self._gpu_energy_j: Callable[[], float | None] = lambda: None
        self._reported_resources: dict[str, Any] = {}
        self._own_memory = 0

    def prepare(self, config: CommandTraining) -> None:
        """See that the program is there, as far as its name does not depend on the individual.

        Raises:
            ConfigError: when it is not.
        """
        program, *arguments = config.filled({"python": sys.executable})
        if "{" not in program and shutil.which(program) is None:
            raise ConfigError(f"no program {program!r:.200} for `command`: {Path.cwd()} or PATH")
        script = arguments[0] if arguments else ""
        if script.endswith(SCRIPTS) and "{" not in script and not Path(script).is_file():
            raise ConfigError(f"no file {script!r:.200} for `command` in {Path.cwd()}")

    def evaluate(
        self,
        config: CommandTraining,
        request: Evaluate,
        report: Callable[[Event], None],
        stops: Sequence[Stop],
    ) -> Completed:
        """See `Trainer.evaluate`.

        Raises:
            ConfigError: when a placeholder has no value, or the program does not report.
            ProgramError: when it fails or reports garbage.
            ProgramKilled: when it is killed.
            DivergedError: when a declared metric is no finite number.
            Interrupted: see there.
        """
        refuse_lacking(config, (), "request")
        state = _state_of(request)
        if request.state_file is None:  # nobody goes on with it: what is there is another's
            shutil.rmtree(state, ignore_errors=True)
        program = state / "program"
        program.mkdir(parents=True, exist_ok=True)
        folder = Path(request.folder)
        (folder / STOP_FILE).unlink(missing_ok=True)
        kept = _Kept(state)
        (state / REPORT_FILE).write_bytes(b"")
        arguments = config.filled(
            {"python": sys.executable, "folder": str(folder), "state_dir": str(program)}
        )
        environment = self._environment(config, request, program)
        log.info("starts: %s", config.command_line)
        self._own_memory = peak_host_memory() or 0
        self._cpu, self._gpu_energy_j = CpuEnergy(), visible_gpu_energy()
        run = _Run(config=config, report=report, kept=kept)
        with _killed_with_this_process(), _started(arguments, environment) as child:
            lines = _Lines(state / REPORT_FILE)
            try:
                self._follow(child, lines, run, stops, folder / STOP_FILE)
            finally:
                lines.close()
        metrics = run.result()
        for name in OF_RESOURCES & metrics.keys():
            self._reported_resources[name] = metrics.pop(name)
        return Completed(
            metrics=metrics,
            trainable_percent=metrics.get("trainable_percent"),
            compression_percent=metrics.get("compression_percent"),
            device=f"cuda:{gpu}" if (gpu := os.environ.get("CUDA_VISIBLE_DEVICES")) else "cpu",
            duration_s=run.trained_s,
            at=time.time(),
            resources=self.resources(),
        )

    def _follow(
        self,
        child: subprocess.Popen[bytes],
        lines: _Lines,
        run: _Run,
        stops: Sequence[Stop],
        stop_file: Path,
    ) -> None:
        """Take in what the program says until it ends.

        Raises:
            Exception: see `evaluate`.
        """
        asked = knows = False
        while True:
            # Asked before reading: what a program has said that ended is in the file.
            ended = child.poll() is not None
            for line in lines.new(all_of_them=ended):
                said = read_report(line)
                knows |= said.stops
                run.take(said)
            if ended:
                break
            if self._cpu and run.beat():
                self._cpu.look()
            if stops and not asked:
                asked = True
                log.info("the program is asked to stop")
                stop_file.touch()
                if stops[0].reason == "pruned":
                    _end(child)
                    raise Interrupted(run.epoch, "pruned")
                if _catches_sigterm(child.pid):
                    knows = True
                    child.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(POLL_S)
        knows |= child.returncode == STOPPED_EARLY
        if asked and knows and not run.has_all_epochs:
            raise Interrupted(run.epoch, stops[0].reason)
        if child.returncode:
            raise _failure(child.returncode)

    def resources(self) -> Resources:
        """See `Trainer.resources`."""
        # Of the one process that held most: no more is counted of those that have ended. Each
        # began as a copy of this one, so less than this one's tells nothing.
        most = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        measured = Resources(
            gpu_energy_j=self._gpu_energy_j(),
            cpu_energy_j=self._cpu.look() if self._cpu else None,
            peak_host_memory_bytes=most if most > self._own_memory > 0 else None,
        )
        told = {
            name: int(value) if name.endswith("_bytes") else value
            for name, value in self._reported_resources.items()
            if math.isfinite(value)
        }
        return Resources(**{**vars(measured), **told})

    def forget(self, request: Evaluate) -> None:
        """See `Trainer.forget`."""
        if request.state_file:
            shutil.rmtree(_state_of(request), ignore_errors=True)

    def _environment(
        self, config: CommandTraining, request: Evaluate, program: Path
    ) -> dict[str, str]:
        folder = Path(request.folder)
        threads = str(config.num_threads or os.cpu_count() or 1)
        paths = [str(REPORT_MODULE), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "OIALR_REPORT": str(program.parent / REPORT_FILE),
            "OIALR_STATE_DIR": str(program),
            "OIALR_FOLDER": str(folder),
            "OIALR_STOP": str(folder / STOP_FILE),
            "OIALR_SEED": str(config.seed),
            "OIALR_EVALUATE_TEST": str(int(request.evaluate_test)),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join(paths),
            **({"OIALR_DATA": str(self._data_dir)} if self._data_dir else {}),
        }


def _state_of(request: Evaluate) -> Path:
    """The folder of the program's state and of what it has reported."""
    if request.state_file is None:
        return Path(request.folder) / "state"
    return Path(request.state_file).with_suffix("")


class _Kept:
    """The epochs that were reported, kept beside the program's state for the next attempt."""

    def __init__(self, state: Path) -> None:
        self._path = state / EPOCHS_FILE
        self.epochs: list[Epoch] = []
        self.trained_s = 0.0
        for line in _lines_of(self._path):
            with suppress(ValueError, KeyError, TypeError):
                content = json.loads(line)
                self.trained_s = float(content.pop("trained_s"))
                self.epochs.append(Epoch(**content))
        for line in _lines_of(state / REPORT_FILE):  # reported while nobody listened any more
            with suppress(ProgramError):
                self._add_unheard(read_report(line))

    def _add_unheard(self, said: Report) -> None:
        if said.epoch is not None and said.epoch > max((e.epoch for e in self.epochs), default=0):
            self.epochs.append(_epoch_of(said.epoch, said))

    def go_on_after(self, epochs: Sequence[Epoch], trained_s: float) -> None:
        """Keep these alone."""
        self._write("wb", epochs, trained_s)

    def add(self, epoch: Epoch, trained_s: float) -> None:
        """Keep another."""
        self._write("ab", [epoch], trained_s)

    def _write(self, mode: str, epochs: Sequence[Epoch], trained_s: float) -> None:
        lines = [
            {"epoch": e.epoch, "step": e.step, "metrics": e.metrics, "trained_s": trained_s}
            for e in epochs
        ]
        try:
            with self._path.open(mode) as file:
                file.write("".join(f"{json.dumps(line)}\n" for line in lines).encode())
        except OSError as error:
            log.warning("cannot keep the reports in %s: %s", self._path, error.strerror)


class _Run:
    """What a program has reported."""

    def __init__(
        self, *, config: CommandTraining, report: Callable[[Event], None], kept: _Kept
    ) -> None:
        self._config, self._report, self._kept = config, report, kept
        self._earlier_s = 0.0
        self._since = self._told = time.monotonic()
        self._at = time.time()
        self._last: Epoch | None = None
        self._end: dict[str, float] = {}
        self._said_something = False
        self._log_bytes = _log_bytes()
        self._tell_start(())

    @property
    def trained_s(self) -> float:
        """Seconds, with those of the attempts that this one went on from."""
        return self._earlier_s + time.monotonic() - self._since

    @property
    def epoch(self) -> int:
        """The last one; 0: there is none yet."""
        return self._last.epoch if self._last else 0

    @property
    def has_all_epochs(self) -> bool:
        """Has it come to its end, as far as the configuration says where that is?"""
        return self.epoch >= (self._config.epochs or math.inf)

    def take(self, said: Report) -> None:
        """Take in a report, and pass it on.

        Raises:
            DivergedError: when a declared metric is no finite number.
            ProgramError: when its epoch does not follow the last one.
        """
        self._said_something = True
        if said.epoch is None:
            self._end |= said.metrics
            return
        if self._last is None:
            self._go_on([e for e in self._kept.epochs if e.epoch < said.epoch])
        if said.epoch <= self.epoch:
            raise ProgramError(
                f"the program reported epoch {said.epoch} after epoch {self.epoch}: "
                "one report an epoch, and they grow"
            )
        epoch = _epoch_of(said.epoch, said)
        self._report(epoch)
        self._last = epoch
        self._refuse_infinite(said.metrics)
        self._kept.add(epoch, self.trained_s)

    def beat(self) -> bool:
        """Tell from time to time that the program lives: it has reported, or its log grows."""
        now = time.monotonic()
        if now - self._told < PROGRESS_INTERVAL_S:
            return False
        self._told = now
        before, self._log_bytes = self._log_bytes, _log_bytes()
        if self._said_something or self._log_bytes != before:
            self._report(Progressed(step=self._last.step if self._last else 0))
        self._said_something = False
        return True

    def result(self) -> dict[str, float]:
        """The metrics of the last epoch, and those of the end.

        Raises:
            ConfigError: when a declared one is not among them.
            DivergedError: when one is no finite number.
        """
        if self._last is None:  # an earlier attempt was killed at the very end
            self._go_on(self._kept.epochs)
        last = {"epoch": float(self.epoch), **self._last.metrics} if self._last else {}
        metrics = {**last, **self._end}
        missing = [name for name in self._config.metrics if name not in metrics]
        if not metrics:
            raise ConfigError("the program ended without a report: README.md says how it does")
        if missing:
            raise ConfigError(
                f"`metrics` has {missing[0]!r}, which the program has not reported at its end; "
                f"it reported {', '.join(n for n in metrics if n != 'epoch') or 'nothing'}"
            )
        self._refuse_infinite(metrics)
        return metrics

    def _go_on(self, epochs: Sequence[Epoch]) -> None:
        """The program goes on after these epochs of earlier attempts."""
        if epochs:
            self._earlier_s = self._kept.trained_s
            self._tell_start(epochs)
            for epoch in epochs:
                self._report(epoch)
            self._last = epochs[-1]
        self._kept.go_on_after(epochs, self._earlier_s)

    def _tell_start(self, epochs: Sequence[Epoch]) -> None:
        self._report(
            Started(
                at=self._at,
                total_steps=self._config.epochs or 0,
                parameters=0,
                layers="",
                resumed_epoch=epochs[-1].epoch if epochs else 0,
                trained_s=self.trained_s if epochs else 0.0,
            )
        )

    def _refuse_infinite(self, metrics: Mapping[str, float]) -> None:
        for name in self._config.metrics:
            if not math.isfinite(metrics.get(name, 0.0)):
                raise DivergedError(f"diverged: {name} is {metrics[name]} after epoch {self.epoch}")


@contextmanager
def _started(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The program, which is dead afterwards.

    Raises:
        ConfigError: when it cannot be started.
    """
    try:
        child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, env=environment)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot start {arguments[0]!r:.200} of `command`: {reason}") from None
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@contextmanager
def _killed_with_this_process() -> Iterator[None]:
    """Let a shell of a few hundred kilobytes kill the whole process group when this process dies:
    the kernel's parent-death signal would reach the program, but not what that has started."""
    guard = subprocess.Popen(
        ["/bin/sh", "-c", "read _; kill -9 0"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        guard.kill()
        guard.wait()
        assert guard.stdin is not None
        guard.stdin.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask a program to end now, and soon kill it."""
    child.terminate()
    try:
        child.wait(END_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()


def _catches_sigterm(pid: int) -> bool:
    """Has a process a handler for it? Else it would die at once, in the midst of an epoch."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    except (OSError, ValueError, IndexError):
        return False
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _failure(code: int) -> KnownError:
    last = _last_line()
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = ", perhaps out of memory" if name == "SIGKILL" else ""
        return ProgramKilled(f"the program was killed by {name}{hint}")
    reason = f"the program ended with exit code {code}" + (f": {last}" if last else "")
    return ProgramKilled(reason) if of_machine(last) else ProgramError(reason)


def _log_bytes() -> int | None:
    """The size of the log, where standard output is a file."""
    status = os.fstat(1)
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _last_line() -> str:
    """The last line of the log with something in it."""
    size = _log_bytes()
    if size is None:
        return ""
    try:
        with open("/proc/self/fd/1", "rb") as file:
            file.seek(max(0, size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip()]
    return "".join(c for c in told[-1] if c.isprintable())[:200] if told else ""
