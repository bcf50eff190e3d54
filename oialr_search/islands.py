"""Ranks and islands: who is where, and the messages between them.

Propulate's island model with messages that never block: an evaluated individual goes to all ranks
of its island, the best of an island visits all others and stays at home too (pollination).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

from oialr_search.evolution import Member

POLL_S = 0.02
STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank stands: ranks are dealt to islands in blocks of nearly equal size."""

    world_rank: int
    world_size: int
    num_islands: int

    @property
    def island(self) -> int:
        """Island of this rank."""
        return self.island_of(self.world_rank)

    @property
    def island_rank(self) -> int:
        """Number of this rank on its island."""
        return self.ranks_of(self.island).index(self.world_rank)

    def island_of(self, world_rank: int) -> int:
        """Island of any rank."""
        return world_rank * self.num_islands // self.world_size

    def ranks_of(self, island: int) -> list[int]:
        """World ranks of an island."""
        return [r for r in range(self.world_size) if self.island_of(r) == island]


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """A message between ranks: an evaluated individual, from a peer or another island."""

    member: Member
    island: int


class Exchange:
    """Messages between ranks that never block: a rank waits for its worker, not for others."""

    def __init__(self, comm: MPI.Comm, place: Place) -> None:
        self._comm = comm
        self._place = place
        self._sent: list[MPI.Request] = []
        self._visited: set[tuple[int, int]] = set()

    def tell_peers(self, visitor: Visitor) -> None:
        """Send an evaluated individual to the other ranks of its island."""
        self._send(visitor, self._place.ranks_of(self._place.island))

    def migrate(self, visitor: Visitor) -> None:
        """Send an individual to all ranks of all other islands, to each island once."""
        for island in range(self._place.num_islands):
            key = (visitor.member.individual_id, island)
            if island != self._place.island and key not in self._visited:
                self._visited.add(key)
                self._send(visitor, self._place.ranks_of(island))

    def tell_all_to_stop(self) -> None:
        """Ask every other rank to stop."""
        self._send(STOP, range(self._place.world_size))

    def receive(self) -> list[Any]:
        """All messages that have arrived."""
        arrived = []
        while (message := self._comm.improbe()) is not None:
            arrived.append(message.recv())
        self._sent = [request for request in self._sent if not request.Test()]
        return arrived

    def finish(self, on_message: Callable[[Any], None], meanwhile: Callable[[], None]) -> None:
        """Wait for all ranks; messages still under way are received, so none blocks the end.

        Synchronous sends complete when they are received: once all ranks' have, and all have said
        so in a barrier, nothing is under way (Hoefler et al. 2010, "NBX").
        """
        barrier: MPI.Request | None = None
        while barrier is None or not barrier.Test():
            for message in self.receive():
                on_message(message)
            if barrier is None and not self._sent:
                barrier = self._comm.Ibarrier()
            meanwhile()
            time.sleep(POLL_S)

    def _send(self, message: Any, world_ranks: Iterable[int]) -> None:
        for world_rank in world_ranks:
            if world_rank != self._place.world_rank:
                self._sent.append(self._comm.issend(message, dest=world_rank))


def wait(comm: MPI.Comm) -> None:
    """A barrier that leaves the processor to others."""
    barrier = comm.Ibarrier()
    while not barrier.Test():
        time.sleep(POLL_S)
