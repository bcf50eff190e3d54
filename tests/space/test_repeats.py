"""`search.repeats` and `search.confirm` as they are written."""

from __future__ import annotations

import pytest

from oialr_search.space.repeats import ConfirmSettings, RepeatSettings
from oialr_search.space.search_file import load_search
from oialr_training.errors import ConfigError

from ..conftest import DIGITS


def test_without_values_they_have_the_defaults_and_are_off_where_not_given() -> None:
    search = load_search(DIGITS, ["search.repeats={}", "search.confirm={on: test}"]).search
    assert search.repeats == RepeatSettings(seeds=3, share=0.2)
    assert search.confirm == ConfirmSettings(top=3, seeds=3, on="test")
    search = load_search(DIGITS).search
    assert (search.repeats, search.confirm) == (None, None)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("search.repeats={seeds: 1}", "`search.repeats.seeds` should be greater than or equal"),
        ("search.repeats={share: 1.0}", "`search.repeats.share` should be less than 1, got 1.0"),
        ("search.repeats={share: 0.0}", "`search.repeats.share` should be greater than 0"),
        ("search.repeats={top: 3}", "unknown key `search.repeats.top`"),
        ("search.confirm={top: 0}", "`search.confirm.top` should be greater than or equal to 1"),
        ("search.confirm={on: training}", "`search.confirm.on` should be 'validation' or 'test'"),
    ],
)
def test_a_wrong_value_is_one_line(assignment: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_search(DIGITS, [assignment])
    (line,) = str(refused.value).splitlines()
    assert words in line
    assert DIGITS.name in line


@pytest.mark.parametrize("key", ["repeats", "confirm"])
def test_several_objectives_have_no_best_to_measure_again(key: str) -> None:
    objectives = "search.objectives=[validation_top1, trainable_percent]"
    with pytest.raises(ConfigError, match=rf"`search.{key}` measures the best again"):
        load_search(DIGITS, [objectives, f"search.{key}={{}}"])
