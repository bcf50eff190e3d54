"""Launches with a stopping rule, and what it is told: all islands' curves, in time, so many."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from oialr_search import exit_codes
from oialr_search.launch.engines import Knowledge, Offspring
from oialr_search.launch.engines.random_search import RandomSearch
from oialr_search.launch.stopping import StoppingRule, Training
from oialr_search.launch.stopping import judging as judging_module
from oialr_search.launch.stopping.judging import Judge, Verdict
from oialr_search.space.repeats import ConfirmSettings
from oialr_search.space.search_file import ENGINES, load_search
from oialr_search.space.stopping import StoppingSettings
from oialr_search.storage.database import Storage
from oialr_search.storage.records import Claim, Outcome, Status, StorageUnavailable
from oialr_training.protocol import Epoch, Evaluate, Prepare, RankUpdate, Ready, Stop, Stopped

from ..conftest import DIGITS
from ..evaluation.scripted import Line, ScriptedWorker, Silence, completed, epoch, started
from .conftest import Launches, Scripts
from .left_behind import LeftBehind

CUT = RankUpdate(step=4, layer="head", inner_rank=3, full_inner_rank=8, stability=None)
WHOLE = replace(CUT, inner_rank=8)
QUIET = Silence(0.1)


def trains(*top1: float, cut: int = 0, stopped: bool = False) -> list[Line]:
    """Epochs with these accuracies; in one of them OIALR first cuts an inner rank."""
    lines: list[Line] = [started(), QUIET]
    for number, value in enumerate(top1, start=1):
        told = epoch(number, validation_top1=value)
        update = replace(CUT if number == cut else WHOLE, step=told.step)
        lines += [replace(told, rank_updates=[update]), QUIET]
    if stopped:
        lines += [Stop, Stopped(epoch=len(top1), reason="pruned")]
    else:
        lines += [completed(top1[-1])]
    return lines


def scripts(*evaluations: Sequence[Line]) -> Scripts:
    """What the workers of each rank do; the first one is waited for."""

    def of_rank(world_rank: int) -> Iterable[Sequence[Line]]:
        for evaluation in evaluations:
            yield [Prepare, Ready(), Evaluate, *evaluation]

    return of_rank


BAD = trains(30.0, stopped=True)
GOOD = [trains(80.0 + n, 90.0 + n) for n in range(8)]
SETTINGS: dict[str, Any] = {"engine": "random", "islands": 1}


def stopping(**settings: Any) -> dict[str, Any]:
    """The settings of a search that stops early."""
    told = StoppingSettings.model_validate({"after": "1 epoch", **settings})
    return SETTINGS | {"stopping": told}


def statuses(launches: Launches) -> list[str]:
    storage, search = launches.stored()
    with storage:
        return [individual.status.value for individual in storage.individuals(search.id)]


def reasons(launches: Launches) -> list[str]:
    storage, search = launches.stored()
    with storage:
        pruned = storage.individuals(search.id, status=Status.PRUNED)
        return [
            individual.evaluation.reason or "" for individual in pruned if individual.evaluation
        ]


class TestLaunches:
    """The controller asks after each epoch of its own evaluation."""

    def test_a_bad_training_is_pruned_and_counts_as_one_of_the_search(
        self, launches: Launches
    ) -> None:
        bad = trains(30.0, stopped=True)
        code = launches(1, scripts(*GOOD, bad, GOOD[7]), evaluations=10, **stopping())
        assert code == exit_codes.FINISHED
        assert statuses(launches) == ["completed"] * 8 + ["pruned", "completed"]
        assert reasons(launches) == [
            "stopped after epoch 1: 70 is worse than 8 of 8 that had come as far"
        ]
        storage, search = launches.stored()
        with storage:
            (pruned,) = storage.individuals(search.id, status=Status.PRUNED)
        assert pruned.evaluation
        assert pruned.evaluation.metrics["validation_top1"] == 30.0
        assert pruned.objectives == [10.0]  # that of the worst at that time
        assert not (Path(pruned.evaluation.folder).parent / "state.pt").exists()

    def test_without_the_section_nothing_is(self, launches: Launches) -> None:
        launches(1, scripts(*GOOD, trains(30.0, 40.0)), evaluations=9, **SETTINGS)
        assert statuses(launches) == ["completed"] * 9

    def test_who_repeats_another_is_to_tell_how_good_that_is(self, launches: Launches) -> None:
        confirm = ConfirmSettings(top=1, seeds=1)
        evaluations = scripts(*GOOD, trains(30.0, 40.0))
        launches(1, evaluations, evaluations=8, confirm=confirm, **stopping())
        assert statuses(launches) == ["completed"] * 9

    def test_not_before_its_clock(self, launches: Launches) -> None:
        """An epoch after the first cut; one that is never cut is not stopped."""
        clock = stopping(after="first_truncation + 1")
        good = [trains(*[90.0 + n] * 4) for n in range(8)]
        late = trains(10.0, 20.0, 30.0, cut=2, stopped=True)
        never = trains(10.0, 20.0, 30.0, 40.0)
        launches(1, scripts(*good, late, never), evaluations=10, **clock)
        assert statuses(launches) == ["completed"] * 8 + ["pruned", "completed"]
        assert reasons(launches)[0].startswith("stopped after epoch 3: 70 is worse")

    def test_by_another_metric_whichever_way_is_better(self, launches: Launches) -> None:
        """`epoch` has a validation loss of 1 / number, and top-1 is the best of all here."""
        by_loss = trains(99.0, 99.0, stopped=True)
        by_loss[4] = replace(by_loss[4], metrics={**by_loss[4].metrics, "validation_loss": 0.6})  # type: ignore[type-var, union-attr]
        launches(1, scripts(*GOOD, by_loss), evaluations=9, **stopping(metric="validation_loss"))
        assert statuses(launches)[-1] == "pruned"
        assert "0.6 is worse than 8 of 8" in reasons(launches)[0]

    def test_all_islands_are_compared_and_running_ones_too(self, launches: Launches) -> None:
        """Each rank has four good ones; the second ends last, and is bad."""

        def of_rank(world_rank: int) -> Iterator[Sequence[Line]]:
            for evaluation in GOOD[world_rank * 4 : world_rank * 4 + 4]:
                yield [Prepare, Ready(), Evaluate, *evaluation]
            if world_rank == 0:
                last = trains(99.0, *[99.0] * 8)
                yield [Prepare, Ready(), Evaluate, *last]
            else:
                bad = trains(30.0, stopped=True)
                yield [Prepare, Ready(), Evaluate, started(), Silence(0.5), *bad[1:]]
            yield [Prepare, Ready()]

        launches(2, of_rank, evaluations=10, **stopping() | {"islands": 2})
        assert sorted(statuses(launches)) == ["completed"] * 9 + ["pruned"]
        assert "worse than 9 of 9" in reasons(launches)[0]

    def test_a_later_launch_remembers(self, launches: Launches) -> None:
        launches(1, scripts(*GOOD), evaluations=8, **stopping())
        launches(1, scripts(trains(30.0, stopped=True)), evaluations=9, **stopping())
        assert statuses(launches) == ["completed"] * 8 + ["pruned"]

    def test_a_rule_of_ones_own_is_asked_once_an_epoch(
        self, launches: Launches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = list[tuple[int, int]]()
        monkeypatch.setattr(Seeing, "asked", asked)
        own = stopping(rule=f"{__name__}:Seeing", options={"from": 3})
        launches(
            1, scripts(*GOOD[:2], trains(10.0, 20.0, 30.0, stopped=True)), evaluations=3, **own
        )
        assert asked == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]
        assert reasons(launches) == ["stopped after epoch 3: seen"]

    def test_while_the_database_is_away_nothing_is_stopped(
        self, launches: Launches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def away(judge: Judge, storage: Storage, individual_id: int) -> Verdict | None:
            asked.append(individual_id)
            raise StorageUnavailable("no answer")

        monkeypatch.setattr(Judge, "verdict", away)
        code = launches(1, scripts(*GOOD, trains(30.0, 40.0)), evaluations=9, **stopping())
        assert code == exit_codes.FINISHED
        assert statuses(launches) == ["completed"] * 9
        assert set(asked) == set(range(1, 10))


class TestGoingOn:
    """`continue`: what the rule no longer would stop is trained to its end, from its state."""

    def test_a_pruned_one_goes_on_when_the_rule_says_so(
        self, launches: Launches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Relenting, "after", 3)
        own = stopping(rule=f"{__name__}:Relenting", **{"continue": True})
        resumed = [started(resumed_epoch=1), *trains(30.0, 40.0)[1:]]
        code = launches(
            1,
            scripts(GOOD[0], [keep_state, *BAD], GOOD[1], [sees_state, *resumed]),
            evaluations=3,
            **own,
        )
        assert code == exit_codes.FINISHED
        storage, search = launches.stored()
        with storage:
            assert [i.status.value for i in storage.individuals(search.id)] == ["completed"] * 3
            first, second = storage.evaluations(2)
        assert (first.status, first.last_epoch) == (Status.PRUNED, 1)
        assert (second.status, second.last_epoch, second.resumed_epoch) == (
            Status.COMPLETED, 2, 1,
        )  # fmt: skip
        assert not list(launches.folder.glob("**/state.pt"))

    def test_it_is_not_judged_again_and_is_told_once_as_ended(
        self,
        launches: Launches,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(Relenting, "after", 3)
        own = stopping(rule=f"{__name__}:Relenting", **{"continue": True})
        launches(1, scripts(GOOD[0], BAD, GOOD[1], trains(30.0, 5.0)), evaluations=3, **own)
        lines = [line for line in capsys.readouterr().out.splitlines() if "/3]" in line]
        assert [line[9:14] for line in lines] == ["[1/3]", "[2/3]", "[3/3]", "[3/3]"]
        assert "2 pruned: stopped after epoch 1: bad" in lines[1]

    def test_states_are_kept_until_the_search_is_complete(
        self, launches: Launches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And only where one may go on."""
        monkeypatch.setattr(Relenting, "after", 99)
        kept = {}
        for goes_on in (True, False):
            own = stopping(rule=f"{__name__}:Relenting", **{"continue": goes_on})
            launches.move_to(launches.folder / str(goes_on))
            end: list[Line] = [
                started(), lambda _: launches.stops[0].request(at_once=True), Silence(9.0),
            ]  # fmt: skip
            launches(1, scripts(GOOD[0], [keep_state, *BAD], end), evaluations=3, **own)
            kept[goes_on] = len(list(launches.folder.glob("**/state.pt")))
            launches(1, scripts(GOOD[1]), evaluations=3, **own)
            assert statuses(launches) == ["completed", "pruned", "completed"]
            assert not list(launches.folder.glob("**/state.pt"))
        assert kept == {True: 1, False: 0}

    def test_engines_hear_of_it(self, launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is known of an individual that had ended is read again."""
        monkeypatch.setattr(Relenting, "after", 3)
        seen = list[Sequence[float]]()

        class Sees(RandomSearch):
            needs_all_individuals = True

            def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
                seen.append(knowledge.individuals.fitness.tolist())
                return super().propose(knowledge, random_numbers)

        monkeypatch.setattr(sys.modules[__name__], "SeesAll", Sees, raising=False)
        monkeypatch.setitem(ENGINES, "sees", f"{__name__}:SeesAll")
        own = stopping(rule=f"{__name__}:Relenting", **{"continue": True}) | {"engine": "sees"}
        launches(1, scripts(GOOD[0], BAD, GOOD[1], trains(30.0, 40.0)), evaluations=3, **own)
        assert seen[:4] == [[], [10.0], [10.0, float("inf")], [10.0, float("inf"), 9.0]]
        assert seen[-1] == [10.0, 60.0, 9.0]


def keep_state(worker: ScriptedWorker) -> None:
    state_of(worker).write_text("a state")


def sees_state(worker: ScriptedWorker) -> None:
    assert state_of(worker).read_text() == "a state"


def state_of(worker: ScriptedWorker) -> Path:
    (evaluate,) = (message for message in worker.sent if isinstance(message, Evaluate))
    assert evaluate.state_file
    return Path(evaluate.state_file)


class Relenting(StoppingRule):
    """Stops the bad until so many others are known."""

    after = 0

    def reason_to_stop(self, training: Training, others: Sequence[Training]) -> str | None:
        return "bad" if training.losses[-1] > 50.0 and len(others) < self.after - 1 else None


class Seeing(StoppingRule):
    """Notes what it is asked, and stops after an epoch."""

    asked: ClassVar[list[tuple[int, int]]] = []

    def reason_to_stop(self, training: Training, others: Sequence[Training]) -> str | None:
        self.asked.append((training.individual_id, len(training.losses)))
        assert training.individual_id not in [other.individual_id for other in others]
        return "seen" if len(training.losses) == self.settings.options["from"] else None


class TestJudge:
    """What a rule is told."""

    @pytest.fixture
    def told(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Training, Sequence[Training]]]:
        told: list[tuple[Training, Sequence[Training]]] = []
        monkeypatch.setattr(Telling, "told", told)
        return told

    def judge(self, left: LeftBehind, *assignments: str, **settings: Any) -> Judge:
        own = {"rule": f"{__name__}:Telling", "after": "1 epoch", **settings}
        file = load_search(DIGITS, assignments, {"stopping": own})
        assert file.search.stopping
        return Judge(left.search_id, file, file.search.stopping)

    def train(self, left: LeftBehind, number: int, *epochs: Epoch, fitness: float | None) -> Claim:
        claim = left.claim(number)
        for told in epochs:
            left.storage.add_epoch(claim.evaluation.id, record(told), told.rank_updates)
        if fitness is not None:
            outcome = Outcome(status=Status.COMPLETED, fitness=fitness)
            left.storage.finish_evaluation(claim.evaluation.id, outcome)
        return claim

    def test_losses_epochs_and_clocks(
        self, left: LeftBehind, told: list[tuple[Training, Sequence[Training]]]
    ) -> None:
        self.train(left, 1, epoch(1), cut_in(epoch(2)), fitness=80.0)
        self.train(left, 2, epoch(1, validation_top1=float("nan")), fitness=None)
        self.train(left, 3, cut_in(epoch(1)), epoch(2), fitness=None)
        self.judge(left, after="first_truncation + 1").verdict(left.storage, 3)
        ((judged, others),) = told
        assert (judged.individual_id, judged.losses, judged.clock) == (3, [90.0, 80.0], 2)
        assert judged.epochs == 12
        assert judged.genes.keys() == {h.name for h in load_search(DIGITS).space.hyperparameters}
        seen = [(o.individual_id, o.status.value, o.losses, o.clock) for o in others]
        assert seen == [
            (1, "completed", [90.0, 80.0], 3),
            (2, "running", [float("inf")], None),
        ]

    def test_steps_are_a_clock_too(
        self, left: LeftBehind, told: list[tuple[Training, Sequence[Training]]]
    ) -> None:
        """An epoch has four steps here."""
        self.train(left, 1, epoch(1), epoch(2), fitness=None)
        for after, asked in (("9 steps", 0), ("8 steps", 1), ("5 steps", 2), ("3 epochs", 2)):
            self.judge(left, after=after).verdict(left.storage, 1)
            assert len(told) == asked

    def test_the_last_epoch_is_not_worth_a_question(
        self, left: LeftBehind, told: list[tuple[Training, Sequence[Training]]]
    ) -> None:
        self.train(left, 1, *(epoch(n) for n in range(1, 13)), fitness=None)
        assert self.judge(left).verdict(left.storage, 1) is None
        assert not told

    def test_epochs_that_are_searched_are_each_trainings_own(
        self, left: LeftBehind, told: list[tuple[Training, Sequence[Training]]]
    ) -> None:
        judge = self.judge(left, "space.epochs={low: 4, high: 30}")
        claim = left.claim(1)
        left.storage.add_epoch(claim.evaluation.id, record(epoch(1)))
        curves = left.storage.curves

        def with_epochs(*asked: Any) -> list[Any]:
            return [replace(curve, hyperparameters={"epochs": 7}) for curve in curves(*asked)]

        left.storage.curves = with_epochs  # type: ignore[method-assign]
        judge.verdict(left.storage, 1)
        ((judged, _),) = told
        assert judged.epochs == 7

    def test_with_several_aims_what_is_on_their_front_is_not_stopped(
        self, left: LeftBehind, told: list[tuple[Training, Sequence[Training]]]
    ) -> None:
        """Of what has come as far; an aim that no epoch tells does not count."""
        objectives = ["validation_top1", "trainable_percent * 2", "gpu_energy_j"]
        judge = self.judge(left, f"search.objectives={objectives}")
        shares = {"small": 1.0, "large": 20.0}
        for number in (1, 2):
            told_by = epoch(1, validation_top1=90.0, trainable_percent=5.0)
            self.train(left, number, told_by, fitness=float(number))
        for number, (share, asked) in enumerate(zip(shares.values(), (0, 1), strict=True), 3):
            bad = epoch(1, validation_top1=10.0, trainable_percent=share)
            self.train(left, number, bad, fitness=None)
            judge.verdict(left.storage, number)
            assert len(told) == asked
        assert told[0][0].aims == [[90.0], [40.0]]
        assert [other.individual_id for other in told[0][1]] == [1, 2, 3]

    def test_what_has_ended_is_read_once_and_so_many_at_most(
        self,
        left: LeftBehind,
        told: list[tuple[Training, Sequence[Training]]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(judging_module, "NEWEST", 3)
        monkeypatch.setattr(judging_module, "BEST", 1)
        for number in range(1, 9):
            self.train(left, number, epoch(1), fitness=float(number))
        judge, read, curves = self.judge(left), list[int](), left.storage.curves

        def counted(ids: Sequence[int], names: Sequence[str]) -> list[Any]:
            read.extend(ids)
            return curves(ids, names)

        left.storage.curves = counted  # type: ignore[method-assign]
        self.train(left, 9, epoch(1), fitness=None)
        judge.verdict(left.storage, 9)
        assert [other.individual_id for other in told[-1][1]] == [1, 6, 7, 8]
        assert read == [1, 6, 7, 8, 9]
        left.storage.add_epoch(9, record(epoch(2)))
        judge.verdict(left.storage, 9)
        assert read == [1, 6, 7, 8, 9, 9]
        assert told[-1][0].losses == [90.0, 80.0]
        left.storage.finish_evaluation(9, Outcome(status=Status.COMPLETED, fitness=9.0))
        self.train(left, 10, epoch(1), fitness=None)
        judge.verdict(left.storage, 10)
        assert read[6:] == [9, 10]
        assert [other.individual_id for other in told[-1][1]] == [1, 7, 8, 9]


class Telling(StoppingRule):
    """Keeps what it is told."""

    told: ClassVar[list[tuple[Training, Sequence[Training]]]] = []

    def reason_to_stop(self, training: Training, others: Sequence[Training]) -> str | None:
        self.told.append((training, others))
        return None


def record(told: Epoch) -> Any:
    from oialr_search.evaluation.files import epoch_records

    return epoch_records(told)[0]


def cut_in(told: Epoch) -> Epoch:
    return replace(told, rank_updates=[replace(CUT, step=told.step)])
