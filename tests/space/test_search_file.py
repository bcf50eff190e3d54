"""The search file and its overrides."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from oialr_search.space.search_file import load_search, stored_metrics
from oialr_training.errors import ConfigError
from oialr_training.tasks import TASKS, known_metrics, load_training
from oialr_training.tasks.autoformer import AutoformerETTm2
from oialr_training.yaml_files import parse_yaml

from ..conftest import AUTOFORMER, CIFAR10, DIGITS, SEARCH_SPACES
from ..oialr_training.margins import Margins


@pytest.mark.parametrize("path", sorted(SEARCH_SPACES.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_search_files_are_valid(path: Path) -> None:
    assert load_search(path).space.hyperparameters


@pytest.mark.parametrize(
    "path", sorted((SEARCH_SPACES / "training").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_training_configurations_are_valid(path: Path) -> None:
    assert load_training(path).task in TASKS


def test_the_mini_vit_s_space_is_that_of_table_4() -> None:
    bounds = {h.name: (h.low, h.high) for h in load_search(CIFAR10).space.hyperparameters}
    assert bounds == {
        "optimizer.lr": (5e-5, 1e-3),
        "scheduler.min_lr": (5e-6, 1e-3),
        "scheduler.warmup_lr": (5e-6, 2e-4),
        "scheduler.lr_k_decay": (0.1, 2.0),
        "scheduler.warmup_epochs": (1, 20),
        "oialr.cutoff_fraction": (0.01, 0.9),
        "oialr.update_frequency": (200, 1000),
        "oialr.delay_steps": (1000, 10000),
    }


def test_the_autoformer_s_space_and_search_are_those_of_table_6() -> None:
    file = load_search(AUTOFORMER, ["pred_len=720"])
    assert isinstance(file.training, AutoformerETTm2)
    assert file.training.pred_len == 720
    space = {h.name: h.choices or (h.low, h.high) for h in file.space.hyperparameters}
    assert space == {
        "optimizer.lr": (1e-5, 5e-3),
        "scheduler.min_lr": (5e-6, 1e-3),
        "scheduler.warmup_lr": (5e-6, 2e-4),
        "scheduler.lr_k_decay": (1e-3, 2.0),
        "scheduler.warmup_epochs": (2, 10),
        "oialr.cutoff_fraction": (0.01, 0.9),
        "oialr.update_frequency": (50, 2000),
        "oialr.delay_steps": (250, 2500),
        "oialr.full_rank_first_layer": (False, True),
        "oialr.full_rank_last_layer": (False, True),
    }
    search = file.search
    assert (search.islands, search.metric) == (4, "validation_mse")
    assert (search.crossover_probability, search.mutation_probability) == (0.7, 0.4)
    assert (search.random_init_probability, search.migration_probability) == (0.1, 0.9)


@pytest.mark.parametrize(
    ("assignments", "line"),
    [
        (["space.pred_len={low: 24, high: 96}"], "`pred_len` is set, not searched"),
        (["space.seed={low: 1, high: 9}"], "`seed` is set, not searched"),
        (
            ["scheduler={name: type1}", "space.scheduler.min_lr={low: 0.1, high: 0.2}"],
            "unknown key `scheduler.min_lr`",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(assignments: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_search(AUTOFORMER, assignments)
    assert line in str(caught.value)


def test_an_override_reaches_every_section() -> None:
    file = load_search(
        DIGITS,
        ["epochs=2", "model.embed_dim=96", "search.islands=3", "space.optimizer.lr.low=1e-3"],
        {"evaluations": 5},
    )
    assert (file.training.epochs, file.training.model.embed_dim) == (2, 96)
    assert (file.search.islands, file.search.evaluations) == (3, 5)
    assert next(h for h in file.space.hyperparameters if h.name == "optimizer.lr").low == 1e-3


def test_setting_a_searched_hyperparameter_takes_it_out_of_the_space() -> None:
    file = load_search(DIGITS, ["oialr.delay_steps=33"])
    assert file.pinned == ("oialr.delay_steps",)
    assert file.training.oialr is not None
    assert file.training.oialr.delay_steps == 33
    assert "oialr.delay_steps" not in {h.name for h in file.space.hyperparameters}


def test_setting_a_section_takes_all_of_it_out_of_the_space() -> None:
    file = load_search(DIGITS, ["oialr=null"])
    assert file.training.oialr is None
    assert all(not h.name.startswith("oialr.") for h in file.space.hyperparameters)
    assert len(file.pinned) == 3


def test_a_hyperparameter_can_be_added() -> None:
    added = "space.oialr.fused_projections={choices: [together, apart]}"
    space = load_search(DIGITS, [added]).space
    assert space.hyperparameters[-1].choices == ("together", "apart")


def test_a_user_s_task_is_searched_as_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "margins", Margins)
    path = tmp_path / "search.yaml"
    path.write_text(
        "{task: margins, epochs: 3, batch_size: 16, optimizer: {lr: 0.01}, oialr: null,\n"
        "scheduler: {min_lr: 0.001, warmup_lr: 0.001, warmup_epochs: 1},\n"
        "search: {name: m, metric: validation_margin, evaluations: 3, islands: 1},\n"
        "space: {width: {low: 4, high: 32}}}"
    )
    space = load_search(path).space
    assert [h.decode(1.0) for h in space.hyperparameters] == [32]
    with pytest.raises(ConfigError, match=r"unknown metric .*`validation_margin`"):
        load_search(path, ["search.metric=validation_margins"])
    with pytest.raises(ConfigError, match=r"`seed` is set, not searched; .*width can"):
        load_search(path, ["space.seed={low: 1, high: 3}"])


def test_nothing_of_a_null_section_can_be_searched(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    before, _, after = DIGITS.read_text().partition("\noialr:\n")
    path.write_text(f"{before}\noialr: null\n{after[after.index('search:') :]}")
    with pytest.raises(ConfigError, match="`oialr` is null") as caught:
        load_search(path)
    assert "\n" not in str(caught.value)


def test_merge_keys_work_and_endless_nesting_is_told(tmp_path: Path) -> None:
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}", "f")["c"] == {"b": 1, "d": 2}
    for text in ("? [a]\n: 1", "[" * 5000):
        with pytest.raises(ConfigError, match="not valid YAML"):
            parse_yaml(text, "f")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("search.metric=validation_tp1", ["`search.metric`", "validation_top1"]),
        ("space.optimizer.lrr.low=0.1", ["`space.optimizer.lrr`", "`lr`"]),
        ("space.optimizer.lr=3", ["`space.optimizer.lr`", "mapping", "3"]),
        ("space.optimizer.lr.low='1'", ["`space.optimizer.lr.low`", "number", "'1'"]),
        ("search.island=3", ["`search.island`", "`islands`"]),
        ("search.islands=0", ["`search.islands`", "got 0"]),
        ("search.name=../x", ["`search.name`"]),
        ("task=minivit", ["`task`", "'minivit'"]),
        ("device=tpu", ["`device`", "'tpu'"]),
        ("epochs=ten", ["`epochs`", "integer", "'ten'"]),
        ("epochs", ["`path=value`", "'epochs'"]),
        ("epochs=[1", ["not valid YAML", "epochs=[1"]),
        ("epochs.x=1", ["epochs.x"]),
        ("model.num_heads=5", ["`num_heads` must divide `embed_dim`", "num_heads=5"]),
    ],
)
def test_a_wrong_override_is_one_clear_line(assignment: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_search(DIGITS, [assignment])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_number_without_a_dot_is_a_number(tmp_path: Path) -> None:
    # YAML 1.1, and so PyYAML, reads 5e-5 as a string.
    path = tmp_path / "search.yaml"
    path.write_text(DIGITS.read_text().replace("low: 5.0e-4", "low: 5e-4"))
    lr = load_search(path).space.hyperparameters[0]
    assert lr.low == 5e-4


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(DIGITS.read_text() + "\nepochs: 5\n")
    with pytest.raises(ConfigError, match="`epochs` is given twice"):
        load_search(path)


def test_a_search_file_is_no_training_configuration() -> None:
    with pytest.raises(ConfigError, match="this is a search file"):
        load_training(DIGITS)


def test_a_stored_search_says_its_metrics_whatever_its_task() -> None:
    stored = json.loads(json.dumps({"metrics": asdict(Margins.all_metrics())}))
    metrics = stored_metrics(stored, "a_package.unknown:Here", "stored")
    assert metrics == Margins.all_metrics()
    margin = metrics.find("validation_margin")
    assert margin is not None
    assert margin.better == "higher"


def test_a_search_stored_before_it_said_so_has_the_metrics_of_its_task() -> None:
    assert stored_metrics({}, "minivit_digits", "stored") == known_metrics("minivit_digits")
    assert not stored_metrics({}, "a_package.unknown:Here", "stored").names


def test_damaged_metrics_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"`metrics.searched`.*\(stored\)"):
        stored_metrics({"metrics": {"searched": 3}}, "minivit_digits", "stored")
