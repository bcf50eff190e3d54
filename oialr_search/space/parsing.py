"""`space:` of a search file → hyperparameters, each value tried on the training configuration."""

from __future__ import annotations

import math
import random
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, PlainValidator, WithJsonSchema

from oialr_search.space.constraints import constraints_of
from oialr_search.space.hyperparameters import (
    Hyperparameter,
    Kind,
    SearchSpace,
    Value,
    exact,
    is_among,
    with_hyperparameters,
)
from oialr_training.errors import ConfigError, mistakes, nearest
from oialr_training.validation import Config, validate

if TYPE_CHECKING:
    from oialr_training.config import TaskConfig


def _number(value: object) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a finite number is expected, got {value!r:.60}")
    return value


def _choice(value: object) -> Value:
    if not isinstance(value, bool | int | float | str | None):
        raise ValueError(f"a number, text, bool or null is expected, got {value!r:.60}")
    return value


# An integer stays one, which a pydantic union would not tell in one line.
Number = Annotated[float | int, PlainValidator(_number), WithJsonSchema({"type": "number"})]
_CHOICE_TYPES = ["number", "string", "boolean", "null"]
Choice = Annotated[Value, PlainValidator(_choice), WithJsonSchema({"type": _CHOICE_TYPES})]


class Range(Config):
    """A hyperparameter as the YAML file gives it: `low` and `high`, or `choices`."""

    low: Number | None = None
    """Lowest value."""
    high: Number | None = None
    """Highest value."""
    scale: Literal["linear", "log"] = "linear"
    """On which values lie evenly."""
    step: Number | None = None
    """Between two neighbouring values, from `low` on; null: 1 of integers, none of other numbers.
    """
    choices: list[Choice] | None = None
    """Values without an order; `null` may be one."""
    when: dict[str, Choice | list[Choice]] | None = None
    """It is searched only where other hyperparameters, which have `choices`, have these values:
    `{optimizer.name: sgd}`, `{model.depth: [2, 4]}`. Elsewhere the file's own value counts."""


MAX_VALUES_TRIED = 200
MAX_POINTS_DRAWN = 10_000
RANGE_KEYS = frozenset(Range.model_fields)


def parse_space(
    content: Any,
    task: type[TaskConfig],
    training: Mapping[str, Any],
    constraints: Sequence[str],
    source: str,
) -> SearchSpace:
    """Build the space over the training configuration `training` of class `task`.

    Only what meets the constraints has to be valid.

    Raises:
        ConfigError: with a line for each wrong entry; also when a bound is no valid value.
    """
    # Not above: who reads a stored space needs no tasks, whose configurations take long to build.
    from oialr_training.tasks import validate_training

    if not isinstance(content, dict) or not content:
        raise ConfigError(f"`space` maps paths to ranges, got {content!r:.60} ({source})")
    for section in dict.fromkeys(name.partition(".")[0] for name in content):
        if training.get(section, {}) is None:
            raise ConfigError(
                f"`{section}` is null, so nothing of it can be searched: "
                f"remove `space.{section}.*`, or give `{section}` values ({source})"
            )
    parsed, lines = dict[str, Hyperparameter](), list[str]()
    for name, entry in content.items():
        try:
            parsed[name] = _parse_hyperparameter(name, entry, task, training, source)
        except ConfigError as error:
            lines += str(error).splitlines()
    space = SearchSpace(tuple(parsed.values()))
    if lines:
        raise mistakes(lines)
    full = validate_training(training, source).model_dump(mode="json")
    feasible = constraints_of(constraints, full, space, source).met
    for name, hyperparameter in parsed.items():
        try:
            others = _met(hyperparameter, parsed, source)
            for value in _samples(hyperparameter):
                values = {**others, name: value}
                if feasible(values):
                    trial = with_hyperparameters(training, values)
                    validate_training(trial, f"{source}, value of `space.{name}`")
        except ConfigError as error:
            lines += str(error).splitlines()
    if lines:
        raise mistakes(lines)
    _refuse_contradictions(space, training, feasible, source)
    return space


def _met(
    h: Hyperparameter, parsed: Mapping[str, Hyperparameter], source: str, above: Sequence[str] = ()
) -> dict[str, Value]:
    """Values of other hyperparameters with which this one counts.

    Raises:
        ConfigError: when its `when` cannot be met.
    """
    values = dict[str, Value]()
    for name, wanted in h.when:
        key, other = f"`space.{h.name}.when`", parsed.get(name)
        if other is None or other.choices is None:
            having = [n for n, p in parsed.items() if p.choices is not None and n != h.name]
            raise ConfigError(
                f"{key} names searched hyperparameters with `choices`, "
                f"got {name!r:.80}{nearest(name, having)} ({source})"
            )
        if name == h.name or name in above:
            raise ConfigError(f"{key}: it counts only where it counts itself ({source})")
        for value in wanted:
            if not is_among(value, other.choices):
                raise ConfigError(
                    f"{key}: `{name}` is one of {', '.join(map(str, other.choices))}, "
                    f"got {value!r:.60} ({source})"
                )
        values |= _met(other, parsed, source, (*above, h.name)) | {name: wanted[0]}
    return values


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
    given = validate(Range, entry, source, prefix=f"space.{name}.")
    key = f"`space.{name}`"
    when = tuple(
        (other, tuple(wanted) if isinstance(wanted, list) else (wanted,))
        for other, wanted in (given.when or {}).items()
    )
    if not all(wanted for _, wanted in when):
        raise ConfigError(f"{key}.when needs a value, got [] ({source})")
    if given.choices is not None:
        if any(part is not None for part in (given.low, given.high, given.step)):
            raise ConfigError(f"{key} has either `choices` or `low` and `high` ({source})")
        if len(given.choices) < 2 or len(set(given.choices)) < len(given.choices):
            raise ConfigError(
                f"{key}.choices needs two or more different values, "
                f"got {given.choices!r:.80} ({source})"
            )
        choice_kind: Kind = "bool" if kind == "bool" else "choice"
        choices = tuple(given.choices)
        return Hyperparameter(name=name, kind=choice_kind, choices=choices, when=when)
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
    if given.step is not None:
        _refuse_step(given.low, given.high, given.step, given.scale, kind, f"{key}.step", source)
    return Hyperparameter(
        name=name,
        kind=kind,
        low=given.low,
        high=given.high,
        scale=given.scale,
        step=given.step,
        when=when,
    )


def _refuse_step(
    low: float, high: float, step: float, scale: str, kind: str, key: str, source: str
) -> None:
    shown = f"got {step} from {low} to {high} ({source})"
    if step <= 0 or (kind == "int" and not isinstance(step, int)):
        whole = "a whole number" if kind == "int" else "a number"
        raise ConfigError(f"{key} is {whole} above 0, {shown}")
    if (exact(high) - exact(low)) % exact(step):
        raise ConfigError(f"{key} leads from `low` to `high` in whole steps, {shown}")
    if scale == "log" and low <= step / 2:
        raise ConfigError(f"{key} is less than twice `low` on a log scale, {shown}")


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
    unit = hyperparameter.unit
    if isinstance(low, int) and isinstance(high, int) and high - low < MAX_VALUES_TRIED:
        return range(low, high + 1, int(unit or 1))
    if unit is not None:
        return [hyperparameter.decode(k / MAX_VALUES_TRIED) for k in range(MAX_VALUES_TRIED + 1)]
    return low, high


def _refuse_contradictions(
    space: SearchSpace,
    training: Mapping[str, Any],
    feasible: Callable[[Mapping[str, Value]], bool],
    source: str,
) -> None:
    """Refuse values that are valid one by one but not together, as far as a sample tells.

    Raises:
        ConfigError: when they are not, or when hardly any of the space is feasible.
    """
    from oialr_training.tasks import validate_training

    draw = random.Random(0).random
    tried = 0
    for _ in range(MAX_POINTS_DRAWN):
        drawn = space.decode({h.name: draw() for h in space.hyperparameters})
        if feasible(drawn):
            trial = with_hyperparameters(training, drawn)
            validate_training(trial, f"{source}, values of `space` taken together")
            tried += 1
            if tried == MAX_VALUES_TRIED:
                return
    if not tried:
        raise ConfigError(
            f"none of {MAX_POINTS_DRAWN} points of `space` meets `search.constraints` ({source})"
        )
