"""Optuna's pruners as stopping rules: a study in memory for each judgement.

`median` (Golovin et al. 2017) compares the best epoch so far with what completed; `asha` (Li et al.
2020) lets one in `reduction_factor` pass each rung; `hyperband` (Li et al. 2018) deals trainings to
brackets whose first rung comes ever later; `patience` looks at the training alone.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from itertools import count, takewhile

import optuna
from optuna.pruners import BasePruner, MedianPruner, PatientPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState, create_trial

from oialr_search.launch.stopping import StoppingRule, Training, number
from oialr_search.storage.status import Status


class OptunaRule(StoppingRule):
    """Shows the pruner each training at the time at which the judged one stands."""

    reason: str

    @abstractmethod
    def pruner(self, training: Training) -> BasePruner:
        """The pruner that judges."""

    def reason_to_stop(self, training: Training, others: Sequence[Training]) -> str | None:
        """What the pruner says."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = self.pruner(training)
        study = optuna.create_study(pruner=pruner)
        study.add_trials([self._trial(training, other) for other in others])
        judged = create_trial(
            state=TrialState.RUNNING,
            intermediate_values=dict(enumerate(training.losses, start=1)),
            system_attrs=self.system_attrs(training, training.losses[:-1]),
        )
        study.add_trial(judged)
        judged = study.get_trials(deepcopy=False)[-1]
        if not pruner.prune(study, judged):
            return None
        return f"{number(training.losses[-1])}: {self.reason}"

    def system_attrs(self, training: Training, losses: Sequence[float]) -> dict[str, float]:
        """What the pruner would have noted with a trial that has come to these losses."""
        return {}

    def _trial(self, judged: Training, other: Training) -> FrozenTrial:
        """Another training; its epochs are numbered as if it had as many as the judged one."""
        losses = [
            other.losses[epoch - 1] if 1 <= epoch <= len(other.losses) else math.nan
            for epoch in (n * other.epochs // judged.epochs for n in range(1, judged.epochs + 1))
        ]
        values = {n: loss for n, loss in enumerate(losses, start=1) if math.isfinite(loss)}
        completed = other.status is Status.COMPLETED and bool(other.losses)
        return create_trial(
            state=TrialState.COMPLETE if completed else TrialState.RUNNING,
            value=other.losses[-1] if completed else None,
            intermediate_values=values,
            system_attrs=self.system_attrs(other, losses),
        )


class MedianRule(OptunaRule):
    """Worse at its best than the median of what completed was at that time; five must have."""

    reason = "its best so far is worse than the median of those that completed"

    def pruner(self, training: Training) -> BasePruner:
        """Optuna's, as it sets it."""
        return MedianPruner()


class HalvingRule(OptunaRule):
    """Asynchronous successive halving, rungs after 1, 3, 9, ... epochs."""

    reason = "not among the best part of those at its rung"

    def pruner(self, training: Training) -> BasePruner:
        """Optuna's, with rungs counted in epochs."""
        return SuccessiveHalvingPruner(
            min_resource=1,
            reduction_factor=self._factor,
            min_early_stopping_rate=self.bracket(training),
        )

    @property
    def _factor(self) -> int:
        assert self.settings.reduction_factor is not None
        return self.settings.reduction_factor

    def bracket(self, training: Training) -> int:
        """How many rungs at the beginning are left out for this training."""
        return 0

    def system_attrs(self, training: Training, losses: Sequence[float]) -> dict[str, float]:
        """The losses at the rungs that were reached."""
        rungs = (self._factor**n for n in count(self.bracket(training)))
        reached = enumerate(takewhile(lambda epoch: epoch <= len(losses), rungs))
        return {
            f"completed_rung_{n}": losses[epoch - 1]
            for n, epoch in reached
            if not math.isnan(losses[epoch - 1])
        }


class HyperbandRule(HalvingRule):
    """Brackets of successive halving; each training belongs to one by its number."""

    def bracket(self, training: Training) -> int:
        """Dealt as Optuna deals Hyperband's budget, the more the more rungs a bracket has."""
        number = int(math.log(training.epochs, self._factor) + 1e-9) + 1
        shares = [
            math.ceil(number * self._factor**left / (left + 1)) for left in reversed(range(number))
        ]
        place = training.individual_id * 2654435761 % 2**32 % sum(shares)  # Knuth's hash
        return next(n for n in range(number) if place < sum(shares[: n + 1]))

    def reason_to_stop(self, training: Training, others: Sequence[Training]) -> str | None:
        """Judged among the trainings of its bracket."""
        bracket = self.bracket(training)
        return super().reason_to_stop(
            training, [other for other in others if self.bracket(other) == bracket]
        )


class PatienceRule(OptunaRule):
    """No better epoch for a while."""

    reason = "no improvement for so long"

    def pruner(self, training: Training) -> BasePruner:
        """Optuna's."""
        assert self.settings.patience is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return PatientPruner(None, patience=self.settings.patience)

    def reason_to_stop(self, training: Training, others: Sequence[Training]) -> str | None:
        """Whatever the others do."""
        return super().reason_to_stop(training, ())
