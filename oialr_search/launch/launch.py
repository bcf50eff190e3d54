"""One launch of a search: every rank gets ready, or all end together with one clear message."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from oialr_search import exit_codes
from oialr_search.evaluation.devices import (
    WorkerSettings,
    affinity,
    choose_gpu,
    threads_per_rank,
    visible_gpus,
)
from oialr_search.evaluation.evaluator import Evaluator
from oialr_search.evaluation.files import remove_states
from oialr_search.evaluation.outbox import Outbox
from oialr_search.evaluation.worker_process import WorkerProcess
from oialr_search.launch.agreement import LaunchError, agree, code_of
from oialr_search.launch.controller import Controller
from oialr_search.launch.engines import engine_for
from oialr_search.launch.islands import Exchange, Place
from oialr_search.launch.mpi import MPI
from oialr_search.launch.preparation import prepare
from oialr_search.launch.progress import ProgressDisplay
from oialr_search.launch.resuming import (
    find_stored,
    free_name,
    is_complete,
    refuse_unknown,
    start_search,
)
from oialr_search.launch.search_folder import search_folder
from oialr_search.launch.starting import starting_points
from oialr_search.launch.stop_request import StopRequest
from oialr_search.launch.stopping.judging import Judge
from oialr_search.launch.until import enough
from oialr_search.space.search_file import SearchFile, SearchSettings
from oialr_search.storage import database_exists, open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import StorageError, StorageUnavailable
from oialr_training.errors import ConfigError
from oialr_training.tasks import find_task

# The size of the launch as the launchers announce it, whatever MPI mpi4py has loaded.
WORLD_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


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
    worker_type: Callable[[WorkerSettings, Path], WorkerProcess] = WorkerProcess
    """What evaluates; a benchmark has one that answers at once."""


def run(
    load: Callable[[], SearchFile], settings: LaunchSettings, comm: MPI.Comm = MPI.COMM_WORLD
) -> int:
    """Run one rank to the end of the search; returns the exit code, the same on every rank.

    `load` reads the search file; only rank 0 calls it, so that all ranks have the same.
    """
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
    place = Place(world_rank=comm.rank, world_size=comm.size, num_islands=search.islands)
    engine = engine_for(search_file.space.hyperparameters, search, place.island)
    warnings: list[str] = []
    with search_folder(comm, settings.search_dir / search.name) as folder:
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
            prepare(comm, evaluator, settings.stop)
            storage, search_id, launch_id = _open(
                comm, search_file, settings, folder, evaluator.worker_versions
            )
        except LaunchError:
            evaluator.stop_spare()
            raise
        with storage:
            outbox = Outbox(storage, warnings.append)
            evaluator.open(outbox)
            display = None
            if comm.rank == 0:
                console = _console(settings.environment)
                display = ProgressDisplay(storage, search_id, search.metric, console)
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
                judge=Judge(search_id, search_file, search.stopping) if search.stopping else None,
                exchange=Exchange(comm, place),
                stop=settings.stop,
                display=display,
                warnings=warnings,
            )
            complete = controller.run()
            exit_code = exit_codes.FINISHED if complete else exit_codes.STOPPED
            if comm.rank == 0:
                _end(storage, search_id, launch_id, exit_code, search)
                if complete and search.stopping is not None:
                    remove_states(folder)
    return exit_code


def _end(
    storage: Storage, search_id: int, launch_id: int, exit_code: int, search: SearchSettings
) -> None:
    try:
        storage.end_launch(launch_id, exit_code)
        progress = storage.progress(search_id)
        reason = enough(storage, search_id, search)
    except StorageUnavailable as error:
        print(f"warning: the database is away, the folders have what it lacks: {error}")
        return
    if exit_code != exit_codes.FINISHED:
        done = f"{progress.ended} of {progress.expected} evaluations"
        print(f"stopped after {done}; the same command goes on")
    elif reason is not None:
        print(f"complete after {progress.ended} evaluations: {reason}")


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
            for name, engine in search_file.without_effect.items():
                print(
                    f"warning: `search.{name}` has no effect without the engine `{engine}`",
                    file=sys.stderr,
                )
        except (ConfigError, StorageError) as error:
            mistake = str(error)
    agree(comm, mistake, exit_codes.CONFIG)
    try:  # before the file comes, which is of this class
        find_task(comm.bcast(search_file and search_file.training.task))
    except ConfigError as error:
        mistake = f"{error} (on {MPI.Get_processor_name()})"
    agree(comm, mistake, exit_codes.CONFIG)
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


def _console(environment: Mapping[str, str]) -> Console:
    # A launcher's terminal is none: Open MPI gives ranks one even in a pipe.
    launched = any(name in environment for name in WORLD_SIZE_VARIABLES)
    return Console(highlight=False, force_terminal=False if launched else None)


def _already_complete(comm: MPI.Comm, search_file: SearchFile, settings: LaunchSettings) -> bool:
    """Look at what is stored before anything is started or made: it may not fit, or be complete."""
    mistake, exit_code = None, exit_codes.CONFIG
    stored, complete, how = None, False, ""
    search = search_file.search
    if comm.rank == 0:
        try:
            if database_exists(settings.database_url):
                with open_storage(settings.database_url, create=True) as storage:
                    stored = find_stored(storage, search_file)
                    if stored is not None:
                        complete = is_complete(storage, stored.id, search)
                        how = f"{storage.progress(stored.id).ended} evaluations are stored"
                        reason = enough(storage, stored.id, search)
                        how += f", {reason}" if reason is not None else ""
            if stored is None:
                refuse_unknown(settings.search_dir / search.name)
                for moved in _check_start(search_file, settings.database_url):
                    print(f"warning: {moved}", file=sys.stderr)
        except (StorageError, ConfigError) as error:
            mistake, exit_code = str(error), code_of(error)
    agree(comm, mistake, exit_code)
    if complete and comm.rank == 0:
        print(f"search {search.name!r} is complete: {how}")
    return bool(comm.bcast(complete))


def _check_start(search_file: SearchFile, url: str) -> list[str]:
    """What the search is to start with, before anything is stored; says what has to be moved."""
    if not database_exists(url):
        return starting_points(None, search_file)[1]
    with open_storage(url, create=True) as storage:
        return starting_points(storage, search_file)[1]


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
    agree(comm, mistake, exit_codes.CONFIG)
    threads = threads_per_rank(affinity(), on_node)
    return WorkerSettings(gpu=gpu, num_threads=threads, start=search_file.worker)


def _open(
    comm: MPI.Comm,
    search_file: SearchFile,
    settings: LaunchSettings,
    folder: Path,
    worker_versions: Mapping[str, str],
) -> tuple[Storage, int, int]:
    """Open the database on every rank; rank 0 creates it and the search when they are new."""
    mistake, exit_code, storage, ids = None, exit_codes.CONFIG, None, (0, 0)
    if comm.rank == 0:
        try:
            storage = open_storage(settings.database_url, create=True)
            ids = start_search(storage, search_file, comm.size, folder, worker_versions)
        except (StorageError, ConfigError) as error:
            mistake, exit_code = str(error), code_of(error)
        except OSError as error:
            mistake = f"cannot write to the search folder {folder}: {error.strerror}"
            exit_code = code_of(error)
    agree(comm, mistake, exit_code)
    search_id, launch_id = comm.bcast(ids)
    try:
        storage = storage or open_storage(settings.database_url)
    except StorageError as error:
        mistake, exit_code = f"{error} (on {MPI.Get_processor_name()})", code_of(error)
    try:
        agree(comm, mistake, exit_code)
    except LaunchError as error:
        if storage is not None:
            if comm.rank == 0:
                storage.end_launch(launch_id, error.exit_code)
            storage.close()
        raise
    assert storage is not None
    return storage, search_id, launch_id
