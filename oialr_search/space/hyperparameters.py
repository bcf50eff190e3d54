"""The search space: hyperparameters ↔ genes in the unit cube.

Propulate sees floats in [0, 1] only: its own integer, categorical and log-scale genes are faulty
or missing, and a gene's type would be that of its first bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from oialr_training.errors import ConfigError

if TYPE_CHECKING:
<<<<<<< HEAD
    pass
=======
    from oialr_training.config import TaskConfig
>>>>>>> main

Value = float | int | bool | str | None
Kind = Literal["float", "int", "bool", "choice"]


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """One searched value of the training configuration."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # when it is read back

    name: str
    """Dotted path into the training configuration."""
    kind: Kind
    low: float | int | None = None
    high: float | int | None = None
    scale: Literal["linear", "log"] = "linear"
    choices: tuple[Value, ...] | None = None
    step: float | int | None = None
    """Between two neighbouring values where it is given."""
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    """Other hyperparameters and the values with which this one counts."""

    @property
    def unit(self) -> float | int | None:
        """Between two neighbouring numbers; None where they are continuous, or choices."""
        return 1 if self.step is None and self.kind == "int" else self.step

    @property
    def bounds(self) -> tuple[float | int, float | int]:
        """Lowest and highest value, where there are no choices."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def decode(self, gene: float) -> Value:
        """The value of a gene in [0, 1]; each choice and each number apart has an equal share."""
        if self.choices is not None:
            return self.choices[min(int(gene * len(self.choices)), len(self.choices) - 1)]
        low, high = self.bounds
        unit = self.unit
        if unit is not None:
            # Half a unit beyond both ends, so that rounding treats all numbers alike.
            value = self._interpolate(gene, low - unit / 2, high + unit / 2)
            if self.step is None:
                return min(max(round(value), int(low)), int(high))
            steps = min(max(round((value - low) / unit), 0), round((high - low) / unit))
            found = exact(low) + steps * exact(unit)
            return int(found) if self.kind == "int" else float(found)
        return min(max(self._interpolate(gene, low, high), low), high)

    def encode(self, value: Value) -> float:
        """The gene of a value: of a choice or a number apart, the middle of its share."""
        if self.choices is not None:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        low, high = self.bounds
        assert isinstance(value, int | float)
        if self.unit is not None:
            half = self.unit / 2
            low, high = low - half, high + half
            ends = (self._position(end, low, high) for end in (value - half, value + half))
            return sum(ends) / 2
        return self._position(value, low, high)

    def _position(self, value: float, low: float, high: float) -> float:
        if self.scale == "log":
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    def _interpolate(self, gene: float, low: float, high: float) -> float:
        if self.scale == "log":
            return math.exp(math.log(low) + gene * (math.log(high) - math.log(low)))
        return low + gene * (high - low)


@dataclass(frozen=True)
class SearchSpace:
    """All hyperparameters of a search, in the order of the file."""

    hyperparameters: tuple[Hyperparameter, ...]

    def decode(self, genes: Mapping[str, float]) -> dict[str, Value]:
        """Genes → hyperparameters, those that count."""
        return self.counting({h.name: h.decode(genes[h.name]) for h in self.hyperparameters})

    def counting(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Those of the values whose `when` is met."""
        of = {h.name: h for h in self.hyperparameters}

        def counts(name: str) -> bool:
            return name in values and all(
                counts(other) and is_among(values[other], wanted) for other, wanted in of[name].when
            )

        return {name: value for name, value in values.items() if counts(name)}

    def as_json(self) -> list[dict[str, Any]]:
        """What the database keeps of the space."""
        return [asdict(h) for h in self.hyperparameters]

    @classmethod
    def from_json(cls, content: Any, source: str) -> SearchSpace:
        """Read what `as_json` gave, in this version or an earlier one.

        Raises:
            ConfigError: when this version does not know all of it.
        """
        try:
            return cls(_STORED.validate_python(content))
        except ValidationError as error:
            key = ".".join(map(str, ("space", *error.errors()[0]["loc"])))
            raise ConfigError(f"`{key}`: {error.errors()[0]['msg']} ({source})") from None


_STORED = TypeAdapter(tuple[Hyperparameter, ...])


<<<<<<< HEAD
=======
def parse_space(
    content: Any, task: type[TaskConfig], training: Mapping[str, Any], source: str
) -> SearchSpace:
    """Build the space over the training configuration `training` of class `task`.

    Raises:
        ConfigError: with a line for each wrong entry; also when a bound is no valid value.
    """
    # Not above: who reads a stored space needs no tasks, whose configurations take long to build.
    from oialr_training.tasks import validate_training

    if not isinstance(content, dict) or not content:
        raise ConfigError(f"`space` maps paths to ranges, got {content!r:.60} ({source})")
    hyperparameters, lines = [], []
    for section in dict.fromkeys(name.partition(".")[0] for name in content):
        if training.get(section, {}) is None:
            raise ConfigError(
                f"`{section}` is null, so nothing of it can be searched: "
                f"remove `space.{section}.*`, or give `{section}` values ({source})"
            )
    for name, entry in content.items():
        try:
            hyperparameter = _parse_hyperparameter(name, entry, task, training, source)
            for value in _samples(hyperparameter):
                trial = with_hyperparameters(training, {hyperparameter.name: value})
                validate_training(trial, f"{source}, value of `space.{name}`")
            hyperparameters.append(hyperparameter)
        except ConfigError as error:
            lines += str(error).splitlines()
    if lines:
        raise mistakes(lines)
    space = SearchSpace(tuple(hyperparameters))
    _refuse_contradictions(space, training, source)
    return space


>>>>>>> main
def with_hyperparameters(
    training: Mapping[str, Any], hyperparameters: Mapping[str, Value]
) -> dict[str, Any]:
    """The training configuration with the values at their dotted paths; a new mapping."""
    result = dict(training)
    for path, value in hyperparameters.items():
        section, keys = result, path.split(".")
        for key in keys[:-1]:
            inner = section.get(key) or {}
            if not isinstance(inner, Mapping):
                raise ConfigError(f"`{path}`: `{key}` is a value without keys, got {inner!r:.60}")
            section[key] = dict(inner)
            section = section[key]
        section[keys[-1]] = value
    return result


<<<<<<< HEAD
def is_among(value: Value, values: Sequence[Value]) -> bool:
    """Is it one of them? True is not 1."""
    return any(v == value and isinstance(v, bool) == isinstance(value, bool) for v in values)


def exact(value: float) -> Decimal:
    """The number as it is written."""
    return Decimal(str(value))
=======
def _parse_hyperparameter(
    name: str,
    entry: Any,
    task: type[TaskConfig],
    training: Mapping[str, Any],
    source: str,
) -> Hyperparameter:
    kind = _kind_of(name, task, source)
    if kind == "any" and not task.any_name:
        _require_value(name, training, source)
    if kind == "bool" and entry is None:
        entry = {"choices": [False, True]}
    given = validate(_Range, entry, source, prefix=f"space.{name}.")
    key = f"`space.{name}`"
    if given.choices is not None:
        if given.low is not None or given.high is not None:
            raise ConfigError(f"{key} has either `choices` or `low` and `high` ({source})")
        if len(given.choices) < 2 or len(set(given.choices)) < len(given.choices):
            raise ConfigError(
                f"{key}.choices needs two or more different values, "
                f"got {given.choices!r:.80} ({source})"
            )
        choice_kind: Kind = "bool" if kind == "bool" else "choice"
        return Hyperparameter(name=name, kind=choice_kind, choices=tuple(given.choices))
    if kind in ("bool", "choice"):
        raise ConfigError(f"{key} needs `choices` ({source})")
    if given.low is None or given.high is None:
        raise ConfigError(f"{key} needs `low` and `high`, or `choices` ({source})")
    if kind == "any":
        whole = isinstance(given.low, int) and isinstance(given.high, int)
        kind = "int" if whole else "float"
    shown = f"got low={given.low}, high={given.high} ({source})"
    if not given.low < given.high:
        raise ConfigError(f"`low < high` must hold for {key}, {shown}")
    if given.scale == "log" and given.low <= 0:
        raise ConfigError(f"`low > 0` must hold on a log scale for {key}, {shown}")
    if kind == "int" and not (isinstance(given.low, int) and isinstance(given.high, int)):
        raise ConfigError(f"{key} is an integer: so must be its bounds, {shown}")
    return Hyperparameter(name=name, kind=kind, low=given.low, high=given.high, scale=given.scale)


def _kind_of(name: str, task: type[TaskConfig], source: str) -> Kind | Literal["any"]:
    """The kind of the training configuration's field at a dotted path; any: its bounds say it."""
    model: type[BaseModel] = task
    keys = name.split(".")
    if task.any_name and keys[0] not in model.model_fields:
        return "any"
    for position, key in enumerate(keys):
        field = model.model_fields.get(key)
        if field is None or (position == 0 and key not in task.searched):
            searchable = [k for k in model.model_fields if position > 0 or k in task.searched]
            if field is not None:
                raise ConfigError(
                    f"`space.{name}`: `{name}` is set, not searched; "
                    f"{', '.join(searchable)} can ({source})"
                )
            raise ConfigError(f"unknown key `space.{name}`{nearest(key, searchable)} ({source})")
        options = _options(field.annotation)
        section = next((o for o in options if isinstance(o, type) and issubclass(o, Config)), None)
        if position < len(keys) - 1:
            if position == len(keys) - 2 and any(get_origin(o) is dict for o in options):
                return "any"
            if section is None:
                raise ConfigError(f"unknown key `space.{name}`: `{key}` has no keys ({source})")
            model = section
        elif section is not None:
            raise ConfigError(
                f"`space.{name}` is a section; name one of its keys: "
                f"{', '.join(section.model_fields)} ({source})"
            )
    # bool before int: Python's bool is an int.
    kinds: tuple[tuple[type, Kind], ...] = ((bool, "bool"), (float, "float"), (int, "int"))
    return next((kind for type_, kind in kinds if type_ in options), "choice")


def _require_value(name: str, training: Mapping[str, Any], source: str) -> None:
    """See that the training itself has a value there, which is tried before the search starts.

    Raises:
        ConfigError: when it has none.
    """
    place, _, key = name.rpartition(".")
    found: Any = training
    for part in place.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or key not in found:
        raise ConfigError(
            f"`space.{name}` needs a value of `{name}` in the file, too: "
            f"with it `{key}` is tried before the search starts ({source})"
        )


def _options(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without Annotated and None."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for part in get_args(annotation) for option in _options(part)]
    return [] if annotation is type(None) else [annotation]


def _samples(hyperparameter: Hyperparameter) -> Sequence[Value]:
    """Values to try: all where they are few, else the ends, and some integers between them."""
    if hyperparameter.choices is not None:
        return hyperparameter.choices
    low, high = hyperparameter.decode(0.0), hyperparameter.decode(1.0)
    if isinstance(low, int) and isinstance(high, int) and high - low < MAX_VALUES_TRIED:
        return range(low, high + 1)
    if hyperparameter.kind == "int":
        return [hyperparameter.decode(k / MAX_VALUES_TRIED) for k in range(MAX_VALUES_TRIED + 1)]
    return low, high


def _refuse_contradictions(space: SearchSpace, training: Mapping[str, Any], source: str) -> None:
    """Refuse values that are valid one by one but not together, as far as a sample tells."""
    from oialr_training.tasks import validate_training

    draw = random.Random(0).random
    for _ in range(MAX_VALUES_TRIED):
        drawn = space.decode({h.name: draw() for h in space.hyperparameters})
        trial = with_hyperparameters(training, drawn)
        validate_training(trial, f"{source}, values of `space` taken together")
>>>>>>> main
