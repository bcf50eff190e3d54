"""The tasks: what can be trained, each declared in one class and found by its name.

A task is a subclass of `TrainingConfig`, marked `@register`. It says its `name`, its `metrics`, its
`num_outputs` and, as fields, its own part of the configuration; its method `components` makes the
network, the data, the criterion and the measure. The search imports the class, and must not come
to import torch by it: what needs torch is imported inside that method.
"""

from oialr_training.tasks import autoformer, minivit
from oialr_training.tasks.registry import (
    TASKS,
    load_training,
    metric_of,
    register,
    validate_training,
)

__all__ = [
    "TASKS",
    "autoformer",
    "load_training",
    "metric_of",
    "minivit",
    "register",
    "validate_training",
]
