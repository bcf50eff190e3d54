"""Whether a search measures configurations again, with other seeds; typed and validated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from oialr_training.validation import Config


class RepeatSettings(Config):
    """While it runs: the best, and what may yet be better, are trained with more seeds."""

    seeds: Annotated[int, Field(ge=2)] = 3
    """So many for each of them, the first included."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """At most this part of the evaluations are repeats."""


class ConfirmSettings(Config):
    """At its end: the best are trained with more seeds, beyond `evaluations`."""

    top: Annotated[int, Field(ge=1)] = 3
    """So many of the best."""
    seeds: Annotated[int, Field(ge=1)] = 3
    """So many further seeds for each."""
    on: Literal["validation", "test"] = "validation"
    """What decides between them: the search's metric, or the same one of the test data."""
