"""The tasks by name, and configurations of whichever task a file names; free of torch."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from oialr_training.config import OF_ALL_TASKS, Metric, Metrics, TaskConfig, TrainingConfig
from oialr_training.errors import ConfigError, nearest, place_of
from oialr_training.validation import validate
from oialr_training.yaml_files import apply_override, in_one_line, parse_assignment, read_yaml

T = TypeVar("T", bound=type[TaskConfig])

TASKS: dict[str, type[TaskConfig]] = {}
"""Those that come along, and those that were found."""
ENTRY_POINTS = "oialr_search.tasks"
METHODS = ("load_data", "network", "loss", "measure", "training_step")
"""What the loop calls of a task."""
TASK_PATH_VARIABLE = "OIALR_TASK_PATH"
"""Folders with tasks of one's own; the workers inherit it."""


def register(task: T) -> T:
    """Make a task known by its name; a class decorator.

    Raises:
        ConfigError: when another has this name.
    """
    if TASKS.setdefault(task.name, task) is not task:
        raise ConfigError(f"two tasks are called {task.name}")
    return task


def find_task(name: str) -> type[TaskConfig]:
    """The task of a name: one of `TASKS`, an entry point's, or the class `package.module:Class`.

    Raises:
        ConfigError: when there is none, its module raises on import, or it is no task.
    """
    if name in TASKS:
        return TASKS[name]
    found = next(iter(entry_points(group=ENTRY_POINTS, name=name)), None)
    where = found.value if found else name
    module, _, attribute = where.partition(":")
    if not attribute:
        raise ConfigError(f"unknown task {name!r:.80} for `task`{nearest(name, TASKS)}")
    TASKS[name] = task = _a_task(_imported(module, name), attribute, name)
    return task


def known_metrics(task: str) -> Metrics:
    """What a task reports, as far as it is known here.

    Nothing is imported for it: who reads a database runs no code that it names.
    """
    known = TASKS.get(task)
    if known and issubclass(known, TrainingConfig):
        return known.all_metrics()
    return Metrics(searched=(), each_epoch=OF_ALL_TASKS)


def add_task_path(folders: Iterable[str | Path]) -> None:
    """Look for tasks in these folders too, here and in the workers."""
    given = [str(Path(folder).absolute()) for folder in folders]
    os.environ[TASK_PATH_VARIABLE] = os.pathsep.join(dict.fromkeys([*given, *task_path()]))


def task_path() -> list[str]:
    """The folders that `add_task_path` was given."""
    return [f for f in os.environ.get(TASK_PATH_VARIABLE, "").split(os.pathsep) if f]


def _imported(module: str, task: str) -> object:
    sys.path[:0] = [folder for folder in task_path() if folder not in sys.path]
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and module.startswith(error.name or "?"):
            raise ConfigError(
                f"no module {error.name!r} for `task`, got {task!r:.80}: "
                "install it, or name its folder with --task-path"
            ) from None
        raise ConfigError(
            f"`task`: {task} cannot be imported: {place_of(error)}"
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from None


def _a_task(module: object, attribute: str, name: str) -> type[TrainingConfig]:
    task = getattr(module, attribute, None)
    file = getattr(module, "__file__", module)
    if task is None:
        raise ConfigError(f"`task`: {file} has no {attribute!r}, got {name!r:.80}")
    mistake = None
    if not (isinstance(task, type) and issubclass(task, TrainingConfig)):
        mistake = "it is no subclass of `oialr_training.config.TrainingConfig`"
    elif missing := sorted(task.__abstractmethods__):
        mistake = f"its method `{missing[0]}` is missing"
    elif not task.metrics or not all(isinstance(metric, Metric) for metric in task.metrics):
        mistake = "its `metrics` are no tuple of `Metric`"
    elif task.metrics[0].name != "loss":
        mistake = f"the first of its `metrics` is called `loss`, got {task.metrics[0].name!r}"
    elif odd := [m for m in task.metrics if m.better not in ("lower", "higher")]:
        mistake = f"`better` of the metric {odd[0].name!r} is lower or higher: {odd[0].better!r}"
    if mistake:
        raise ConfigError(f"`task`: {name} is no task: {mistake} ({file})")
    found: type[TrainingConfig] = task
    for method in METHODS:
        _refuse_signature(found, method, name)
    return found


def _refuse_signature(task: type[TrainingConfig], method: str, name: str) -> None:
    """See that a task's method takes what `TrainingConfig`'s is given, by place."""
    own = getattr(task, method)
    asked = list(inspect.signature(getattr(TrainingConfig, method)).parameters)
    if not inspect.isfunction(inspect.getattr_static(task, method)):  # e.g. a staticmethod
        asked = asked[1:]
    try:
        inspect.signature(own).bind(*asked)
    except TypeError:
        code = inspect.unwrap(own).__code__
        raise ConfigError(
            f"`task`: {name} is no task: its method `{method}` takes ({', '.join(asked)}), "
            f"got {inspect.signature(own)} ({code.co_filename}:{code.co_firstlineno})"
        ) from None


def validate_training(content: Mapping[str, Any], source: str) -> TaskConfig:
    """Build the training configuration of the task that `content` names.

    Raises:
        ConfigError: see `validate`; also when the task is missing or unknown.
    """
    task = content.get("task", "command" if "command" in content else None)
    if task is None:
        raise ConfigError(f"`task` or `command` is missing; one of {', '.join(TASKS)} ({source})")
    if not isinstance(task, str):
        raise ConfigError(f"unknown task {task!r:.80} for `task`{nearest('', TASKS)} ({source})")
    try:
        found = find_task(task)
    except ConfigError as error:
        raise ConfigError(f"{error} ({source})") from None
    return validate(found, content, source)


def load_training(path: Path, assignments: Sequence[str] = ()) -> TaskConfig:
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
    config = validate_training(content, in_one_line(path))
    refuse_lacking(config, (), in_one_line(path))
    return config


def refuse_lacking(task: TaskConfig, given: Collection[str], source: str) -> None:
    """See that all that an evaluation needs has a value.

    Raises:
        ConfigError: when something has none.
    """
    for name in task.lacking(given):
        raise ConfigError(
            f"nothing fills `{{{name}}}` of `command`: neither `space` nor a value of that name "
            f"({source})"
        )
