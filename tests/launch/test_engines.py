"""The contract that every engine keeps, and what each proposes."""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from oialr_search.launch.engines import (
    Engine,
    Knowledge,
    Member,
    Offspring,
    engine_for,
    random_numbers,
)
from oialr_search.launch.population import ParetoPopulation, Population
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.search_file import ENGINES, OF_ONE_OBJECTIVE, SearchSettings, load_search
from oialr_search.storage.records import Known, Status
from oialr_search.surrogate.individuals import Individuals
from oialr_training.errors import ConfigError

from ..conftest import AUTOFORMER, CIFAR10, DIGITS

HYPERPARAMETERS = (
    Hyperparameter(name="optimizer.lr", kind="float", low=1e-4, high=1e-2, scale="log"),
    Hyperparameter(name="oialr.cutoff_fraction", kind="float", low=0.0, high=1.0),
    Hyperparameter(name="oialr.delay_steps", kind="int", low=0, high=20),
    Hyperparameter(name="model.attention", kind="choice", choices=("fused", "apart")),
)
NAMES = tuple(h.name for h in HYPERPARAMETERS)
SLOW = {"gp": pytest.mark.slow}
ALL_ENGINES = [pytest.param(name, marks=SLOW.get(name, ())) for name in ENGINES]


class BestAgain(Engine):
    """An engine as somebody else writes one: the best of all islands, moved a little."""

    needs_all_individuals = True

    def propose(self, knowledge: Knowledge, random_numbers: random.Random) -> Offspring:
        known = knowledge.individuals
        if not np.isfinite(known.fitness).any():
            return Offspring(genes={h.name: random_numbers.random() for h in self.hyperparameters})
        best = np.nanargmin(known.fitness)
        genes = dict(zip(NAMES, known.genes[best].tolist(), strict=True))
        moved = random_numbers.choice(NAMES)
        genes[moved] = (genes[moved] + random_numbers.random()) % 1.0
        return Offspring(genes=genes, parents=(int(known.ids[best]),), origin="moved")


@pytest.fixture(autouse=True)
def another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "best again", f"{__name__}:BestAgain")


def settings(engine: str = "propulate", **changes: Any) -> SearchSettings:
    return SearchSettings(
        name="x", metric="validation_loss", evaluations=1, islands=2, engine=engine, **changes
    )


def make(
    engine: str = "propulate",
    hyperparameters: Sequence[Hyperparameter] = HYPERPARAMETERS,
    **changes: Any,
) -> Engine:
    return engine_for(hyperparameters, settings(engine, **changes))


def knowledge_of(individuals: Sequence[Known], size: int = 6) -> Knowledge:
    """What island 0 knows, these individuals taken in in their order."""
    several = any(known.objectives for known in individuals)
    population = ParetoPopulation(size) if several else Population(size)
    for known in individuals:
        if known.fitness is not None and known.island == 0:
            population.add(
                Member(
                    individual_id=known.individual_id,
                    genes=dict(known.genes),
                    fitness=known.fitness,
                    violation=known.violation,
                    objectives=tuple(known.objectives),
                )
            )
    return Knowledge(
        island=0,
        population=population.members,
        population_size=size,
        individuals=Individuals(HYPERPARAMETERS, individuals),
        number=len(individuals),
    )


def individuals(number: int) -> list[Known]:
    """Of two islands; every other completed, the others failed or run or wait, some alike."""
    draw = random.Random(number)
    others = (Status.RUNNING, Status.FAILED, Status.TIMED_OUT, Status.PRUNED, Status.LOST)
    return [
        Known(
            individual_id=n,
            island=n // 2 % 2,
            status=Status.COMPLETED if n % 2 else others[n // 2 % len(others)],
            genes={name: draw.choice((0.0, draw.random(), 1.0)) for name in NAMES},
            fitness=float(draw.randrange(5)) if n % 2 else None,
        )
        for n in range(1, number + 1)
    ]


def aimed(number: int, *, objectives: int = 0, met: bool = True) -> list[Known]:
    """The same with constraints, of which hardly anyone meets all unless `met`."""
    draw = random.Random(number)
    found = []
    for known in individuals(number):
        if known.fitness is not None:
            others = [float(draw.randrange(3)) for _ in range(objectives - 1)]
            excesses = [draw.uniform(-1.0, 1.0 if met else 0.1) + (not met) for _ in range(2)]
            known = replace(
                known,
                objectives=[known.fitness, *others] if objectives else [],
                constraints=excesses,
                violation=sum(max(excess, 0.0) for excess in excesses),
                cost_s=draw.lognormvariate(0.0, 1.0),
            )
        found.append(known)
    return found


KNOWN: dict[str, Callable[[], list[Known]]] = {
    "nothing": list,
    "one": lambda: individuals(1),
    "much": lambda: individuals(60),
    "only running": lambda: [
        replace(k, status=Status.RUNNING, fitness=None) for k in individuals(9)
    ],
    "only failed": lambda: [replace(k, status=Status.FAILED, fitness=None) for k in individuals(9)],
    "all the same": lambda: [
        replace(k, genes=dict.fromkeys(NAMES, 0.5), fitness=1.0, status=Status.COMPLETED)
        for k in individuals(30)
    ],
}


AIMED: dict[str, Callable[[], list[Known]]] = {
    "constraints": lambda: aimed(60),
    "constraints that nobody meets": lambda: aimed(60, met=False),
    "more than the model takes": lambda: aimed(260),
    "two objectives": lambda: aimed(60, objectives=2),
    "three objectives": lambda: aimed(60, objectives=3),
    "many of two objectives": lambda: aimed(260, objectives=2),
    "two objectives, nobody here": lambda: [
        replace(known, island=1) for known in aimed(60, objectives=2)
    ],
}


KNOWS_SEVERAL = [
    *(
        pytest.param(*e.values, False, marks=e.marks)
        for e in ALL_ENGINES
        if e.values[0] not in OF_ONE_OBJECTIVE
    ),
    ("best again", False),
    ("screened", True),
]


@pytest.mark.parametrize(("engine", "cost_aware"), KNOWS_SEVERAL)
@pytest.mark.parametrize("known", AIMED)
def test_with_several_aims_the_contract_is_the_same(
    engine: str, known: str, cost_aware: bool
) -> None:
    told = AIMED[known]()
    width = max(len(k.objectives) for k in told)
    changes = {"objectives": list("abc"[:width]) if width else None, "cost_aware": cost_aware}
    knowledge = knowledge_of(told)
    random.Random(1).shuffle(told)
    otherwise = replace(
        knowledge_of(told, len(knowledge.population)), population_size=knowledge.population_size
    )
    assert otherwise.population == knowledge.population
    for number in range(8):
        proposals = [
            make(engine, **changes).propose(knows, random.Random(number))
            for knows in (knowledge, otherwise)
        ]
        assert proposals[0] == proposals[1]
        assert list(proposals[0].genes) == list(NAMES)
        assert all(0.0 <= gene <= 1.0 for gene in proposals[0].genes.values())


@pytest.mark.parametrize("engine", [*ALL_ENGINES, "best again"])
class TestContract:
    """What an engine promises, whichever it is."""

    @pytest.mark.parametrize("known", KNOWN)
    def test_it_proposes_within_the_unit_cube(self, engine: str, known: str) -> None:
        told = KNOWN[known]()
        for number in range(20):
            offspring = make(engine).propose(knowledge_of(told), random.Random(number))
            assert list(offspring.genes) == list(NAMES)
            assert all(type(gene) is float for gene in offspring.genes.values())
            assert all(0.0 <= gene <= 1.0 for gene in offspring.genes.values())
            assert set(offspring.parents) <= {k.individual_id for k in told}
            assert offspring.origin

    def test_the_same_knowledge_and_numbers_give_the_same_proposal(self, engine: str) -> None:
        """Whatever the engine has proposed before, and in whichever order it came to know."""
        told = individuals(60)
        used = make(engine)
        for number in range(20):
            random.Random(number).shuffle(told)
            used.propose(knowledge_of(individuals(number)), random.Random(number + 1))
            proposals = [
                someone.propose(knowledge_of(order), random.Random(number))
                for someone in (used, make(engine))
                for order in (told, individuals(60))
            ]
            assert proposals == proposals[:1] * 4

    def test_other_numbers_give_another_proposal(self, engine: str) -> None:
        knowledge = knowledge_of(individuals(60))
        proposals = [
            make(engine).propose(replace(knowledge, number=n), random.Random(n)) for n in range(20)
        ]
        assert len({tuple(proposal.genes.values()) for proposal in proposals}) > 10

    def test_it_leaves_all_other_random_numbers_and_what_it_knows_alone(self, engine: str) -> None:
        told, before = knowledge_of(individuals(60)), random.getstate()
        make(engine).propose(told, random.Random(1))
        assert random.getstate() == before
        again = knowledge_of(individuals(60))
        assert told.population == again.population
        assert np.array_equal(told.individuals.genes, again.individuals.genes)
        assert np.array_equal(told.individuals.fitness, again.individuals.fitness, equal_nan=True)


def test_an_engine_is_imported_where_it_is_chosen() -> None:
    code = (
        "import sys; from oialr_search.launch.engines import engine_for;"
        "from oialr_search.space.search_file import SearchSettings;"
        "s = SearchSettings(name='x', metric='m', evaluations=1, islands=1, engine='random');"
        "engine_for((), s); print('propulate' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_the_search_file_names_the_engine() -> None:
    assert load_search(DIGITS).search.engine == "screened"
    assert (
        load_search(CIFAR10).search.engine == load_search(AUTOFORMER).search.engine == "propulate"
    )
    assert load_search(DIGITS, ["search.engine=random"]).search.engine == "random"
    with pytest.raises(ConfigError) as error:
        load_search(DIGITS, ["search.engine=propulat"])
    assert str(error.value) == (
        f"unknown engine 'propulat' for `search.engine`; did you mean `propulate`? ({DIGITS})"
    )


def test_settings_of_propulate_are_said_to_have_no_effect_without_it() -> None:
    changed = ["search.mutation_sigma=0.1", "search.migration_probability=0.5"]
    assert load_search(DIGITS, changed).without_effect == {"mutation_sigma": "propulate"}
    assert load_search(CIFAR10, changed).without_effect == {}
    one = [*changed, "search.engines=[screened, propulate]"]
    assert load_search(DIGITS, one).without_effect == {}
    assert load_search(DIGITS).without_effect == {}


def test_an_island_may_have_an_engine_of_its_own() -> None:
    search = load_search(DIGITS, ["search.engines=[screened, random]"]).search
    engines = [type(engine_for((), search, island)).__name__ for island in (0, 1)]
    assert engines == ["ScreenedEngine", "RandomSearch"]
    with pytest.raises(ConfigError) as error:
        load_search(DIGITS, ["search.engines=[screened, randem]"])
    assert str(error.value) == (
        f"unknown engine 'randem' for `search.engines`; did you mean `random`? ({DIGITS})"
    )
    with pytest.raises(ConfigError) as error:
        load_search(DIGITS, ["search.engines=[random, random, random]"])
    assert str(error.value) == (
        f"`search.engines` names one for each of `search.islands` = 2, got 3 ({DIGITS})"
    )


def sphere(genes: dict[str, float]) -> float:
    return sum((gene - 0.3) ** 2 for gene in genes.values())


def evolve(
    engine: Engine, evaluations: int, size: int, numbers: Callable[[int], random.Random]
) -> list[Offspring]:
    """The proposals of one rank that evaluates the sphere."""
    population, proposals = Population(size), []
    for number in range(evaluations):
        knowledge = Knowledge(island=0, population=population.members, population_size=size)
        offspring = engine.propose(knowledge, numbers(number))
        fitness = sphere(offspring.genes)
        population.add(Member(individual_id=number + 1, genes=offspring.genes, fitness=fitness))
        proposals.append(offspring)
    return proposals


def test_propulate_proposes_what_it_always_did() -> None:
    """Recorded before engines could be chosen; a stored search must go on as it would have."""
    proposals = evolve(
        make("propulate", HYPERPARAMETERS[:3]),
        200,
        4,
        lambda number: random_numbers(7, 1, 2, number, "breeding"),
    )
    assert [vars(proposals[n]) for n in (0, 4, 199)] == [
        {
            "genes": {
                "optimizer.lr": 0.1823518427176808,
                "oialr.cutoff_fraction": 0.3468787016250475,
                "oialr.delay_steps": 0.6466863107584996,
            },
            "parents": (),
            "origin": "random",
        },
        {
            "genes": {
                "optimizer.lr": 0.5071328648825527,
                "oialr.cutoff_fraction": 0.3468787016250475,
                "oialr.delay_steps": 0.6466863107584996,
            },
            "parents": (1, 2),
            "origin": "bred",
        },
        {
            "genes": {
                "optimizer.lr": 0.7921538845877567,
                "oialr.cutoff_fraction": 0.29648144251202496,
                "oialr.delay_steps": 0.3018596872644686,
            },
            "parents": (196, 185),
            "origin": "bred",
        },
    ]
    told = json.dumps([[p.genes, p.parents, p.origin] for p in proposals])
    assert hashlib.sha256(told.encode()).hexdigest() == (
        "b48d3f92f5a7c4ef7558e8958e6f154c2a250104ff02cc0fa6c9a8c7d999c9e5"
    )


class TestPropulate:
    """Propulate's operators."""

    @staticmethod
    def evolved(seed: int, evaluations: int, **changes: float) -> list[Offspring]:
        return evolve(
            make("propulate", HYPERPARAMETERS[:3], **changes),
            evaluations,
            6,
            lambda number: random_numbers(seed, 0, 0, number, "breeding"),
        )

    @staticmethod
    def children(
        parents: Sequence[dict[str, float]], number: int, **changes: float
    ) -> list[Offspring]:
        """Of parents numbered from 1, the fittest first."""
        population = [
            Member(individual_id=n, genes=genes, fitness=float(n))
            for n, genes in enumerate(parents, start=1)
        ]
        knowledge = Knowledge(island=0, population=population, population_size=len(parents))
        unchanged = {"mutation_probability": 0.0, "random_init_probability": 0.0}
        engine = make("propulate", HYPERPARAMETERS[:3], **unchanged, **changes)
        return [engine.propose(knowledge, random.Random(n)) for n in range(number)]

    def test_it_finds_a_minimum_that_random_search_does_not(self) -> None:
        def median(**changes: float) -> float:
            searches = [self.evolved(seed, 150, **changes) for seed in range(8)]
            return statistics.median(min(sphere(o.genes) for o in search) for search in searches)

        assert median() < 0.3 * median(random_init_probability=1.0)

    def test_individuals_are_random_until_the_population_is_full(self) -> None:
        origins = [offspring.origin for offspring in self.evolved(1, 40)]
        assert origins[:6] == ["random"] * 6
        assert origins[6:].count("bred") > 25

    def test_random_initialisation_has_its_probability(self) -> None:
        evolved = self.evolved(1, 400, random_init_probability=0.25)[6:]
        assert 0.17 < sum(o.origin == "random" for o in evolved) / len(evolved) < 0.33

    def test_without_crossover_and_redrawing_a_child_is_one_parent_moved_in_one_gene(self) -> None:
        parents = [dict.fromkeys(NAMES[:3], gene) for gene in (0.2, 0.7)]
        for child in self.children(parents, 50, crossover_probability=0.0):
            assert set(child.parents) == {1, 2}
            first = parents[child.parents[0] - 1]
            assert sum(child.genes[name] != first[name] for name in child.genes) == 1

    def test_crossover_takes_from_both_parents(self) -> None:
        parents = [dict.fromkeys(NAMES[:3], gene) for gene in (0.1, 0.9)]
        children = self.children(parents, 200, crossover_probability=1.0)
        low = sum(gene < 0.5 for child in children for gene in child.genes.values())
        assert 0.42 < low / (200 * 3) < 0.58


def test_no_two_proposals_share_their_random_numbers() -> None:
    purposes = ("breeding", "migration")
    places = [
        (s, i, r, g, p)
        for s in (0, 1)
        for i in (0, 1)
        for r in (0, 1)
        for g in (0, 11)
        for p in purposes
    ]
    assert len({random_numbers(*place).random() for place in places}) == len(places)
    first, again = (random_numbers(0, 1, 2, 3, "breeding").random() for _ in range(2))
    assert first == again
