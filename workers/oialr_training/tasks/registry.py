"""The tasks by name, and configurations of whichever task a file names; free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from oialr_training.config import Metric, TrainingConfig
from oialr_training.errors import ConfigError, nearest
from oialr_training.validation import validate
from oialr_training.yaml_files import apply_override, in_one_line, parse_assignment, read_yaml

T = TypeVar("T", bound=type[TrainingConfig])

TASKS: dict[str, type[TrainingConfig]] = {}


def register(task: T) -> T:
    """Make a task known by its name; a class decorator.

    Raises:
        ConfigError: when another has this name.
    """
    if TASKS.setdefault(task.name, task) is not task:
        raise ConfigError(f"two tasks are called {task.name}")
    return task


def metric_of(task: str, reported: str) -> Metric | None:
    """The metric that a task reports under a name; None where it or the task is unknown."""
    return TASKS.get(task, TrainingConfig).metric(reported)


def validate_training(content: Mapping[str, Any], source: str) -> TrainingConfig:
    """Build the training configuration of the task that `content` names.

    Raises:
        ConfigError: see `validate`; also when the task is missing or unknown.
    """
    task = content.get("task")
    if task is None:
        raise ConfigError(f"`task` is missing; one of {', '.join(TASKS)} ({source})")
    if not isinstance(task, str) or task not in TASKS:
        hint = nearest(str(task), TASKS)
        raise ConfigError(f"unknown task {task!r:.80} for `task`{hint} ({source})")
    return validate(TASKS[task], content, source)


def load_training(path: Path, assignments: Sequence[str] = ()) -> TrainingConfig:
    """Read a training configuration from a YAML file, with `path=value` overrides.

    Raises:
        ConfigError: when the file cannot be read or is wrong.
    """
    content = read_yaml(path)
    for assignment in assignments:
        apply_override(content, *parse_assignment(assignment))
    if "space" in content or "search" in content:
        raise ConfigError(
            "this is a search file, not a training configuration: "
            f"start it with `oialr-search run`, then `oialr-search export` ({in_one_line(path)})"
        )
    return validate_training(content, in_one_line(path))
