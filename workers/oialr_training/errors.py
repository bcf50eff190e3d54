"""What the user has got wrong, told in one line each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

MAX_MISTAKES = 20


class ConfigError(Exception):
    """The user's configuration is wrong; the message has one line for each mistake."""


def mistakes(lines: Sequence[str]) -> ConfigError:
    """The error of so many mistakes, one a line; it names the first ones where they are many."""
    more = [f"{len(lines) - MAX_MISTAKES} mistakes more"] if len(lines) > MAX_MISTAKES else []
    return ConfigError("\n".join([*lines[:MAX_MISTAKES], *more]))


def nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The hint that names the nearest valid name, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; one of {', '.join(known)}"
