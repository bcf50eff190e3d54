"""What the rest of the package knows of the database: records and errors.

Everything here is plain Python. Records are frozen, times are timezone-aware UTC datetimes, and
whatever goes wrong in a database arrives as one `StorageError` without a password in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from oialr_search.space.hyperparameters import SearchSpace, Value
from oialr_search.storage.status import Status as Status
from oialr_training.errors import Cause, KnownError
from oialr_training.protocol import Observation, RankUpdate, Resources

if TYPE_CHECKING:
    from oialr_search.space.fitness import Aims
    from oialr_search.space.search_file import SearchSettings
    from oialr_training.config import Metrics, TaskConfig


CONFIRM = "confirm"
"""The origin of those that repeat a search's best when its evaluations have ended."""


class StorageError(KnownError):
    """A database that cannot be used as asked; its text is one line for the user."""

    cause: Cause = "configuration"


class StorageUnavailable(StorageError):  # noqa: N818  (a state of the database, not a mistake)
    """The database cannot be reached, is locked or full just now: the same call may work later."""

    cause = "machine"


def utc_now() -> datetime:
    """Return the current time the way every record here carries it."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class NewSearch:
    """A search to be created; its hyperparameters and metrics become leaderboard columns."""

    name: str
    task: str
    metric: str  # the validation metric that the fitness is made of
    settings: Mapping[str, Any]  # the complete search file after overrides, as it is stored
    space: SearchSpace
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

    def training(self) -> TaskConfig:
        """Return the training configuration of the search file, complete for this version.

        Raises:
            ConfigError: when it has something that this version does not know.
        """
        from oialr_search.space.search_file import stored_training

        return stored_training(self.settings, f"search {self.name!r} as it is stored")

    def search_settings(self) -> SearchSettings:
        """Return how the space was searched by the latest launch, complete for this version.

        Raises:
            ConfigError: when it has something that this version does not know.
        """
        from oialr_search.space.search_file import stored_search_settings

        return stored_search_settings(self.settings, f"search {self.name!r} as it is stored")

    @property
    def aim(self) -> str:
        """Return what the search is after as its file names it: metric, expression, objectives."""
        searched = self.settings.get("search") or {}
        return searched.get("fitness") or ", ".join(self.objectives) or self.metric

    @property
    def objectives(self) -> Sequence[str]:
        """Return the objectives as the search file names them; none: the fitness alone."""
        return (self.settings.get("search") or {}).get("objectives") or ()

    @property
    def subject_to(self) -> Sequence[str]:
        """Return the conditions as the search file names them."""
        return (self.settings.get("search") or {}).get("subject_to") or ()

    def metrics(self) -> Metrics:
        """Return what the trainings report; nothing that the database names is run for it.

        Raises:
            ConfigError: when this version does not know all of it.
        """
        from oialr_search.space.search_file import stored_metrics

        return stored_metrics(self.settings, self.task, f"search {self.name!r} as it is stored")

    def aims(self) -> Aims:
        """Return what the search is after.

        Raises:
            ConfigError: when this version knows no such metric or column.
        """
        from oialr_search.space.fitness import aims_of

        source = f"search {self.name!r} as it is stored"
        return aims_of(self.search_settings(), self.metrics(), self.space, source)

    def of_search_file(self, path: str) -> Any:
        """Return what stands at a dotted path of the stored training configuration, else None."""
        found: Any = self.settings.get("training")
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


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
    hyperparameters: Mapping[str, Value]  # decoded
    seed: int | None = None  # of the training; None: the search file's
    repeat_of: int | None = None  # the individual that this one measures again


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
    objectives: Sequence[float] = field(default_factory=list)  # minimised; empty: the fitness alone
    constraints: Sequence[float] = field(default_factory=list)  # excesses; met up to 0
    violation: float = 0.0  # of all constraints; 0: none
    metrics: Mapping[str, float] = field(default_factory=dict)  # final values; inf reads as NaN
    trainable_percent: float | None = None  # of the full-rank model's parameters
    compression_percent: float | None = None  # total parameters, same reference
    log_tail: str | None = None  # the end of the worker's log, where it did not complete
    resources: Resources = field(default_factory=Resources)
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
    objectives: Sequence[float] = field(default_factory=list)
    constraints: Sequence[float] = field(default_factory=list)
    violation: float = 0.0
    resources: Resources = field(default_factory=Resources)

    @property
    def duration_s(self) -> float | None:
        """Seconds from the request to the end."""
        if self.finished_at is None:
            return None
        return max((self.finished_at - self.started_at).total_seconds(), 0.0)


def num_failures(attempts: Iterable[EvaluationRecord]) -> int:
    """Count the attempts that failed or timed out, whoever's fault it was."""
    return sum(attempt.status in (Status.FAILED, Status.TIMED_OUT) for attempt in attempts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What an engine knows of an individual, of whichever island and whatever became of it."""

    individual_id: int
    island: int
    status: Status
    genes: Mapping[str, float]
    fitness: float | None  # None unless completed; of an individual with repeats their mean
    violation: float = 0.0
    objectives: Sequence[float] = field(default_factory=list)  # of a pruned one what is expected
    constraints: Sequence[float] = field(default_factory=list)
    repeat_of: int | None = None
    num_seeds: int = 1  # measurements that the fitness is the mean of
    fitness_deviation: float | None = None  # over seeds; None: there are not two
    cost_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class IndividualRecord(Proposal):
    """A stored individual with its latest evaluation.

    Fitness, objectives, constraints and violation are means over it and those that repeat it.
    """

    id: int
    search_id: int
    launch_id: int  # the launch that bred it; a later one may have repeated it
    status: Status
    fitness: float | None  # None unless completed
    created_at: datetime
    finished_at: datetime | None
    evaluation: EvaluationRecord | None  # the latest attempt
    violation: float = 0.0
    objectives: Sequence[float] = field(default_factory=list)
    constraints: Sequence[float] = field(default_factory=list)
    fitness_deviation: float | None = None  # standard deviation over seeds; None: only one
    num_seeds: int = 0  # completed measurements of it; their mean is the fitness
    cost_s: float = 0.0  # of all its attempts


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An individual that the caller, and nobody else, is to evaluate now."""

    individual: IndividualRecord  # with the evaluation that has just been stored as running
    evaluation: EvaluationRecord  # the same
    repeated: bool  # lost earlier, or queued: the proposal was not used
    failures: int  # earlier attempts that failed or timed out
    remaining: int  # claims left after this one, lost and queued individuals included
    continued: bool = False  # pruned earlier, and now trained to its end


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The metrics of one epoch."""

    epoch: int
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The latest training of an individual, epoch by epoch."""

    individual_id: int
    status: Status  # of the individual
    evaluation_id: int
    genes: Mapping[str, float]
    hyperparameters: Mapping[str, Value]
    epochs: Sequence[EpochRecord]  # in order, with the metrics that were asked for
    fitness: float | None  # None unless completed
    first_truncation: int | None  # the step at which an inner rank was first cut


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
    training_started_at: datetime | None
    resumed_epoch: int | None
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
    best_violation: float = 0.0  # of its constraints
    num_confirmations: int = 0  # individuals beyond the total, that confirm the best

    @property
    def ended(self) -> int:
        """Individuals that have been evaluated to their end, whichever it was."""
        return sum(self.counts.values()) - self.unfinished

    @property
    def unfinished(self) -> int:
        """Individuals that run or wait to."""
        return sum(self.counts[s] for s in (Status.QUEUED, Status.RUNNING, Status.LOST))

    @property
    def expected(self) -> int:
        """Individuals there will be: a person may have queued more than the total."""
        return max(self.total + self.num_confirmations, sum(self.counts.values()))


@dataclass(frozen=True, kw_only=True)
class IslandSummary:
    """Where one island of a search stands."""

    island: int
    counts: Mapping[Status, int]  # individuals bred there; every status is there
    best_fitness: float | None
    best_individual_id: int | None
