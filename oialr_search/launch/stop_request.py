"""The wish to stop: signals, the time limit and the batch system's end.

It is listened to before all else is imported. A rank that ended by a signal before MPI is
initialised would be waited for by the others for ever.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Signals and times only set a flag; the loop looks at it.

    The first wish leaves running evaluations `grace_s` seconds to reach the end of their epoch, a
    second signal none.
    """

    def __init__(self) -> None:
        self._signals = 0
        self._since: float | None = None
        self._at_once = False
        self._deadline: float | None = None
        self._grace_s = 0.0

    def listen(self) -> None:
        """From now on signals are wishes."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def limit(self, deadline: float | None, grace_s: float) -> None:
        """Stop at a time of `time.time()`, too, and leave this much time."""
        self._deadline, self._grace_s = deadline, grace_s

    def request(self, *, at_once: bool = False) -> None:
        """Stop as soon as the loop comes by."""
        self._at_once |= at_once
        if self._since is None:
            self._since = time.monotonic()

    def requested(self) -> bool:
        """Is it time to start nothing more?"""
        if self._signals or (self._deadline is not None and time.time() >= self._deadline):
            self.request(at_once=self._signals > 1)
        return self._since is not None

    def at_once(self) -> bool:
        """Is it time to wait for nothing any longer?"""
        if not self.requested():
            return False
        assert self._since is not None
        return self._at_once or time.monotonic() - self._since > self._grace_s

    def listen_no_more(self) -> None:
        """All is stored. A Python that ends gives up its handlers: a signal would kill it."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
