"""The JSON schema of files, which editors check by, and the page made of the same classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from oialr_search.space.schema import file_schema, page
from oialr_training.yaml_files import read_yaml

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "search_spaces").rglob("*.yaml"), *(ROOT / "examples").glob("*.yaml")])
DIGITS = read_yaml(ROOT / "search_spaces" / "minivit_digits.yaml")
VALIDATOR = Draft202012Validator(file_schema())


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_our_files_are_as_it_says(path: Path) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(read_yaml(path))] == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epoch": 3}, "epoch"),
        ({"optimizer": {"lr": -1.0}}, "lr"),
        ({"search": {**DIGITS["search"], "engin": "tpe"}}, "engin"),
        ({"search": {**DIGITS["search"], "evaluations": "many"}}, "evaluations"),
        ({"space": {"optimizer.lr": {"lo": 1}}}, "lo"),
        ({"space": {"optimizer.lr": {"low": "a"}}}, "low"),
        ({"task": "minivit"}, "task"),
    ],
)
def test_a_mistake_is_found(changes: dict[str, Any], key: str) -> None:
    errors = list(VALIDATOR.iter_errors(DIGITS | changes))
    assert errors
    assert any(key in map(str, [*e.absolute_path, *e.message.split("'")]) for e in errors)


@pytest.mark.parametrize(
    "changes",
    [
        {"search": {**DIGITS["search"], "subject_to": "trainable_percent <= 15"}},
        {"search": {**DIGITS["search"], "constraints": ["epochs > 2"]}},
        {"search": {**DIGITS["search"], "start_with": ["file", {"search": "x", "best": 2}]}},
        {"space": {"oialr.growing_window": None, "epochs": {"choices": [1, None, "a", True]}}},
        {"task": "my_package.tasks:Mine", "what": "ever"},
    ],
)
def test_what_a_file_may_say_is_no_mistake(changes: dict[str, Any]) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(DIGITS | changes)] == []


def test_a_task_of_one_s_own_can_be_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    schema = file_schema(["tabular:TabularMLP"])
    content = read_yaml(ROOT / "examples" / "tabular.yaml")
    assert not list(Draft202012Validator(schema).iter_errors(content))
    content["model"] = {"widht": 3}
    (error,) = Draft202012Validator(schema).iter_errors(content)
    assert "widht" in error.message


def test_the_page_says_what_the_classes_say() -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == page(), (
        "run python -m oialr_search.space.schema > docs/reference.md"
    )
