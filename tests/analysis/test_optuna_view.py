"""A search seen through Optuna: what it shows is what the database holds, and it cannot write."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import TrialState

from oialr_search.analysis import load_study
from oialr_search.analysis.optuna_view import SearchStorage
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import EpochRecord, Outcome, Status, StorageError

from ..invented import ENDINGS, statuses_of
from .growing import COMPLETED, METRIC, SPACE, fill, go_on, proposal

ONE_OF_EACH = {
    2: Status.COMPLETED,
    5: Status.FAILED,
    6: Status.PRUNED,
    9: Status.TIMED_OUT,
    11: Status.LOST,
    12: Status.RUNNING,
    20: Status.QUEUED,
}


@pytest.fixture
def url(kind: str, new_url: Callable[[str], str]) -> str:
    """A database that is not there yet, or empty."""
    return new_url(kind)


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    with open_storage(url, create=True) as storage:
        yield storage


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[tuple[str, Storage]]:
    """A database of which the kind does not matter, by its URL."""
    url = f"sqlite:///{tmp_path}/search.db"
    with open_storage(url, create=True) as storage:
        yield url, storage


def test_each_status_is_a_state(url: str, storage: Storage, tmp_path: Path) -> None:
    fill(storage, ONE_OF_EACH, tmp_path)
    trials = load_study(url).trials
    assert [(t.number, t._trial_id, t.state) for t in trials] == [
        (0, 2, TrialState.COMPLETE),
        (1, 5, TrialState.FAIL),
        (2, 6, TrialState.PRUNED),
        (3, 9, TrialState.FAIL),
        (4, 11, TrialState.WAITING),
        (5, 12, TrialState.RUNNING),
        (6, 20, TrialState.WAITING),
    ]
    for trial in trials:
        trial._validate()
        assert trial.user_attrs["status"] == ONE_OF_EACH[trial._trial_id]
    completed, failed, pruned, timed_out, _, running, queued = trials
    individual = storage.individual(2)
    assert individual is not None
    assert individual.evaluation is not None
    assert individual.finished_at is not None
    assert completed.values == [individual.fitness]
    assert completed.intermediate_values == {
        record.epoch: 100 - record.metrics[METRIC]
        for record in storage.epochs(individual.evaluation.id)
    }
    assert completed.datetime_complete is not None
    assert completed.datetime_complete.astimezone(UTC) == individual.finished_at
    assert (
        completed.user_attrs.items()
        >= {
            **individual.evaluation.metrics,
            "individual": 2,
            "island": 0,
            "generation": 0,
            "parents": [],
            "origin": "random",
            "trainable_percent": individual.evaluation.trainable_percent,
            "compression_percent": individual.evaluation.compression_percent,
            "attempt": 1,
            "duration_s": individual.evaluation.duration_s,
            "host": "node01",
            "device": "GPU-0",
            "log": individual.evaluation.log_path,
        }.items()
    )
    assert failed.values is None
    assert math.isnan(failed.intermediate_values[2])
    assert failed.user_attrs["reason"] in [reason for reason, *_ in ENDINGS[Status.FAILED]]
    assert pruned.values == [pruned.intermediate_values[3]]
    assert timed_out.user_attrs["reason"] == "took longer than 7200 s"
    assert running.datetime_start is not None
    assert running.datetime_complete is None
    assert list(running.intermediate_values) == [1, 2]
    assert not queued.intermediate_values


def test_genes_of_all_kinds_are_parameters(url: str, storage: Storage, tmp_path: Path) -> None:
    fill(storage, ONE_OF_EACH, tmp_path)
    trial = load_study(url).best_trial
    assert trial.distributions == {
        "optimizer.lr": FloatDistribution(5e-4, 5e-2, log=True),
        "oialr.delay_steps": IntDistribution(20, 300),
        "oialr.update_frequency": IntDistribution(8, 128, log=True),
        "oialr.cutoff_fraction": FloatDistribution(0.1, 0.9),
        "oialr.full_rank_first_layer": CategoricalDistribution([False, True]),
        "model.depth": CategoricalDistribution([2, 4, 6]),
    }
    individual = storage.individual(2)
    assert individual is not None
    assert trial.params == individual.hyperparameters
    assert type(trial.params["oialr.full_rank_first_layer"]) is bool
    assert type(trial.params["oialr.delay_steps"]) is int


def test_a_search_that_grows(url: str, storage: Storage, tmp_path: Path) -> None:
    search = fill(storage, ONE_OF_EACH, tmp_path)
    study = load_study(url, "minivit_digits")
    before = study.get_trials(deepcopy=False)
    as_it_was = copy.deepcopy(before)
    again = study.get_trials(deepcopy=False)
    assert all(new is old for new, old in zip(again, before, strict=True))

    generation, runner = go_on(storage, search)
    states = [trial.state for trial in study.trials]
    assert states[4:] == [TrialState.WAITING] * 3  # what ran, was lost with its launch
    claim = storage.claim(search.id, proposal(search, generation), 100, runner)
    assert claim is not None
    assert claim.repeated
    assert study.trials[4].state is TrialState.RUNNING
    assert study.trials[4].user_attrs["attempt"] == 2
    assert not study.trials[4].intermediate_values
    storage.add_epoch(claim.evaluation.id, EpochRecord(epoch=1, step=9, metrics={METRIC: 90.0}))
    assert study.trials[4].intermediate_values == {1: 10.0}
    storage.finish_evaluation(claim.evaluation.id, COMPLETED)
    assert study.best_trial.number == 4
    assert math.isnan(study.best_trial.user_attrs["train_loss"])

    for _ in range(3):
        claim = storage.claim(search.id, proposal(search, generation), 100, runner)
        assert claim is not None
        storage.finish_evaluation(
            claim.evaluation.id, Outcome(status=Status.FAILED, reason="worker died")
        )
    trials = study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(8))
    assert trials[7]._trial_id == claim.individual.id > 20
    assert trials[7].state is TrialState.FAIL
    # What was there before is the same object, and what was handed out has not changed.
    assert all(new is old for new, old in zip(trials[:4], before[:4], strict=True))
    for kept, copied in zip(before, as_it_was, strict=True):
        assert kept.state is copied.state
        assert list(kept.intermediate_values) == list(copied.intermediate_values)


def test_a_pruned_trial_that_is_gone_on_with_is_read_again(
    sqlite: tuple[str, Storage], tmp_path: Path
) -> None:
    _, storage = sqlite
    search = fill(storage, {2: Status.COMPLETED, 6: Status.PRUNED}, tmp_path)
    view = SearchStorage(storage)
    assert [t.state for t in view.get_all_trials(3)] == [TrialState.COMPLETE, TrialState.PRUNED]
    generation, rank = go_on(storage, search)
    claim = storage.claim(search.id, proposal(search, generation), 200, rank, 6)
    assert claim is not None
    assert claim.individual.id == 6
    storage.finish_evaluation(claim.evaluation.id, COMPLETED)
    _, trial = view.get_all_trials(3)
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [1.25])


def test_several_searches_are_several_studies(url: str, storage: Storage, tmp_path: Path) -> None:
    fill(storage, {4: Status.COMPLETED, 9: Status.COMPLETED}, tmp_path)
    fill(storage, {6: Status.COMPLETED}, tmp_path / "other", search_id=7, name="other")
    view = SearchStorage(storage)
    assert [(s._study_id, s.study_name) for s in view.get_all_studies()] == [
        (3, "minivit_digits"),
        (7, "other"),
    ]
    assert [t._trial_id for t in view.get_all_trials(3)] == [4, 9]
    assert [t._trial_id for t in view.get_all_trials(7)] == [6]
    assert load_study(url, "other").user_attrs["task"] == "minivit_digits"
    with pytest.raises(StorageError, match="no search named 'nobody'"):
        load_study(url, "nobody")


def test_every_reading_method(sqlite: tuple[str, Storage], tmp_path: Path) -> None:
    _, storage = sqlite
    fill(storage, ONE_OF_EACH, tmp_path)
    view = SearchStorage(storage)
    assert view.get_study_id_from_name("minivit_digits") == 3
    assert view.get_study_name_from_id(3) == "minivit_digits"
    assert view.get_study_directions(3) == [optuna.study.StudyDirection.MINIMIZE]
    assert view.get_study_user_attrs(3)["metric"] == METRIC
    named = optuna.load_study(study_name=None, storage=view).metric_names
    assert named == [f"fitness (100 − {METRIC})"]
    assert view.get_trial(9).number == view.get_trial_number_from_id(9) == 3
    assert view.get_trial_id_from_study_id_trial_number(3, 3) == 9
    assert view.get_trial_params(9) == view.get_trial(9).params
    assert view.get_trial_param(2, "oialr.full_rank_first_layer") in (0, 1)
    assert view.get_trial_user_attrs(9)["individual"] == 9
    assert view.get_trial_system_attrs(9) == {}
    assert view.get_n_trials(3) == 7
    assert view.get_n_trials(3, TrialState.FAIL) == 2
    assert view.get_best_trial(3).number == 0
    for unknown in (
        lambda: view.get_study_id_from_name("nobody"),
        lambda: view.get_study_name_from_id(4),
        lambda: view.get_study_directions(4),
        lambda: view.get_study_user_attrs(4),
        lambda: view.get_all_trials(4),
        lambda: view.get_trial(3),
        lambda: view.get_trial_id_from_study_id_trial_number(3, 7),
    ):
        with pytest.raises(KeyError):
            unknown()


WRITING: dict[str, Callable[[SearchStorage], Any]] = {
    "create_new_study": lambda view: view.create_new_study([]),
    "delete_study": lambda view: view.delete_study(3),
    "set_study_user_attr": lambda view: view.set_study_user_attr(3, "a", 1),
    "set_study_system_attr": lambda view: view.set_study_system_attr(3, "a", 1),
    "create_new_trial": lambda view: view.create_new_trial(3),
    "set_trial_param": lambda view: view.set_trial_param(12, "a", 0, IntDistribution(0, 1)),
    "set_trial_state_values": lambda view: view.set_trial_state_values(12, TrialState.FAIL),
    "set_trial_intermediate_value": lambda view: view.set_trial_intermediate_value(12, 1, 1.0),
    "set_trial_user_attr": lambda view: view.set_trial_user_attr(12, "a", 1),
    "set_trial_system_attr": lambda view: view.set_trial_system_attr(12, "a", 1),
    "ask": lambda view: optuna.load_study(study_name=None, storage=view).ask(),
    "enqueue": lambda view: optuna.load_study(study_name=None, storage=view).enqueue_trial({}),
}


@pytest.mark.parametrize("name", WRITING)
def test_every_writing_method_is_refused(
    sqlite: tuple[str, Storage], tmp_path: Path, name: str
) -> None:
    _, storage = sqlite
    fill(storage, ONE_OF_EACH, tmp_path)
    with pytest.raises(StorageError, match="read-only"):
        WRITING[name](SearchStorage(storage))


def test_what_lies_outside_the_space_is_shown(sqlite: tuple[str, Storage], tmp_path: Path) -> None:
    url, storage = sqlite
    search = fill(storage, ONE_OF_EACH, tmp_path)
    study = load_study(url)
    assert study.trials[0].distributions["oialr.delay_steps"] == IntDistribution(20, 300)
    generation, runner = go_on(storage, search)
    strange: dict[str, Any] = {
        "oialr__delay_steps": 5000,
        "model__depth": 12,
        "optimizer__lr": -1.0,
        "oialr__cutoff_fraction": "none",
        "gone__by": 3,
    }
    for given in ({}, {}, {}, strange):  # three lost ones come first
        claim = storage.claim(search.id, proposal(search, generation, **given), 100, runner)
        assert claim is not None
        storage.finish_evaluation(claim.evaluation.id, COMPLETED)
    trial = study.trials[-1]
    trial._validate()
    assert trial.params["oialr.delay_steps"] == 5000
    assert trial.params["model.depth"] == 12
    others = {"optimizer.lr": -1.0, "oialr.cutoff_fraction": "none", "gone.by": 3}
    assert not others.keys() & trial.params.keys()
    assert trial.user_attrs.items() >= others.items()
    for other in study.trials:
        other._validate()
        assert other.distributions["oialr.delay_steps"] == IntDistribution(20, 5000)
        assert other.distributions["model.depth"] == CategoricalDistribution([2, 4, 6, 12])


def test_a_database_without_individuals(sqlite: tuple[str, Storage], tmp_path: Path) -> None:
    url, storage = sqlite
    with pytest.raises(StorageError, match="holds no search yet"):
        load_study(url)
    assert SearchStorage(storage).get_all_studies() == []
    fill(storage, {}, tmp_path)
    study = load_study(url)
    assert study.trials == []
    with pytest.raises(ValueError, match="No trials are completed"):
        _ = study.best_trial


@pytest.mark.parametrize(
    "evaluator", [FanovaImportanceEvaluator(seed=0), PedAnovaImportanceEvaluator()]
)
def test_importances(sqlite: tuple[str, Storage], tmp_path: Path, evaluator: Any) -> None:
    url, storage = sqlite
    fill(storage, statuses_of(100), tmp_path, islands=50)  # too many to breed: all random
    found = optuna.importance.get_param_importances(load_study(url), evaluator=evaluator)
    assert set(found) == set(SPACE)
    assert max(found, key=lambda name: found[name]) == "optimizer.lr"


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    "name",
    [
        "plot_contour",
        "plot_edf",
        "plot_intermediate_values",
        "plot_optimization_history",
        "plot_parallel_coordinate",
        "plot_rank",
        "plot_slice",
        "plot_timeline",
    ],
)
def test_visualisations(sqlite: tuple[str, Storage], tmp_path: Path, name: str) -> None:
    url, storage = sqlite
    fill(storage, statuses_of(30), tmp_path)
    figure = getattr(optuna.visualization, name)(load_study(url))
    assert figure.data


def test_the_data_frame(sqlite: tuple[str, Storage], tmp_path: Path) -> None:
    url, storage = sqlite
    fill(storage, ONE_OF_EACH, tmp_path)
    frame = load_study(url).trials_dataframe(multi_index=True)
    assert list(frame["params"]) == sorted(SPACE)
