"""A command line as a task: its placeholders, values and metrics, and each mistake in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oialr_search.space.search_file import SearchFile, load_search, stored_metrics, stored_training
from oialr_training.errors import ConfigError
from oialr_training.tasks import known_metrics, load_training, validate_training
from oialr_training.tasks.command import CommandTraining
from oialr_training.yaml_files import dump_yaml

COMMAND = "python train.py --lr {optimizer.lr} --seed={seed} '--name=a b'"
METRICS = {"validation_loss": "lower", "accuracy": {"better": "higher", "percent": True}}
SEARCH = {
    "command": COMMAND,
    "metrics": METRICS,
    "search": {"name": "mine", "metric": "accuracy", "evaluations": 4, "islands": 1},
    "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "scale": "log"}},
}


def command(**content: Any) -> CommandTraining:
    found = validate_training({"command": COMMAND, "metrics": METRICS, **content}, "test")
    assert isinstance(found, CommandTraining)
    return found


def search(tmp_path: Path, *assignments: str, **content: Any) -> SearchFile:
    path = tmp_path / "search.yaml"
    path.write_text(dump_yaml(SEARCH | content))
    return load_search(path, assignments)


def test_values_and_settings_fill_the_placeholders() -> None:
    filled = command(optimizer={"lr": 0.01}, seed=7).filled({})
    assert filled == ["python", "train.py", "--lr", "0.01", "--seed=7", "--name=a b"]


def test_a_list_is_not_split() -> None:
    given = command(command=["sh", "-c", "echo {words}"], words="a  b")
    assert given.filled({}) == ["sh", "-c", "echo a  b"]


def test_doubled_braces_are_braces_and_booleans_are_as_in_yaml() -> None:
    given = command(command="run '{{\"amp\": {amp}}}' {state_dir}", amp=True)
    assert given.filled({"state_dir": "/x"}) == ["run", '{"amp": true}', "/x"]


def test_what_nothing_fills_is_named() -> None:
    assert command().lacking() == ["optimizer.lr"]
    assert command().lacking(["optimizer.lr"]) == []
    assert command(command="x {epochs}").lacking() == ["epochs"]
    assert command(command="x {epochs} {num_threads} {python}", epochs=3).lacking() == []


def test_metrics_have_direction_scale_and_label() -> None:
    loss, accuracy = command().reported.searched
    assert (loss.name, loss.better, loss.label) == ("validation_loss", "lower", "validation loss")
    assert (accuracy.label, accuracy.fitness(90.0)) == ("accuracy (%)", 10.0)


def test_its_configuration_reads_back_what_it_writes() -> None:
    given = command(optimizer={"lr": 0.01}, epochs=3)
    again = validate_training(json.loads(json.dumps(given.model_dump(mode="json"))), "test")
    assert again == given


def test_a_search_is_stored_with_its_metrics(tmp_path: Path) -> None:
    found = search(tmp_path)
    stored = json.loads(json.dumps(found.as_json()))
    assert stored_training(stored, "stored") == found.training
    assert stored_metrics(stored, "command", "stored") == found.training.reported
    assert found.aims.fitness.label == "100 − accuracy"
    assert not known_metrics("command").names


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ({"low": 1, "high": 8}, "int"),
        ({"low": 1.0, "high": 8}, "float"),
        ({"choices": [True, False]}, "choice"),
        ({"choices": ["adam", "sgd"]}, "choice"),
        ({"choices": [16, 32]}, "choice"),
    ],
)
def test_the_range_says_what_a_hyperparameter_is(
    tmp_path: Path, entry: dict[str, Any], kind: str
) -> None:
    (hyperparameter,) = search(tmp_path, space={"optimizer.lr": entry}).space.hyperparameters
    assert hyperparameter.kind == kind


def test_a_set_hyperparameter_is_no_longer_searched(tmp_path: Path) -> None:
    space = SEARCH["space"] | {"width": {"low": 1, "high": 8}}  # type: ignore[operator]
    found = search(tmp_path, "width=3", command=f"{COMMAND} {{width}}", space=space)
    assert found.pinned == ("width",)
    assert isinstance(found.training, CommandTraining)
    assert found.training.values == {"width": 3}


STOPPING = {"search": {**SEARCH["search"], "stopping": {}}}  # type: ignore[dict-item]
AFTER = {"search": {**SEARCH["search"], "stopping": {"after": "1 epochs"}}}  # type: ignore[dict-item]
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"command": "python 'train.py"}, "`command` cannot be split: No closing quotation"),
    ({"command": ""}, "`command` names no program"),
    ({"command": COMMAND + " {a"}, "'{a' has a single '{'"),
    ({"command": "python train.py"}, "`optimizer.lr` is used nowhere in `command`"),
    ({"command": COMMAND + " {optimizer.momentum}"}, "nothing fills `{optimizer.momentum}`"),
    ({"command": COMMAND + " {optimizer}"}, "`optimizer` cannot be a value and have"),
    ({"command": 3}, "`command"),
    ({"optimiser": {"lr": 1.0}}, "`optimiser.lr` is used nowhere in `command`"),
    ({"optimizer.lr": 1.0}, "`optimizer.lr` is written `optimizer: {lr: ...}`"),
    ({"optimizer": 3.0}, "`optimizer` is used nowhere in `command`"),
    ({"optimizer": {"lr": [1.0]}}, "`optimizer.lr` is a number, text or bool, got [1.0]"),
    ({"metrics": {}}, "`metrics`"),
    ({"metrics": {"accuracy": "up"}}, "`metrics.accuracy.better`"),
    ({"metrics": {"epoch": "lower"}}, "no metric is called 'epoch'"),
    ({"metrics": {"val/loss": "lower"}}, "no metric is called 'val/loss'"),
    ({"metrics": {"validation_loss": "lower"}}, "unknown metric 'accuracy' for `search.metric`"),
    ({"space": {"seed": {"low": 1, "high": 8}}}, "`space.seed`"),
    ({"space": {"command": {"choices": ["a", "b"]}}}, "`space.command`"),
    ({"space": {"optimizer.lr": 3}}, "`space.optimizer.lr` should be a mapping"),
    ({"space": {"optimizer.lr": {"low": 2, "high": 1}}}, "`low < high` must hold"),
    (STOPPING, "say in `epochs` how many"),
    (STOPPING | {"epochs": 3}, "`search.stopping.after` = 'first_truncation + 1'"),
    (AFTER, "say in `epochs` how many"),
]


@pytest.mark.parametrize(("changes", "line"), MISTAKES, ids=lambda x: str(x)[:40])
def test_a_mistake_is_one_line_with_the_file(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        search(tmp_path, **changes)
    first = str(caught.value).splitlines()[0]
    assert line in first
    assert f"({tmp_path / 'search.yaml'}" in first


def test_stopping_by_epochs_is_allowed(tmp_path: Path) -> None:
    assert search(tmp_path, **AFTER, epochs=5).search.stopping is not None


def test_a_configuration_to_train_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(dump_yaml({"command": COMMAND, "metrics": METRICS}))
    with pytest.raises(ConfigError, match=r"nothing fills `\{optimizer\.lr\}`"):
        load_training(path)
    assert load_training(path, ["optimizer.lr=0.1"]).command_line == (
        "python train.py --lr 0.1 --seed=42 '--name=a b'"
    )
