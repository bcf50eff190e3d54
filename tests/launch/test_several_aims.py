"""Launches with constraints and several objectives, and what people see of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from optuna.study import StudyDirection

from oialr_search import exit_codes, open_search
from oialr_search.analysis import load_study
from oialr_search.analysis.dashboard import _Page
from oialr_search.analysis.export import chosen_of, export
from oialr_search.analysis.individual import describe
from oialr_search.analysis.labels import aim_labels
from oialr_search.analysis.leaderboard import front_of, leaderboard
from oialr_search.analysis.optuna_view import SearchStorage
from oialr_search.analysis.plots.catalogue import Source, draw
from oialr_search.analysis.plots.names import PlotName
from oialr_search.analysis.status import status
from oialr_search.space.pareto import knee, pareto_front
from oialr_search.storage.records import IndividualRecord, StorageError
from oialr_training.yaml_files import parse_yaml

from .conftest import Launches, search_file

# The scripted workers' accuracy is the better, the nearer the rate is to 0.002.
AIMS: dict[str, Any] = {
    "objectives": ["validation_top1", "1000 * optimizer.lr + oialr.cutoff_fraction"],
    "subject_to": ["oialr.delay_steps <= 120", "trainable_percent <= 50"],
}


def feasible(individuals: list[IndividualRecord]) -> list[IndividualRecord]:
    return [i for i in individuals if i.hyperparameters["oialr.delay_steps"] <= 120]


@pytest.mark.parametrize("engine", ["propulate", "screened"])
def test_a_killed_and_resumed_search_proposes_what_an_undisturbed_one_does(
    launches: Launches, tmp_path: Path, engine: str
) -> None:
    proposed = []
    settings = {**AIMS, "evaluations": 30, "islands": 1, "engine": engine, "population_size": 5}
    for kills in ((), (2.3, 8.3)):
        launches.move_to(tmp_path / f"killed {len(kills)} times")
        for after_s in kills:
            kill = {after_s: lambda: launches.stops[0].request(at_once=True)}
            assert launches(1, at=kill, **settings) == exit_codes.STOPPED
        assert launches(1, **settings) == exit_codes.FINISHED
        storage, search = launches.stored()
        with storage:
            individuals = storage.individuals(search.id)
        proposed.append([(i.genes, i.parents, i.origin) for i in individuals])
    assert proposed[0] == proposed[1]
    assert any(parents for _, parents, _ in proposed[0])


def test_aims_are_stored_and_those_of_the_front_migrate(launches: Launches) -> None:
    assert launches(4, evaluations=40, islands=2, **AIMS) == exit_codes.FINISHED
    storage, search = launches.stored()
    with storage:
        individuals = {i.id: i for i in storage.individuals(search.id)}
        migrants = {m.individual_id for m in storage.migrations(search.id)}
    for individual in individuals.values():
        values = individual.hyperparameters
        assert individual.objectives == pytest.approx(
            [
                1000.0 * abs(values["optimizer.lr"] - 0.002),
                1000.0 * values["optimizer.lr"] + values["oialr.cutoff_fraction"],
            ]
        )
        assert individual.fitness == individual.objectives[0]
        assert individual.constraints == [values["oialr.delay_steps"] - 120.0, 12.5 - 50.0]
        assert individual.violation == max(individual.constraints[0] / 120.0, 0.0)
    assert len(migrants) > 2


def test_what_is_searched_for_cannot_change(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    launches(1, evaluations=3, islands=1, **AIMS)
    others: list[dict[str, Any]] = [
        {"objectives": None},
        {"subject_to": ["trainable_percent <= 40"]},
        {"fitness_window": 2},
        {"metric": "validation_loss"},
    ]
    for other in others:
        code = launches(1, evaluations=5, islands=1, **{**AIMS, **other})
        assert code == exit_codes.CONFIG
        assert f"stored with `search.{next(iter(other))}`" in capsys.readouterr().err


class TestSeen:
    """What people see of such a search."""

    @pytest.fixture(autouse=True)
    def searched(self, launches: Launches) -> None:
        launches(2, evaluations=30, islands=2, **AIMS)
        self.storage, self.search = launches.stored()
        self.url = str(launches.database)
        self.individuals = self.storage.individuals(self.search.id)
        met = feasible(self.individuals)
        self.front = {met[n].id for n in pareto_front([i.objectives for i in met])}
        assert 0 < len(met) < 30

    def test_the_leaderboard_has_the_whole_front(self) -> None:
        rows = leaderboard(self.storage, self.search, 1)
        assert {row["individual"] for row in rows if row["pareto"]} == self.front
        assert {"pareto", "violation", "objective_2"} < rows[0].keys()
        assert "objective_1" not in rows[0]
        everyone = leaderboard(self.storage, self.search, None)
        assert len(everyone) == 30
        assert [row["violation"] for row in everyone] == sorted(
            i.violation for i in self.individuals
        )
        assert rows[0]["objective_2"] == self.by_id(rows[0]["individual"]).objectives[1]
        with open_search(self.url) as search:
            frame = search.leaderboard()
            assert frame["individual_id"].tolist() == [row["individual"] for row in everyone]
            assert frame["objectives"].map(len).tolist() == [2] * 30
        seen = self.storage.table(self.search.id, "individuals")
        assert "violation" in seen.columns

    def by_id(self, number: int) -> IndividualRecord:
        return next(i for i in self.individuals if i.id == number)

    def test_the_status_and_one_individual(self) -> None:
        told = status(self.storage, self.search)
        assert told["best"]["violation"] == 0.0
        assert told["front"] == len(self.front)
        worst = max(self.individuals, key=lambda i: i.violation)
        shown = describe(self.storage, worst.id)
        assert shown["violation"] == worst.violation > 0.0
        assert shown["objectives"]["validation_top1"] == worst.objectives[0]

    def test_the_export_of_the_knee_and_under_a_condition(self) -> None:
        front = front_of(self.storage, self.search)
        assert front.keys() == self.front
        chosen = chosen_of(self.storage, self.search, at_knee=True)
        assert chosen.id == list(front)[knee(list(front.values()))]
        provenance = parse_yaml(export(self.storage, self.search, chosen), "x")["provenance"]
        assert list(provenance["objectives"].values()) == chosen.objectives
        assert provenance["violation"] == 0.0
        least = chosen_of(self.storage, self.search, at="optimizer.lr <= 0.0015")
        met = [i for i in feasible(self.individuals) if i.hyperparameters["optimizer.lr"] <= 0.0015]
        assert least.id == min(met, key=lambda i: i.fitness or math.inf).id
        both = chosen_of(self.storage, self.search, at="optimizer.lr <= 0.0015", at_knee=True)
        assert both.id in {met[n].id for n in pareto_front([i.objectives for i in met])}
        with pytest.raises(StorageError, match=r"with trainable_percent < 1 that meets the con"):
            chosen_of(self.storage, self.search, at="trainable_percent < 1")

    def test_optuna_s_study(self) -> None:
        study = load_study(self.url)
        assert study.directions == [StudyDirection.MINIMIZE] * 2
        assert study.metric_names == [
            "100 − validation_top1", "1000 * optimizer.lr + oialr.cutoff_fraction",
        ]  # fmt: skip
        assert {trial.number + 1 for trial in study.best_trials} == self.front

    def test_the_dashboard_s_page(self) -> None:
        view = SearchStorage(self.storage)
        trials = view.get_all_trials(self.search.id, deepcopy=False)
        page = _Page(self.search.id)
        page.update(trials, view.space(self.search.id))
        assert {trials[number]._trial_id for number in page.best} == self.front
        told = [json.loads(text) for text in page.texts]
        assert [trial["constraints"] for trial in told] == [i.constraints for i in self.individuals]
        assert {len(trial["values"]) for trial in told} == {2}

    def test_the_trade_off(self) -> None:
        source = Source(storage=self.storage, search=self.search)
        figure = draw(PlotName.PARETO, source)
        assert figure.layout.xaxis.title.text == aim_labels(self.search)[1]
        front = next(trace for trace in figure.data if trace.name.startswith("Pareto front"))
        assert {int(row[0]) for row in front.customdata} == self.front
        (broken,) = (trace for trace in figure.data if trace.name == "break a constraint")
        assert len(broken.x) == len(self.individuals) - len(feasible(self.individuals))


def test_a_search_that_nobody_s_constraints_meets_says_so(launches: Launches) -> None:
    launches(1, evaluations=14, islands=1, subject_to=["trainable_percent <= 5"])
    storage, search = launches.stored()
    with storage:
        assert status(storage, search)["best"]["violation"] == 1.5
        assert {row["violation"] for row in leaderboard(storage, search, None)} == {1.5}
        with pytest.raises(StorageError, match="that meets the constraints"):
            chosen_of(storage, search, at_knee=True)


def test_an_expression_is_the_fitness_everywhere(launches: Launches) -> None:
    """Of the last two epochs, which say 10 and 20 % whatever the result is."""
    settings = {"fitness": "100 - validation_top1 + 100 * optimizer.lr", "fitness_window": 2}
    launches(1, evaluations=4, islands=1, **settings)
    storage, search = launches.stored()
    with storage:
        for individual in storage.individuals(search.id):
            rate = individual.hyperparameters["optimizer.lr"]
            assert individual.fitness == pytest.approx(85.0 + 100 * rate)
            assert individual.objectives == []
        assert aim_labels(search) == ["100 - validation_top1 + 100 * optimizer.lr"]
    assert search_file().search.objectives is None
