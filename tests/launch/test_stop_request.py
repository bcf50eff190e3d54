"""Signals, clocks and words of other ranks are wishes; nothing more happens by them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from oialr_search.launch import stop_request
from oialr_search.launch.stop_request import STOP_SIGNALS, StopRequest

from ..evaluation.scripted import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.replace(monkeypatch, stop_request)
    return clock


@pytest.fixture
def handlers() -> Iterator[None]:
    """As they were before."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_a_wish_and_a_second_one_waits_for_nothing(
    clock: Clock, handlers: None, number: signal.Signals
) -> None:
    stop = StopRequest()
    stop.listen()
    stop.limit(None, 60.0)
    assert not stop.requested()
    os.kill(os.getpid(), number)
    assert stop.requested()
    assert not stop.at_once()
    os.kill(os.getpid(), number)
    assert stop.at_once()


def test_after_all_is_stored_nobody_listens(handlers: None) -> None:
    stop = StopRequest()
    stop.listen()
    stop.listen_no_more()
    os.kill(os.getpid(), signal.SIGTERM)
    assert not stop.requested()


def test_the_grace_begins_with_the_first_wish(clock: Clock) -> None:
    stop = StopRequest()
    stop.limit(None, 10.0)
    clock.sleep(100.0)
    assert not stop.at_once()
    stop.request()
    clock.sleep(10.0)
    stop.request()
    assert not stop.at_once()
    clock.sleep(0.1)
    assert stop.at_once()


def test_a_deadline_is_a_wish(clock: Clock) -> None:
    stop = StopRequest()
    stop.limit(clock.time() + 30.0, 5.0)
    clock.sleep(29.9)
    assert not stop.requested()
    clock.sleep(0.1)
    assert stop.requested()
    assert not stop.at_once()
    clock.sleep(5.1)
    assert stop.at_once()


def test_who_is_told_to_stop_at_once_does(clock: Clock) -> None:
    stop = StopRequest()
    stop.limit(None, 60.0)
    stop.request()
    assert not stop.at_once()
    stop.request(at_once=True)
    assert stop.at_once()
