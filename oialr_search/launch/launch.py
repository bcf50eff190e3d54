"""One launch of a search: every rank gets ready, or all end together with one clear message."""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from mpi4py import MPI
from oialr_training.errors import ConfigError
from rich.console import Console

from oialr_search import exit_codes
from oialr_search.evaluation.devices import (
    WorkerSettings,
    affinity,
    choose_gpu,
    threads_per_rank,
    visible_gpus,
)
from oialr_search.evaluation.evaluator import WORKER_LOGS, Evaluator
from oialr_search.evaluation.outbox import Outbox
from oialr_search.evaluation.worker_process import WorkerDied, WorkerProcess
from oialr_search.launch.controller import Controller
from oialr_search.launch.engines import engine_for
from oialr_search.launch.islands import Exchange, Place, wait
from oialr_search.launch.progress import ProgressDisplay
from oialr_search.launch.resuming import (
    ended_individuals,
    find_stored,
    free_name,
    is_complete,
    refuse_unknown,
    start_search,
)
from oialr_search.launch.stop_request import StopRequest
from oialr_search.space.search_file import SearchFile
from oialr_search.storage import database_exists, open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import StorageError, StorageUnavailable

# The size of the launch as the launchers announce it, whatever MPI mpi4py has loaded.
WORLD_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
LOCK_FILE = ".lock"
PREPARATIONS = 3
PASSING_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class LaunchError(Exception):
    """This launch cannot begin; every rank ends with the same exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """What `oialr-search run` was told besides the search file."""

    database_url: str
    search_dir: Path
    data_dir: str | None
    new: bool
    """Begin another search when there is one of this name."""
    stop: StopRequest
    environment: dict[str, str] = field(repr=False)
    worker_type: type[WorkerProcess] = WorkerProcess
    """What evaluates; a benchmark has one that answers at once."""


def run(load: Callable[[], SearchFile], settings: LaunchSettings) -> int:
    """Run one rank to the end of the search; returns the exit code, the same on every rank.

    `load` reads the search file; only rank 0 calls it, so that all ranks have the same.
    """
    comm = MPI.COMM_WORLD
    logs = [settings.search_dir]
    try:
        return _run(comm, load, settings, logs)
    except LaunchError as error:
        if comm.rank == 0:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except StorageError as error:
        print(f"error: {error}; the same command goes on with the search", file=sys.stderr)
        code = exit_codes.STOPPED
    except BaseException as error:
        print(f"error: {_obituary(comm, error, logs[-1])}", file=sys.stderr)
        code = exit_codes.INTERNAL
    sys.stderr.flush()
    # The other ranks would wait for this one for ever.
    comm.Abort(code)
    return code


def _obituary(comm: MPI.Comm, error: BaseException, folder: Path) -> str:
    """Name the rank, the host and the log of a rank that ends by a mistake of ours."""
    text = f"world rank {comm.rank} on {MPI.Get_processor_name()} failed: {error!r:.200}"
    log = folder / f"rank-{comm.rank}.log"
    try:
        log.write_text(traceback.format_exc())
    except OSError:
        return f"{text}\n{traceback.format_exc()}"
    return f"{text} (log: {log})"


def _run(
    comm: MPI.Comm, load: Callable[[], SearchFile], settings: LaunchSettings, logs: list[Path]
) -> int:
    _check_world_size(comm, settings.environment)
    search_file = _load(comm, load, settings)
    search = search_file.search
    if comm.size < search.islands:
        raise LaunchError(
            f"{search.islands} islands need at least {search.islands} ranks, got {comm.size}: "
            f"start `mpiexec -n {search.islands} oialr-search run ...`, "
            f"or ask for `--islands {comm.size}`",
            exit_codes.USAGE,
        )
    if _already_complete(comm, search_file, settings):
        return exit_codes.FINISHED
    worker_settings = _worker_settings(comm, search_file, settings)
    engine = engine_for(search_file.space.hyperparameters, search)
    warnings: list[str] = []
    with _search_folder(comm, settings.search_dir / search.name) as folder:
        logs.append(folder)
        evaluator = Evaluator(
            search_file=search_file,
            folder=folder,
            data_dir=settings.data_dir,
            worker_settings=worker_settings,
            world_rank=comm.rank,
            notify=warnings.append,
            worker_type=settings.worker_type,
        )
        try:
            _prepare(comm, evaluator, settings.stop)
            storage, search_id, launch_id = _open(comm, search_file, settings, folder)
        except LaunchError:
            evaluator.stop_spare()
            raise
        with storage:
            outbox = Outbox(storage, warnings.append)
            evaluator.open(outbox)
            place = Place(world_rank=comm.rank, world_size=comm.size, num_islands=search.islands)
            controller = Controller(
                place=place,
                search_file=search_file,
                storage=storage,
                outbox=outbox,
                search_id=search_id,
                launch_id=launch_id,
                folder=folder,
                engine=engine,
                evaluator=evaluator,
                exchange=Exchange(comm, place),
                stop=settings.stop,
                display=_display(storage, search_id, search.metric) if comm.rank == 0 else None,
                warnings=warnings,
            )
            complete = controller.run()
            exit_code = exit_codes.FINISHED if complete else exit_codes.STOPPED
            if comm.rank == 0:
                _end(storage, search_id, launch_id, exit_code, search.evaluations)
    return exit_code


def _end(
    storage: Storage, search_id: int, launch_id: int, exit_code: int, evaluations: int
) -> None:
    try:
        storage.end_launch(launch_id, exit_code)
        ended = ended_individuals(storage, search_id)
    except StorageUnavailable as error:
        print(f"warning: the database is away, the folders have what it lacks: {error}")
        return
    if exit_code != exit_codes.FINISHED:
        print(f"stopped after {ended} of {evaluations} evaluations; the same command goes on")


def _check_world_size(comm: MPI.Comm, environment: Mapping[str, str]) -> None:
    announced = next((environment[n] for n in WORLD_SIZE_VARIABLES if n in environment), None)
    if announced not in (None, str(comm.size)):
        raise LaunchError(
            f"the launcher and mpi4py use different MPIs: mpi4py has loaded "
            f"{MPI.Get_library_version().split()[0]} and sees {comm.size} rank(s) of {announced}; "
            "start with the mpiexec of that MPI, or set MPI4PY_MPIABI",
            exit_codes.CONFIG,
        )


def _load(comm: MPI.Comm, load: Callable[[], SearchFile], settings: LaunchSettings) -> SearchFile:
    mistake, search_file = None, None
    if comm.rank == 0:
        try:
            search_file = load()
            if settings.new:
                search_file = _renamed(search_file, settings)
            for name in search_file.pinned:
                print(f"`{name}` is set, and no longer searched", flush=True)
        except (ConfigError, StorageError) as error:
            mistake = str(error)
    _agree(comm, mistake, exit_codes.CONFIG)
    shared: SearchFile = comm.bcast(search_file)
    return shared


def _renamed(search_file: SearchFile, settings: LaunchSettings) -> SearchFile:
    """The same search under a name that is free."""
    stored = list[str]()
    if database_exists(settings.database_url):
        with open_storage(settings.database_url, create=True) as storage:
            stored = [search.name for search in storage.searches()]
    name = free_name(search_file.search.name, stored, settings.search_dir)
    print(f"search {name!r}", flush=True)
    return replace(search_file, search=search_file.search.model_copy(update={"name": name}))


def _display(storage: Storage, search_id: int, metric: str) -> ProgressDisplay:
    # A launcher's terminal is none: Open MPI gives ranks one even in a pipe.
    launched = any(name in os.environ for name in WORLD_SIZE_VARIABLES)
    console = Console(highlight=False, force_terminal=False if launched else None)
    return ProgressDisplay(storage, search_id, metric, console)


def _already_complete(comm: MPI.Comm, search_file: SearchFile, settings: LaunchSettings) -> bool:
    """Look at what is stored before anything is started or made: it may not fit, or be complete."""
    mistake, exit_code = None, exit_codes.CONFIG
    stored, complete = None, False
    search = search_file.search
    if comm.rank == 0:
        try:
            if database_exists(settings.database_url):
                with open_storage(settings.database_url, create=True) as storage:
                    stored = find_stored(storage, search_file)
                    complete = stored is not None and is_complete(
                        storage, stored.id, search.evaluations
                    )
            if stored is None:
                refuse_unknown(settings.search_dir / search.name)
        except (StorageError, ConfigError) as error:
            mistake, exit_code = str(error), _code_of(error)
    _agree(comm, mistake, exit_code)
    if complete and comm.rank == 0:
        print(f"search {search.name!r} is complete: {search.evaluations} evaluations are stored")
    return bool(comm.bcast(complete))


def _worker_settings(
    comm: MPI.Comm, search_file: SearchFile, settings: LaunchSettings
) -> WorkerSettings:
    """GPU and CPU threads of this rank's workers, by its number on its node."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    on_node = node.allgather(affinity())
    local_rank = node.rank
    node.Free()
    mistake, gpu = None, None
    try:
        gpus = visible_gpus(settings.environment)
        gpu = choose_gpu(search_file.training.device, gpus, local_rank)
    except LookupError as error:
        mistake = f"{error} ({search_file.source})"
    _agree(comm, mistake, exit_codes.CONFIG)
    return WorkerSettings(gpu=gpu, num_threads=threads_per_rank(affinity(), on_node))


@contextmanager
def _search_folder(comm: MPI.Comm, folder: Path) -> Iterator[Path]:
    """The search's folder, made and locked by rank 0; a launch that cannot begin leaves no trace.

    The lock keeps a second launch of the same search away; it ends with the process that holds it.
    """
    mistake, exit_code, made, lock = None, exit_codes.CONFIG, list[Path](), None
    if comm.rank == 0:
        try:
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder / LOCK_FILE)
            _remove_worker_logs(folder)
        except BlockingIOError:
            owner = (folder / LOCK_FILE).read_text().strip()
            mistake = f"this search is being run already, by {owner}: lock {folder / LOCK_FILE}"
        except OSError as error:
            mistake = f"cannot write to the search folder {folder}: {error.strerror}"
            exit_code = _code_of(error)
    try:
        _agree(comm, mistake, exit_code)
        yield folder
    except LaunchError:
        wait(comm)  # until the other ranks' workers and their logs are gone
        with suppress(OSError):
            if lock is not None:
                (folder / LOCK_FILE).unlink()
            for path in made:
                path.rmdir()
        raise
    finally:
        if lock is not None:
            lock.close()


def _remove_worker_logs(folder: Path) -> None:
    """Remove those of workers that were killed while they waited."""
    with os.scandir(folder) as entries:  # there may be as many as individuals
        for entry in entries:
            if fnmatch.fnmatch(entry.name, WORKER_LOGS):
                Path(entry).unlink(missing_ok=True)


def _lock(path: Path) -> IO[str]:
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    # A launch that could not begin removes its file, perhaps between these lines.
    if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
        file.close()
        return _lock(path)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _prepare(comm: MPI.Comm, evaluator: Evaluator, stop: StopRequest) -> None:
    """Have the first worker load everything: the earliest moment at which data can be missed."""
    mistake, exit_code = None, exit_codes.CONFIG
    if comm.rank == 0:
        print(f"preparing {comm.size} worker(s): imports and data ...", flush=True)
    try:
        if not _prepare_worker(evaluator, stop):
            mistake, exit_code = "stopped before the first evaluation", exit_codes.STOPPED
    except ConfigError as error:
        mistake = str(error)
    except WorkerDied as error:
        mistake, exit_code = str(error), exit_codes.INTERNAL
    except OSError as error:
        mistake, exit_code = f"cannot start a worker: {error}", _code_of(error)
    _agree(comm, mistake, exit_code)


def _prepare_worker(evaluator: Evaluator, stop: StopRequest) -> bool:
    """Wait until the first worker is ready; one that was killed gets successors. False: stopped."""
    for attempts_left in reversed(range(PREPARATIONS)):
        ready = evaluator.prepare()
        try:
            while not ready():
                if stop.requested():
                    return False
            return True
        except WorkerDied as death:
            if death.exit_signal is None or not attempts_left:
                raise
    raise AssertionError


def _code_of(error: Exception) -> int:
    """Where the database comes back, and the disk has space again, the same command goes on."""
    passes = isinstance(error, StorageUnavailable) or (
        isinstance(error, OSError) and error.errno in PASSING_ERRORS
    )
    return exit_codes.STOPPED if passes else exit_codes.CONFIG


def _open(
    comm: MPI.Comm, search_file: SearchFile, settings: LaunchSettings, folder: Path
) -> tuple[Storage, int, int]:
    """Open the database on every rank; rank 0 creates it and the search when they are new."""
    mistake, exit_code, storage, ids = None, exit_codes.CONFIG, None, (0, 0)
    if comm.rank == 0:
        try:
            storage = open_storage(settings.database_url, create=True)
            ids = start_search(storage, search_file, comm.size, folder)
        except (StorageError, ConfigError) as error:
            mistake, exit_code = str(error), _code_of(error)
        except OSError as error:
            mistake = f"cannot write to the search folder {folder}: {error.strerror}"
            exit_code = _code_of(error)
    _agree(comm, mistake, exit_code)
    search_id, launch_id = comm.bcast(ids)
    try:
        storage = storage or open_storage(settings.database_url)
    except StorageError as error:
        mistake, exit_code = f"{error} (on {MPI.Get_processor_name()})", _code_of(error)
    try:
        _agree(comm, mistake, exit_code)
    except LaunchError as error:
        if storage is not None:
            if comm.rank == 0:
                storage.end_launch(launch_id, error.exit_code)
            storage.close()
        raise
    assert storage is not None
    return storage, search_id, launch_id


def _agree(comm: MPI.Comm, mistake: str | None, exit_code: int) -> None:
    """Go on when no rank has a mistake; else all ranks raise the first one's."""
    wait(comm)
    mistakes = comm.allgather((mistake, exit_code))
    for text, code in mistakes:
        if text is not None:
            raise LaunchError(text, code)
