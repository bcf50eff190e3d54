"""Ranks and islands: who is where, and the messages between them.

Propulate's island model with messages that never block: an evaluated individual goes to all ranks
of its island, the best of an island visits all others and stays at home too (pollination).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from oialr_search.launch.engines import Member
from oialr_search.launch.mpi import MPI

POLL_S = 0.02
STOP = "stop"
STOP_AT_ONCE = "stop at once"


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


@dataclass(frozen=True, kw_only=True)
class Remeasured:
    """A message between ranks: an individual's mean has changed, the database has it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A message to world rank 0: what a rank is about."""

    world_rank: int
    idle: bool
    unreliable: bool = False


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A message to world rank 0: a line for people, who see what that rank shows."""

    text: str


@dataclass(frozen=True, kw_only=True)
class End:
    """A message from world rank 0: nobody works any more. All ranks end alike."""

    complete: bool


class Exchange:
    """Messages between ranks that never block: a rank waits for its worker, not for others."""

    def __init__(self, comm: MPI.Comm, place: Place) -> None:
        self._comm = comm
        self._place = place
        self._sent: list[MPI.Request] = []
        self._visited: dict[int, int] = {}
        self._reported: Report | None = None
        self._reports: dict[int, Report] = {}

    def tell_peers(self, visitor: Visitor) -> None:
        """Send an evaluated individual to the other ranks of its island."""
        self._send(visitor, self._place.ranks_of(self._place.island))

    def migrate(self, visitor: Visitor) -> None:
        """Send an individual to all ranks of all other islands, unless it was the last to go."""
        for island in range(self._place.num_islands):
            individual_id = visitor.member.individual_id
            if island != self._place.island and self._visited.get(island) != individual_id:
                self._visited[island] = individual_id
                self._send(visitor, self._place.ranks_of(island))

    def tell_all(self, message: str | Remeasured | End) -> None:
        """Send one of the words above, news, or the end, to every other rank."""
        self._send(message, range(self._place.world_size))

    def tell_first(self, notice: Notice) -> None:
        """Send a line to world rank 0."""
        self._send(notice, [0])

    def report(self, *, idle: bool, unreliable: bool = False) -> None:
        """Tell world rank 0 whether this rank has work, when that has changed."""
        report = Report(world_rank=self._place.world_rank, idle=idle, unreliable=unreliable)
        if report == self._reported:
            return
        self._reported = report
        if self._place.world_rank == 0:
            self._reports[0] = report
        else:
            self._send(report, [0])

    def all_idle(self) -> bool:
        """On world rank 0: has every rank reported that it has nothing to do?"""
        idle = sum(report.idle for report in self._reports.values())
        return idle == self._place.world_size

    def all_unreliable(self) -> bool:
        """On world rank 0: does no rank ask for work any more?"""
        unreliable = sum(report.unreliable for report in self._reports.values())
        return unreliable == self._place.world_size

    def receive(self) -> list[Any]:
        """All messages that have arrived, except the reports."""
        arrived = []
        while (request := self._comm.improbe()) is not None:
            message = request.recv()
            if isinstance(message, Report):
                self._reports[message.world_rank] = message
            else:
                arrived.append(message)
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
