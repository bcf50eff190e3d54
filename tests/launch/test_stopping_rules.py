"""The contract that every stopping rule keeps, and what each stops."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from oialr_search.launch.stopping import (
    StoppingRule,
    Training,
    expected_fitness,
    on_front,
    rule_for,
)
from oialr_search.launch.stopping.model import ModelRule
from oialr_search.launch.stopping.optuna_pruners import HyperbandRule
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.stopping import RULES, StoppingSettings
from oialr_search.storage.records import Status

HYPERPARAMETERS = (
    Hyperparameter(name="optimizer.lr", kind="float", low=1e-4, high=1e-2, scale="log"),
    Hyperparameter(name="oialr.delay_steps", kind="int", low=0, high=20),
    Hyperparameter(name="model.attention", kind="choice", choices=("fused", "apart")),
)
INFINITE = float("inf")


class WorseThanAllowed(StoppingRule):
    """A rule as somebody else writes one."""

    def reason_to_stop(self, training: Training, others: Sequence[Training]) -> str | None:
        allowed = self.settings.options["allowed"]
        assert isinstance(allowed, float)
        return "worse than allowed" if training.losses[-1] > allowed else None


OWN = f"{__name__}:WorseThanAllowed"


def make(rule: str, **options: Any) -> StoppingRule:
    if rule == OWN:
        options = {"options": {"allowed": 1.0}}
    return rule_for(HYPERPARAMETERS, StoppingSettings(rule=rule, **options))


def training(
    number: int, losses: Sequence[float], status: str = "completed", **changes: Any
) -> Training:
    draw = random.Random(number)
    values: dict[str, Any] = {
        "individual_id": number,
        "status": Status(status),
        "genes": {h.name: draw.random() for h in HYPERPARAMETERS},
        "epochs": 9,
        "losses": losses,
    }
    return Training(**values | changes)


def falling(end: float, epochs: int = 9) -> list[float]:
    """A curve that falls by the same part each epoch, from 1 above its end."""
    return [end + 0.5**epoch for epoch in range(epochs)]


def completed(number: int = 20) -> list[Training]:
    """The first ends at 0, the last nearly at 1."""
    return [training(n + 1, falling(n / number)) for n in range(number)]


def running(end: float, epochs: int = 4) -> Training:
    return training(99, falling(end, epochs), "running")


KNOWN: dict[str, Callable[[], list[Training]]] = {
    "nothing": list,
    "one": lambda: completed(1),
    "many": lambda: completed(60),
    "only running": lambda: [training(n, falling(n / 30, n % 5), "running") for n in range(1, 30)],
    "only pruned": lambda: [training(n, falling(n / 30, 2), "pruned") for n in range(1, 30)],
    "all the same": lambda: [training(n, falling(0.5)) for n in range(1, 30)],
    "no numbers": lambda: [training(n, [INFINITE] * 9) for n in range(1, 30)],
    "some no numbers": lambda: [*completed(), training(50, [1.0, *[INFINITE] * 8])],
    "shorter and longer ones": lambda: [
        training(n, falling(n / 30, epochs), epochs=epochs)
        for n, epochs in enumerate([1, 2, 5, 9, 13, 18] * 5, start=1)
    ],
}


@pytest.mark.parametrize("rule", [*RULES, OWN])
class TestContract:
    """What a rule promises, whichever it is."""

    @pytest.mark.parametrize("known", KNOWN)
    @pytest.mark.parametrize("own", [[0.5], falling(0.99, 8), [1.0, INFINITE, INFINITE]])
    def test_it_gives_a_line_or_nothing(self, rule: str, known: str, own: list[float]) -> None:
        reason = make(rule).reason_to_stop(training(99, own, "running"), KNOWN[known]())
        assert reason is None or (reason and "\n" not in reason)

    def test_the_same_curves_give_the_same_judgement(self, rule: str) -> None:
        """Whatever it has judged before."""
        used, others = make(rule), completed(40)
        for n in range(12):
            judged = running(n / 12, epochs=1 + n % 8)
            used.reason_to_stop(running(random.Random(n).random()), others[n:])
            assert used.reason_to_stop(judged, others) == make(rule).reason_to_stop(judged, others)

    def test_the_best_of_all_goes_on(self, rule: str) -> None:
        for epochs in range(1, 9):
            assert make(rule).reason_to_stop(running(-0.01, epochs), completed()) is None

    def test_what_is_given_is_not_changed(self, rule: str) -> None:
        judged, others = running(0.9), completed()
        make(rule).reason_to_stop(judged, others)
        assert (judged, others) == (running(0.9), completed())


@pytest.mark.parametrize(
    ("rule", "epochs"), [(r, 3 if r in ("asha", "hyperband") else 4) for r in [*RULES, OWN]]
)
def test_the_worst_of_all_is_stopped(rule: str, epochs: int) -> None:
    """But for a bracket of Hyperband that begins later, and a curve that still falls."""
    judged = replace(running(5.0, epochs), individual_id=individual_of_bracket(0))
    if rule == "patience":
        judged = replace(judged, losses=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert make(rule).reason_to_stop(judged, completed(60))


def individual_of_bracket(bracket: int) -> int:
    rule = make("hyperband")
    assert isinstance(rule, HyperbandRule)
    return next(n for n in range(100, 200) if rule.bracket(training(n, [])) == bracket)


class TestQuantile:
    """Its share of the worst, of all that had come as far."""

    @pytest.mark.parametrize(("better", "stopped"), [(14, False), (15, True), (16, True)])
    def test_the_worst_quarter(self, better: int, stopped: bool) -> None:
        others = [training(n, [float(n)]) for n in range(1, 21)]
        reason = make("quantile").reason_to_stop(training(99, [better + 0.5]), others)
        told = f"{better + 0.5:.4g} is worse than {better} of 20 that had come as far"
        assert reason == (told if stopped else None)

    def test_what_was_pruned_or_runs_is_compared_too_as_far_as_it_came(self) -> None:
        others = [
            training(n, [float(n)] * (1 + n % 2), status)
            for n, status in enumerate(["completed", "pruned", "running"] * 6, start=1)
        ]
        reason = make("quantile", worst=0.5).reason_to_stop(training(99, [0.0, 99.0]), others)
        assert reason == "99 is worse than 9 of 9 that had come as far"

    def test_few_are_not_enough(self) -> None:
        few = [training(n, [0.0]) for n in range(7)]
        assert make("quantile").reason_to_stop(training(99, [1.0]), few) is None
        assert make("quantile").reason_to_stop(training(99, [1.0]), [*few, few[0]])


@pytest.mark.parametrize(
    ("own", "other", "epoch"),
    [
        ((6, 12), (12, 12), 6),
        ((6, 12), (5, 12), None),
        ((6, 12), (3, 6), 3),
        ((7, 12), (6, 6), 3),  # 7 of 12 lies within the fourth of 6
        ((1, 12), (6, 6), None),
        ((3, 6), (12, 12), 6),
        ((3, 6), (5, 12), None),
    ],
)
def test_lengths_that_are_searched_are_compared_by_their_share(
    own: tuple[int, int], other: tuple[int, int], epoch: int | None
) -> None:
    judged, against = (training(1, [1.0] * done, epochs=epochs) for done, epochs in (own, other))
    assert judged.same_time(against) == epoch


class TestHalving:
    """Rungs after 1, 3 and 9 epochs, as the pruner would have met them one after the other."""

    def test_between_rungs_nothing_is_stopped(self) -> None:
        for epochs in (2, 4, 5, 6, 7, 8):
            assert make("asha").reason_to_stop(running(5.0, epochs), completed()) is None

    @pytest.mark.parametrize(("place", "stopped"), [(6, False), (8, True)])
    def test_one_in_three_goes_on(self, place: int, stopped: bool) -> None:
        others = [training(n, [0.0, 0.0, float(n)]) for n in range(1, 21)]
        judged = training(99, [9.0, 9.0, place - 0.5])
        assert bool(make("asha").reason_to_stop(judged, others)) is stopped

    def test_one_in_so_many(self) -> None:
        others = [training(n, [0.0, float(n)]) for n in range(1, 21)]
        judged = training(99, [9.0, 8.5])
        assert make("asha", reduction_factor=2).reason_to_stop(judged, others) is None
        assert make("asha", reduction_factor=2).reason_to_stop(
            replace(judged, losses=[0.0, 11.5]), others
        )

    def test_brackets_are_of_hyperbands_shares(self) -> None:
        rule = make("hyperband")
        assert isinstance(rule, HyperbandRule)
        brackets = [rule.bracket(training(n, [])) for n in range(17_000)]
        # 9 epochs: 3 rungs, so ⌈3·9/3⌉ : ⌈3·3/2⌉ : 3
        shares = [brackets.count(bracket) / 1000 for bracket in range(3)]
        assert shares == pytest.approx([9, 5, 3], rel=0.1)

    def test_a_later_bracket_is_not_stopped_at_the_first_rung(self) -> None:
        judged = [running(5.0, 1), running(5.0, 3)]
        for bracket, stopped in ((0, [True, True]), (1, [False, True]), (2, [False, False])):
            number = individual_of_bracket(bracket)
            made = [replace(one, individual_id=number) for one in judged]
            reasons = [make("hyperband").reason_to_stop(one, completed(60)) for one in made]
            assert [reason is not None for reason in reasons] == stopped


def test_the_median_is_of_what_completed() -> None:
    rule = make("median")
    others = [training(n, [float(n)] * 9) for n in range(1, 6)]
    good = [training(n, [0.0] * 4, "pruned") for n in range(10, 30)]
    assert rule.reason_to_stop(training(99, [2.5]), [*others, *good]) is None
    assert rule.reason_to_stop(training(99, [3.5]), [*others, *good])
    assert rule.reason_to_stop(training(99, [3.5]), others[1:]) is None  # five must have


def test_patience_is_ones_own() -> None:
    rule = make("patience", patience=2)
    assert rule.reason_to_stop(training(99, [0.5, 1.0, 1.0]), completed()) is None
    assert rule.reason_to_stop(training(99, [0.5, 1.0, 1.0, 1.0]), [])
    assert rule.reason_to_stop(training(99, [0.5, 1.0, 1.0, 0.4]), []) is None


class TestModel:
    """Genes and curve together."""

    def trainings(self, number: int = 40) -> list[Training]:
        """The end follows from the first gene alone, and from the curve's height."""
        trainings = [training(n, []) for n in range(1, number + 1)]
        return [replace(t, losses=falling(t.genes["optimizer.lr"])) for t in trainings]

    def judged(self, rate: float, height: float) -> Training:
        judged = training(99, falling(height, 4), "running")
        return replace(judged, genes={**judged.genes, "optimizer.lr": rate})

    def test_the_chance_is_small_where_genes_and_curve_are_bad(self) -> None:
        rule = make("model")
        assert isinstance(rule, ModelRule)
        others = self.trainings()
        bad = rule.chance(self.judged(0.6, 0.6), others)
        good = rule.chance(self.judged(0.0, 0.0), others)
        assert bad is not None
        assert good is not None
        assert bad < 0.01 < 0.3 < good
        expected = rule.expected(self.judged(0.3, 0.3), others)
        assert expected == pytest.approx(0.3, abs=0.05)

    def test_chance_is_what_is_compared(self) -> None:
        others, judged = self.trainings(), self.judged(0.2, 0.2)
        assert make("model", chance=0.0).reason_to_stop(self.judged(0.9, 0.9), others) is None
        assert make("model", chance=1.0).reason_to_stop(judged, others)

    def test_few_are_not_enough(self) -> None:
        assert make("model").reason_to_stop(self.judged(0.9, 0.9), self.trainings(11)) is None
        assert make("model").reason_to_stop(self.judged(0.9, 0.9), self.trainings(40))

    def test_many_cost_no_more_than_a_hundred(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from oialr_search.launch.stopping import model

        fitted: list[int] = []
        fit = model.fit

        def counted(points: Any, *others: Any) -> Any:
            fitted.append(len(points))
            return fit(points, *others)

        monkeypatch.setattr(model, "fit", counted)
        make("model").reason_to_stop(self.judged(0.5, 0.5), self.trainings(150))
        assert fitted == [100]


def test_what_is_expected_is_where_the_same_place_ended() -> None:
    others = [training(n, [float(n)], fitness=10.0 * n) for n in range(1, 6)]
    others += [training(n, [0.0], "pruned") for n in range(6, 9)]
    for loss, expected in ((0.5, 10.0), (1.5, 18.0), (3.5, 34.0), (9.0, 50.0)):
        assert expected_fitness(training(99, [loss]), others) == pytest.approx(expected)
    assert expected_fitness(training(99, [1.0]), others[5:]) is None


class TestFront:
    """Of several aims, all the less the better, at the same time."""

    def of(self, number: int, *aims: float, epochs: int = 9) -> Training:
        return training(number, [0.0] * 2, epochs=epochs, aims=[[9.0, aim] for aim in aims])

    def test_what_nothing_beats_in_all_is_on_it(self) -> None:
        others = [self.of(1, 1.0, 5.0), self.of(2, 5.0, 1.0)]
        assert on_front(self.of(9, 3.0, 3.0), others)
        assert on_front(self.of(9, 1.0, 5.0), others)
        assert not on_front(self.of(9, 1.0, 6.0), others)
        assert not on_front(self.of(9, 6.0, 6.0), others)

    def test_what_has_not_come_as_far_does_not_count(self) -> None:
        assert on_front(self.of(9, 6.0, 6.0), [self.of(1, 1.0, 1.0, epochs=90)])


def test_rules_that_are_not_chosen_are_not_imported() -> None:
    script = (
        "import sys; from oialr_search.launch.stopping import rule_for; "
        "from oialr_search.space.stopping import StoppingSettings; "
        "rule_for((), StoppingSettings()); "
        "assert not {'optuna', 'scipy', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
