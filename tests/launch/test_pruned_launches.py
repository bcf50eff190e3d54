"""Real launches that stop trainings early, and go on with them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ..conftest import DIGITS, Command, settings
from .faults import (
    database_of,
    evaluations,
    fitnesses,
    folder_of,
    query,
    run_line,
    with_hooks,
)

pytestmark = pytest.mark.slow  # each launch costs seconds of imports and trainings

RELENTING = """
from oialr_search.launch.stopping import StoppingRule

class Relenting(StoppingRule):
    def reason_to_stop(self, training, others):
        stops = training.individual_id == 1 and not others
        return "told to" if stops and len(training.losses) >= 2 else None
"""


def first_truncations(command: Command) -> dict[int, int]:
    """Evaluation → the epoch in which OIALR first cut an inner rank."""
    rows = query(
        database_of(command),
        "select r.evaluation_id, (select min(m.epoch) from metrics m "
        "where m.evaluation_id = r.evaluation_id and m.step >= min(r.step)) epoch "
        "from rank_updates r where inner_rank < full_inner_rank group by r.evaluation_id",
    )
    return {row["evaluation_id"]: row["epoch"] for row in rows}


def rows_of(command: Command, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        command("leaderboard", "--top", "0", "--format", "json", *arguments).stdout
    )
    return found


def test_two_ranks_on_the_digits_stop_what_is_among_the_worst(command: Command) -> None:
    """None before its clock; the same command goes on with what there is."""
    shorter = settings(
        {
            "search.stopping": "{worst: 0.5}",
            "search.engine": "random",
            "model.depth": "1",
            "space.oialr.delay_steps": "{low: 20, high: 100}",
        }
    )
    command("run", str(DIGITS), "--evaluations", "18", *shorter, ranks=2)
    rows = evaluations(command)
    assert len(rows) == 18
    assert {row["status"] for row in rows} == {"completed", "pruned"}
    pruned = [row for row in rows if row["status"] == "pruned"]
    assert all(row["individual_status"] == "pruned" for row in pruned)
    truncated = first_truncations(command)
    for row in pruned:
        assert truncated[row["id"]] + 1 <= row["last_epoch"] < 12
        assert "had come as far" in row["reason"]
        assert json.loads(row["metrics"])["epoch"] == row["last_epoch"]
    assert all(row["last_epoch"] == 12 for row in rows if row["status"] == "completed")
    placed = rows_of(command)
    assert [row["fitness"] for row in placed] == sorted(row["fitness"] for row in placed)
    assert len(placed) + len(pruned) == 18
    shown = rows_of(command, "--status", "pruned")
    assert {row["individual"] for row in shown} == {row["individual_id"] for row in pruned}
    assert all(0.0 < row["validation_top1"] <= 100.0 for row in shown)
    saved = sum(12 - row["last_epoch"] for row in pruned)
    assert f"{len(pruned)} individuals, which saved {saved} epochs" in command("status").stdout
    command("report", "-o", "report.html")
    assert not list(folder_of(command).glob("*/state.pt"))
    command("run", str(DIGITS), "--evaluations", "20", *shorter, ranks=2)
    rows = evaluations(command)
    assert len(rows) == 20
    assert {row["status"] for row in rows} <= {"completed", "pruned"}


def test_what_goes_on_comes_to_the_digits_of_the_undisturbed(
    command: Command, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It is pruned at once in the middle of an epoch, and goes on from the epoch before."""
    hooks = command.folder / "hooks"
    hooks.mkdir()
    (hooks / "relenting.py").write_text(RELENTING)
    command = with_hooks(command)
    other = replace(command, folder=tmp_path_factory.mktemp("undisturbed"))
    other(*run_line(2, epochs="8"))
    told = '{rule: "relenting:Relenting", after: 2 epochs, continue: true}'
    command(*run_line(2, epochs="8", search__stopping=told))
    rows = [(r["individual_id"], r["attempt"], r["status"]) for r in evaluations(command)]
    assert rows == [(1, 1, "pruned"), (1, 2, "completed"), (2, 1, "completed")]
    first, second, _ = evaluations(command)
    assert second["resumed_epoch"] == first["last_epoch"]
    assert 2 <= first["last_epoch"] < 8
    assert fitnesses(command) == fitnesses(other)
    assert not list(folder_of(command).glob("*/state.pt"))
