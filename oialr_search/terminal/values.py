"""How values are shown to people: rounded and in one line, alike wherever they are read."""

from __future__ import annotations

from typing import Any

UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"
WHOLE_BELOW = 1e6  # a number that is larger has a power of ten
NOISE_DIGITS = 7  # what a float32 holds


def shown(value: Any, missing: str = "") -> str:
    """A value as a table shows it."""
    match value:
        case None:
            return missing
        case bool():
            return "yes" if value else "no"
        case float():
            return number(value)
        case _:
            return printable(str(value)).replace("\n", " ")


def number(value: float, digits: int = 4) -> str:
    """A number in so many digits, or as many as it has before the point."""
    if 10 ** (digits - 1) <= abs(value) < WHOLE_BELOW:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def without_noise(value: float) -> float:
    """A number without the last digits, which are of rounding: 100 − 97.91… is 2.083333."""
    return float(f"{value:.{NOISE_DIGITS}g}")


def printable(text: str) -> str:
    """The text without what moves a terminal's cursor or colours it."""
    return "".join(c if c.isprintable() or c in "\n\t" else UNPRINTABLE for c in text)
