"""OIALR beside a training loop (Coquelin et al., Algorithm 1): the one object a user holds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from workers.oialr.basis_update import BasisUpdate, update_basis
from workers.oialr.conversion import convert
from workers.oialr.decomposition import Factors, blank
from workers.oialr.eligibility import EligibleLayer, survey
from workers.oialr.errors import OIALRError
from workers.oialr.layers import LowRankLayer, LowRankWeight
from workers.oialr.metrics import compression_percent, count_parameters, trainable_percent
from workers.oialr.optimizer_state import replace_parameter
from workers.oialr.schedule import conversion_step, update_number, window_size
from workers.oialr.settings import OIALRSettings


class OIALR:
    """Trains a model with OIALR: call `step()` once after every `optimizer.step()`.

    It converts the model in place, so the model must hold its eligible layers as children. Hooks
    on a converted layer do not survive; wrap in DDP and compile after the conversion.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, settings: OIALRSettings) -> None:
        """Choose the layers; convert them at once if there is no full-rank warm-up."""
        self.settings = settings
        self._model = model
        self._optimizer = optimizer
        self._steps = 0
        self._eligible, self._dense_layers = survey(model, optimizer, settings)
        refuse_unusable(self._eligible, self._dense_layers)
        self._low_rank_layers: dict[str, LowRankLayer] = {}
        self._full_rank_counts = count_parameters(model)
        if conversion_step(settings) == 0:
            self._low_rank_layers = convert(model, optimizer, self._eligible)

    def step(self) -> list[BasisUpdate]:
        """Count one optimiser step; convert and update bases if it is time. Most often: nothing."""
        self._steps += 1
        if not self.converted and self._steps >= conversion_step(self.settings):
            self._low_rank_layers = convert(self._model, self._optimizer, self._eligible)
        update = update_number(self.settings, self._steps)
        if not update:
            return []
        layers = list(self._low_rank_layers.items())
        reached = window_size(len(layers), self.settings.layer_fraction, update)
        return [
            self._update(name, weight)
            for layer_name, layer in layers[-reached:]
            for name, weight in weight_names(layer_name, layer).items()
        ]

    def _update(self, name: str, weight: LowRankWeight) -> BasisUpdate:
        return BasisUpdate(
            step=self._steps,
            layer=name,
            stability=update_basis(weight, self._optimizer, self.settings),
            inner_rank=weight.inner_rank,
            full_inner_rank=weight.full_inner_rank,
        )

    @property
    def steps(self) -> int:
        """Optimiser steps counted so far."""
        return self._steps

    @property
    def converted(self) -> bool:
        """Whether the model is low-rank by now."""
        return bool(self._low_rank_layers)

    @property
    def low_rank_layers(self) -> dict[str, LowRankLayer]:
        """The converted layers by dotted name, in registration order; none before conversion."""
        return dict(self._low_rank_layers)

    @property
    def dense_layers(self) -> dict[str, str]:
        """The Linear, convolution and attention layers that never convert, and why."""
        return dict(self._dense_layers)

    @property
    def trainable_percent(self) -> float:
        """Trainable parameters, % of the full-rank model's."""
        return trainable_percent(count_parameters(self._model), self._full_rank_counts)

    @property
    def compression_percent(self) -> float:
        """All parameters, bases included, % of the full-rank model's; it can pass 100."""
        return compression_percent(count_parameters(self._model), self._full_rank_counts)

    def state_dict(self) -> dict[str, Any]:
        """What a fresh OIALR needs to continue; model and optimiser have their own."""
        inner_ranks = {
            name: [weight.inner_rank for weight in layer.weights]
            for name, layer in self._low_rank_layers.items()
        }
        return {"steps": self._steps, "converted": self.converted, "inner_ranks": inner_ranks}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; call it first, then load the model and the optimiser.

        It gives a freshly built model the saved structure and empty factors of the saved sizes,
        for `model.load_state_dict` and `optimizer.load_state_dict` to fill.
        """
        if self.converted and not state["converted"]:
            raise OIALRError("the state is of a dense model, this one is converted: build it anew")
        layer_names = [layer.name for layer in self._eligible]
        if state["converted"] and list(state["inner_ranks"]) != layer_names:
            raise OIALRError(
                "the state is of other layers:"
                f" {sorted(set(state['inner_ranks']) ^ set(layer_names))} are in one only"
            )
        if state["converted"] and not self.converted:
            self._low_rank_layers = convert(self._model, self._optimizer, self._eligible, blank)
        for name, inner_ranks in state["inner_ranks"].items():
            weights = self._low_rank_layers[name].weights
            for weight, inner_rank in zip(weights, inner_ranks, strict=True):
                self._resize(weight, inner_rank)
        self._steps = state["steps"]

    def _resize(self, weight: LowRankWeight, inner_rank: int) -> None:
        old_sigma = weight.sigma
        weight.set_factors(
            Factors(
                weight.basis.new_zeros(weight.basis.shape[0], inner_rank),
                old_sigma.new_zeros(inner_rank, inner_rank),
                weight.cobasis.new_zeros(inner_rank, weight.cobasis.shape[1]),
            )
        )
        self._optimizer.state.pop(old_sigma, None)
        replace_parameter(self._optimizer, old_sigma, [weight.sigma], [])


def weight_names(layer_name: str, layer: LowRankLayer) -> dict[str, LowRankWeight]:
    """Name a layer's weights: by the layer's name, and a number where there are several."""
    if len(layer.weights) == 1:
        return {layer_name: layer.weights[0]}
    return {f"{layer_name}[{i}]": weight for i, weight in enumerate(layer.weights)}


def refuse_unusable(eligible: list[EligibleLayer], dense_layers: Mapping[str, str]) -> None:
    """Refuse a model with nothing to convert, or with no place to put what was converted."""
    if not eligible:
        raise OIALRError(f"no layer can become low-rank: {dict(dense_layers)}")
    if eligible[0].name == "":
        raise OIALRError(
            f"the model is itself a {type(eligible[0].module).__name__}, which cannot be replaced"
            " in place: wrap it, for instance in nn.Sequential(model)"
        )
