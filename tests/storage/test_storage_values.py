"""Values at the edge of what a database holds come back as they went in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_examples import epoch_record, launched_search, new_proposal, new_runner

from oialr_search.storage.database import Storage
from oialr_search.storage.records import EpochRecord, Outcome, Status, StorageError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
METRICS = st.dictionaries(TEXT, st.floats(), max_size=3)
JSON_NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SETTINGS = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one database serves all
)
counter = itertools.count()


def same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(
        one[name] == other[name] or (math.isnan(one[name]) and math.isnan(other[name]))
        for name in one
    )


def evaluation(storage: Storage, **changes: Any) -> tuple[int, int]:
    search = storage.find_search("digits")
    search_id = search.id if search else launched_search(storage)[0]
    number, launch = next(counter), storage.launches(search_id)[0]
    proposal = new_proposal(number, **changes)
    claim = storage.claim(search_id, proposal, 10**9, new_runner(launch.id, world_rank=number))
    assert claim
    return claim.individual.id, claim.evaluation.id


@SETTINGS
@given(metrics=METRICS, step=st.integers(0, 2**63 - 1))
def test_metrics_of_an_epoch(storage: Storage, metrics: dict[str, float], step: int) -> None:
    _, evaluation_id = evaluation(storage)
    storage.add_epoch(evaluation_id, EpochRecord(epoch=1, step=step, metrics=metrics))
    found = storage.epochs(evaluation_id)
    assert [record.step for record in found] == [step] * bool(metrics)
    assert same(found[0].metrics if found else {}, metrics)


@SETTINGS
@given(metrics=METRICS, fitness=st.floats(allow_nan=False), text=st.text(max_size=50))
def test_outcomes(storage: Storage, metrics: dict[str, float], fitness: float, text: str) -> None:
    individual_id, evaluation_id = evaluation(storage)
    outcome = Outcome(
        status=Status.COMPLETED, fitness=fitness, metrics=metrics, log_tail=text, reason=text
    )
    assert storage.finish_evaluation(evaluation_id, outcome)
    found = storage.evaluations(individual_id)[0]
    finite = {k: v if math.isfinite(v) else math.nan for k, v in metrics.items()}
    assert same(found.metrics, finite)
    assert found.fitness == fitness
    expected = text.replace("\0", "?").encode(errors="replace").decode()
    assert (found.log_tail, found.reason) == (expected, expected)


@SETTINGS
@given(values=st.dictionaries(TEXT, JSON_NUMBERS | TEXT | st.booleans() | st.none(), max_size=4))
def test_hyperparameters(storage: Storage, values: dict[str, Any]) -> None:
    individual_id, _ = evaluation(storage, hyperparameters=values)
    found = storage.individual(individual_id)
    assert found
    assert found.hyperparameters == values
    assert [type(v) for v in found.hyperparameters.values()] == [type(v) for v in values.values()]


def test_what_no_database_holds_is_refused(storage: Storage) -> None:
    _, evaluation_id = evaluation(storage)
    with pytest.raises(StorageError):
        storage.add_epoch(evaluation_id, EpochRecord(epoch=1, step=2**63, metrics={"loss": 1.0}))
    with pytest.raises(StorageError):
        storage.add_epoch(evaluation_id, epoch_record(1, **{"\udcff": 1.0}))
    with pytest.raises(StorageError, match="fitness_is_for_completed"):
        storage.finish_evaluation(evaluation_id, Outcome(status=Status.COMPLETED, fitness=math.nan))
    assert storage.epochs(evaluation_id) == []
    storage.add_epoch(evaluation_id, epoch_record(1, loss=1.0))
