"""How values are shown to people."""

from __future__ import annotations

import math
from typing import Any

import pytest

from oialr_search.terminal.values import number, shown, without_noise


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (False, "no"),
        (7, "7"),
        (20000, "20000"),
        (100 - 97.91666666666667, "2.083"),
        (0.00011234, "0.0001123"),
        (12345.5, "12346"),
        (999999.4, "999999"),
        (1.5e9, "1.5e+09"),
        (-12345.5, "-12346"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        ("a\nb\x1b[31m", "a b\N{REPLACEMENT CHARACTER}[31m"),
        (("a", 1), "('a', 1)"),
    ],
)
def test_a_value(value: Any, text: str) -> None:
    assert shown(value, "–") == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(10000.0, 3, "10000"), (0.123456, 3, "0.123"), (1234.5678, 6, "1234.57"), (0, 4, "0")],
)
def test_digits(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_noise_is_what_a_float32_does_not_hold() -> None:
    assert without_noise(100 - 97.91666666666667) == 2.083333
    assert without_noise(0.1) == 0.1
    assert math.isnan(without_noise(math.nan))
