"""Ranks in one process: a communicator that delivers messages, and one time for all.

Each rank is a thread, of which one runs at a time, until it sleeps; then the one that wakes first
goes on, at that time. So a launch of many ranks takes as long as what it computes, and runs the
same way each time.
"""

from __future__ import annotations

import itertools
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..evaluation.scripted import Clock

REAL_LIMIT_S = 60.0
LIMIT_S = 100_000.0
"""Of the time that ranks sleep through: none waits for ever."""

A = TypeVar("A")


class Aborted(BaseException):
    """A rank has ended the launch."""


class World(Clock, Generic[A]):
    """The ranks of a launch; messages take up to `latency_s`, drawn from `seed`."""

    def __init__(self, size: int, *, latency_s: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.size = size
        self.aborted: int | None = None
        self.mailboxes: list[list[Message]] = [[] for _ in range(size)]
        self.collectives: dict[int, dict[int, bytes]] = {}
        self._latency_s = latency_s
        self._random = random.Random(seed)
        self._limit = self.now + LIMIT_S
        self._events: list[tuple[float, Callable[[], object]]] = []
        self._ranks: dict[threading.Thread, int] = {}
        self._wakes: dict[int, tuple[float, int]] = {}
        self._order = itertools.count()
        self._over = threading.Event()
        self._turns = [threading.Event() for _ in range(size)]

    def run(self, function: Callable[[Comm], A]) -> list[A]:
        """What the function gives on each rank; the first error of any of them is raised.

        After an abort the others stand still for ever, as processes that are killed.
        """
        results: dict[int, A] = {}
        errors: list[BaseException] = []

        def run_rank(rank: int) -> None:
            self._turns[rank].wait()
            try:
                results[rank] = function(Comm(self, rank))
            except Aborted:
                pass
            except BaseException as error:
                errors.append(error)
            del self._wakes[rank]
            self._go_on() if not errors else self._over.set()

        for rank in range(self.size):
            thread = threading.Thread(target=run_rank, args=(rank,), daemon=True)
            self._ranks[thread] = rank
            self._wakes[rank] = (self.now, next(self._order))
            thread.start()
        self._go_on()
        assert self._over.wait(REAL_LIMIT_S), "a rank waits for ever"
        if errors:
            raise errors[0]
        return [results[rank] for rank in sorted(results)]

    def sleep(self, seconds: float) -> None:
        """Let the others go on until then."""
        rank = self._ranks.get(threading.current_thread())
        if rank is None:
            super().sleep(seconds)
            return
        assert self.now < self._limit, "nothing has happened for very long"
        self._turns[rank].clear()
        self._wakes[rank] = (self.now + seconds, next(self._order))
        self._go_on()
        self._turns[rank].wait()

    def happen(self, at: dict[float, Callable[[], object]]) -> None:
        """Have things happen so many seconds after the beginning, whoever runs then."""
        self._events = [(self.now + seconds, what) for seconds, what in sorted(at.items())]

    def arrival(self) -> float:
        """When a message that is sent now arrives."""
        return self.now + self._random.random() * self._latency_s

    def _go_on(self) -> None:
        if self.aborted is not None or not self._wakes:
            self._over.set()
        else:
            rank = min(self._wakes, key=self._wakes.__getitem__)
            self.now = max(self.now, self._wakes[rank][0])
            while self._events and self._events[0][0] <= self.now:
                self._events.pop(0)[1]()
            self._turns[rank].set()


class Message:
    """On its way, then matched, then received; a synchronous send is complete then."""

    def __init__(self, source: int, tag: int, content: bytes, arrival: float) -> None:
        self.source, self.tag, self.arrival = source, tag, arrival
        self._content = content
        self._received = False

    def recv(self) -> Any:
        self._received = True
        return pickle.loads(self._content)

    def Test(self) -> bool:  # noqa: N802  (mpi4py's name)
        return self._received


class Barrier:
    """Complete when all ranks have come to it."""

    def __init__(self, world: World[Any], arrived: dict[int, bytes]) -> None:
        self._world, self._arrived = world, arrived

    def Test(self) -> bool:  # noqa: N802
        return len(self._arrived) == self._world.size


class Comm:
    """What a launch uses of mpi4py's communicator, and nothing else."""

    def __init__(self, world: World[Any], rank: int) -> None:
        self.world, self.rank, self.size = world, rank, world.size
        self._collective_calls = itertools.count()

    def issend(self, content: Any, dest: int, tag: int = 0) -> Message:
        assert dest != self.rank, "a message to itself"
        mailbox = self.world.mailboxes[dest]
        # Two messages of one rank do not overtake each other.
        earlier = [m.arrival for m in mailbox if m.source == self.rank]
        arrival = max([self.world.arrival(), *earlier])
        mailbox.append(Message(self.rank, tag, pickle.dumps(content), arrival))
        return mailbox[-1]

    def send(self, content: Any, dest: int, tag: int = 0) -> None:
        self.issend(content, dest, tag)

    def improbe(self, tag: int | None = None) -> Message | None:
        mailbox = self.world.mailboxes[self.rank]
        for message in mailbox:
            if message.arrival <= self.world.now and tag in (None, message.tag):
                mailbox.remove(message)
                return message
        return None

    def Ibarrier(self) -> Barrier:  # noqa: N802
        return Barrier(self.world, self._enter(None))

    def allgather(self, content: A) -> list[A]:
        arrived = self._enter(content)
        while len(arrived) < self.size:
            self.world.sleep(0.001)
        return [pickle.loads(arrived[rank]) for rank in range(self.size)]

    def bcast(self, content: A) -> A:
        return self.allgather(content)[0]

    def Split_type(self, kind: int) -> Comm:  # noqa: N802
        """All ranks are on one node."""
        return self

    def Free(self) -> None:  # noqa: N802
        """Nothing of it is kept."""

    def Abort(self, code: int) -> None:  # noqa: N802
        self.world.aborted = code
        raise Aborted

    def _enter(self, content: Any) -> dict[int, bytes]:
        """Ranks call collectives in the same order."""
        arrived = self.world.collectives.setdefault(next(self._collective_calls), {})
        arrived[self.rank] = pickle.dumps(content)
        return arrived
