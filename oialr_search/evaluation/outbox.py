"""What a rank has to store, in order; while the database is away it waits here.

Nothing is lost with it: the same is in the folders of the evaluations, where the next launch looks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

from oialr_search.storage.database import Storage
from oialr_search.storage.records import StorageUnavailable

AT_ONCE = 50  # writes that share a transaction
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0

A = TypeVar("A")


class Outbox:
    """A rank's way to the database, which may be away for a while."""

    def __init__(self, storage: Storage, notify: Callable[[str], None]) -> None:
        self._storage = storage
        self._notify = notify
        self._waiting: deque[Callable[[Storage], object]] = deque()
        self._away = False
        self._pause_s = FIRST_PAUSE_S
        self._next_try = 0.0

    def put(self, write: Callable[[Storage], object]) -> None:
        """Have something stored by the next `flush` that finds the database."""
        self._waiting.append(write)

    def flush(self) -> bool:
        """Store what waits; True when nothing waits any longer."""
        while self._waiting:
            writes = list(islice(self._waiting, AT_ONCE))
            try:
                self._call(partial(_store, writes))
            except StorageUnavailable:
                return False
            for _ in writes:
                self._waiting.popleft()
        return True

    def ask(self, question: Callable[[Storage], A]) -> A:
        """Ask the database, which knows by then all that was put.

        Raises:
            StorageUnavailable: when it is away, or was a moment ago.
        """
        if not self.flush():
            raise StorageUnavailable("writes are waiting")
        return self._call(question)

    def _call(self, work: Callable[[Storage], A]) -> A:
        if time.monotonic() < self._next_try:
            raise StorageUnavailable("not tried again yet")
        try:
            answer = work(self._storage)
        except StorageUnavailable as error:
            now = time.monotonic()
            if not self._away:
                self._away = True
                # With the minute, as all ranks say so, but each time that it is away.
                since = time.strftime("%H:%M")
                self._notify(f"the database is away since {since}, what runs goes on: {error}")
            self._next_try = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            raise
        if self._away:
            self._notify(f"the database is back since {time.strftime('%H:%M')}")
            self._away, self._pause_s = False, FIRST_PAUSE_S
        return answer


def _store(writes: Sequence[Callable[[Storage], object]], storage: Storage) -> None:
    """Make writes in one transaction: waiting for the disk is what takes the time."""
    with storage.together():
        for write in writes:
            write(storage)
