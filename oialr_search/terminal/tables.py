"""Rows printed as a table, JSON, CSV or YAML, or written to a file, Parquet too."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from oialr_search.terminal.values import shown
from oialr_training.errors import ConfigError
from oialr_training.whole_files import written_whole

if TYPE_CHECKING:
    from oialr_search.storage.selection import Column

PLAIN_WIDTH = 10_000
PARQUET_TYPES = {"int": "int64", "float": "double", "bool": "bool", "text": "string"}
COLUMN_GAP = 2


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    YAML = "yaml"


class FileFormat(StrEnum):
    """How rows are printed or written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    YAML = "yaml"
    PARQUET = "parquet"


class _Dumper(yaml.SafeDumper):
    """Writes a list of numbers on one line."""


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    numbers = all(isinstance(item, int | float) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=numbers or None)


def _represent_text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    """A log reads best as the lines that it has."""
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", data, style="|" if "\n" in data else None
    )


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)


def print_rows(rows: Sequence[Mapping[str, Any]], output: Format, title: str = "") -> None:
    """Print rows to standard output; machine-readable formats have full precision."""
    if output is Format.TABLE:
        console = make_console()
        console.print(fitting_table(rows, title, console))
    else:
        print(as_text(rows, output), end="")


def as_text(
    content: Any,
    output: Format | FileFormat,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    columns: Iterable[Column] = (),
) -> str:
    """JSON or YAML of any content; CSV of rows, those of the content by default."""
    match output:
        case "json":
            return json.dumps(content, indent=2, allow_nan=False) + "\n"
        case "yaml":
            return yaml.dump(content, None, _Dumper, sort_keys=False, allow_unicode=True)
        case "csv":
            rows = content if rows is None else rows
            names = [column.name for column in columns] or _names(rows)
            file = io.StringIO()
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: _csv_cell(v) for k, v in row.items()} for row in rows)
            return file.getvalue()
    file = io.StringIO()
    console = Console(file=file, width=PLAIN_WIDTH)
    console.print(fitting_table(content, "", console))
    return file.getvalue()


def format_of(file: Path | None) -> FileFormat:
    """The format that a file's name ends with; a table where it is none."""
    suffix = "" if file is None else file.suffix.removeprefix(".").lower()
    return next((f for f in FileFormat if f.value == suffix), FileFormat.TABLE)


def as_bytes(
    rows: Sequence[Mapping[str, Any]], output: FileFormat, columns: Sequence[Column]
) -> bytes:
    """Rows as a file of that format."""
    if output is FileFormat.PARQUET:
        return as_parquet(rows, columns)
    return as_text(rows, output, columns=columns).encode()


def as_parquet(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> bytes:
    """A Parquet file of rows.

    Raises:
        ConfigError: when pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"Parquet needs pyarrow ({error}): run pip install 'oialr-search[parquet]'"
        ) from None
    arrays = {
        column.name: pyarrow.array(
            [row.get(column.name) for row in rows],
            pyarrow.type_for_alias(PARQUET_TYPES[column.kind]),
        )
        for column in columns
    }
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), file)
    return file.getvalue()


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        ConfigError: when it cannot be written.
    """
    try:
        with written_whole(path) as aside:
            aside.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def make_console() -> Console:
    """A terminal as it is; a pipe or file without colours, and a line as long as it needs."""
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


def _csv_cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def fitting_table(
    rows: Sequence[Mapping[str, Any]], title: str, console: Console
) -> RenderableType:
    """One line a row; on a terminal that is too narrow, one column a row, some rows at a time."""
    table = rows_table(rows, title)
    wide = console.options.update(max_width=PLAIN_WIDTH)
    if console.measure(table, options=wide).maximum <= console.width:
        return table
    names = _names(rows)
    cells = [[shown(row.get(name)) for row in rows] for name in names]
    width = max(len(cell) for line in cells for cell in line) + COLUMN_GAP
    room = console.width - max(len(_heading(name)) for name in names) - 2 * COLUMN_GAP
    at_once = max(1, room // width)
    parts = []
    for first in range(0, len(rows), at_once):
        turned = Table(
            title=None if first or not title else Text(title, style="italic"),
            title_justify="left",
            box=None,
            show_header=False,
        )
        for name, line in zip(names, cells, strict=True):
            at_this_time = map(Text, line[first : first + at_once])
            turned.add_row(Text(_heading(name), style="bold"), *at_this_time)
        parts.append(turned)
    return Group(*parts)


def rows_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> Table:
    """One line a row."""
    table = Table(
        title=Text(title, style="italic") if title else None,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
    )
    columns = _names(rows)
    for name in columns:
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        justify = "right" if numeric else "left"
        table.add_column(Text(_heading(name)), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(shown(row.get(name))) for name in columns))
    return table


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _heading(name: str) -> str:
    """The last part of a dotted path, shortened, says enough in a table."""
    return name.rpartition(".")[2].replace("validation_", "val_").replace("_percent", " %")
