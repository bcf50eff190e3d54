"""When a launch is to start nothing more: durations as people and Slurm write them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import typer

# Seconds before Slurm's end in which the last results are stored.
END_MARGIN_S = 15.0
UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Seconds of a number (of seconds, where Slurm has minutes), `90s`, `30m`, `2h`, `1d`, or of
    Slurm's minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes,
    days-hours:minutes:seconds.

    Raises:
        typer.BadParameter: when it is none of these.
    """
    if match := re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]+)?)([smhd]?)", text):
        return float(match[1]) * UNITS_S[match[2]]
    if not re.fullmatch(r"N-N(:N){0,2}|N(:N){1,2}".replace("N", "[0-9]{1,9}"), text):
        raise typer.BadParameter(
            f"a duration such as 90s, 30m, 2h, 1:30:00 or 1-12 (a day and 12 hours), got {text!r}"
        )
    days, _, clock = text.rpartition("-")
    numbers = [int(number) for number in clock.split(":")]
    zeros = [0] * (3 - len(numbers))
    hours, minutes, seconds = [*numbers, *zeros] if days else [*zeros, *numbers]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60.0 + seconds


def deadline(limit_s: float | None, grace_s: float, environment: Mapping[str, str]) -> float | None:
    """When to start nothing more: after the limit, and so that all has ended before Slurm does."""
    deadlines = []
    if limit_s is not None:
        deadlines.append(time.time() + limit_s)
    if end := environment.get("SLURM_JOB_END_TIME"):
        deadlines.append(float(end) - grace_s - END_MARGIN_S)
    return min(deadlines, default=None)
