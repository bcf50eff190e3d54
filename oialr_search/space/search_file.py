"""The search file: task and recipe, `search:` settings and `space:`, typed and validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from oialr_search.space.constraints import Constraints, constraints_of
from oialr_search.space.fitness import Aims, aims_of
from oialr_search.space.given import OfFile, Start
from oialr_search.space.hyperparameters import SearchSpace
from oialr_search.space.parsing import RANGE_KEYS, parse_space
from oialr_search.space.prior import Prior, check_priors
from oialr_search.space.repeats import ConfirmSettings, RepeatSettings
from oialr_search.space.stopping import StoppingSettings, rule_class
from oialr_search.space.workers import WorkerConfig
from oialr_training.config import Metrics, TaskConfig
from oialr_training.errors import ConfigError, nearest
from oialr_training.tasks import known_metrics, refuse_lacking, validate_training
from oialr_training.validation import Config, Fraction, validate
from oialr_training.yaml_files import apply_override, in_one_line, parse_assignment, read_yaml

ENGINES = {
    "propulate": "oialr_search.launch.engines.propulate:PropulateEngine",
    "screened": "oialr_search.launch.engines.screened:ScreenedEngine",
    "random": "oialr_search.launch.engines.random_search:RandomSearch",
    "sobol": "oialr_search.launch.engines.sobol:SobolSequence",
    "tpe": "oialr_search.launch.engines.optuna_samplers:TPE",
    "gp": "oialr_search.launch.engines.optuna_samplers:GP",
    "cmaes": "oialr_search.launch.engines.cmaes:CMAES",
    "pso": "oialr_search.launch.engines.particle_swarm:ParticleSwarm",
    "nelder_mead": "oialr_search.launch.engines.nelder_mead:NelderMead",
}
"""Engine → its class, which is imported where it is chosen."""
OF_ONE_OBJECTIVE = ("cmaes", "pso", "nelder_mead")

OF_PROPULATE = (
    "crossover_probability", "mutation_probability", "mutation_sigma", "random_init_probability",
)  # fmt: skip


NOT_OF_TRAINING = ("search", "space", "worker")
"""The sections of a search file that are none of its training configuration."""

STORED_FORMAT = 1
"""Of settings and space as they are stored; it goes up when older ones need to be translated.
Version 0.1.0 said none, and what it stored needs no translation."""


_TEXT: Mapping[str, Any] = {"type": "string"}
ONE_OR_SEVERAL = WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]})


class Until(Config):
    """The search ends, complete, when one of these is met; what runs then ends as it will."""

    hours: Annotated[float, Field(gt=0.0)] | None = None
    """All its launches took so long together; a killed one, to its last evaluation's end."""
    no_improvement_in: Annotated[int, Field(ge=1)] | None = None
    """So many evaluations have ended since that of the best."""
    regret_below: Annotated[float, Field(gt=0.0)] | None = None
    """Three of four searches like it would not lower the best fitness by so much in another 50
    evaluations, as far as simulated ones tell; `oialr-search status` says how much it is."""

    @model_validator(mode="before")
    @classmethod
    def _says_evaluations_elsewhere(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and "evaluations" in content:
            raise ValueError("the number of evaluations is `search.evaluations`: no `evaluations`")
        return content


class SearchSettings(Config):
    """How the space is searched: Propulate's island model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Name of the search in the database, and of its folder."""
    metric: str = ""
    """Validation metric that decides; the task knows which way is better. With `fitness` or
    `objectives` the metric of curves and stopping rules: by default the first that these name."""
    fitness: str | None = None
    """What is minimised in place of the metric: an expression over metrics, trainable_percent,
    compression_percent, resources, duration_s and numeric hyperparameters."""
    objectives: Annotated[list[str], Field(min_length=2)] | None = None
    """Several such expressions, each with `:min` or `:max`; a metric knows its own way. The search
    is for their Pareto front; the first is the fitness."""
    subject_to: Annotated[list[str], Field(default_factory=list), ONE_OR_SEVERAL]
    """Conditions on such expressions (`trainable_percent <= 15`); who breaks one comes after who
    meets all."""
    constraints: Annotated[list[str], Field(default_factory=list), ONE_OR_SEVERAL]
    """Conditions between numbers of the training configuration, searched or not
    (`scheduler.warmup_epochs < epochs`); an individual that breaks one is bred again, never
    trained."""
    fitness_window: Annotated[int, Field(ge=1)] = 1
    """In all of these a validation metric counts as its mean over so many last epochs."""
    cost_aware: bool = False
    """`screened` chooses by the expected improvement a second instead of an evaluation."""
    evaluations: Annotated[int, Field(ge=1)]
    """Individuals of the whole search, over all ranks."""
    until: Until | None = None
    """When the search has had enough before that."""
    islands: Annotated[int, Field(ge=1)]
    engine: str = "screened"
    """What proposes the next individual: one of ENGINES."""
    engines: list[str] | None = None
    """An engine for each island, in place of `engine`."""
    population_size: Annotated[int, Field(ge=2)] | None = None
    """Individuals that an island breeds from (its best); with `propulate`, individuals are random
    until it has so many. null: twice the number of ranks, as the authors did."""
    crossover_probability: Fraction = 0.7
    """Of `propulate`, as what follows."""
    mutation_probability: Fraction = 0.4
    """Probability that one hyperparameter is drawn anew; besides, each child has one moved."""
    mutation_sigma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    """Standard deviation of that move, as part of the hyperparameter's range."""
    random_init_probability: Fraction = 0.1
    """Probability that a child is replaced by a random individual."""
    migration_probability: Fraction = 0.9
    """Probability, after each evaluation, that an island's best visits all other islands."""
    start_with: tuple[Start, ...] = Field(default=(), strict=False)
    """What is evaluated first: `file`, the file's own values at the searched paths;
    `{search: NAME, best: 3}`, the best of another search in the database; `{file: PATH}`, a
    training configuration, e.g. an exported one."""
    repeats: RepeatSettings | None = None
    """Measure the best again with other seeds while the search runs; null: never. `{}`: three
    seeds each, with at most a fifth of the evaluations."""
    confirm: ConfirmSettings | None = None
    """Train the best again with further seeds when all evaluations have ended, and choose between
    them by these; null: do not. `{}`: the best three, three seeds each."""
    prior: Mapping[str, Prior] = Field(default_factory=dict)
    """Where a person expects good hyperparameters, for those of which something is known:
    `{around: 2.0e-4, factor: 3}` on a log scale, `{around: 0.5, within: 0.1}` on a linear one,
    `{around: adamw, probability: 0.8}` of choices. It fades with evidence. Of `screened`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of breeding and migration; that of the trainings is the top-level `seed`."""
    evaluation_time_limit_s: Annotated[float, Field(gt=0.0)] | None = None
    """An evaluation that takes longer is stopped and counts as `timed_out`; null: no limit."""
    no_progress_limit_s: Annotated[float, Field(gt=0.0)] = 600.0
    """So is one whose worker has neither trained nor measured a batch for so long."""
    preparation_limit_s: Annotated[float, Field(gt=0.0)] = 600.0
    """So long may a worker take until it trains: imports, data and a first step."""
    log_limit_mib: Annotated[int, Field(ge=1)] = 64
    """An evaluation that writes a longer log has failed."""
    retries: Annotated[int, Field(ge=0)] = 1
    """How often an individual is evaluated again when the machine may be at fault: the worker was
    killed, ran out of memory, hung, could not read or write. A configuration that diverges, raises
    or takes too long is not repeated."""
    failures_in_a_row: Annotated[int, Field(ge=1)] = 5
    """After so many such failures one after the other, a rank asks for no more work."""
    stopping: StoppingSettings | None = None
    """Which trainings end early; null: none. `{}`: the worst quarter, once OIALR has begun."""

    @field_validator("subject_to", "constraints", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class SearchFile:
    """A search file after overrides, valid as a whole."""

    search: SearchSettings
    space: SearchSpace
    training: TaskConfig
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    pinned: tuple[str, ...]
    """Hyperparameters that an override took out of the space."""
    source: str

    @property
    def aims(self) -> Aims:
        """What the search is after."""
        return aims_of(self.search, self.training.reported, self.space, self.source)

    @property
    def constraints(self) -> Constraints:
        """What holds between hyperparameters."""
        training = self.training.model_dump(mode="json")
        return constraints_of(self.search.constraints, training, self.space, self.source)

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that are given while no island has their engine, and that."""
        engines, given = self.search.engines or [self.search.engine], self.search.model_fields_set
        of = {name: "propulate" for name in OF_PROPULATE if name in given}
        of |= {"prior": "screened"} if self.search.prior else {}
        return {name: engine for name, engine in of.items() if engine not in engines}

    def as_json(self) -> dict[str, Any]:
        """What the database keeps of the file, beside its space; see `stored_training`."""
        return {
            "format": STORED_FORMAT,
            "search": self.search.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "metrics": asdict(self.training.reported),
        }


def stored_training(settings: Mapping[str, Any], source: str) -> TaskConfig:
    """The training configuration of stored settings; fields newer than these have their defaults.

    Raises:
        ConfigError: when a newer version stored them, or this one does not know all of it.
    """
    return validate_training(_stored(settings, "training", source), source)


def stored_search_settings(settings: Mapping[str, Any], source: str) -> SearchSettings:
    """The `search:` settings of stored ones, as `stored_training` does it."""
    return validate(SearchSettings, _stored(settings, "search", source), source, prefix="search.")


def stored_metrics(settings: Mapping[str, Any], task: str, source: str) -> Metrics:
    """What the trainings of stored settings report; of earlier versions', as far as it is known.

    Raises:
        ConfigError: when this version does not know all of it.
    """
    if "metrics" not in settings:
        return known_metrics(task)
    try:
        return _metrics_adapter().validate_python(settings["metrics"])
    except ValidationError as error:
        mistake = error.errors()[0]
        key = ".".join(map(str, ("metrics", *mistake["loc"])))
        raise ConfigError(f"`{key}`: {mistake['msg']} ({source})") from None


@cache
def _metrics_adapter() -> TypeAdapter[Metrics]:
    return TypeAdapter(Metrics)


def _stored(settings: Mapping[str, Any], section: str, source: str) -> Mapping[str, Any]:
    if settings.get("format", 0) not in range(STORED_FORMAT + 1):
        raise ConfigError(
            f"a newer oialr-search wrote these settings ({source}): "
            "run `pip install --upgrade oialr-search`"
        )
    found = settings.get(section)
    if not isinstance(found, Mapping):
        raise ConfigError(f"`{section}` is missing ({source})")
    return found


def _set_in_space(space: dict[str, Any], key: str, value: Any) -> None:
    """Set a hyperparameter's whole range, or with `.low` and the like a part of it."""
    name, _, part = key.rpartition(".")
    if part in RANGE_KEYS:
        entry = space.get(name)
        space[name] = {**(entry if isinstance(entry, dict) else {}), part: value}
    else:
        space[key] = value


def load_search(
    path: Path,
    assignments: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    worker: dict[str, Any] | None = None,
) -> SearchFile:
    """Read a search file, with `path=value` overrides and changed `search:` and `worker:` settings.

    Setting a searched hyperparameter takes it out of the space.

    Raises:
        ConfigError: with a line for each mistake.
    """
    content = read_yaml(path)
    pinned = []
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        space = content.get("space")
        if isinstance(space, dict) and key.startswith("space."):
            _set_in_space(space, key.removeprefix("space."), value)
            continue
        apply_override(content, key, value)
        searched = space if isinstance(space, dict) else {}
        fixed = [name for name in searched if name == key or name.startswith(f"{key}.")]
        for name in fixed:
            del searched[name]
        pinned += fixed
    for key, value in (settings or {}).items():
        apply_override(content, f"search.{key}", value)
    for key, value in (worker or {}).items():
        apply_override(content, f"worker.{key}", value)
    source = in_one_line(path)
    for section in ("search", "space"):
        if section not in content:
            raise ConfigError(f"`{section}` is missing: a search file has it ({source})")
    training_content = {k: v for k, v in content.items() if k not in NOT_OF_TRAINING}
    search = validate(SearchSettings, content["search"], source, prefix="search.")
    worker_config = validate(WorkerConfig, content.get("worker", {}), source, prefix="worker.")
    training = validate_training(training_content, source)
    for engine in {search.engine, *(search.engines or ())} - ENGINES.keys():
        key = "engine" if engine == search.engine else "engines"
        raise ConfigError(
            f"unknown engine {engine!r:.80} for `search.{key}`{nearest(engine, ENGINES)} ({source})"
        )
    if search.engines is not None and len(search.engines) != search.islands:
        raise ConfigError(
            f"`search.engines` names one for each of `search.islands` = {search.islands}, "
            f"got {len(search.engines)} ({source})"
        )
    beside = path.absolute().parent
    start = tuple(
        OfFile(file=str(beside / entry.file)) if isinstance(entry, OfFile) else entry
        for entry in search.start_with
    )
    search = search.model_copy(update={"start_with": start})
    task = type(training)
    _refuse_missing_metric(search, training.reported.names, source)
    space = parse_space(content["space"], task, training_content, search.constraints, source)
    names = [h.name for h in space.hyperparameters]
    refuse_lacking(training, names, source)
    _refuse_window(search, training, space, source)
    aims = aims_of(search, training.reported, space, source)
    _refuse_aims(search, source)
    if search.stopping is not None:
        _check_stopping(search.stopping, training.reported, source)
        _refuse_no_clock(search.stopping, training, names, source)
    priors = {name: prior for name, prior in search.prior.items() if name not in pinned}
    check_priors(priors, space, source)
    return SearchFile(
        search=search.model_copy(update={"metric": aims.metric, "prior": priors}),
        space=space,
        training=training,
        worker=worker_config,
        pinned=tuple(pinned),
        source=source,
    )


def _refuse_missing_metric(search: SearchSettings, metrics: Sequence[str], source: str) -> None:
    if not search.metric and search.fitness is None and search.objectives is None:
        raise ConfigError(f"`search.metric` is missing ({source})")
    if search.metric and search.metric not in metrics:
        raise ConfigError(
            f"unknown metric {search.metric!r:.80} for `search.metric`"
            f"{nearest(search.metric, metrics)} ({source})"
        )


def _refuse_window(
    search: SearchSettings, training: TaskConfig, space: SearchSpace, source: str
) -> None:
    """The last epochs are those of the result only where the result is the last one's."""
    window = search.fitness_window
    result_epoch = getattr(training, "result_epoch", "last")
    if window > 1 and result_epoch != "last":
        raise ConfigError(
            f"`search.fitness_window` = {window} needs `result_epoch: last`, "
            f"got {result_epoch!r} ({source})"
        )
    searched = any(h.name == "epochs" for h in space.hyperparameters)
    if training.epochs is not None and window > training.epochs and not searched:
        raise ConfigError(
            f"`search.fitness_window` is at most `epochs` = {training.epochs}, "
            f"got {window} ({source})"
        )


def _refuse_aims(search: SearchSettings, source: str) -> None:
    """CMA-ES ranks by one number, and so do repeats; the others know what to do."""
    for key in ("repeats", "confirm"):
        if search.objectives and getattr(search, key) is not None:
            raise ConfigError(
                f"`search.{key}` measures the best again, and `search.objectives` have none: "
                f"give one of them ({source})"
            )
    for key in ("no_improvement_in", "regret_below"):
        if search.objectives and getattr(search.until, key, None) is not None:
            raise ConfigError(
                f"`search.until.{key}` looks at one fitness, and `search.objectives` have several: "
                f"`hours` and `evaluations` end such a search ({source})"
            )
    for engine in search.engines or [search.engine]:
        if search.objectives and engine in OF_ONE_OBJECTIVE:
            raise ConfigError(
                f"the engine `{engine}` knows no `search.objectives`: "
                f"`screened`, `propulate`, `tpe` and `gp` do ({source})"
            )


def _refuse_no_clock(
    settings: StoppingSettings, training: TaskConfig, searched: Sequence[str], source: str
) -> None:
    """What is no network of ours says its epochs, and cuts no inner rank."""
    if training.epochs is None and "epochs" not in searched:
        raise ConfigError(
            "`search.stopping` compares trainings by their epochs: say in `epochs` how many the "
            f"command reports ({source})"
        )
    if training.any_name and settings.clock.unit == "epochs after the first truncation":
        raise ConfigError(
            f"`search.stopping.after` = {settings.after!r} is of OIALR's own trainings: "
            f"give a number, such as `3 epochs` ({source})"
        )


def _check_stopping(settings: StoppingSettings, metrics: Metrics, source: str) -> None:
    """See that the rule is there, and its metric reported by epochs.

    Raises:
        ConfigError: when one of them is not.
    """
    reported = metrics.epoch_names
    if settings.metric is not None and settings.metric not in reported:
        raise ConfigError(
            f"unknown metric {settings.metric!r:.80} for `search.stopping.metric`"
            f"{nearest(settings.metric, reported)} ({source})"
        )
    try:
        rule_class(settings.rule)
    except ConfigError as error:
        raise ConfigError(f"{error} ({source})") from None
