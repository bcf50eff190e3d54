"""What waits for the database is stored in order, once, and as few at a time as need be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from oialr_search.evaluation import outbox as outbox_module
from oialr_search.evaluation.outbox import AT_ONCE, LONGEST_PAUSE_S, Outbox
from oialr_search.storage.records import StorageUnavailable

from .scripted import Clock


class Database:
    """Keeps what is written when a transaction ends well."""

    def __init__(self) -> None:
        self.away = False
        self.breaks_at: str | None = None
        self.transactions: list[list[str]] = []
        self.calls = 0
        self._open: list[str] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        self.calls += 1
        if self.away:
            raise StorageUnavailable("connection refused")
        self._open = []
        yield
        self.transactions.append(self._open)

    def write(self, text: str) -> None:
        assert self._open is not None, "outside of a transaction"
        if text == self.breaks_at:
            raise StorageUnavailable("connection lost")
        self._open.append(text)

    def read(self) -> int:
        self.calls += 1
        if self.away:
            raise StorageUnavailable("connection refused")
        return sum(map(len, self.transactions))


Setting = tuple[Outbox, Database, Clock, list[str]]


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    clock, database, told = Clock(), Database(), list[str]()
    clock.replace(monkeypatch, outbox_module)
    storage: Any = database
    return Outbox(storage, told.append), database, clock, told


def writes(text: str) -> Callable[[Any], None]:
    return lambda database: database.write(text)


def read(database: Any) -> int:
    count: int = database.read()
    return count


def test_what_waits_together_is_stored_together_in_order(setting: Setting) -> None:
    outbox, database, _, told = setting
    texts = [str(n) for n in range(AT_ONCE + 2)]
    for text in texts:
        outbox.put(writes(text))
    assert database.calls == 0
    assert outbox.flush()
    assert database.transactions == [texts[:AT_ONCE], texts[AT_ONCE:]]
    assert outbox.flush()
    assert database.calls == 2
    assert told == []


def test_a_question_is_answered_after_all_that_was_put(setting: Setting) -> None:
    outbox, *_ = setting
    outbox.put(writes("one"))
    assert outbox.ask(read) == 1


def test_while_the_database_is_away_all_waits_and_it_is_asked_ever_less_often(
    setting: Setting,
) -> None:
    outbox, database, clock, told = setting
    database.away = True
    outbox.put(writes("one"))
    tried = []
    for _ in range(1000):
        before = database.calls
        assert not outbox.flush()
        if database.calls > before:
            tried.append(clock.now)
        with pytest.raises(StorageUnavailable):
            outbox.ask(read)
        clock.sleep(0.125)
    pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert pauses[:6] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    assert set(pauses[6:]) == {LONGEST_PAUSE_S}
    (line,) = told
    assert line.startswith("the database is away since ")
    assert line.endswith("what runs goes on: connection refused")
    database.away = False
    outbox.put(writes("two"))
    clock.sleep(LONGEST_PAUSE_S)
    assert outbox.flush()
    assert database.transactions == [["one", "two"]]
    assert told[1].startswith("the database is back since ")
    assert len(told) == 2


def test_each_time_it_is_away_is_told_and_waited_for_shortly_at_first(setting: Setting) -> None:
    outbox, database, clock, told = setting
    for _ in range(3):
        database.away = True
        outbox.put(writes("x"))
        assert not outbox.flush()
        database.away = False
        clock.sleep(0.25)
        assert outbox.flush()
    assert [line.split()[3] for line in told] == ["away", "back"] * 3


def test_a_transaction_that_breaks_is_made_again_as_a_whole(setting: Setting) -> None:
    outbox, database, clock, _ = setting
    for text in ("one", "two", "three"):
        outbox.put(writes(text))
    database.breaks_at = "two"
    assert not outbox.flush()
    assert database.transactions == []
    database.breaks_at = None
    clock.sleep(1.0)
    assert outbox.flush()
    assert database.transactions == [["one", "two", "three"]]


def test_a_mistake_of_ours_is_not_taken_for_the_database_s(setting: Setting) -> None:
    outbox, *_ = setting

    def wrong(database: Any) -> None:
        raise KeyError("x")

    outbox.put(wrong)
    with pytest.raises(KeyError):
        outbox.flush()
