"""One individual: what is told of it, from its parents to its failure."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from oialr_search.analysis.individual import describe
from oialr_search.storage import open_storage
from oialr_search.storage.records import StorageError

from ..seen import RESUMED


def described_by(url: str, individual: int) -> dict[str, Any]:
    with open_storage(url, read_only=True) as storage:
        return describe(storage, individual, ["--db", url])


def test_where_an_individual_comes_from(url: str) -> None:
    described = described_by(url, 7)
    assert [(p["individual"], p["fitness"], p["island"]) for p in described["parents"]] == [
        (2, 3.0, 1), (5, 2.0, 1)
    ]  # fmt: skip
    assert described["parents"][1]["differences"] == {"optimizer.lr": 0.01}
    assert described["parents"][0]["differences"] == {
        "optimizer.lr": 0.001, "oialr.delay_steps": 200, "oialr.full_rank_first": True
    }  # fmt: skip
    assert described["new_values"] == ["optimizer.lr"]
    assert described["hyperparameters"]["oialr.delay_steps"] == 500
    assert described["search_file"] == {
        "optimizer.lr": 0.01, "oialr.delay_steps": 7, "oialr.full_rank_first": False,
        "optimizer.name": "adamw",
    }  # fmt: skip


def test_how_it_trained(url: str) -> None:
    described = described_by(url, RESUMED)
    first, second = described["evaluations"]
    assert (first["status"], first["reason"]) == ("lost", "its launch ended first")
    assert (second["status"], second["resumed_epoch"], second["epochs"]) == ("completed", 1, 3)
    assert second["course"]["validation_loss"] == {
        "first": 3.0, "best": 0.5, "best_epoch": 2, "last": 1.0, "last_epoch": 3
    }  # fmt: skip
    assert second["course"]["validation_top1"]["best"] == 92.0  # higher is better
    assert second["inner_ranks"] == {"blocks.9.fc": [64, 32, 16], "blocks.10.fc": [64, 32, 16]}
    assert list(second["inner_ranks"]) == ["blocks.9.fc", "blocks.10.fc"]
    assert second["files"] is None
    export, train = map(shlex.split, described["train_again"])
    assert export == [
        "oialr-search", "export", "--individual", "5", "-o", "individual-5.yaml", "--db", url
    ]  # fmt: skip
    assert train == ["oialr-search", "train", "individual-5.yaml", "--data-dir", "/data"]


def test_why_it_failed(url: str) -> None:
    (failed,) = described_by(url, 9)["evaluations"]
    assert failed["reason"] == "diverged: train_loss is nan after epoch 1"
    assert failed["log_tail"].endswith("Traceback")
    assert failed["course"]["train_loss"]["first"] is None
    assert described_by(url, 11)["evaluations"][0]["exit_signal_name"] == "SIGKILL"
    with pytest.raises(StorageError, match="no individual 99"):
        described_by(url, 99)
