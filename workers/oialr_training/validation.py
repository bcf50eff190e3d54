"""Typed sections of a configuration, and a line for each mistake in them; free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationError, field_validator

from oialr_training.errors import mistakes, nearest

C = TypeVar("C", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Pair = Annotated[tuple[float, float], Field(strict=False)]


class Config(BaseModel):
    """Base of every section: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _fits_the_database(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"an integer of at most 64 bits is expected, got {value!r:.60}")
        return value


def validate(model: type[C], content: Any, source: str, prefix: str = "") -> C:
    """Build a section from parsed YAML.

    Raises:
        ConfigError: with a line for each mistake: key, rule, value and `source`.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [_explain(model, dict(mistake), prefix) for mistake in error.errors()]
        raise mistakes([f"{line} ({source})" for line in lines]) from None


def _explain(model: type[BaseModel], mistake: dict[str, Any], prefix: str) -> str:
    """One mistake that pydantic found, in one line."""
    parts, known = _follow(model, [str(part) for part in mistake["loc"]])
    key = f"`{(prefix + '.'.join(parts)).strip('.')}`"
    shown = f"{mistake['input']!r:.80}"
    match mistake["type"]:
        case "extra_forbidden":
            return f"unknown key {key}{nearest(parts[-1], known)}"
        case "missing":
            return f"{key} is missing"
        case "value_error":
            where = f" in {key}" if parts else ""
            return f"{mistake['ctx']['error']}{where}"
        case "model_type" | "model_attributes_type" | "union_tag_not_found":
            return f"{key} should be a mapping of keys to values, got {shown}"
        case "union_tag_invalid":
            name, expected = f"`{key.strip('`')}.name`", mistake["ctx"]["expected_tags"]
            return f"{name} is one of {expected}, got {mistake['input'].get('name')!r:.80}"
        case "invalid_key":
            return f"{key}: keys are text, got {shown}"
        case _:
            rule = str(mistake["msg"]).removeprefix("Input ")
            return f"{key} {rule}, got {shown}"


def _follow(model: type[BaseModel], loc: Sequence[str]) -> tuple[list[str], Mapping[str, Any]]:
    """The keys of a place that pydantic names, and the field names where the last one stands.

    Pydantic puts a tag into the place where a section is one of several; it is no key.
    """
    keys: list[str] = []
    known: Mapping[str, Any] = {}
    sections: dict[str, type[BaseModel]] = {"": model}
    for part in loc:
        if "" not in sections and part in sections:
            sections = {"": sections[part]}
            continue
        keys.append(part)
        if part.isdigit():  # a place in a list
            continue
        known = sections[""].model_fields if "" in sections else {}
        sections = _sections(known[part].annotation) if part in known else {}
    return keys, known


def _sections(annotation: Any) -> dict[str, type[BaseModel]]:
    """The sections an annotation allows, by their tags; without one it is empty."""
    if get_origin(annotation) is Annotated:
        section, *metadata = get_args(annotation)
        tags = [m.tag for m in metadata if isinstance(m, Tag)]
        found = _sections(section)
        return {tag: each for tag in tags for each in found.values()} if tags else found
    if isinstance(annotation, type):
        return {"": annotation} if issubclass(annotation, BaseModel) else {}
    return {k: v for part in get_args(annotation) for k, v in _sections(part).items()}
