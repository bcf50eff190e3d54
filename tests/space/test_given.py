"""Configurations that a person names, as points of a space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oialr_search.space.given import BestOf, Naming, OfFile
from oialr_search.space.search_file import load_search
from oialr_training.errors import ConfigError

from ..conftest import DIGITS, SEARCH_SPACES


def naming(*assignments: str) -> Naming:
    file = load_search(DIGITS, assignments)
    return Naming(space=file.space, training=file.training, constraints=file.constraints)


def test_what_is_not_named_is_the_search_file_s_own() -> None:
    given, moved = naming().given({"optimizer.lr": 1e-3}, "a test")
    assert given.hyperparameters == {
        "optimizer.lr": 1e-3,
        "scheduler.min_lr": 1e-4,
        "scheduler.warmup_lr": 1e-4,
        "scheduler.lr_k_decay": 1.0,
        "scheduler.warmup_epochs": 2,
        "oialr.delay_steps": 120,
        "oialr.update_frequency": 40,
        "oialr.cutoff_fraction": 0.2,
    }
    assert given.genes["optimizer.lr"] == pytest.approx(0.301, abs=1e-3)
    assert given.genes["scheduler.warmup_epochs"] == pytest.approx(0.375)
    assert moved == []


@pytest.mark.parametrize(
    ("path", "value", "becomes", "gene"),
    [
        ("optimizer.lr", 1.0, 5e-3, 1.0),
        ("optimizer.lr", -1, 5e-4, 0.0),
        ("oialr.delay_steps", 9000, 160, 1 - 0.5 / 121),
        ("oialr.delay_steps", 41.0, 41, 1.5 / 121),
    ],
)
def test_a_number_beyond_the_range_is_moved_to_its_end(
    path: str, value: float, becomes: float, gene: float
) -> None:
    given, moved = naming().given({path: value}, "a test")
    assert given.hyperparameters[path] == becomes
    assert type(given.hyperparameters[path]) is type(becomes)
    assert given.genes[path] == pytest.approx(gene)
    told = [f"`{path}` = {value} moved to {becomes} (a test)"] if value != becomes else []
    assert moved == told


CHOICES = "space.oialr.full_rank_last_layer={choices: [false, true]}"


def test_a_choice_is_the_middle_of_its_share() -> None:
    given, _ = naming(CHOICES).given({}, "a test")
    assert given.hyperparameters["oialr.full_rank_last_layer"] is True
    assert given.genes["oialr.full_rank_last_layer"] == 0.75


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        (
            {"oialr.full_rank_last_layer": 1},
            ["`oialr.full_rank_last_layer` is one of False, True, got 1 (a test)"],
        ),
        ({"optimizer.lr": "fast"}, ["`optimizer.lr` is a number, got 'fast' (a test)"]),
        ({"optimizer.lr": float("nan")}, ["`optimizer.lr` is a number, got nan (a test)"]),
        (
            {"oialr.delay_steps": 50.5, "optimizer.lr": True},
            [
                "`optimizer.lr` is a number, got True (a test)",
                "`oialr.delay_steps` is an integer, got 50.5 (a test)",
            ],
        ),
    ],
)
def test_what_the_space_cannot_have_is_a_line_each(
    values: dict[str, Any], lines: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        naming(CHOICES).given(values, "a test")
    assert str(error.value).splitlines() == lines


def test_a_file_gives_what_it_says_of_the_space(tmp_path: Path) -> None:
    path = tmp_path / "exported.yaml"
    path.write_text("optimizer: {lr: 0.001, weight_decay: 9.0}\noialr: null\nseed: 3\n")
    assert naming().of_file(path) == ({"optimizer.lr": 0.001}, str(path))
    path.write_text("optimizer: {weight_decay: 9.0}\n")
    with pytest.raises(ConfigError, match="nothing that is searched has a value there"):
        naming().of_file(path)


class TestSearchFile:
    def test_it_says_what_to_start_with(self) -> None:
        start = "search.start_with=[file, {search: other, best: 3}, {file: training/a.yaml}]"
        file = load_search(DIGITS, [start])
        path = str(SEARCH_SPACES / "training" / "a.yaml")
        expected = ("file", BestOf(search="other", best=3), OfFile(file=path))
        assert file.search.start_with == expected
        stored = file.as_json()["search"]["start_with"]
        assert stored == ["file", {"search": "other", "best": 3}, {"file": path}]

    @pytest.mark.parametrize("entry", ["{best: 3}", "files", "3"])
    def test_anything_else_is_one_line(self, entry: str) -> None:
        with pytest.raises(ConfigError) as error:
            load_search(DIGITS, [f"search.start_with=[file, {entry}]"])
        (line,) = str(error.value).splitlines()
        expected = "is `file`, `{search: NAME, best: NUMBER}` or `{file: PATH}`, got"
        assert line.startswith(f"`search.start_with.1` {expected}")

    def test_a_mistake_in_an_entry_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"`search.start_with.0.best` should be .*, got 0"):
            load_search(DIGITS, ["search.start_with=[{search: other, best: 0}]"])
        with pytest.raises(ConfigError, match=r"unknown key `search.start_with.0.bset`"):
            load_search(DIGITS, ["search.start_with=[{search: other, bset: 1}]"])
