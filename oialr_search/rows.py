"""Rows printed as a table, JSON, CSV or YAML."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 10_000
COLUMN_GAP = 2


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    YAML = "yaml"


class _Dumper(yaml.SafeDumper):
    """Writes a list of numbers on one line."""


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    numbers = all(isinstance(item, int | float) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=numbers or None)


_Dumper.add_representer(list, _represent_list)


def print_rows(rows: Sequence[Mapping[str, Any]], output: Format, title: str = "") -> None:
    """Print rows to standard output; machine-readable formats have full precision."""
    match output:
        case Format.TABLE:
            _print_table(rows, title)
        case Format.JSON:
            print(json.dumps(list(rows), indent=2))
        case Format.YAML:
            yaml.dump(list(rows), sys.stdout, _Dumper, sort_keys=False, allow_unicode=True)
        case Format.CSV:
            columns = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: _csv_cell(v) for k, v in row.items()} for row in rows)


def _csv_cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """One line a row; on a terminal that is too narrow, one column a row, some rows at a time."""
    table = _table(rows, title)
    if not sys.stdout.isatty():
        Console(width=PLAIN_WIDTH).print(table)
        return
    console = Console()
    if console.measure(table, options=console.options.update(max_width=PLAIN_WIDTH)).maximum <= (
        console.width
    ):
        console.print(table)
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for row in rows] for name in names]
    width = max(len(cell) for line in cells for cell in line) + COLUMN_GAP
    room = console.width - max(len(_heading(name)) for name in names) - 2 * COLUMN_GAP
    at_once = max(1, room // width)
    for first in range(0, len(rows), at_once):
        turned = Table(
            title=None if first else title, title_justify="left", box=None, show_header=False
        )
        for name, line in zip(names, cells, strict=True):
            turned.add_row(f"[bold]{_heading(name)}[/bold]", *line[first : first + at_once])
        console.print(turned)


def _table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    table = Table(
        title=title or None, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD
    )
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(_heading(name), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    return table


def _heading(name: str) -> str:
    """The last part of a dotted path, shortened, says enough in a table."""
    return name.rpartition(".")[2].replace("validation_", "val_").replace("_percent", " %")


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)
