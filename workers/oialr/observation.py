"""What happens to the bases while a network trains (Coquelin et al., Figure 1)."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from oialr.decomposition import numbered, precise_product, refuse_not_finite, svd
from oialr.eligibility import class_of, weights_of
from oialr.errors import OIALRError
from oialr.layers import LowRankLayer, LowRankWeight
from oialr.metrics import euclidean_similarity, mixing, relative_similarity, stability


@dataclass(frozen=True, kw_only=True)
class Observation:
    """How far one weight has come between two instants of a training."""

    step: int
    """Steps of the later instant."""

    earlier_step: int
    """Steps of the earlier instant."""

    layer: str
    """Dotted name of the layer; `name[i]` for the i-th of a layer's several weights."""

    stability: float
    """Eq. (4) between the bases of W at the two instants."""

    mixing_similarity: float
    """Eq. (5) between the linear mixings R of W at the two instants."""

    relative_mixing_similarity: float
    """The same relative to the norms of the two R: 0 to 1, whatever the unit of the weights."""


class Portrait(NamedTuple):
    """One weight at one instant: what Eqs. (4) and (5) need of it."""

    basis: Tensor  # U: (m, r)
    cobasis: Tensor  # Vᵀ: (r, n)
    mixing: Tensor  # R of W = QR: (r, n)


class Observer:
    """Watches the weights of a model's Linear, convolution and attention layers, converted or not.

    Call `step()` once after every `optimizer.step()`, and after `oialr.step()` where there is one.
    Every `interval` steps, and at once for step 0, it decomposes all weights; a low-rank weight
    only in its Σ, to the bases that a basis update would find. Of the last `max(lags)` instants it
    keeps the factors, on the CPU in float32.

        observer = Observer(model, interval=100, lags=(1, 5))
        for observation in observer.step():
            print(observation)
    """

    def __init__(self, model: nn.Module, interval: int, lags: Sequence[int] = (1,)) -> None:
        """Take the first instant; each later one is compared with those `lags` instants before."""
        if interval < 1:
            raise OIALRError(f"`interval >= 1` must hold, got interval={interval}")
        if not lags or min(lags) < 1:
            raise OIALRError(f"`lags >= 1` must hold for one lag at least, got lags={tuple(lags)}")
        self._model = model
        self._interval = interval
        self._lags = tuple(lags)
        self._steps = 0
        self._instants: deque[tuple[int, dict[str, Portrait]]] = deque(maxlen=max(lags))
        self._observe()

    def step(self) -> list[Observation]:
        """Count one step; at an instant give the observations, layer by layer. Else: nothing.

        A weight without one of its name at the earlier instant is left out, as those are that
        conversion took apart.

        Raises:
            NotFiniteError: when a weight holds NaN or infinity.
        """
        self._steps += 1
        if self._steps % self._interval:
            return []
        return self._observe()

    def state_dict(self) -> dict[str, Any]:
        """What a fresh observer needs to continue: steps and instants."""
        instants = [
            (step, {name: tuple(portrait) for name, portrait in portraits.items()})
            for step, portraits in self._instants
        ]
        return {"steps": self._steps, "instants": instants}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, in the place of the instant taken at the start."""
        self._steps = state["steps"]
        self._instants.clear()
        for step, portraits in state["instants"]:
            self._instants.append((step, {name: Portrait(*p) for name, p in portraits.items()}))

    @torch.no_grad()
    def _observe(self) -> list[Observation]:
        weights = observed_weights(self._model)
        refuse_not_finite({name: trained_matrix(w) for name, w in weights.items()}, self._steps)
        earlier = [self._instants[-lag] for lag in self._lags if lag <= len(self._instants)]
        observations, portraits = [], {}
        for name, weight in weights.items():
            now = portray(weight)
            observations += [
                compare(name, self._steps, now, earlier_step, before[name])
                for earlier_step, before in earlier
                if name in before
            ]
            portraits[name] = put_away(now)
        self._instants.append((self._steps, portraits))
        return observations


def observed_weights(model: nn.Module) -> dict[str, Tensor | LowRankWeight]:
    """A model's weights by name, as they are held today; dense ones: (out, ...)."""
    found: dict[str, Tensor | LowRankWeight] = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankLayer):
            found |= numbered(name, module.weights)
        elif class_of(module):
            found |= numbered(name, weights_of(module))
    return found


def trained_matrix(weight: Tensor | LowRankWeight) -> Tensor:
    """Σ: (r, r), or a dense weight: (out, ...) as its matrix: (m, n)."""
    return weight.sigma if isinstance(weight, LowRankWeight) else weight.flatten(1)


def portray(weight: Tensor | LowRankWeight) -> Portrait:
    """Decompose a weight: (out, ...); W = U Σ Vᵀ by Σ = U'Σ'V'ᵀ, to the bases UU' and V'ᵀVᵀ."""
    matrix = trained_matrix(weight)
    left, _, right = svd(matrix)
    if not isinstance(weight, LowRankWeight):
        return Portrait(left, right, mixing(matrix))
    return Portrait(
        precise_product(weight.basis, left),
        precise_product(right, weight.cobasis),
        mixing(precise_product(matrix, weight.cobasis)),
    )


def put_away(portrait: Portrait) -> Portrait:
    """Bring a portrait where memory is cheap."""
    return Portrait(*(factor.to("cpu", torch.float32) for factor in portrait))


def compare(
    layer: str, step: int, now: Portrait, earlier_step: int, before: Portrait
) -> Observation:
    """Compare one weight at two instants."""
    before = Portrait(*(factor.to(now.basis) for factor in before))
    return Observation(
        step=step,
        earlier_step=earlier_step,
        layer=layer,
        stability=stability(before.basis, before.cobasis, now.basis, now.cobasis),
        mixing_similarity=euclidean_similarity(before.mixing, now.mixing, len(now.basis)),
        relative_mixing_similarity=relative_similarity(before.mixing, now.mixing),
    )
