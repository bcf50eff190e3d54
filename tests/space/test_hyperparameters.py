"""Genes ↔ hyperparameters, and what a space may say."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest

from oialr_search.space.hyperparameters import Hyperparameter, SearchSpace, with_hyperparameters
from oialr_search.space.parsing import parse_space
from oialr_training.errors import ConfigError
from oialr_training.tasks import TASKS
from oialr_training.yaml_files import read_yaml

from ..conftest import CIFAR10, DIGITS

TASK = TASKS["minivit_digits"]


def training() -> dict[str, Any]:
    return {k: v for k, v in read_yaml(DIGITS).items() if k not in ("search", "space")}


def parse(space: Any) -> Any:
    return parse_space(space, TASK, training(), (), "file.yaml")


def test_a_log_scale_gives_each_decade_the_same_share() -> None:
    lr = Hyperparameter(name="optimizer.lr", kind="float", low=1e-5, high=1e-1, scale="log")
    assert lr.decode(0.0) == 1e-5
    assert lr.decode(1.0) == 1e-1
    assert lr.decode(0.5) == pytest.approx(1e-3)
    assert lr.decode(0.25) == pytest.approx(1e-4)


def test_all_integers_have_the_same_share_and_none_lies_outside() -> None:
    epochs = Hyperparameter(name="scheduler.warmup_epochs", kind="int", low=1, high=4)
    count = Counter(epochs.decode(k / 3999) for k in range(4000))
    assert set(count) == {1, 2, 3, 4}
    assert all(abs(n - 1000) <= 2 for n in count.values())
    assert all(type(value) is int for value in count)


def test_choices_keep_their_types() -> None:
    last = Hyperparameter(name="oialr.full_rank_last_layer", kind="bool", choices=(False, True))
    assert [last.decode(g) for g in (0.0, 0.49, 0.5, 1.0)] == [False, False, True, True]


def test_the_kind_is_that_of_the_field_not_of_the_first_bound() -> None:
    # Propulate takes (1, 2) for integers; `lr_k_decay` is a float.
    (k_decay,) = parse({"scheduler.lr_k_decay": {"low": 1, "high": 2}}).hyperparameters
    assert k_decay.kind == "float"
    assert k_decay.decode(0.5) == pytest.approx(1.5)


def test_what_goes_to_a_constructor_is_of_the_kind_that_its_bounds_are() -> None:
    task = TASKS["image_classification"]
    content = training() | {"task": task.name, "data": {}}
    args = {"drop_path_rate": 0.1, "depth": 3, "act_layer": "gelu"}
    content["model"] = {"name": "timm/x", "args": args}
    space = {
        "model.args.drop_path_rate": {"low": 0, "high": 0.5},
        "model.args.depth": {"low": 2, "high": 12},
        "model.args.act_layer": {"choices": ["relu", "gelu"]},
    }
    parsed = parse_space(space, task, content, (), "file.yaml")
    assert [h.kind for h in parsed.hyperparameters] == ["float", "int", "choice"]
    found = with_hyperparameters(content, parsed.decode(dict.fromkeys(space, 0.0)))
    assert found["model"]["args"] == {"drop_path_rate": 0, "depth": 2, "act_layer": "relu"}
    for name in ("model.args.drop", "model.args.depth.more", "model.args"):
        with pytest.raises(ConfigError, match=rf"`space.{name}`"):
            parse_space({name: {"low": 1, "high": 2}}, task, content, (), "file.yaml")


def test_a_bool_needs_no_range() -> None:
    (flag,) = parse({"oialr.full_rank_first_layer": None}).hyperparameters
    assert flag.choices == (False, True)


def test_values_land_at_their_paths_and_the_original_stays() -> None:
    original = training()
    changed = with_hyperparameters(original, {"optimizer.lr": 0.5, "epochs": 7})
    assert changed["optimizer"]["lr"] == 0.5
    assert changed["optimizer"]["weight_decay"] == original["optimizer"]["weight_decay"]
    assert original["optimizer"]["lr"] == 0.003
    assert changed["epochs"] == 7


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            {"optimizer.lr": {"low": 0.01, "high": 0.001}},
            ["`low < high` must hold for `space.optimizer.lr`", "low=0.01, high=0.001"],
        ),
        ({"optimizer.lr": {"low": 0, "high": 1, "scale": "log"}}, ["`low > 0`", "low=0"]),
        ({"optimizer.lrr": {"low": 0.1, "high": 1.0}}, ["`space.optimizer.lrr`", "`lr`"]),
        ({"optimizer": {"low": 0.1, "high": 1.0}}, ["is a section", "weight_decay"]),
        ({"optimizer.lr": {"low": 0.1}}, ["needs `low` and `high`"]),
        ({"optimizer.lr": {"low": 0.1, "high": 1.0, "stop": 2}}, ["unknown key", "stop"]),
        ({"optimizer.lr": {"low": 0.1, "high": 1.0, "step": 0.4}}, ["lr`.step", "whole steps"]),
        ({"optimizer.lr": {"low": 0.1, "high": 1.0, "step": -0.1}}, ["above 0", "got -0.1"]),
        (
            {"optimizer.lr": {"low": 0.1, "high": 0.7, "step": 0.3, "scale": "log"}},
            ["less than twice `low`", "got 0.3"],
        ),
        ({"epochs": {"low": 1, "high": 4, "step": 1.5}}, ["whole number", "1.5"]),
        ({"batch_size": {"choices": [16, 32], "step": 1}}, ["either `choices`"]),
        (
            {"epochs": {"low": 1, "high": 4, "when": {"batch_size": 3}}},
            ["`space.epochs.when`", "'batch_size'"],
        ),
        (
            {
                "epochs": {"low": 1, "high": 4, "when": {"oialr.last_layer": "x"}},
                "oialr.last_layer": {"choices": ["classifier", "last_converted"]},
            },
            ["is one of", "'x'"],
        ),
        (
            {
                "batch_size": {"choices": [32, 64], "when": {"batch_size": 32}},
            },
            ["counts only where it counts itself"],
        ),
        (
            {
                "epochs": {"choices": [1, 4]},
                "batch_size": {"choices": [8, 9], "when": {"epochs": []}},
            },
            ["needs a value"],
        ),
        ({"optimizer.lr": [0.1, 1.0]}, ["`space.optimizer.lr"]),
        ({"oialr.cutoff_fraction": {"low": 0.1, "high": 1.5}}, ["cutoff_fraction", "1.5"]),
        ({"scheduler.warmup_epochs": {"low": 0.5, "high": 2}}, ["integer", "low=0.5"]),
        ({"oialr.last_layer": {"choices": ["classifier", "first"]}}, ["first"]),
        ({"optimizer.lr": {"choices": [0.1]}}, ["two or more"]),
        ({"seed": {"low": 1, "high": 5}}, ["`space.seed`"]),
        ({"task": {"choices": ["a", "b"]}}, ["`space.task`"]),
        ({}, ["`space`"]),
        ([1, 2], ["`space`"]),
    ],
)
def test_a_wrong_entry_is_one_line_with_key_rule_value_and_file(
    space: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(space)
    message = str(caught.value)
    assert "\n" not in message
    assert "file.yaml" in message
    for word in words:
        assert word in message


def test_every_wrong_entry_has_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"optimizer.lr": {"low": 2.0, "high": 1.0}, "nothing": {"low": 1, "high": 2}})
    assert len(str(caught.value).splitlines()) == 2


def test_interpolation_is_monotonic() -> None:
    lr = Hyperparameter(name="optimizer.lr", kind="float", low=5e-5, high=1e-3, scale="log")
    values = [lr.decode(k / 100) for k in range(101)]
    assert values == sorted(values)
    assert math.isclose(values[0], 5e-5)


def test_steps_are_exact_and_have_equal_shares() -> None:
    space = parse({"data.validation_fraction": {"low": 0.1, "high": 0.5, "step": 0.1}})
    (part,) = space.hyperparameters
    count = Counter(part.decode(k / 4999) for k in range(5000))
    assert sorted(count) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert all(abs(n - 1000) <= 2 for n in count.values())
    assert [part.decode(part.encode(v)) for v in count] == list(count)


def test_whole_numbers_have_steps_too_and_on_a_log_scale() -> None:
    space = {"batch_size": {"low": 16, "high": 128, "step": 16, "scale": "log"}}
    (size,) = parse(space).hyperparameters
    found = [size.decode(k / 999) for k in range(1000)]
    assert set(found) == set(range(16, 129, 16))
    assert all(type(value) is int for value in found)
    assert found.count(16) > 2 * found.count(64) > 2 * found.count(128) > 0
    assert [size.decode(size.encode(v)) for v in range(16, 129, 16)] == list(range(16, 129, 16))


CONDITIONAL = {
    "batch_size": {"choices": [16, 32]},
    "oialr.full_rank_last_layer": {"when": {"batch_size": 32}},
    "optimizer.lr": {
        "low": 0.1,
        "high": 0.5,
        "step": 0.1,
        "when": {"oialr.full_rank_last_layer": [False]},
    },
    "epochs": {"low": 1, "high": 8, "step": 7},
}


def test_a_hyperparameter_counts_only_where_others_have_their_values() -> None:
    content = CONDITIONAL | {
        "oialr.full_rank_last_layer": {"choices": [False, True], "when": {"batch_size": 32}}
    }
    space = parse(content)
    genes = dict.fromkeys(content, 0.0)
    assert space.decode(genes) == {"batch_size": 16, "epochs": 1}
    genes["batch_size"] = 0.9
    assert space.decode(genes) == {
        "batch_size": 32, "oialr.full_rank_last_layer": False, "optimizer.lr": 0.1, "epochs": 1,
    }  # fmt: skip
    genes["oialr.full_rank_last_layer"] = 0.9
    assert space.decode(genes) == {
        "batch_size": 32, "oialr.full_rank_last_layer": True, "epochs": 1,
    }  # fmt: skip


def test_null_is_a_choice() -> None:
    task = TASKS["minivit_cifar10"]
    content = {k: v for k, v in read_yaml(CIFAR10).items() if k not in ("search", "space")}
    entry = {"data.auto_augment": {"choices": [None, "rand-m9-mstd0.5-inc1"]}}
    (augmented,) = parse_space(entry, task, content, (), "file.yaml").hyperparameters
    assert augmented.decode(0.1) is None
    assert augmented.encode(None) == 0.25


def test_what_is_stored_of_a_space_reads_back() -> None:
    content = CONDITIONAL | {
        "oialr.full_rank_last_layer": {"choices": [False, True], "when": {"batch_size": 32}},
    }
    space = parse(content)
    stored = json.loads(json.dumps(space.as_json()))
    assert SearchSpace.from_json(stored, "here") == space
    earlier = [{k: v for k, v in h.items() if k not in ("step", "when")} for h in stored[:1]]
    assert SearchSpace.from_json(earlier, "here").hyperparameters == space.hyperparameters[:1]
