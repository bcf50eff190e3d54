"""The settings of stopping early, `search.stopping`: which rule, by which metric, from when on."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from oialr_training.errors import ConfigError, nearest
from oialr_training.validation import Config, Fraction

RULES = {
    "quantile": "oialr_search.launch.stopping.quantile:QuantileRule",
    "median": "oialr_search.launch.stopping.optuna_pruners:MedianRule",
    "asha": "oialr_search.launch.stopping.optuna_pruners:HalvingRule",
    "hyperband": "oialr_search.launch.stopping.optuna_pruners:HyperbandRule",
    "patience": "oialr_search.launch.stopping.optuna_pruners:PatienceRule",
    "model": "oialr_search.launch.stopping.model:ModelRule",
}
"""Stopping rule → its class, which is imported where it is chosen."""

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "quantile": {"worst": 0.25},
    "asha": {"reduction_factor": 3},
    "hyperband": {"reduction_factor": 3},
    "patience": {"patience": 3},
    "model": {"chance": 0.01},
}
"""What only some rules have, and its default there."""
OF_SOME_RULES = ("worst", "reduction_factor", "patience", "chance")

NUMBER_THEN_UNIT = re.compile(r"(\d{1,9}) (epoch|step)s?")
AFTER_EVENT = re.compile(r"first_truncation(?: ?\+ ?(\d{1,9}))?")


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Until when a training is not stopped, whatever the rule says."""

    unit: Literal["epochs", "steps", "epochs after the first truncation"]
    number: int


def parse_clock(text: str) -> Clock:
    """What `after` says.

    Raises:
        ValueError: when it says something else.
    """
    if found := NUMBER_THEN_UNIT.fullmatch(text):
        return Clock(unit="epochs" if found[2] == "epoch" else "steps", number=int(found[1]))
    if found := AFTER_EVENT.fullmatch(text):
        return Clock(unit="epochs after the first truncation", number=int(found[1] or 0))
    raise ValueError(
        "`after` is like `3 epochs`, `200 steps` or `first_truncation + 1` (epochs after the one "
        f"in which OIALR first cut an inner rank), got {text!r:.80}"
    )


class StoppingSettings(Config):
    """Which trainings are not worth going on with."""

    model_config = ConfigDict(serialize_by_alias=True)

    rule: str = "quantile"
    """One of RULES, or a class of your own, `package.module:Class`."""
    metric: str | None = None
    """What is compared, as each epoch reports it; null: `search.metric`."""
    after: str = "first_truncation + 1"
    """Not before: `3 epochs`, `200 steps`, or so many epochs after OIALR first cut an inner rank;
    a training that never does is not stopped then."""
    go_on: Annotated[bool, Field(alias="continue")] = False
    """Go on with a stopped training where the rule, asked anew, no longer would stop it."""
    worst: Fraction | None = None
    """`quantile`: the share of the trainings that is stopped; 0.25 where it is not given."""
    reduction_factor: Annotated[int, Field(ge=2)] | None = None
    """`asha`, `hyperband`: one in so many goes on at each rung (1, 3, 9, ... epochs); 3."""
    patience: Annotated[int, Field(ge=0)] | None = None
    """`patience`: epochs without an improvement; 3."""
    chance: Fraction | None = None
    """`model`: the least chance to pass the best that is worth going on with; 0.01."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """What a rule of your own is told."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        return {**OPTIONS.get(content.get("rule", "quantile"), {}), **content}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        parse_clock(self.after)
        if self.rule not in RULES and ":" not in self.rule:
            known = nearest(self.rule, RULES)
            raise ValueError(f"unknown rule {self.rule!r:.80} for `rule`{known}")
        for name in OF_SOME_RULES:
            if getattr(self, name) is not None and name not in OPTIONS.get(self.rule, {}):
                rules = ", ".join(f"`{rule}`" for rule in OPTIONS if name in OPTIONS[rule])
                raise ValueError(f"`{name}` is of {rules}, and not of the rule {self.rule!r:.80}")
        if self.options and self.rule in RULES:
            raise ValueError(f"`options` are of a rule of your own, not of {self.rule!r}")
        return self

    @property
    def clock(self) -> Clock:
        """What `after` says."""
        return parse_clock(self.after)


def rule_class(rule: str) -> Any:
    """The class of a stopping rule; the others are not even imported.

    Raises:
        ConfigError: when it is a user's and not to be found.
    """
    module, _, name = RULES.get(rule, rule).partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        if rule in RULES:
            raise
        raise ConfigError(
            f"no stopping rule {rule!r:.80} for `search.stopping.rule`: {error}"
        ) from (None)
