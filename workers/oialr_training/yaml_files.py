"""YAML files of small trees of text keys: read safely, changed by dotted paths, written again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from oialr_training.errors import ConfigError

# Far more than any configuration needs, and little enough to be read and shown at once.
MAX_FILE_BYTES = 2**18
MAX_CHARACTERS = 2**20
MAX_LEVELS = 20
MAX_KEY_CHARACTERS = 100


class _Loader(yaml.SafeLoader):
    """SafeLoader of small trees: text keys, each given once, and YAML 1.2's numbers and booleans.

    `1e-3` is a number; `on`, `off`, `yes`, `no`, `0x1f`, `1:30` and `2024-01-01` are text.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            self._measure(node, {})
        return node

    def _measure(self, node: yaml.Node, known: dict[yaml.Node, tuple[int, int]]) -> tuple[int, int]:
        """Characters and levels of a checked node, its aliases written out."""
        if node in known:
            return known[node]
        known[node] = MAX_CHARACTERS, MAX_LEVELS  # an alias inside its own anchor has no end
        self._check(node)
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        sizes = [self._measure(child, known) for child in children]
        characters = 1 + len(node.value) + sum(size for size, _ in sizes)
        levels = 1 + max((depth for _, depth in sizes), default=0)
        if characters > MAX_CHARACTERS or levels > MAX_LEVELS:
            raise _refusal(node, "too large or nested too deeply, its aliases written out")
        known[node] = characters, levels
        return known[node]

    def _check(self, node: yaml.Node) -> None:
        """Refuse a tag that the value does not have by itself, bad keys and unprintable text."""
        text = self.DEFAULT_SCALAR_TAG
        own_tag = self.resolve(type(node), node.value, (True, False))  # type: ignore[no-untyped-call]
        if node.tag not in (text, own_tag):
            raise _refusal(node, f"the value is not of the tag {node.tag!r:.60}")
        if isinstance(node, yaml.ScalarNode) and self.NON_PRINTABLE.search(node.value):
            raise _refusal(node, f"text holds a control character: {node.value!r:.60}")
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (text, _MERGE):
                raise _refusal(key, "a key is no text")
            if key.value in seen:
                raise _refusal(key, f"key `{key.value}` is given twice")
            if not is_key(key.value):
                raise _refusal(key, f"no key looks like {key.value!r:.60}")
            seen.add(key.value)


def _refusal(node: yaml.Node, reason: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, reason, node.start_mark)


# What text without quotes is read as, and the characters it begins with; the rest stays text.
_PLAIN = {
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": ("[-+]?[0-9]{1,100}", "-+0123456789"),  # Python refuses to print integers of 4,301
    "float": (
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_MERGE = "tag:yaml.org,2002:merge"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag in (_MERGE, "tag:yaml.org,2002:null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # 010 is ten


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes all text which `_Loader` or YAML 1.1 would read as something else."""


for _tag, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _regexp = re.compile(rf"(?:{_pattern})\Z")
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _regexp, list(_first))


def is_key(text: str) -> bool:
    """Can it be a key or a dotted path: one printable line?"""
    return text.isprintable() and len(text) <= MAX_KEY_CHARACTERS


def in_one_line(path: Path) -> str:
    """The path for messages, also where its name holds line breaks or is no UTF-8."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML safely.

    Raises:
        ConfigError: when `text` is no YAML or no small tree of text keys given once; names `source`
            and the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"not valid YAML: {problem:.200} ({source}{where})") from None
    except RecursionError:
        raise ConfigError(f"not valid YAML: nested too deeply ({source})") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())} ({source})") from None


def dump_yaml(content: Mapping[str, Any]) -> str:
    """YAML that `parse_yaml` reads back as it was."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping from a file.

    Raises:
        ConfigError: when the file cannot be read or holds something else.
    """
    source = in_one_line(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text file"
        raise ConfigError(f"cannot read {source}: {reason}") from None
    if len(text.encode()) > MAX_FILE_BYTES:
        raise ConfigError(f"cannot read {source}: larger than {MAX_FILE_BYTES >> 10} KiB")
    content = parse_yaml(text, source)
    if not isinstance(content, dict):
        raise ConfigError(
            f"a mapping of keys to values is expected, got {content!r:.60} ({source})"
        )
    return content


def apply_override(content: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path in nested mappings, in place.

    A key that itself contains dots (those of a search space) is matched as a whole.
    """
    keys = path.split(".")
    while len(keys) > 1:
        if not isinstance(content, dict):
            break
        known = next((n for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in content), 1)
        if known == len(keys):
            break
        child = content.setdefault(".".join(keys[:known]), {})
        if child is None:
            child = content[".".join(keys[:known])] = {}
        content, keys = child, keys[known:]
    if not isinstance(content, dict):
        raise ConfigError(f"no such key to set: `{path}` (--set)")
    content[".".join(keys)] = value


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """Split `path=value`, the value being YAML.

    Raises:
        ConfigError: when there is no `=`, no path, or the value is no YAML.
    """
    path, equals, value = assignment.partition("=")
    if not equals or not path.strip() or not is_key(path):
        raise ConfigError(f"`path=value` is expected, got {assignment!r:.80} (--set)")
    return path.strip(), parse_yaml(value, f"--set {assignment!r:.80}")
