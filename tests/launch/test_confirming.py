"""The end of a search: its best are measured with further seeds."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from oialr_search import exit_codes
from oialr_search.analysis.status import status
from oialr_search.space.repeats import ConfirmSettings, RepeatSettings
from oialr_search.storage.records import IndividualRecord, Status
from oialr_training.protocol import Evaluate

from .conftest import Launches
from .test_repeating import individuals_of, noisy

CONFIRM = ConfirmSettings(top=3, seeds=2)
SEARCH: dict[str, Any] = {"evaluations": 14, "islands": 1, "engine": "random", "confirm": CONFIRM}


def parted(launches: Launches) -> tuple[list[IndividualRecord], list[IndividualRecord]]:
    """Those of the search itself, and those that confirm."""
    found = individuals_of(launches)
    confirmations = [i for i in found if i.origin == "confirm"]
    return [i for i in found if i.origin != "confirm"], confirmations


def own_fitness(individual: IndividualRecord) -> float:
    assert individual.evaluation is not None
    return individual.evaluation.fitness or 0.0


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_best_are_measured_with_further_seeds_beyond_the_evaluations(
    launches: Launches, ranks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launches(ranks, noisy, **SEARCH) == exit_codes.FINISHED
    bred, confirmations = parted(launches)
    assert len(bred) == 14
    best = sorted(bred, key=own_fitness)[:3]
    assert Counter(i.repeat_of for i in confirmations) == {i.id: 2 for i in best}
    assert len({i.seed for i in confirmations}) > 1
    for first in best:
        values = [own_fitness(i) for i in confirmations if i.repeat_of == first.id]
        assert first.fitness == pytest.approx(statistics.fmean([own_fitness(first), *values]))
        assert first.num_seeds == 3
    assert len({i.evaluation and i.evaluation.world_rank for i in confirmations}) == ranks
    storage, search = launches.stored()
    with storage:
        told = status(storage, search)
    assert told["confirming"] == {"ended": 6, "of": 6}
    assert (told["expected"], told["begun"], told["remaining"]) == (20, 20, 0)
    lines = capsys.readouterr().out.splitlines()
    assert "confirming the best 3 with 6 trainings" in lines
    assert sum(f"  confirms {best[0].id}" in line for line in lines) == 2
    assert any(line.split()[1] == "[20/20]" for line in lines)

    assert launches(ranks, noisy, **SEARCH) == exit_codes.FINISHED
    assert capsys.readouterr().out == (
        "search 'minivit_digits' is complete: 20 evaluations are stored\n"
    )


def test_a_launch_that_is_killed_meanwhile_is_gone_on_with(
    launches: Launches, tmp_path: Path
) -> None:
    found = []
    for kills in ((), (8.3, 2.3)):
        launches.move_to(tmp_path / f"killed {len(kills)} times")
        for after_s in kills:
            kill = {after_s: lambda: launches.stops[0].request(at_once=True)}
            assert launches(1, noisy, at=kill, **SEARCH) == exit_codes.STOPPED
        if kills:
            storage, search = launches.stored()
            with storage:
                assert status(storage, search)["confirming"]["of"] == 6
                assert 0 < status(storage, search)["confirming"]["ended"] < 6
        assert launches(1, noisy, **SEARCH) == exit_codes.FINISHED
        found.append([(i.genes, i.repeat_of, i.seed, i.fitness) for i in individuals_of(launches)])
    assert found[0] == found[1]


def test_it_can_be_asked_for_later_and_for_more(launches: Launches) -> None:
    assert launches(1, noisy, **SEARCH | {"confirm": None}) == exit_codes.FINISHED
    assert parted(launches)[1] == []
    assert launches(2, noisy, **SEARCH) == exit_codes.FINISHED
    first = {i.id for i in parted(launches)[1]}
    assert len(first) == 6
    more = ConfirmSettings(top=4, seeds=3)
    assert launches(2, noisy, **SEARCH | {"confirm": more}) == exit_codes.FINISHED
    _, confirmations = parted(launches)
    assert sorted(Counter(i.repeat_of for i in confirmations).values()) == [3, 3, 3, 3]
    assert len({(i.repeat_of, i.seed) for i in confirmations}) == 12


def test_evaluations_that_are_added_are_confirmed_too(launches: Launches) -> None:
    """What confirmed the best of fewer takes none of their places."""
    assert launches(2, noisy, **SEARCH) == exit_codes.FINISHED
    assert launches(2, noisy, **SEARCH | {"evaluations": 20}) == exit_codes.FINISHED
    bred, confirmations = parted(launches)
    assert (len(bred), len(confirmations)) == (20, 12)
    storage, search = launches.stored()
    with storage:
        assert len(storage.confirmations(search.id)) == 6
        assert storage.progress(search.id).expected == 32


def test_beside_racing(launches: Launches) -> None:
    racing = {"evaluations": 40, "repeats": RepeatSettings(seeds=3, share=0.2)}
    assert launches(2, noisy, **SEARCH | racing) == exit_codes.FINISHED
    bred, confirmations = parted(launches)
    assert len(bred) == 40
    repeats = [i for i in bred if i.origin == "repeat"]
    assert repeats
    pairs = [(i.repeat_of, i.seed) for i in [*repeats, *confirmations]]
    assert len(set(pairs)) == len(pairs)


def test_where_nothing_completes_there_is_nothing_to_confirm(launches: Launches) -> None:
    from oialr_training.protocol import Failed, Prepare, Ready

    def fails(world_rank: int):  # type: ignore[no-untyped-def]
        while True:
            yield [Prepare, Ready(), Evaluate, Failed(reason="no", at=0.0, cause="training")]

    assert launches(1, fails, **SEARCH | {"evaluations": 3}) == exit_codes.FINISHED
    found = individuals_of(launches)
    assert [i.status for i in found] == [Status.FAILED] * 3


@pytest.mark.parametrize("on", ["validation", "test"])
def test_only_who_confirms_on_test_data_sees_them(launches: Launches, on: str) -> None:
    asked = ConfirmSettings.model_validate({"top": 1, "seeds": 2, "on": on})
    launches(1, noisy, **SEARCH | {"evaluations": 3, "confirm": asked})
    requests = [
        message.evaluate_test
        for workers in launches.workers
        for worker in workers.started
        for message in worker.sent
        if isinstance(message, Evaluate)
    ]
    assert requests == [False] * 3 + [on == "test"] * 2
