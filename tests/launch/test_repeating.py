"""Racing: who is measured again with another seed, and what a search makes of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oialr_search import exit_codes
from oialr_search.analysis.export import export
from oialr_search.launch.repeating import BEGINS_AT, Repeat, next_repeat, pooled_deviation, seed_of
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.repeats import RepeatSettings
from oialr_search.storage.records import IndividualRecord, Known, Status
from oialr_search.surrogate.individuals import Individuals
from oialr_training.protocol import Evaluate, Event, Prepare, Ready
from oialr_training.yaml_files import parse_yaml

from ..evaluation.scripted import Line, ScriptedWorker, Silence, completed, epoch, started
from .conftest import Launches, top1

LR = Hyperparameter(name="lr", kind="float", low=0.0, high=1.0)
RACING = RepeatSettings(seeds=3, share=0.5)


def known(
    individual_id: int, fitness: float | None, seeds: int = 1, deviation: float = 0.0
) -> Known:
    return Known(
        individual_id=individual_id,
        island=0,
        status=Status.RUNNING if fitness is None else Status.COMPLETED,
        genes={"lr": 0.5},
        fitness=fitness,
        num_seeds=seeds,
        fitness_deviation=deviation if seeds > 1 else None,
    )


def repeat(individual_id: int, of: int, fitness: float | None = None) -> Known:
    return replace(known(individual_id, fitness), repeat_of=of)


def others(number: int = 20, fitness: float = 9.0) -> list[Known]:
    return [known(n, fitness + n) for n in range(100, 100 + number)]


def chosen(*told: Known, settings: RepeatSettings = RACING) -> Repeat | None:
    return next_repeat(Individuals((LR,), told), settings)


class TestTheRule:
    def test_the_leader_first_then_who_may_still_pass_it(self) -> None:
        leader, near, far = known(1, 1.0), known(2, 1.2), known(3, 3.0)
        assert chosen(leader, near, far, *others()) == Repeat(individual_id=1, number=1)
        runs = repeat(201, of=1)
        assert chosen(leader, near, far, *others(), runs) == Repeat(individual_id=1, number=2)
        measured = known(1, 1.0, seeds=3, deviation=0.3)
        done = [repeat(201, 1, 1.3), repeat(202, 1, 0.7)]
        told = [measured, near, far, *others(), *done]
        assert chosen(*told) == Repeat(individual_id=2, number=1)
        told[1] = known(2, 1.29)
        assert chosen(*told) == Repeat(individual_id=2, number=1)
        told[1] = known(2, 1.31)
        assert chosen(*told) is None

    def test_a_mean_over_more_seeds_is_surer(self) -> None:
        leader = [known(1, 1.0, 3, 0.3), repeat(201, 1, 1.0), repeat(202, 1, 1.0)]
        second = [known(2, 1.25, 2, 0.3), repeat(203, 2, 1.0)]
        assert chosen(*leader, *second, *others()) is None
        assert chosen(*leader, known(2, 1.25), *others()) == Repeat(individual_id=2, number=1)

    def test_nobody_has_more_seeds_than_there_are_to_be(self) -> None:
        """Those that run or failed count: a seed that failed is not tried again and again."""
        leader = [known(1, 1.0), repeat(201, 1), replace(repeat(202, 1), status=Status.FAILED)]
        assert chosen(*leader, *others()) is None

    def test_at_most_a_share_of_all(self) -> None:
        settings = RepeatSettings(seeds=9, share=0.2)
        told = [known(1, 1.0), *others(19)]
        given = []
        for number in range(201, 220):
            if chosen(*told, *given, settings=settings) is None:
                break
            given.append(repeat(number, of=1))
        assert len(given) == 5  # of 25

    def test_not_before_there_is_a_leader_worth_the_name(self) -> None:
        told = [known(n, float(n)) for n in range(1, BEGINS_AT)]
        assert chosen(*told) is None
        assert chosen(*told, known(50, None)) is None
        assert chosen(*told, known(50, 50.0)) == Repeat(individual_id=1, number=1)
        ranks = next_repeat(Individuals((LR,), [*told, known(50, 50.0)]), RACING, num_ranks=32)
        assert ranks is None

    def test_the_deviation_is_pooled(self) -> None:
        told = [known(1, 1.0), known(2, 1.0, 2, 0.1), known(3, 1.0, 3, 0.4), known(4, None)]
        expected = ((0.1**2 + 2 * 0.4**2) / 3) ** 0.5
        assert pooled_deviation(Individuals((LR,), told)) == pytest.approx(expected)
        assert pooled_deviation(Individuals((LR,), told[:1])) == 0.0


def test_a_mean_is_taken_in_anew_in_whichever_order_it_came() -> None:
    individuals = Individuals((LR,), [known(2, 5.0), known(1, 1.0), repeat(3, of=1)])
    assert len(individuals) == 2
    individuals.take([repeat(3, 1, 3.0), known(1, 2.0, 2, 1.4), repeat(4, of=2)])
    assert individuals.ids.tolist() == [1, 2]
    assert individuals.fitness.tolist() == [2.0, 5.0]
    assert individuals.num_seeds.tolist() == [2, 1]
    assert individuals.num_repeats.tolist() == [1, 1]
    assert np.isnan(individuals.deviation).tolist() == [False, True]


def test_seeds_are_the_same_each_time_and_of_all_kinds() -> None:
    seeds = {seed_of(first, number) for first in (0, 42) for number in range(1, 50)}
    assert len(seeds) == 98
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert seed_of(42, 1) == seed_of(42, 1)


def noisily(worker: ScriptedWorker) -> Event:
    """Another seed, another result."""
    (evaluate,) = (message for message in worker.sent if isinstance(message, Evaluate))
    return completed(top1(evaluate) - evaluate.config["seed"] % 11)


def noisy(world_rank: int) -> Iterator[Sequence[Line]]:
    while True:
        yield [Prepare, Ready(), Evaluate, started(), epoch(1), Silence(0.5), epoch(2), noisily]


def individuals_of(launches: Launches) -> list[IndividualRecord]:
    storage, search = launches.stored()
    with storage:
        return storage.individuals(search.id)


@pytest.mark.parametrize("engine", ["propulate", "screened"])
def test_a_search_measures_its_best_again(
    launches: Launches, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three ranks on two islands: no seed twice, no more than a share, the mean where it counts."""
    settings = RepeatSettings(seeds=4, share=0.25)
    code = launches(3, noisy, evaluations=40, islands=2, engine=engine, repeats=settings)
    assert code == exit_codes.FINISHED
    found = individuals_of(launches)
    assert len(found) == 40
    firsts = {i.id: i for i in found if i.repeat_of is None}
    repeats = [i for i in found if i.repeat_of is not None]
    assert 4 <= len(repeats) <= 10
    assert {i.origin for i in repeats} == {"repeat"}
    assert len({(i.repeat_of, i.seed) for i in repeats}) == len(repeats)
    for first in firsts.values():
        own = [i for i in repeats if i.repeat_of == first.id]
        assert len(own) < settings.seeds
        assert first.evaluation is not None
        values = [first.evaluation.fitness or 0.0, *(i.fitness or 0.0 for i in own)]
        assert first.num_seeds == len(values)
        assert first.fitness == pytest.approx(statistics.fmean(values))
        for each in own:
            assert each.hyperparameters == first.hyperparameters
            assert each.seed in [seed_of(first.evaluation.seed, n) for n in (1, 2, 3)]
            assert not any(each.id in i.parents for i in found)
    best = min(firsts.values(), key=lambda i: i.fitness or 0.0)
    assert best.num_seeds > 1
    storage, search = launches.stored()
    with storage:
        assert storage.progress(search.id).best_individual_id == best.id
        exported = parse_yaml(export(storage, search, repeats[0]), "exported")
        assert exported["seed"] == exported["provenance"]["training_seed"] == repeats[0].seed
        exported = parse_yaml(export(storage, search, best), "exported")
        assert exported["provenance"]["seeds"] == best.num_seeds
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "  repeats " in line]
    assert len(told) == len(repeats)
    assert not any("best so far" in line for line in told)


@pytest.mark.parametrize("engine", ["propulate", "screened"])
def test_a_killed_and_resumed_search_measures_the_same_again(
    launches: Launches, tmp_path: Path, engine: str
) -> None:
    """On one rank to the digit, also where the one that repeats is lost, or the mean is new."""
    proposed = []
    settings = {"evaluations": 40, "islands": 1, "engine": engine, "population_size": 5}
    settings["repeats"] = RepeatSettings(seeds=3, share=0.3)
    for kills in ((), (7.8, 4.3, 2.9)):
        launches.move_to(tmp_path / f"killed {len(kills)} times")
        for after_s in kills:
            kill = {after_s: lambda: launches.stops[0].request(at_once=True)}
            assert launches(1, noisy, at=kill, **settings) == exit_codes.STOPPED
        assert launches(1, noisy, **settings) == exit_codes.FINISHED
        found = individuals_of(launches)
        assert sum(i.repeat_of is not None for i in found) > 5
        proposed.append([(i.genes, i.parents, i.repeat_of, i.seed, i.fitness) for i in found])
    assert proposed[0] == proposed[1]
