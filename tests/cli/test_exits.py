"""How a command ends that cannot do what was asked."""

from __future__ import annotations

import pytest
import typer

from oialr_search.cli import exits
from oialr_search.evaluation.repeated_seeds import TrainingFailed
from oialr_search.storage.records import StorageUnavailable
from oialr_training.errors import ConfigError


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept, as a process alone, which announces no rank."""
    for name in exits.WORLD_RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    seconds = list[float]()
    monkeypatch.setattr(exits.time, "sleep", seconds.append)
    return seconds


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ConfigError("one\ntwo"), 78, "error: one\nerror: two\n"),
        (StorageUnavailable("away"), 78, "error: away\n"),
        (TrainingFailed("diverged"), 70, "error: diverged\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_each_kind_has_its_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, told: str
) -> None:
    assert exits.exit_code_of(error) == code
    assert capsys.readouterr().err == told


def test_wrong_usage_shows_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.exit_code_of(typer.BadParameter("no such thing")) == 2
    assert "no such thing" in capsys.readouterr().err


def test_what_nobody_has_thought_of_is_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.exit_code_of(ZeroDivisionError("by zero")) == 70
    assert capsys.readouterr().err.endswith("ZeroDivisionError: by zero\n")


@pytest.mark.parametrize("variable", exits.WORLD_RANK_VARIABLES)
def test_only_rank_0_speaks_and_the_others_give_it_time(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
    variable: str,
) -> None:
    monkeypatch.setenv(variable, "0")
    assert exits.exit_code_of(ConfigError("wrong")) == 78
    assert (capsys.readouterr().err, slept) == ("error: wrong\n", [])
    monkeypatch.setenv(variable, "3")
    for error, code in ((ConfigError("wrong"), 78), (typer.BadParameter("wrong"), 2)):
        assert exits.exit_code_of(error) == code
        assert capsys.readouterr().err == ""
    assert slept == [exits.HEAD_START_S] * 2
