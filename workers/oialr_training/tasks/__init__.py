"""The tasks: what can be trained, each declared in one class and found by its name.

A task is a subclass of `TrainingConfig`. It says its `metrics` and, as fields, its own part of the
configuration; its methods read the data, make the network, compute the loss and measure. The search
imports the class, and must not come to import torch by it: what needs torch is imported inside
these methods. Those here are marked `@register` and have a `name`; another is named by an
entry point of the group `oialr_search.tasks`, or as `package.module:Class`.
"""

from oialr_training.tasks import autoformer, classification, command, minivit
from oialr_training.tasks.registry import (
    TASKS,
    add_task_path,
    find_task,
    known_metrics,
    load_training,
    refuse_lacking,
    register,
    task_path,
    validate_training,
)

__all__ = [
    "TASKS",
    "add_task_path",
    "autoformer",
    "classification",
    "command",
    "find_task",
    "known_metrics",
    "load_training",
    "minivit",
    "refuse_lacking",
    "register",
    "task_path",
    "validate_training",
]
