"""Conversion: W → U Σ Vᵀ for every eligible weight, in place (Coquelin et al., Algorithm 2)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from oialr.decomposition import Factors, decompose, precise_product
from oialr.eligibility import EligibleLayer, class_of
from oialr.errors import OIALRError
from oialr.layers import (
    Convolution,
    LowRankConv,
    LowRankConv1D,
    LowRankLayer,
    LowRankLinear,
    LowRankMultiheadAttention,
    LowRankWeight,
    StackedLowRankLinear,
    hand_on,
)
from oialr.optimizer_state import (
    parameters_outside,
    refuse_unknown_state,
    replace_parameter,
)
from oialr.settings import OptimizerState


@torch.no_grad()
def convert(
    model: nn.Module,
    optimizer: Optimizer,
    layers: Sequence[EligibleLayer],
    factorize: Callable[[Tensor], Factors] = decompose,
    how: OptimizerState = "rotate",
) -> dict[str, LowRankLayer]:
    """Put low-rank layers in the places of dense ones, Σ in the weights' place in the optimiser.

    `factorize` takes W: (m, n).
    """
    for layer in layers:
        for weight in layer.weights:
            refuse_unknown_state(optimizer, weight)
    outside = parameters_outside(model, optimizer)
    converted = {layer.name: convert_layer(layer, optimizer, factorize, how) for layer in layers}
    replace_modules(model, {layer.module: converted[layer.name] for layer in layers})
    assert parameters_outside(model, optimizer) == outside
    return converted


def convert_layer(
    layer: EligibleLayer,
    optimizer: Optimizer,
    factorize: Callable[[Tensor], Factors],
    how: OptimizerState,
) -> LowRankLayer:
    """Make one low-rank layer of a dense one; biases and the rest stay the same objects."""
    factors = [factorize(matrix) for matrix in layer.matrices]
    low_rank = build_layer(layer, factors)
    sigmas = [weight.sigma for weight in low_rank.weights]
    rotations = [(factor.basis, factor.cobasis.mT) for factor in factors]
    for position, weight in enumerate(layer.weights):
        blocks = slice(position * layer.num_blocks, (position + 1) * layer.num_blocks)
        replace_parameter(optimizer, weight, sigmas[blocks], rotations[blocks], how)
    return low_rank


def build_layer(layer: EligibleLayer, factors: Sequence[Factors]) -> LowRankLayer:
    """Make the low-rank layer that stands in for a dense one, frozen where that is."""
    dense = layer.module
    low_rank: LowRankLayer
    if isinstance(dense, nn.MultiheadAttention):
        low_rank = LowRankMultiheadAttention(dense, factors)
    elif isinstance(dense, Convolution):
        low_rank = LowRankConv(dense, factors[0])
    elif not isinstance(dense, nn.Linear):
        low_rank = LowRankConv1D(dense, factors[0])
    elif len(factors) > 1:
        low_rank = StackedLowRankLinear(factors, dense.bias)
    else:
        low_rank = LowRankLinear(factors[0], dense.bias)
    if isinstance(dense, nn.Linear):  # the others are made of the dense layer itself
        hand_on(dense, low_rank)
    for position, weight in enumerate(low_rank.weights):
        weight.sigma.requires_grad_(layer.weights[position // layer.num_blocks].requires_grad)
    return low_rank


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Exchange modules wherever they are registered, under however many names."""
    # modules() walks lazily, so it enters a replacement and finds its children (out_proj) too
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])


@torch.no_grad()
def follow(
    average: nn.Module, layers: Sequence[EligibleLayer], converted: Mapping[str, LowRankLayer]
) -> None:
    """Bring a copy of the model, whose W are averages, into the bases of the converted layers."""
    replacements: dict[nn.Module, nn.Module] = {}
    for layer in layers:
        twin = find_twin(average, layer.name)
        low_rank = converted[layer.name].weights
        if isinstance(twin, LowRankLayer):
            for weight, model_weight in zip(twin.weights, low_rank, strict=True):
                parts = (weight.basis, weight.sigma, weight.cobasis)
                weight.set_factors(project(model_weight, *parts))
        else:
            dense = EligibleLayer(layer.name, twin, layer.num_blocks)
            replacements[twin] = build_layer(dense, list(map(project, low_rank, dense.matrices)))
    replace_modules(average, replacements)


def find_twin(average: nn.Module, name: str) -> nn.Module:
    """The layer of this name in a copy of the model."""
    twin: nn.Module | None = dict(average.named_modules()).get(name)
    if twin is None or not (isinstance(twin, LowRankLayer) or class_of(twin)):
        raise OIALRError(f"the average is no copy of the model: it has no layer {name!r}")
    return twin


def project(weight: LowRankWeight, *parts: Tensor) -> Factors:
    """A weight's bases, and in them another W: (m, n), the product of `parts`, as they hold it.

    It is what becomes of a first moment, which is an average, too.
    """
    basis, cobasis = (
        tensor.to(parts[0], copy=True).contiguous() for tensor in (weight.basis, weight.cobasis)
    )
    sigma = precise_product(basis.mT, *parts, cobasis.mT)  # Σ ← Uᵀ W V
    return Factors(basis, sigma.to(basis.dtype), cobasis)
