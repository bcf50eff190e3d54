"""Stops what is among the worst: the rule that keeps the best where ranks change late."""

from __future__ import annotations

from collections.abc import Sequence

from oialr_search.launch.stopping import StoppingRule, Training, number

ENOUGH = 8
"""With fewer to compare with, nothing is stopped."""


class QuantileRule(StoppingRule):
    """The worst share of all trainings that have come as far, those that were stopped too."""

    def reason_to_stop(self, training: Training, others: Sequence[Training]) -> str | None:
        """Worse than so large a share."""
        worst = self.settings.worst
        assert worst is not None
        loss = training.losses[-1]
        losses = [theirs for _, theirs in training.as_far(others)]
        better = sum(theirs < loss for theirs in losses)
        if len(losses) < ENOUGH or better < (1.0 - worst) * len(losses):
            return None
        return f"{number(loss)} is worse than {better} of {len(losses)} that had come as far"
