"""Propulate's operators on one island."""

from __future__ import annotations

import random
import statistics

from hypothesis import given
from hypothesis import strategies as st

from oialr_search.launch.engines.propulate import Member, Population, random_numbers
from oialr_search.space.search_file import SearchSettings

NAMES = ("optimizer.lr", "oialr.cutoff_fraction", "oialr.delay_steps")


def population(size: int = 6, **changes: float) -> Population:
    settings = SearchSettings(
        name="x", metric="validation_loss", evaluations=1, islands=1, **changes
    )
    return Population(NAMES, settings, size)


def sphere(genes: dict[str, float]) -> float:
    return sum((gene - 0.3) ** 2 for gene in genes.values())


def evolve(seed: int, evaluations: int, **changes: float) -> tuple[float, list[str]]:
    island = population(**changes)
    origins, best = [], 1e9
    for number in range(evaluations):
        offspring = island.breed(random_numbers(seed, 0, 0, number, "breeding"))
        assert all(0.0 <= gene <= 1.0 for gene in offspring.genes.values())
        fitness = sphere(offspring.genes)
        island.add(Member(individual_id=number + 1, genes=offspring.genes, fitness=fitness))
        origins.append(offspring.origin)
        best = min(best, fitness)
    return best, origins


def test_it_finds_a_minimum_that_random_search_does_not() -> None:
    bred = [evolve(seed, 150)[0] for seed in range(8)]
    drawn = [evolve(seed, 150, random_init_probability=1.0)[0] for seed in range(8)]
    assert statistics.median(bred) < 0.3 * statistics.median(drawn)


def test_individuals_are_random_until_the_population_is_full() -> None:
    _, origins = evolve(1, 40)
    assert origins[:6] == ["random"] * 6
    assert origins[6:].count("bred") > 25


def test_random_initialisation_has_its_probability() -> None:
    _, origins = evolve(1, 400, random_init_probability=0.25)
    assert 0.17 < origins[6:].count("random") / 394 < 0.33


def test_without_crossover_and_redrawing_a_child_is_one_parent_moved_in_one_gene() -> None:
    island = population(
        2, crossover_probability=0.0, mutation_probability=0.0, random_init_probability=0.0
    )
    parents = {
        1: dict.fromkeys(NAMES, 0.2),
        2: dict.fromkeys(NAMES, 0.7),
    }
    for number, genes in parents.items():
        island.add(Member(individual_id=number, genes=genes, fitness=float(number)))
    for n in range(50):
        child = island.breed(random.Random(n))
        assert set(child.parents) == {1, 2}
        first = parents[child.parents[0]]
        assert sum(child.genes[name] != first[name] for name in NAMES) == 1


def test_crossover_takes_from_both_parents() -> None:
    island = population(
        2, crossover_probability=1.0, mutation_probability=0.0, random_init_probability=0.0
    )
    for number, gene in ((1, 0.1), (2, 0.9)):
        genes = dict.fromkeys(NAMES, gene)
        island.add(Member(individual_id=number, genes=genes, fitness=0.0))
    children = [island.breed(random.Random(n)).genes for n in range(200)]
    low = sum(gene < 0.5 for genes in children for gene in genes.values())
    assert 0.42 < low / (200 * len(NAMES)) < 0.58


def test_a_known_individual_is_not_taken_in_again() -> None:
    island = population()
    member = Member(individual_id=7, genes=dict.fromkeys(NAMES, 0.5), fitness=1.0)
    assert island.add(member)
    assert not island.add(member)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5)), unique_by=lambda pair: pair[0]),
    st.randoms(use_true_random=False),
    st.integers(2, 6),
)
def test_who_was_crowded_out_never_comes_back(
    individuals: list[tuple[int, int]], order: random.Random, size: int
) -> None:
    """However often it visits; the fittest stay, of equals those with the lower number."""
    members = [
        Member(individual_id=number, genes=dict.fromkeys(NAMES, 0.5), fitness=float(fitness))
        for number, fitness in individuals
    ]
    island = population(size)
    taken_in: set[int] = set()
    for member in order.choices(members, k=4 * len(members)) if members else []:
        if island.add(member):
            assert member.individual_id not in taken_in
            taken_in.add(member.individual_id)
    for member in members:
        if island.add(member):
            assert member.individual_id not in taken_in
    best = sorted(members, key=lambda m: (m.fitness, m.individual_id))[:size]
    assert island._members == best


def test_only_the_best_breed() -> None:
    island = population(2, random_init_probability=0.0)
    for number in range(20):
        genes = dict.fromkeys(NAMES, 0.5)
        island.add(Member(individual_id=number, genes=genes, fitness=float(-number)))
    assert {p for n in range(20) for p in island.breed(random.Random(n)).parents} == {18, 19}
    best = island.best()
    assert best is not None
    assert best.individual_id == 19


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
