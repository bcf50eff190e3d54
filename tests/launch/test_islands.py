"""Who is where, and messages that never block and never get lost."""

from __future__ import annotations

from typing import Any

import pytest

from oialr_search.launch import islands
from oialr_search.launch.engines import Member
from oialr_search.launch.islands import Exchange, Place, Visitor

from .ranks import Comm, World


def place(world_rank: int, world_size: int, num_islands: int) -> Place:
    return Place(world_rank=world_rank, world_size=world_size, num_islands=num_islands)


def visitor(individual_id: int, island: int) -> Visitor:
    return Visitor(member=Member(individual_id=individual_id, genes={}, fitness=1.0), island=island)


@pytest.mark.parametrize(("ranks", "num_islands"), [(1, 1), (4, 2), (7, 3), (5, 5), (64, 6)])
def test_ranks_are_dealt_in_blocks_of_nearly_equal_size(ranks: int, num_islands: int) -> None:
    places = [place(rank, ranks, num_islands) for rank in range(ranks)]
    numbers = [p.island for p in places]
    assert numbers == sorted(numbers)
    sizes = [numbers.count(island) for island in range(num_islands)]
    assert max(sizes) - min(sizes) <= 1
    for p in places:
        assert p.ranks_of(p.island)[p.island_rank] == p.world_rank


def exchanged(
    monkeypatch: pytest.MonkeyPatch, size: int, num_islands: int, talk: Any, seed: int = 0
) -> list[list[Any]]:
    """What each rank has heard when all have parted."""
    world: World[list[Any]] = World(size, latency_s=1.0, seed=seed)
    world.replace(monkeypatch, islands)

    def run(comm: Comm) -> list[Any]:
        exchange = Exchange(comm, place(comm.rank, size, num_islands))  # type: ignore[arg-type]
        heard: list[Any] = []
        talk(exchange, comm.rank)
        exchange.finish(heard.append, meanwhile=lambda: None)
        return heard

    heard = world.run(run)
    assert world.mailboxes == [[]] * size
    return heard


@pytest.mark.parametrize("seed", range(20))
def test_nobody_parts_while_a_message_is_under_way(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    def talk(exchange: Exchange, rank: int) -> None:
        for number in range(3):
            exchange.tell_all(f"{rank}.{number}")

    heard = exchanged(monkeypatch, 4, 2, talk, seed)
    for rank, messages in enumerate(heard):
        others = [other for other in range(4) if other != rank]
        assert sorted(messages) == [f"{other}.{n}" for other in others for n in range(3)]
        for other in others:  # no message overtakes another
            of_one = [message for message in messages if message.startswith(f"{other}.")]
            assert of_one == sorted(of_one)


def test_peers_hear_of_all_and_other_islands_of_who_migrates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def talk(exchange: Exchange, rank: int) -> None:
        if rank == 0:
            exchange.tell_peers(visitor(1, 0))
            exchange.tell_peers(visitor(2, 0))
            exchange.migrate(visitor(2, 0))

    heard = exchanged(monkeypatch, 5, 2, talk)
    ids = [[message.member.individual_id for message in messages] for messages in heard]
    assert ids == [[], [1, 2], [1, 2], [2], [2]]


def test_the_same_individual_does_not_visit_twice_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def talk(exchange: Exchange, rank: int) -> None:
        if rank == 0:
            for number in (1, 1, 2, 2, 1):
                exchange.migrate(visitor(number, 0))

    heard = exchanged(monkeypatch, 2, 2, talk)
    assert [message.member.individual_id for message in heard[1]] == [1, 2, 1]


def test_rank_0_knows_who_is_idle_and_who_asks_for_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world: World[list[bool]] = World(3)
    world.replace(monkeypatch, islands)

    def run(comm: Comm) -> list[bool]:
        exchange = Exchange(comm, place(comm.rank, 3, 1))  # type: ignore[arg-type]
        known = []
        for idle, unreliable in ((True, False), (False, False), (True, True)):
            exchange.report(idle=idle, unreliable=unreliable)
            exchange.report(idle=idle, unreliable=unreliable)  # nothing new: not sent again
            islands.wait(comm)  # type: ignore[arg-type]
            assert exchange.receive() == []
            known += [exchange.all_idle(), exchange.all_unreliable()]
            islands.wait(comm)  # type: ignore[arg-type]
        return known

    assert world.run(run)[0] == [True, False, False, False, True, True]
