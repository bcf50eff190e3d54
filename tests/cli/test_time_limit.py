"""Durations as people and Slurm write them."""

from __future__ import annotations

import pytest
import typer

from oialr_search.cli.time_limit import parse_duration

MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5m", 90),
        ("2h", 2 * HOUR),
        ("1d", DAY),
        ("30:00", 30 * MINUTE),
        ("1:30:00", 90 * MINUTE),
        ("1-12", 36 * HOUR),
        ("1-12:00", 36 * HOUR),
        ("1-12:30", 36 * HOUR + 30 * MINUTE),
        ("1-12:00:00", 36 * HOUR),
        ("0-0:0:5", 5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1-", "1-2:3:4:5", "1:2:3:4", "1h30", "٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="a duration such as"):
        parse_duration(text)
