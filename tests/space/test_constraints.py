"""Conditions between hyperparameters: who breaks one is never trained."""

from __future__ import annotations

import pytest

from oialr_search.space.search_file import SearchFile, load_search
from oialr_training.errors import ConfigError

from ..conftest import DIGITS

WARMUP = "space.scheduler.warmup_epochs={low: 0, high: 5}"
EPOCHS = "space.epochs={low: 2, high: 12}"


def searched(constraint: str, *assignments: str) -> SearchFile:
    return load_search(DIGITS, [f"search.constraints={constraint}", *assignments])


@pytest.mark.parametrize(
    ("constraint", "values", "broken"),
    [
        ("scheduler.warmup_epochs < epochs", (3, 4), None),
        ("scheduler.warmup_epochs < epochs", (4, 4), "scheduler.warmup_epochs < epochs"),
        ("epochs > scheduler.warmup_epochs", (4, 4), "scheduler.warmup_epochs < epochs"),
        ("scheduler.warmup_epochs <= epochs / 2", (2, 4), None),
        ("scheduler.warmup_epochs <= epochs / 2", (3, 4), "scheduler.warmup_epochs <= epochs / 2"),
        ("[epochs >= 3, 1 <= scheduler.warmup_epochs < epochs]", (0, 4),
         "1 <= scheduler.warmup_epochs"),
        ("epochs * batch_size <= 640", (1, 12), "epochs * batch_size <= 640"),
        ("log(epochs - 4) >= 0", (1, 4), "0 <= log(epochs - 4)"),
    ],
)  # fmt: skip
def test_what_holds(constraint: str, values: tuple[int, int], broken: str | None) -> None:
    file = searched(constraint, WARMUP, EPOCHS, "batch_size=64")
    warmup, epochs = values
    hyperparameters = {"scheduler.warmup_epochs": warmup, "epochs": epochs}
    assert file.constraints.broken(hyperparameters) == broken
    assert file.constraints.met(hyperparameters) == (broken is None)


def test_what_contradicts_the_task_needs_a_condition() -> None:
    searched_too = [
        "space.model.embed_dim={low: 32, high: 128, step: 32}",
        "space.model.num_heads={choices: [2, 3, 4]}",
    ]
    with pytest.raises(ConfigError, match="`num_heads` must divide `embed_dim`"):
        load_search(DIGITS, searched_too)
    file = searched("model.embed_dim % model.num_heads == 0", *searched_too)
    assert file.constraints.met({"model.embed_dim": 96, "model.num_heads": 3})
    assert not file.constraints.met({"model.embed_dim": 64, "model.num_heads": 3})


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ("epochs < 1", "none of 10000 points of `space` meets `search.constraints`"),
        ("warmup < epochs", "unknown column `warmup`"),
        ("epochs != 3", "a condition is by <, <=, ==, >= or >"),
        ("epochs", "a condition is such as"),
        ("__import__('os').system('x') < epochs", "is no arithmetic"),
        ("validation_loss < epochs", "unknown column `validation_loss`"),
    ],
)
def test_a_mistake_is_one_line(constraint: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        searched(f'["{constraint}"]', EPOCHS)
    assert said in str(error.value)
    assert str(error.value).endswith(f"({DIGITS})")
    assert "\n" not in str(error.value)
