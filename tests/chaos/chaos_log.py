"""What happened in a run: a JSON line an event, and a table at the end."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class ChaosLog:
    """The log of one search."""

    path: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def add(self, event: str, **details: Any) -> None:
        """Note an event; also on standard output, for the one who watches or looks for causes."""
        row = {"s": round(time.monotonic() - self._since, 1), "event": event, **details}
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def faults(self) -> Counter[str]:
        """How often each kind was done."""
        return Counter(row["kind"] for row in self.rows if row["event"] == "fault")

    def moments(self) -> Counter[str]:
        """How often at each moment."""
        return Counter(row["moment"] for row in self.rows if row["event"] == "fault")


def table(figures: dict[str, dict[str, object]]) -> str:
    """Markdown: a row a figure, a column a search."""
    searches = list(figures)
    names = dict.fromkeys(name for column in figures.values() for name in column)
    rows = [["", *searches], ["---", *("---:" for _ in searches)]]
    rows += [[name, *(str(figures[s].get(name, "–")) for s in searches)] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
