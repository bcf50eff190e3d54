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
            writer.writerows(rows)


def _print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    # A pipe has no width: one line a row, whatever its length.
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    table = Table(
        title=title or None, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD
    )
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(_heading(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    console.print(table)


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
