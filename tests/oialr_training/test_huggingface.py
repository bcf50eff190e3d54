"""The callback of the examples, with a stand-in for the package that calls it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from oialr_training.command_trainer import REPORT_MODULE, read_report

from ..conftest import ROOT


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> Any:
    transformers: Any = ModuleType("transformers")
    transformers.TrainerCallback = object
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    for folder in (REPORT_MODULE, ROOT / "examples"):
        monkeypatch.syspath_prepend(str(folder))
    for name in ("huggingface", "oialr_search_report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("huggingface").Report()


def test_each_evaluation_is_an_epoch(
    callback: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OIALR_REPORT", str(tmp_path / "report"))
    monkeypatch.setenv("OIALR_STOP", str(tmp_path / "stop"))
    control = SimpleNamespace(should_training_stop=False)
    metrics = {"eval_loss": 0.5, "eval_accuracy": 0.75, "epoch": 2.0}
    state = SimpleNamespace(epoch=2.0, global_step=80)
    assert callback.on_evaluate(None, state, control, metrics, model=None) is control
    assert not control.should_training_stop
    said = read_report((tmp_path / "report").read_bytes())
    assert (said.epoch, said.step) == (2, 80)
    assert said.metrics == {"eval_loss": 0.5, "eval_accuracy": 0.75}
    (tmp_path / "stop").touch()
    callback.on_evaluate(None, state, control, metrics, model=None)
    assert control.should_training_stop
