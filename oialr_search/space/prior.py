"""What a person expects of good hyperparameters: `search.prior`, for each that something is known.

optimizer.lr: {around: 2.0e-4, factor: 3}               # on a log scale
oialr.cutoff_fraction: {around: 0.5, within: 0.1}       # on a linear one
optimizer.name: {around: adamw, probability: 0.8}       # of choices
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from oialr_search.space.hyperparameters import Hyperparameter, SearchSpace
from oialr_search.space.parsing import Choice
from oialr_training.errors import mistakes, nearest
from oialr_training.validation import Config


class Prior(Config):
    """A belief about one hyperparameter."""

    around: Choice
    """The value thought best."""
    factor: Annotated[float, Field(gt=1.0)] | None = None
    """On a log scale: two times in three the best is within this factor of it."""
    within: Annotated[float, Field(gt=0.0)] | None = None
    """On a linear scale: two times in three the best is no farther away."""
    probability: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Of a choice: that it is the best; the others share the rest."""


SPREADS = ("factor", "within", "probability")


def check_priors(priors: Mapping[str, Prior], space: SearchSpace, source: str) -> None:
    """See that each belief is about the space.

    Raises:
        ConfigError: with a line for each that is not.
    """
    known = {h.name: h for h in space.hyperparameters}
    lines = []
    for name, prior in priors.items():
        key = f"`search.prior.{name}`"
        if name not in known:
            lines.append(f"{key}: `{name}` is not searched{nearest(name, known)} ({source})")
        elif mistake := _mistake(known[name], prior):
            lines.append(f"{key} {mistake} ({source})")
    if lines:
        raise mistakes(lines)


def spread_of(hyperparameter: Hyperparameter) -> str:
    """Which key says how sure a belief is."""
    if hyperparameter.choices is not None:
        return "probability"
    return "factor" if hyperparameter.scale == "log" else "within"


def _mistake(h: Hyperparameter, prior: Prior) -> str | None:
    spread = spread_of(h)
    given = [name for name in SPREADS if getattr(prior, name) is not None]
    if given != [spread]:
        has = "choices" if h.choices is not None else f"a {h.scale} scale"
        return f"has {has}: it needs `around` and `{spread}`, got {', '.join(given) or 'none'}"
    if h.choices is not None:
        if not any(c == prior.around and isinstance(c, bool) == isinstance(prior.around, bool)
                   for c in h.choices):  # fmt: skip
            return f"is around one of {', '.join(map(str, h.choices))}, got {prior.around!r:.60}"
        return None
    low, high = h.bounds
    if isinstance(prior.around, bool | str | None) or not low <= prior.around <= high:
        return f"is around a number from {low} to {high}, got {prior.around!r:.60}"
    if h.kind == "int" and not isinstance(prior.around, int):
        return f"is around an integer, got {prior.around!r:.60}"
    return None
