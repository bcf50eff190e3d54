"""Data frames: typed, complete, and of what the database holds just now."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from oialr_search import open_search
from oialr_search.storage import open_storage
from oialr_search.storage.records import Outcome, Status, StorageError

from ..seen import BEGAN, COMPLETED, PARENTS, RESUMED, RUNNING, hyperparameters
from ..storage.storage_examples import launched_search, new_search, started_evaluation

FRAMES = ("leaderboard", "individuals", "metrics", "rank_updates", "observations", "lineage")


def test_the_leaderboard(url: str) -> None:
    with open_search(url, "seen") as search:
        frame = search.leaderboard()
    assert frame["individual_id"].tolist() == sorted(COMPLETED, key=lambda n: COMPLETED[n])
    assert frame["place"].tolist() == list(range(1, len(COMPLETED) + 1))
    best = frame.iloc[0]
    assert (best["individual_id"], best["attempt"], best["duration_s"]) == (RESUMED, 2, 90.0)
    assert best["parents"] == (2, 4)
    assert best["validation_top1"] == 98.0
    assert {name: best[name] for name in hyperparameters(RESUMED)} == hyperparameters(RESUMED)


def test_types(url: str) -> None:
    with open_search(url) as search:
        frame = search.leaderboard()
        types = {name: str(dtype) for name, dtype in frame.dtypes.items()}
        times = search.individuals()["started_at"]
        metrics = search.metrics()
        observations = search.observations()
    assert (best_memory := frame["peak_host_memory_bytes"]).dtype == "Int64"
    assert best_memory.tolist() == [2**40] * len(frame)
    assert types["optimizer.lr"] == types["validation_loss"] == types["fitness"] == "Float64"
    assert types["oialr.delay_steps"] == types["last_epoch"] == "Int64"
    assert types["oialr.full_rank_first"] == "boolean"
    assert types["optimizer.name"] == types["status"] == "category"
    assert types["reason"] == "string"
    assert str(times.dtype) == "datetime64[ns, UTC]"
    assert times[0] == pd.Timestamp(BEGAN) + pd.Timedelta(minutes=10)
    unknown = metrics.query("individual_id == 9 and name == 'train_loss'")["value"]
    assert unknown.isna().all()
    assert not unknown.empty
    assert observations["mixing_similarity"].isna().all()
    assert observations["stability"].tolist() == [0.25]


def test_all_individuals_and_what_they_measured(url: str) -> None:
    with open_search(url) as search:
        individuals, metrics = search.individuals(), search.metrics()
        updates, lineage = search.rank_updates(), search.lineage()
    assert individuals["individual_id"].tolist() == list(range(1, RUNNING + 1))
    running = individuals.set_index("individual_id").loc[RUNNING]
    assert running["status"] == "running"
    for name in ("fitness", "finished_at", "duration_s", "reason", "trainable_percent"):
        assert running[name] is pd.NA or running[name] is pd.NaT
    assert metrics.groupby("evaluation_id")["individual_id"].nunique().max() == 1
    assert metrics.query("individual_id == @RESUMED")["attempt"].unique().tolist() == [1, 2]
    assert len(updates) == 4 * len(COMPLETED)
    assert [(row.individual_id, row.parent_id) for row in lineage.itertuples()] == [
        (child, parent) for child, parents in PARENTS.items() for parent in parents
    ]
    known = lineage.dropna(subset="gain")
    assert (known["parent_fitness"] - known["fitness"]).tolist() == known["gain"].tolist()


def test_while_the_search_runs(kind: str, new_url: Any) -> None:
    url = new_url(kind)
    with open_storage(url, create=True) as storage:
        with pytest.raises(StorageError, match="holds no search yet"):
            open_search(url)
        storage.create_search(new_search())
        with open_search(url) as search:
            empty = {name: getattr(search, name)() for name in FRAMES}
        assert all(frame.empty for frame in empty.values())
        ids = launched_search(storage, name="second")
        with open_search(url) as search:  # the one launched last
            assert search.record.name == "second"
            for generation in range(2):
                _, evaluation = started_evaluation(storage, *ids, generation)
                done = Outcome(status=Status.COMPLETED, fitness=1.0 - generation)
                storage.finish_evaluation(evaluation, done)
                frame = search.leaderboard()
                assert len(frame) == generation + 1
            before = empty["leaderboard"].drop(columns=[c for c in frame if "." in c])
            same = frame[before.columns].dtypes == before.dtypes
            assert same.drop(["status", "origin", "hostname", "device"]).all()  # categories
        with pytest.raises(StorageError, match="no search named 'third'"):
            open_search(url, "third")
