"""Stops a training that has hardly a chance to pass the best, by its genes and its curve.

A Gaussian process of the completed trainings: genes and the loss at the time at which the judged
one stands → the loss at the end. Shapes: n trainings, d genes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr
from threadpoolctl import threadpool_limits

from oialr_search.launch.stopping import StoppingRule, Training, number
from oialr_search.space.hyperparameters import Hyperparameter
from oialr_search.space.stopping import StoppingSettings
from oialr_search.surrogate.gaussian_process import fit
from oialr_search.surrogate.individuals import Array, Individuals

ENOUGH = 12
"""With fewer completed trainings nothing is stopped."""
BEST, NEWEST = 50, 50
CLIPPED_AT = 0.75


class ModelRule(StoppingRule):
    """Genes and curve together say where the training ends."""

    def __init__(
        self, hyperparameters: Sequence[Hyperparameter], settings: StoppingSettings
    ) -> None:
        super().__init__(hyperparameters, settings)
        threadpool_limits(1, user_api="blas")  # small matrices gain nothing from threads
        self._middles = Individuals(self.hyperparameters)
        categorical = [h.choices is not None for h in self.hyperparameters]
        self._categorical = np.array([*categorical, False])

    def reason_to_stop(self, training: Training, others: Sequence[Training]) -> str | None:
        """A chance under the least that is worth going on with."""
        least = self.settings.chance
        assert least is not None
        chance = self.chance(training, others)
        if chance is None or chance >= least:
            return None
        return f"{number(training.losses[-1])}: a chance of {chance:.1%} to pass the best"

    def chance(self, training: Training, others: Sequence[Training]) -> float | None:
        """To end with a lower loss than the least so far; None: too few have completed."""
        prediction = self._prediction(training, others)
        if prediction is None:
            return None
        mean, deviation, best = prediction
        return float(ndtr((best - mean) / deviation))

    def expected(self, training: Training, others: Sequence[Training]) -> float | None:
        """The loss at its end; None: too few have completed."""
        prediction = self._prediction(training, others)
        return None if prediction is None else prediction[0]

    def _prediction(
        self, training: Training, others: Sequence[Training]
    ) -> tuple[float, float, float] | None:
        """Mean and deviation of the loss at the end, and the least loss so far."""
        ended = [
            (other, loss) for other, loss in training.as_far(others) if other.status == "completed"
        ]
        if len(ended) < ENOUGH:
            return None
        ended.sort(key=lambda pair: pair[0].losses[-1])
        newest = sorted(ended[BEST:], key=lambda pair: pair[0].individual_id)[-NEWEST:]
        ended = ended[:BEST] + newest
        final = _clipped(np.array([other.losses[-1] for other, _ in ended]))
        losses = _clipped(np.array([*(loss for _, loss in ended), training.losses[-1]]))
        if final is None or losses is None:
            return None
        points = np.column_stack(
            [
                self._genes([*(other for other, _ in ended), training]),
                (losses - losses.min()) / np.ptp(losses),
            ]
        )
        unit = final.std()
        model = fit(points[:-1], (final - final.mean()) / unit, self._categorical)
        (mean,), (deviation,) = model.posterior(points[-1:])
        deviation = np.sqrt(deviation**2 + model.nugget * model.variance)  # of what is measured
        return (
            float(final.mean() + unit * mean),
            float(unit * deviation),
            float(final.min()),
        )

    def _genes(self, trainings: Sequence[Training]) -> Array:
        """(n, d): at the middles of their values' shares."""
        names = [h.name for h in self.hyperparameters]
        return self._middles.at_middles(
            np.array([[training.genes[name] for name in names] for training in trainings])
        )


def _clipped(losses: Array) -> Array | None:
    """(n,): clipped from above, so that the bad ones, infinite ones too, tell no more than that.

    None when nothing is left to tell them apart by.
    """
    finite = np.sort(losses[np.isfinite(losses)])
    if not len(finite):
        return None
    clipped: Array = np.minimum(losses, finite[int(CLIPPED_AT * (len(finite) - 1))])
    return clipped if np.ptp(clipped) > 0.0 else None
