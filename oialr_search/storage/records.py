"""What the rest of the package knows of the database: records, the `Storage` protocol, its error.

Everything here is plain Python. Records are frozen, times are timezone-aware UTC datetimes, and
whatever goes wrong in a database arrives as one `StorageError` without a password in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

from typing_extensions import TypeAliasType

if TYPE_CHECKING:
    from oialr_search.storage.selection import Column, FailureCount, Placed, Rows, Selection

JsonValue = TypeAliasType(
    "JsonValue", "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
)


class StorageError(Exception):
    """A database that cannot be used as asked; its text is one line for the user."""


class StorageUnavailable(StorageError):  # noqa: N818  (a state of the database, not a mistake)
    """The database cannot be reached, is locked or full just now: the same call may work later."""


class Status(StrEnum):
    """How far an individual or one of its evaluations has come."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    LOST = "lost"


def utc_now() -> datetime:
    """Return the current time the way every record here carries it."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class NewSearch:
    """A search to be created; its hyperparameters and metrics become leaderboard columns."""

    name: str
    task: str
    metric: str  # the validation metric that the fitness is made of
    settings: Mapping[str, JsonValue]  # the complete search file after overrides
    space: Sequence[Mapping[str, JsonValue]]  # {"name", "kind": float|int|bool|choice, ...} each
    metric_names: Sequence[str]  # final metrics to show in the leaderboard
    seed: int
    evaluations_total: int  # individuals the search will have in the end
    version: str  # of oialr_search


@dataclass(frozen=True, kw_only=True)
class SearchRecord(NewSearch):
    """A stored search."""

    id: int
    created_at: datetime
    last_launch_at: datetime | None  # None before the first launch


@dataclass(frozen=True, kw_only=True)
class NewLaunch:
    """One `mpirun` about to work on a search."""

    search_id: int
    world_size: int
    num_islands: int
    hostname: str
    command_line: str  # credentials in URLs are blanked before it is stored
    versions: Mapping[str, str]  # package -> version
    git_revision: str | None


@dataclass(frozen=True, kw_only=True)
class LaunchRecord(NewLaunch):
    """A stored launch."""

    id: int
    started_at: datetime
    ended_at: datetime | None  # None while it runs, and for ever when it was killed
    exit_code: int | None


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A bred individual that has no number yet."""

    island: int
    island_rank: int
    generation: int
    parents: Sequence[int]  # ids of individuals
    origin: str  # how it came about: "random", "bred"
    genes: Mapping[str, float]  # each in [0, 1]
    hyperparameters: Mapping[str, JsonValue]  # decoded


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Who evaluates, and with what: one controller rank of one launch."""

    launch_id: int
    world_rank: int
    hostname: str
    device: str | None
    seed: int  # of the training
    num_threads: int  # CPU threads of the training; sums over threads depend on it
    search_folder: str  # absolute; each evaluation gets a folder in it


def individual_folder(search_folder: str, individual_id: int) -> str:
    """Where the files of an individual are."""
    return f"{search_folder}/individual-{individual_id:06d}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an evaluation ended; the fitness is given exactly when it completed."""

    status: Status
    reason: str | None = None  # one line, None when all went well
    exit_code: int | None = None
    exit_signal: int | None = None
    fitness: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)  # final values; inf reads as NaN
    trainable_percent: float | None = None  # of the full-rank model's parameters
    compression_percent: float | None = None  # total parameters, same reference
    log_tail: str | None = None  # the end of the worker's log, where it did not complete
    gpu_energy_j: float | None = None  # of the whole GPU, while the attempt trained
    cpu_energy_j: float | None = None  # of all CPU packages of the machine meanwhile
    peak_host_memory_bytes: int | None = None  # of the worker and its loader processes
    peak_gpu_memory_bytes: int | None = None  # of all tensors
    samples_per_s: float | None = None  # trained; validation left out
    finished_at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """A stored execution of a worker for an individual; what it has not come to yet is None."""

    id: int
    individual_id: int
    attempt: int  # 1, 2, ... for one individual
    launch_id: int
    world_rank: int
    hostname: str
    device: str | None
    seed: int
    num_threads: int
    folder: str
    log_path: str
    status: Status
    started_at: datetime  # when it was claimed
    resumed_epoch: int | None  # epochs taken over from an earlier attempt; None before training
    reason: str | None
    exit_code: int | None
    exit_signal: int | None
    training_started_at: datetime | None  # first training step
    finished_at: datetime | None
    finish_number: int | None  # it was the n-th evaluation of its search to finish
    last_epoch: int | None
    fitness: float | None
    metrics: Mapping[str, float]
    trainable_percent: float | None
    compression_percent: float | None
    log_tail: str | None
    gpu_energy_j: float | None = None  # these five as in `Outcome`
    cpu_energy_j: float | None = None
    peak_host_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    samples_per_s: float | None = None

    @property
    def duration_s(self) -> float | None:
        """Seconds from the request to the end."""
        if self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True, kw_only=True)
class IndividualRecord(Proposal):
    """A stored individual with its latest evaluation."""

    id: int
    search_id: int
    launch_id: int  # the launch that bred it; a later one may have repeated it
    status: Status
    fitness: float | None  # None unless completed
    created_at: datetime
    finished_at: datetime | None
    evaluation: EvaluationRecord | None  # the latest attempt


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An individual that the caller, and nobody else, is to evaluate now."""

    individual: IndividualRecord  # with the evaluation that has just been stored as running
    evaluation: EvaluationRecord  # the same
    repeated: bool  # lost earlier: the proposal was not used
    failures: int  # earlier attempts that failed or timed out
    remaining: int  # claims left after this one, lost individuals included


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The metrics of one epoch."""

    epoch: int
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RankUpdate:
    """The inner rank of one layer after a basis update."""

    step: int
    layer: str
    inner_rank: int
    full_inner_rank: int
    stability: float | None  # of the basis, Eq. (4)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """How far one layer's bases and mixings have come between two instants of a training."""

    step: int
    earlier_step: int
    layer: str
    stability: float  # Eq. (4)
    mixing_similarity: float  # Eq. (5)


@dataclass(frozen=True, kw_only=True)
class IndividualHistory:
    """All that is known of an individual, to be restored from its files."""

    individual: IndividualRecord
    evaluations: Sequence[EvaluationHistory]


@dataclass(frozen=True, kw_only=True)
class EvaluationHistory:
    """All that is known of an evaluation."""

    evaluation: EvaluationRecord
    epochs: Sequence[EpochRecord]
    rank_updates: Sequence[RankUpdate]
    observations: Sequence[Observation]


@dataclass(frozen=True, kw_only=True)
class NewMigration:
    """An individual about to be accepted by another island."""

    search_id: int
    individual_id: int
    source_island: int
    target_island: int
    accepted_at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True)
class MigrationRecord(NewMigration):
    """A stored migration."""

    id: int


@dataclass(frozen=True, kw_only=True)
class RunningEvaluation:
    """What one controller rank is waiting for."""

    evaluation_id: int
    individual_id: int
    attempt: int
    island: int
    island_rank: int
    world_rank: int
    hostname: str
    device: str | None
    started_at: datetime
    last_epoch: int | None
    folder: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a search stands."""

    total: int
    counts: Mapping[Status, int]  # individuals; every status is there
    best_fitness: float | None
    best_individual_id: int | None
    running: Sequence[RunningEvaluation]


@dataclass(frozen=True, kw_only=True)
class IslandSummary:
    """Where one island of a search stands."""

    island: int
    counts: Mapping[Status, int]  # individuals bred there; every status is there
    best_fitness: float | None
    best_individual_id: int | None


class Storage(AbstractContextManager["Storage"], Protocol):
    """The database of searches. Each method is one transaction; any number of processes may call.

    Every method raises `StorageError` where the database cannot do it, and its `StorageUnavailable`
    where the same call may work later. Nothing of that call is stored then, but for one case: a
    database lost in the middle of a commit does not say whether it happened. All methods that a
    controller calls while it evaluates may be called again after that.
    """

    def together(self) -> AbstractContextManager[None]:
        """Make one transaction of the calls within: all of it is stored, or nothing."""

    def create_search(self, search: NewSearch) -> int:
        """Store a search, give the leaderboard its columns and return the search's id."""

    def set_evaluations_total(self, search_id: int, total: int) -> None:
        """Change how many individuals a search will have: a resumed search may ask for more."""

    def find_search(self, name: str) -> SearchRecord | None:
        """Return the search of that name."""

    def searches(self) -> list[SearchRecord]:
        """Return all searches, the most recently launched first."""

    def start_launch(self, launch: NewLaunch) -> int:
        """Store a launch and return its id; what earlier launches left unfinished becomes lost."""

    def end_launch(self, launch_id: int, exit_code: int) -> None:
        """Note that a launch ended by itself."""

    def launches(self, search_id: int) -> list[LaunchRecord]:
        """Return a search's launches, oldest first."""

    def claim(self, search_id: int, proposal: Proposal, total: int, runner: Runner) -> Claim | None:
        """Hand out the oldest lost individual, else the proposal, else None at `total`.

        Its evaluation is stored as running. Atomic over all processes: no individual is handed out
        twice, and no more than `total` ever exist. A runner that has a running evaluation gets it
        again: it had been cut off before it knew of it.

        Raises:
            StorageError: when a later launch has taken the search over.
        """

    def mark_training_started(self, evaluation_id: int, at: datetime, resumed_epoch: int) -> None:
        """Note the time of the first training step, and the epochs taken over."""

    def add_epoch(
        self,
        evaluation_id: int,
        epoch: EpochRecord,
        rank_updates: Sequence[RankUpdate] = (),
        observations: Sequence[Observation] = (),
    ) -> None:
        """Store an epoch and what OIALR did in it; what is already there stays."""

    def finish_evaluation(
        self, evaluation_id: int, outcome: Outcome, *, repeat: bool = False
    ) -> bool:
        """Close an evaluation and its individual; False if it had been closed before.

        With `repeat`, and always with the status `lost`, the individual becomes `lost`: it is
        claimed again. What completed is never repeated.
        """

    def unfinished(self, search_id: int) -> list[EvaluationRecord]:
        """Return the evaluations that are stored as running."""

    def record_migration(self, migration: NewMigration) -> bool:
        """Note that an island accepted an individual; False if it had done so before.

        Raises:
            StorageError: when the individual has not completed: only fitness breeds.
        """

    def progress(self, search_id: int) -> Progress:
        """Return where a search stands."""

    def islands(self, search_id: int) -> list[IslandSummary]:
        """Return the islands that have bred or accepted an individual, by number."""

    def breeders(
        self, search_id: int, island: int, num_islands: int, limit: int
    ) -> list[IndividualRecord]:
        """Return the fittest of an island, best first: those bred there and those it accepted.

        Islands are counted modulo `num_islands`: a launch may have fewer than an earlier one.
        """

    def next_generation(self, search_id: int, island: int, island_rank: int) -> int:
        """Return the number of the next proposal of a rank: one more than its highest so far."""

    def individuals(
        self,
        search_id: int,
        *,
        status: Status | None = None,
        limit: int | None = None,
        order: Literal["fitness", "id"] = "id",
    ) -> list[IndividualRecord]:
        """Return a search's individuals; by fitness means best first, those without one last."""

    def individuals_after(
        self, search_id: int, individual_id: int, again: Collection[int] = ()
    ) -> list[IndividualRecord]:
        """Return a search's individuals with higher ids, and those named `again`, by id.

        Who has read a search before needs no more: its ids only grow, and an individual that
        neither runs nor waits changes no more.
        """

    def individual(self, individual_id: int) -> IndividualRecord | None:
        """Return one individual."""

    def evaluations(self, individual_id: int) -> list[EvaluationRecord]:
        """Return an individual's evaluations, first attempt first."""

    def epochs(self, evaluation_id: int) -> list[EpochRecord]:
        """Return an evaluation's epochs in order; a metric that was not a number reads as NaN."""

    def metric_by_epoch(
        self, name: str, evaluation_ids: Sequence[int]
    ) -> dict[int, dict[int, float]]:
        """Return one metric of many evaluations: evaluation -> epoch -> value, in order."""

    def rank_updates(self, evaluation_id: int) -> list[RankUpdate]:
        """Return an evaluation's inner ranks by step and layer."""

    def observations(self, evaluation_id: int) -> list[Observation]:
        """Return an evaluation's observations by step, earlier step and layer."""

    def migrations(self, search_id: int) -> list[MigrationRecord]:
        """Return a search's accepted migrations, oldest first."""

    def last_finish_number(self, search_id: int) -> int:
        """Return how many evaluations of a search have finished."""

    def restore(
        self,
        search: SearchRecord,
        launches: Sequence[LaunchRecord],
        histories: Iterable[IndividualHistory],
    ) -> None:
        """Store a whole search as it was but for its migrations, ids included, in one transaction.

        Raises:
            StorageError: when an id or the name is taken.
        """

    def finished_since(self, search_id: int, finish_number: int = 0) -> list[EvaluationRecord]:
        """Return evaluations that finished after the one with that number, in that order."""

    def select(
        self, search_id: int, selection: Selection, limit: int | None = None
    ) -> list[Placed]:
        """Return the individuals of a selection, best first, those without a fitness last."""

    def values(
        self, search_id: int, selection: Selection, columns: Sequence[Column]
    ) -> list[tuple[Any, ...]]:
        """Return the id of each individual of a selection, in any order, and its values."""

    def last_finishes(self, launch_id: int, limit: int) -> Sequence[tuple[datetime, int]]:
        """Return when a launch's latest evaluations ended and on which islands, latest first."""

    def failures(self, search_id: int) -> list[FailureCount]:
        """Count the evaluations that did not complete, repeated ones too, by what they say."""

    def table(
        self,
        search_id: int,
        name: Literal["individuals", "metrics", "rank_updates", "observations", "lineage"],
    ) -> Rows:
        """Return all that a search has in a table; `individuals` with their latest evaluations."""

    def close(self) -> None:
        """Let go of the database; closing twice is fine."""
