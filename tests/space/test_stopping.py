"""`search.stopping` as a file says it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from oialr_search.space.search_file import load_search, stored_search_settings
from oialr_search.space.stopping import RULES, Clock, StoppingSettings, parse_clock
from oialr_training.errors import ConfigError

from ..conftest import DIGITS


def stopping(**settings: Any) -> StoppingSettings | None:
    return load_search(DIGITS, (), {"stopping": settings}).search.stopping


def test_nothing_is_stopped_unless_it_is_asked_for() -> None:
    assert load_search(DIGITS).search.stopping is None


def test_the_worst_quarter_after_the_first_truncation_is_the_default() -> None:
    told = stopping()
    assert told is not None
    assert (told.rule, told.worst, told.metric, told.go_on) == ("quantile", 0.25, None, False)
    assert told.clock == Clock(unit="epochs after the first truncation", number=1)


@pytest.mark.parametrize("rule", RULES)
def test_stored_settings_are_read_back(rule: str) -> None:
    file = load_search(DIGITS, (), {"stopping": {"rule": rule, "continue": True}})
    assert file.search.stopping is not None
    assert file.search.stopping.go_on
    assert stored_search_settings(file.as_json(), "stored") == file.search


@pytest.mark.parametrize(
    ("text", "clock"),
    [
        ("3 epochs", ("epochs", 3)),
        ("1 epoch", ("epochs", 1)),
        ("200 steps", ("steps", 200)),
        ("first_truncation", ("epochs after the first truncation", 0)),
        ("first_truncation + 2", ("epochs after the first truncation", 2)),
        ("first_truncation+2", ("epochs after the first truncation", 2)),
    ],
)
def test_clocks(text: str, clock: tuple[Any, int]) -> None:
    assert parse_clock(text) == Clock(unit=clock[0], number=clock[1])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"after": "soon"}, "`after` is like `3 epochs`"),
        ({"after": "-1 epochs"}, "got '-1 epochs'"),
        ({"after": "first truncation + 1"}, "got 'first truncation + 1'"),
        ({"rule": "medain"}, "unknown rule 'medain' for `rule`; did you mean `median`?"),
        (
            {"rule": "median", "worst": 0.5},
            "`worst` is of `quantile`, and not of the rule 'median'",
        ),
        ({"rule": "asha", "patience": 2}, "`patience` is of `patience`"),
        ({"options": {"a": 1}}, "`options` are of a rule of your own, not of 'quantile'"),
        ({"worst": 1.5}, "`search.stopping.worst`"),
        ({"reduction_factor": 1, "rule": "asha"}, "`search.stopping.reduction_factor`"),
        ({"metric": "test_top1"}, "unknown metric 'test_top1' for `search.stopping.metric`"),
        ({"rule": "nowhere:Rule"}, "no stopping rule 'nowhere:Rule' for `search.stopping.rule`"),
        ({"rule": "json:Rule"}, "no stopping rule 'json:Rule'"),
        ({"rules": "median"}, "did you mean `rule`?"),
    ],
)
def test_mistakes_are_a_line_each(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as mistake:
        stopping(**settings)
    line = str(mistake.value)
    assert told in line
    assert "\n" not in line
    assert str(DIGITS) in line


def test_a_rule_of_ones_own_is_named_by_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_stopping.py").write_text("class Never: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    told = stopping(rule="own_stopping:Never", options={"patience": 2})
    assert told is not None
    assert told.options == {"patience": 2}
    del sys.modules["own_stopping"]
