"""What a worker does with a configuration; free of torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from oialr_training.config import TaskConfig
from oialr_training.protocol import Completed, Evaluate, Event, Resources, Stop, StopReason

C = TypeVar("C", bound=TaskConfig)


class Interrupted(Exception):  # noqa: N818  (an outcome)
    """The training ended before its last epoch, as asked."""

    def __init__(self, epoch: int, reason: StopReason) -> None:
        super().__init__(f"stopped after epoch {epoch}: {reason}")
        self.epoch, self.reason = epoch, reason


class Trainer(ABC, Generic[C]):
    """Gets ready for configurations of one kind, and evaluates one of them."""

    @abstractmethod
    def prepare(self, config: C) -> None:
        """Do all that can be done and be wrong before an evaluation begins; raises what is."""

    @abstractmethod
    def evaluate(
        self,
        config: C,
        request: Evaluate,
        report: Callable[[Event], None],
        stops: Sequence[Stop],
    ) -> Completed:
        """Train and measure; tells of the start and of each epoch.

        Raises:
            Interrupted: when one of `stops`, which may come meanwhile, ended it.
            Exception: whatever a training raises.
        """

    @abstractmethod
    def resources(self) -> Resources:
        """What the evaluation used until now."""

    @abstractmethod
    def forget(self, request: Evaluate) -> None:
        """Remove the state that is kept for another attempt, as there will be none."""
