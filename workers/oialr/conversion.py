"""Conversion: W → U Σ Vᵀ for every eligible weight, in place (Coquelin et al., Algorithm 1)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from workers.oialr.decomposition import Factors, decompose
from workers.oialr.eligibility import Candidate, EligibleLayer
from workers.oialr.layers import (
    LowRankConv,
    LowRankLayer,
    LowRankLinear,
    LowRankMultiheadAttention,
    StackedLowRankLinear,
)
from workers.oialr.optimizer_state import (
    parameters_outside,
    refuse_unknown_state,
    replace_parameter,
)


@torch.no_grad()
def convert(
    model: nn.Module,
    optimizer: Optimizer,
    layers: Sequence[EligibleLayer],
    factorize: Callable[[Tensor], Factors] = decompose,
) -> dict[str, LowRankLayer]:
    """Put low-rank layers in the places of dense ones, Σ in the weights' place in the optimiser."""
    for layer in layers:
        for weight in layer.weights:
            refuse_unknown_state(optimizer, weight)
    outside = parameters_outside(model, optimizer)
    converted = {layer.name: convert_layer(layer, optimizer, factorize) for layer in layers}
    replace_modules(model, {layer.module: converted[layer.name] for layer in layers})
    assert parameters_outside(model, optimizer) == outside
    return converted


def convert_layer(
    layer: EligibleLayer, optimizer: Optimizer, factorize: Callable[[Tensor], Factors]
) -> LowRankLayer:
    """Make one low-rank layer of a dense one; biases and the rest stay the same objects."""
    factors = [factorize(matrix) for matrix in layer.matrices]
    low_rank = build_layer(layer.module, factors).train(layer.module.training)
    sigmas = [weight.sigma for weight in low_rank.weights]
    rotations = [(factor.basis, factor.cobasis.mT) for factor in factors]
    for position, weight in enumerate(layer.weights):
        blocks = slice(position * layer.num_blocks, (position + 1) * layer.num_blocks)
        replace_parameter(optimizer, weight, sigmas[blocks], rotations[blocks])
    return low_rank


def build_layer(dense: Candidate, factors: Sequence[Factors]) -> LowRankLayer:
    """Choose the low-rank layer that stands in for a dense one."""
    if isinstance(dense, nn.MultiheadAttention):
        return LowRankMultiheadAttention(dense, factors)
    if not isinstance(dense, nn.Linear):
        return LowRankConv(dense, factors[0])
    if len(factors) > 1:
        return StackedLowRankLinear(factors, dense.bias)
    return LowRankLinear(factors[0], dense.bias)


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Exchange modules wherever they are registered, under however many names."""
    # modules() walks lazily, so it enters a replacement and finds its children (out_proj) too
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])
