"""One controller rank: breeds, has individuals evaluated, and exchanges them over MPI.

The only module that imports mpi4py. Propulate's own loop blocks in sends, counts its budget in
generations per rank and cannot stop or resume; this loop keeps its island model (asynchronous
islands, migration by pollination, the best of an island visits the others) and moves worker,
messages and signals along in one place. The database deals out the budget: exactly as many
individuals as asked for, over all ranks.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from mpi4py import MPI
from rich.console import Console

from oialr_search.config import SearchFile
from oialr_search.evaluator import Evaluated, Evaluator
from oialr_search.evolution import Member, Population, random_numbers
from oialr_search.launcher import (
    WorkerDied,
    WorkerSettings,
    affinity,
    choose_gpu,
    threads_per_rank,
    visible_gpus,
)
from oialr_search.progress import ProgressDisplay
from oialr_search.search import find_stored, is_complete, start_search, stored_members
from oialr_search.storage import (
    Proposal,
    Storage,
    StorageError,
    database_exists,
    open_storage,
)
from workers.config import ConfigError

EXIT_FINISHED, EXIT_USAGE, EXIT_INTERNAL, EXIT_STOPPED, EXIT_CONFIG = 0, 2, 70, 75, 78
POLL_S = 0.02
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


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


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank stands: ranks are dealt to islands in blocks of nearly equal size."""

    world_rank: int
    world_size: int
    num_islands: int

    @property
    def island(self) -> int:
        """Island of this rank."""
        return self.island_of(self.world_rank)

    @property
    def island_rank(self) -> int:
        """Number of this rank on its island."""
        return self.ranks_of(self.island).index(self.world_rank)

    def island_of(self, world_rank: int) -> int:
        """Island of any rank."""
        return world_rank * self.num_islands // self.world_size

    def ranks_of(self, island: int) -> list[int]:
        """World ranks of an island."""
        return [r for r in range(self.world_size) if self.island_of(r) == island]


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """A message between ranks: an evaluated individual, from a peer or another island."""

    member: Member
    island: int


STOP = "stop"
# The size of the launch as the launchers announce it, whatever MPI mpi4py has loaded.
WORLD_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


class Exchange:
    """Messages between ranks that never block: a rank waits for its worker, not for others."""

    def __init__(self, comm: MPI.Comm, place: Place) -> None:
        self._comm = comm
        self._place = place
        self._sent: list[MPI.Request] = []
        self._visited: set[tuple[int, int]] = set()

    def tell_peers(self, visitor: Visitor) -> None:
        """Send an evaluated individual to the other ranks of its island."""
        self._send(visitor, self._place.ranks_of(self._place.island))

    def migrate(self, visitor: Visitor) -> None:
        """Send an individual to all ranks of all other islands, to each island once."""
        for island in range(self._place.num_islands):
            key = (visitor.member.individual_id, island)
            if island != self._place.island and key not in self._visited:
                self._visited.add(key)
                self._send(visitor, self._place.ranks_of(island))

    def tell_all_to_stop(self) -> None:
        """Ask every other rank to stop."""
        self._send(STOP, range(self._place.world_size))

    def receive(self) -> list[Any]:
        """All messages that have arrived."""
        arrived = []
        while (message := self._comm.improbe()) is not None:
            arrived.append(message.recv())
        self._sent = [request for request in self._sent if not request.Test()]
        return arrived

    def finish(self, on_message: Callable[[Any], None], meanwhile: Callable[[], None]) -> None:
        """Wait for all ranks; messages still under way are received, so none blocks the end.

        Synchronous sends complete when they are received: once all ranks' have, and all have said
        so in a barrier, nothing is under way (Hoefler et al. 2010, "NBX").
        """
        barrier: MPI.Request | None = None
        while barrier is None or not barrier.Test():
            for message in self.receive():
                on_message(message)
            if barrier is None and not self._sent:
                barrier = self._comm.Ibarrier()
            meanwhile()
            time.sleep(POLL_S)

    def _send(self, message: Any, world_ranks: Iterable[int]) -> None:
        for world_rank in world_ranks:
            if world_rank != self._place.world_rank:
                self._sent.append(self._comm.issend(message, dest=world_rank))


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
    stop = _StopRequest(settings.time_limit_s)
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
        _wait(comm)
        for path in reversed(made):
            path.rmdir()
        raise
    evaluator.open(storage)
    with storage:
        rank = _Rank(
            place=place,
            search_file=search_file,
            storage=storage,
            search_id=search_id,
            launch_id=launch_id,
            evaluator=evaluator,
            exchange=Exchange(comm, place),
            stop=stop,
            warnings=warnings,
        )
        complete = rank.run()
        exit_code = EXIT_FINISHED if complete else EXIT_STOPPED
        if comm.rank == 0:
            storage.end_launch(launch_id, exit_code)
    return exit_code


class _Rank:
    """The loop of one rank."""

    def __init__(
        self,
        *,
        place: Place,
        search_file: SearchFile,
        storage: Storage,
        search_id: int,
        launch_id: int,
        evaluator: Evaluator,
        exchange: Exchange,
        stop: _StopRequest,
        warnings: list[str],
    ) -> None:
        self._place = place
        self._search = search_file.search
        self._space = search_file.space
        self._storage = storage
        self._search_id = search_id
        self._launch_id = launch_id
        self._evaluator = evaluator
        self._exchange = exchange
        self._stop = stop
        self._warnings = warnings
        names = tuple(h.name for h in self._space.hyperparameters)
        size = self._search.population_size or 2 * place.world_size
        self._population = Population(names, self._search, size)
        members, self._generation = stored_members(
            storage, search_id, place.island, place.island_rank, place.num_islands
        )
        for member in members:
            self._population.add(member)
        self._display = (
            ProgressDisplay(storage, search_id, self._search.metric, _console())
            if place.world_rank == 0
            else None
        )

    def run(self) -> bool:
        """Evaluate until the search is complete (True) or stopped (False)."""
        while not self._stop.requested() and self._start_next():
            evaluated = None
            while evaluated is None and not self._stop.requested():
                evaluated = self._evaluator.poll(POLL_S)
                self._take_in_messages()
                self._show()
            if evaluated is not None:
                self._pass_on(evaluated)
        self._evaluator.stop()
        if self._stop.requested():
            self._exchange.tell_all_to_stop()
        self._exchange.finish(self._take_in, meanwhile=self._show)
        if self._display is not None:
            self._display.close()
        return is_complete(self._storage, self._search_id, self._search.evaluations)

    def _start_next(self) -> bool:
        """Claim the next individual and start its evaluation; False when there is none."""
        rng = self._random_numbers()
        offspring = self._population.breed(rng)
        claim = self._storage.claim(
            self._search_id,
            self._launch_id,
            Proposal(
                island=self._place.island,
                island_rank=self._place.island_rank,
                generation=self._generation,
                parents=offspring.parents,
                origin=offspring.origin,
                genes=offspring.genes,
                hyperparameters=self._space.decode(offspring.genes),
            ),
            self._search.evaluations,
        )
        if claim is None:
            return False
        if not claim.repeated:
            self._generation += 1
        self._evaluator.start(claim)
        return True

    def _pass_on(self, evaluated: Evaluated) -> None:
        """Take an evaluated individual into the population, tell the peers, perhaps migrate."""
        if evaluated.fitness is None:
            return
        individual = evaluated.claim.individual
        member = Member(
            individual_id=individual.id, genes=dict(individual.genes), fitness=evaluated.fitness
        )
        self._population.add(member)
        island = self._place.island
        self._exchange.tell_peers(Visitor(member=member, island=island))
        best = self._population.best()
        migrates = self._random_numbers().random() < self._search.migration_probability
        if best is not None and migrates:
            self._exchange.migrate(Visitor(member=best, island=island))

    def _random_numbers(self) -> random.Random:
        place = self._place
        return random_numbers(self._search.seed, place.island, place.island_rank, self._generation)

    def _take_in_messages(self) -> None:
        for message in self._exchange.receive():
            self._take_in(message)

    def _take_in(self, message: Any) -> None:
        if message == STOP:
            self._stop.request()
            return
        assert isinstance(message, Visitor)
        new = self._population.add(message.member)
        # One rank keeps the island's book.
        if new and message.island != self._place.island and self._place.island_rank == 0:
            self._storage.record_migration(
                self._search_id, message.member.individual_id, message.island, self._place.island
            )

    def _show(self) -> None:
        if self._display is not None:
            while self._warnings:
                self._display.warn(self._warnings.pop(0))
            self._display.refresh()


def _console() -> Console:
    """Standard output; a launcher's terminal is none (Open MPI gives ranks one even in a pipe)."""
    launched = any(name in os.environ for name in WORLD_SIZE_VARIABLES)
    return Console(highlight=False, force_terminal=False if launched else None)


class _StopRequest:
    """Signals and the time limit only set a flag; the loop looks at it."""

    def __init__(self, time_limit_s: float | None) -> None:
        self._requested = False
        self._deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def request(self) -> None:
        """Stop as soon as the loop comes by."""
        self._requested = True

    def requested(self) -> bool:
        """Is it time to stop?"""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return self._requested or late

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._requested = True


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
    _wait(comm)
    problems = comm.allgather((problem, exit_code))
    for text, code in problems:
        if text is not None:
            raise LaunchError(text, code)


def _wait(comm: MPI.Comm) -> None:
    """A barrier that leaves the processor to others."""
    barrier = comm.Ibarrier()
    while not barrier.Test():
        time.sleep(POLL_S)
