"""What a search or training file can say: a JSON schema, and the same as a page to read.

Run `python -m oialr_search.space.schema > docs/reference.md` after a change of a configuration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from oialr_search.space.parsing import Range
from oialr_search.space.search_file import SearchSettings
from oialr_training.config import TrainingConfig
from oialr_training.tasks import TASKS, find_task

HEAD = """\
# What a file can say

Made of the configuration classes by `python -m oialr_search.space.schema > docs/reference.md`; \
a test keeps it so. Editors complete and check files by the same, `oialr-search schema -o \
schema.json`: name it in the first line of a file, `# yaml-language-server: $schema=schema.json`.

A training file has the keys of its task; a search file has `search` and `space` beside them. Keys \
of sections are written with dots in `space`, `--set` and `search.constraints`: `optimizer.lr`. \
**Bold** keys must be there.
"""
ALL = "All trainings"
LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def file_schema(tasks: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON schema (2020-12) of search and training files, of further tasks by name, too.

    Raises:
        ConfigError: when a task cannot be found.
    """
    found = {**TASKS, **{name: find_task(name) for name in tasks}}
    definitions = _definitions([*found.values(), SearchSettings, Range])
    parts = {
        "search": {"$ref": "#/$defs/SearchSettings"},
        "space": {
            "type": "object",
            "description": "Dotted paths into the training configuration and their ranges.",
            "additionalProperties": {"anyOf": [{"$ref": "#/$defs/Range"}, {"type": "null"}]},
            "minProperties": 1,
        },
    }
    for task in found.values():
        definitions[task.__name__]["properties"] |= parts
    names = {"anyOf": [{"enum": list(found)}, {"pattern": r"^[\w.]+:\w+$"}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "oialr-search: a search or a training",
        "type": "object",
        "properties": {"task": {"type": "string", **names}, **parts},
        "anyOf": [{"required": ["task"]}, {"required": ["command"]}],
        "allOf": [
            {
                "if": {"properties": {"task": {"const": name}}, "required": ["task"]},
                "then": {"$ref": f"#/$defs/{task.__name__}"},
            }
            for name, task in found.items()
        ]
        + [
            {
                "if": {"required": ["command"], "not": {"required": ["task"]}},
                "then": {"$ref": f"#/$defs/{found['command'].__name__}"},
            }
        ],
        "$defs": definitions,
    }


def page() -> str:
    """The reference of all keys."""
    ours = {name: task for name, task in TASKS.items() if ":" not in name}
    definitions = _definitions([*ours.values(), TrainingConfig, SearchSettings, Range])
    common = definitions.pop("TrainingConfig")
    tasks = {task.__name__: name for name, task in ours.items()}
    sections = {name: d for name, d in definitions.items() if "properties" in d}
    first = {"SearchSettings": "`search`", "Range": "An entry of `space`"}
    lines = [HEAD]
    for name, title in first.items():
        lines += _section(title, sections.pop(name))
    lines += _section(ALL, common)
    for name, task in tasks.items():
        own = sections.pop(name)
        same = [k for k, v in own["properties"].items() if common["properties"].get(k) == v]
        if len(same) < len(common["properties"]) / 2:
            same = []
        own["properties"] = {k: v for k, v in own["properties"].items() if k not in same}
        own["description"] += f"\n\nWith the keys of [{ALL}](#{_anchor(ALL)})." if same else ""
        lines += _section(f"Task `{task}`", own)
    for name in sorted(sections):
        lines += _section(name, sections[name])
    return "\n".join(lines)


def _definitions(models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """The schemas of classes and of all sections they have, by name."""
    made = models_json_schema([(model, "validation") for model in models])[1]["$defs"]
    return {name: made[name] for name in sorted(made)}


def _section(title: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {title}\n"
    yield schema.get("description", "") + "\n"
    yield "| key | value | without it | meaning |"
    yield "| --- | --- | --- | --- |"
    required = schema.get("required", ())
    for key, entry in schema["properties"].items():
        shown = f"**`{key}`**" if key in required else f"`{key}`"
        default = f"`{json.dumps(entry['default'])}`" if entry.get("default") is not None else ""
        meaning = " ".join(entry.get("description", "").split())
        cells = (cell.replace("|", "\\|") for cell in (shown, _kind(entry), default, meaning))
        yield f"| {' | '.join(cells)} |"
    yield ""


def _kind(entry: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return "anything" if name == "JsonValue" else f"[{name}](#{_anchor(name)})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in entry:
            return " or ".join(dict.fromkeys(_kind(part) for part in entry[several]))
    if "enum" in entry:
        return ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    kind = entry.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(_kind({"type": one}) for one in kind)
    if kind == "array":
        parts = entry.get("prefixItems") or [entry.get("items", {})]
        each = " and ".join(dict.fromkeys(_kind(part) for part in parts))
        number = f"{len(parts)}" if "prefixItems" in entry else ""
        return " ".join(filter(None, ["list of", number, each]))
    if isinstance(inner := entry.get("additionalProperties"), Mapping) and inner:
        return f"mapping to {_kind(inner)}"
    limits = " and ".join(
        f"{sign} {entry[key]:.10g}" for key, sign in LIMITS.items() if key in entry
    )
    words = {"object": "mapping", "string": "text", "boolean": "true or false"}
    return " ".join(filter(None, [words.get(kind, kind), limits]))


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-").replace("`", "")


if __name__ == "__main__":
    print(page(), end="")
