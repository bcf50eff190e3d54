"""What a search comes to: who was confirmed, else who is expected to be best, else who measured so.
And what repeats are to those who read a search."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import oialr_search
from oialr_search.analysis import load_study
from oialr_search.analysis.choice import final_choice, of_test
from oialr_search.analysis.choosing import choose_search
from oialr_search.analysis.individual import describe
from oialr_search.analysis.leaderboard import for_people, leaderboard
from oialr_search.analysis.plots.catalogue import Source, draw
from oialr_search.analysis.plots.names import PlotName
from oialr_search.space.hyperparameters import Hyperparameter, SearchSpace
from oialr_search.storage import open_storage
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Outcome, Status, StorageError

from ..storage.storage_examples import (
    launched_search,
    new_proposal,
    new_runner,
    started_evaluation,
)

SPACE = SearchSpace((Hyperparameter(name="optimizer.lr", kind="float", low=0.0, high=1.0),))
METRIC = "validation_loss"


class Measuring:
    """A search whose individuals are measured one by one."""

    def __init__(self, storage: Storage, **confirm: Any) -> None:
        self.storage = storage
        search = {"name": "digits", "metric": METRIC, "evaluations": 40, "islands": 1}
        search |= {"confirm": confirm} if confirm else {}
        self.search_id, self.launch_id = launched_search(
            storage,
            metric=METRIC,
            metric_names=[METRIC],
            space=SPACE,
            settings={"search": search, "training": {"task": "minivit_digits"}},
            evaluations_total=40,
        )
        self._numbers = iter(range(1000))

    def outcome(self, loss: float | None, **metrics: float) -> Outcome:
        if loss is None:
            return Outcome(status=Status.FAILED, reason="it broke")
        return Outcome(
            status=Status.COMPLETED,
            fitness=loss,
            metrics={METRIC: loss, **metrics},
            trainable_percent=10.0,
            compression_percent=50.0,
        )

    def measure(self, loss: float | None, gene: float = 0.5, **proposal: Any) -> int:
        values = {"optimizer.lr": gene}
        proposal = {"genes": values, "hyperparameters": values, **proposal}
        number, evaluation = started_evaluation(
            self.storage, self.search_id, self.launch_id, next(self._numbers), **proposal
        )
        self.storage.finish_evaluation(evaluation, self.outcome(loss))
        return number

    def again(self, individual_id: int, loss: float | None, seed: int = 7) -> int:
        return self.measure(loss, origin="repeat", repeat_of=individual_id, seed=seed)

    def confirm(
        self, individual_id: int, *losses: float | None, **on_test: Sequence[float]
    ) -> None:
        seeds = range(100, 100 + len(losses))
        self.storage.queue_repeats(self.search_id, [(individual_id, seed) for seed in seeds])
        for number, loss in enumerate(losses):
            runner = new_runner(self.launch_id, world_rank=500 + next(self._numbers))
            claim = self.storage.claim(self.search_id, new_proposal(9), 0, runner)
            assert claim is not None
            metrics = {name: values[number] for name, values in on_test.items()}
            self.storage.finish_evaluation(claim.evaluation.id, self.outcome(loss, **metrics))

    @property
    def choice(self) -> tuple[int, str]:
        chosen = final_choice(self.storage, choose_search(self.storage, None))
        return chosen.individual.id, chosen.how


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/search.db"


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    with open_storage(url, create=True) as storage:
        yield storage


class TestTheFinalChoice:
    def test_of_few_it_is_the_least_measured(self, storage: Storage) -> None:
        search = Measuring(storage)
        with pytest.raises(StorageError, match="no completed individual yet"):
            _ = search.choice
        first, second = search.measure(0.5), search.measure(0.4)
        assert search.choice == (second, "fitness 0.4")
        search.again(second, 0.5)
        assert search.choice == (second, "fitness 0.45 ± 0.07071 over 2 seeds")
        search.again(second, 1.5, seed=8)
        assert search.choice == (first, "fitness 0.5")

    def test_of_more_it_is_the_least_expected(self, storage: Storage) -> None:
        """The luckiest stands where all others are bad, the best among good ones."""
        search, rng = Measuring(storage), random.Random(0)
        for number in range(15):
            gene = 0.02 + 0.3 * number / 15
            search.measure(1.0 + 20.0 * (gene - 0.15) ** 2 + rng.gauss(0.0, 0.02), gene)
            search.measure(2.0 + rng.gauss(0.0, 0.02), 0.6 + 0.4 * number / 15)
        lucky = search.measure(0.95, 0.805)
        board = leaderboard(storage, choose_search(storage, None), 1)
        assert board[0]["individual"] == lucky
        number, how = search.choice
        individual = storage.individual(number)
        assert individual is not None
        assert abs(individual.genes["optimizer.lr"] - 0.15) < 0.05
        assert how.startswith("least expected fitness 1.0")
        assert f"; measured {individual.fitness:.4g}" in how

    def test_who_breaks_a_constraint_is_not_chosen(self, storage: Storage) -> None:
        search = Measuring(storage)
        for number in range(15):
            search.measure(2.0 + 0.01 * number, number / 15)
        values = {"optimizer.lr": 0.001}
        number, evaluation = started_evaluation(
            storage, search.search_id, search.launch_id, 99, genes=values, hyperparameters=values
        )
        breaks = Outcome(
            status=Status.COMPLETED, fitness=0.1, constraints=[1.0], violation=1.0, metrics={}
        )
        storage.finish_evaluation(evaluation, breaks)
        assert search.choice[0] != number

    def test_of_confirmed_ones_it_is_the_best_mean(self, storage: Storage) -> None:
        search = Measuring(storage)
        lucky, good, fails = search.measure(0.1), search.measure(0.2), search.measure(0.15)
        search.confirm(lucky, 0.5, 0.6)
        search.confirm(good, 0.2, 0.23)
        search.confirm(fails, 0.01, None)
        mean = "the best of 3 confirmed: fitness 0.21 ± 0.01732 over 3 seeds"
        assert search.choice == (good, mean)

    def test_not_before_all_of_them_have_ended(self, storage: Storage) -> None:
        search = Measuring(storage)
        lucky, good = search.measure(0.1), search.measure(0.2)
        search.confirm(good, 0.05)
        storage.queue_repeats(search.search_id, [(lucky, 200)])
        assert search.choice == (lucky, "fitness 0.1")

    def test_on_test_data_only_these_count(self, storage: Storage) -> None:
        search = Measuring(storage, top=2, on="test")
        first, second = search.measure(0.1), search.measure(0.2)
        search.confirm(first, 0.1, 0.1, test_loss=[0.7, 0.9])
        search.confirm(second, 0.3, 0.3, test_loss=[0.3, 0.5])
        number, how = search.choice
        assert number == second
        assert how.startswith("the best of 2 confirmed on test data: 0.4 over 2 seeds; on valid")
        assert of_test({METRIC: 1.0, "test_loss": 2.0, "epoch": 3.0}) == {
            METRIC: 2.0, "test_loss": 2.0, "epoch": 3.0
        }  # fmt: skip


class TestRepeatsAreRead:
    """Each configuration stands once, with the mean; its repeats are part of it."""

    @pytest.fixture
    def search(self, storage: Storage) -> Measuring:
        search = Measuring(storage)
        for number, loss in enumerate((0.5, 0.2, 0.4)):
            search.measure(loss, 0.3 * number)
        search.again(2, 0.8)
        return search

    def test_on_the_leaderboard(self, search: Measuring, storage: Storage) -> None:
        rows = leaderboard(storage, choose_search(storage, None), None)
        told = [(row["individual"], row["fitness"], row["deviation"], row["seeds"]) for row in rows]
        assert told == [
            (3, 0.4, None, 1), (1, 0.5, None, 1), (2, 0.5, pytest.approx(0.424264), 2)
        ]  # fmt: skip
        assert "seeds" in for_people(rows)[0]
        assert "seeds" not in for_people(rows[:2])[0]

    def test_one_by_one(self, search: Measuring, storage: Storage) -> None:
        first, again = describe(storage, 2), describe(storage, 4)
        assert (first["fitness"], first["seeds"], first["repeat_of"]) == (0.5, 2, None)
        assert first["repeats"] == [
            {"individual": 4, "origin": "repeat", "status": "completed", "seed": 7, "fitness": 0.8}
        ]
        assert (again["repeat_of"], again["repeats"]) == (2, [])

    def test_as_a_study_that_follows(self, search: Measuring, url: str) -> None:
        study = load_study(url)
        assert [(t._trial_id, t.value) for t in study.trials] == [(1, 0.5), (2, 0.5), (3, 0.4)]
        assert study.trials[1].user_attrs["seeds"] == 2
        search.again(3, 0.6, seed=9)
        last = search.measure(0.3)
        assert [t.value for t in study.trials] == [0.5, 0.5, 0.5, 0.3]
        assert [t.number for t in study.trials] == [0, 1, 2, 3]
        assert study.trials[3]._trial_id == last == 6
        assert study.best_trial._trial_id == last

    def test_as_data_frames(self, search: Measuring, url: str) -> None:
        with oialr_search.open_search(url) as opened:
            individuals, board = opened.individuals(), opened.leaderboard()
        assert individuals["repeat_of"].fillna(0).tolist() == [0, 0, 0, 2]
        assert individuals["num_seeds"].tolist() == [1, 2, 1, 1]
        assert board["individual_id"].tolist() == [3, 1, 2]

    def test_in_figures(self, search: Measuring, storage: Storage) -> None:
        source = Source(storage=storage, search=choose_search(storage, None))
        assert [i.id for i in source.individuals] == [1, 2, 3]
        assert len(source.everyone) == 4
        figure = draw(PlotName.CONVERGENCE, source)
        drawn = [y for trace in figure.data if trace.mode == "markers" for y in trace.y]
        assert sorted(y for y in drawn if y is not None) == [0.4, 0.5, 0.5]
