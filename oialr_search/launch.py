"""One launch of a search: every rank gets ready, or all end together with one clear message."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from mpi4py import MPI
from rich.console import Console

from oialr_search.config import SearchFile
from oialr_search.controller import Controller, StopRequest
from oialr_search.evaluator import Evaluator
from oialr_search.islands import Exchange, Place, wait
from oialr_search.launcher import (
    WorkerDied,
    WorkerSettings,
    affinity,
    choose_gpu,
    threads_per_rank,
    visible_gpus,
)
from oialr_search.progress import ProgressDisplay
from oialr_search.search import find_stored, is_complete, start_search
from oialr_search.storage import Storage, StorageError, database_exists, open_storage
from workers.config import ConfigError

EXIT_FINISHED, EXIT_USAGE, EXIT_INTERNAL, EXIT_STOPPED, EXIT_CONFIG = 0, 2, 70, 75, 78
# The size of the launch as the launchers announce it, whatever MPI mpi4py has loaded.
WORLD_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


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
    time_limit_s: float | None
    environment: dict[str, str] = field(repr=False)


def run(search_file: SearchFile, settings: LaunchSettings) -> int:
    """Run one rank to the end of the search; returns the exit code, the same on every rank."""
    comm = MPI.COMM_WORLD
    try:
        return _run(comm, search_file, settings)
    except LaunchError as error:
        if comm.rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BaseException:
        print(f"rank {comm.rank} on {MPI.Get_processor_name()} failed:", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
        comm.Abort(EXIT_INTERNAL)
        raise


def _run(comm: MPI.Comm, search_file: SearchFile, settings: LaunchSettings) -> int:
    search = search_file.search
    announced = [settings.environment.get(name) for name in WORLD_SIZE_VARIABLES]
    if any(size not in (None, str(comm.size)) for size in announced):
        raise LaunchError(
            f"mpiexec and mpi4py use different MPIs: mpi4py has loaded "
            f"{MPI.Get_library_version().split()[0]} and sees {comm.size} rank(s); "
            "start with the mpiexec of that MPI, or set MPI4PY_MPIABI",
            EXIT_CONFIG,
        )
    if comm.size < search.islands:
        raise LaunchError(
            f"{search.islands} islands need at least {search.islands} ranks, got {comm.size}: "
            f"start `mpiexec -n {search.islands} oialr-search run ...`, "
            f"or ask for `--islands {comm.size}`",
            EXIT_USAGE,
        )
    place = Place(world_rank=comm.rank, world_size=comm.size, num_islands=search.islands)
    stop = StopRequest(settings.time_limit_s)
    if _already_complete(comm, search_file, settings):
        return EXIT_FINISHED
    worker_settings = _worker_settings(comm, search_file, settings)
    folder = settings.search_dir / search.name
    made = _make_folder(comm, folder)
    warnings: list[str] = []
    evaluator = Evaluator(
        search_file=search_file,
        folder=folder,
        data_dir=settings.data_dir,
        worker_settings=worker_settings,
        world_rank=comm.rank,
        notify=warnings.append,
    )
    if comm.rank == 0:
        print(f"preparing {comm.size} worker(s): imports and data ...", flush=True)
    try:
        _prepare(comm, evaluator)
        storage, search_id, launch_id = _open(comm, search_file, settings)
    except LaunchError:
        evaluator.stop_spare()
        wait(comm)
        for path in reversed(made):
            path.rmdir()
        raise
    evaluator.open(storage)
    with storage:
        rank = Controller(
            place=place,
            search_file=search_file,
            storage=storage,
            search_id=search_id,
            launch_id=launch_id,
            evaluator=evaluator,
            exchange=Exchange(comm, place),
            stop=stop,
            display=_display(storage, search_id, search.metric) if comm.rank == 0 else None,
            warnings=warnings,
        )
        complete = rank.run()
        exit_code = EXIT_FINISHED if complete else EXIT_STOPPED
        if comm.rank == 0:
            storage.end_launch(launch_id, exit_code)
    return exit_code


def _display(storage: Storage, search_id: int, metric: str) -> ProgressDisplay:
    # A launcher's terminal is none: Open MPI gives ranks one even in a pipe.
    launched = any(name in os.environ for name in WORLD_SIZE_VARIABLES)
    console = Console(highlight=False, force_terminal=False if launched else None)
    return ProgressDisplay(storage, search_id, metric, console)


def _already_complete(comm: MPI.Comm, search_file: SearchFile, settings: LaunchSettings) -> bool:
    """Look at what is stored before anything is started or made: it may not fit, or be complete."""
    problem, complete = None, False
    search = search_file.search
    if comm.rank == 0:
        try:
            if database_exists(settings.database_url):
                with open_storage(settings.database_url, create=True) as storage:
                    stored = find_stored(storage, search_file)
                    complete = stored is not None and is_complete(
                        storage, stored.id, search.evaluations
                    )
        except (StorageError, ConfigError) as error:
            problem = str(error)
    _agree(comm, problem, EXIT_CONFIG)
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
    problem, gpu = None, None
    try:
        gpus = visible_gpus(settings.environment)
        gpu = choose_gpu(search_file.training.device, gpus, local_rank)
    except LookupError as error:
        problem = f"{error} ({search_file.source})"
    _agree(comm, problem, EXIT_CONFIG)
    return WorkerSettings(gpu=gpu, num_threads=threads_per_rank(affinity(), on_node))


def _make_folder(comm: MPI.Comm, folder: Path) -> list[Path]:
    """Make the search's folder; returns what was new, on rank 0."""
    problem, made = None, []
    if comm.rank == 0:
        try:
            for path in reversed([folder, *folder.parents]):
                if not path.exists():
                    path.mkdir()
                    made.append(path)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            problem = f"cannot write to the search folder {folder}: {error.strerror}"
    _agree(comm, problem, EXIT_CONFIG)
    return made


def _prepare(comm: MPI.Comm, evaluator: Evaluator) -> None:
    """Have the first worker load everything: the earliest moment at which data can be missed."""
    problem, exit_code = None, EXIT_CONFIG
    try:
        ready = evaluator.prepare()
        while not ready():
            pass
    except ConfigError as error:
        problem = str(error)
    except WorkerDied as error:
        problem, exit_code = str(error), EXIT_INTERNAL
    _agree(comm, problem, exit_code)


def _open(
    comm: MPI.Comm, search_file: SearchFile, settings: LaunchSettings
) -> tuple[Storage, int, int]:
    """Open the database on every rank; rank 0 creates it and the search when they are new."""
    problem, storage, ids = None, None, (0, 0)
    if comm.rank == 0:
        try:
            storage = open_storage(settings.database_url, create=True)
            ids = start_search(storage, search_file, comm.size)
        except (StorageError, ConfigError) as error:
            problem = str(error)
    _agree(comm, problem, EXIT_CONFIG)
    search_id, launch_id = comm.bcast(ids)
    try:
        storage = storage or open_storage(settings.database_url)
    except StorageError as error:
        problem = f"{error} (on {MPI.Get_processor_name()})"
    _agree(comm, problem, EXIT_CONFIG)
    assert storage is not None
    return storage, search_id, launch_id


def _agree(comm: MPI.Comm, problem: str | None, exit_code: int) -> None:
    """Go on when no rank has a problem; else all ranks raise the first one's."""
    wait(comm)
    problems = comm.allgather((problem, exit_code))
    for text, code in problems:
        if text is not None:
            raise LaunchError(text, code)
