"""The low-rank layer's arithmetic: y = x (U Σ Vᵀ)ᵀ + b in the cheapest order of products."""

import torch.nn.functional as F
from torch import Tensor

# T: tokens, m x n: the weight's shape (out x in), r: inner rank, q = min(m, n);
# of a convolution T counts the output positions, and n is in·k...


def low_rank_linear(
    x: Tensor, basis: Tensor, sigma: Tensor, cobasis: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Apply U Σ Vᵀ to x (..., n); W itself is built only where that costs less."""
    out_features, inner_rank = basis.shape
    in_features = cobasis.shape[1]
    num_tokens = x.numel() // in_features
    if dense_is_cheaper(num_tokens, out_features, in_features, inner_rank):
        return F.linear(x, dense_weight(basis, sigma, cobasis), bias)
    return F.linear(F.linear(F.linear(x, cobasis), sigma), basis, bias)


def dense_weight(basis: Tensor, sigma: Tensor, cobasis: Tensor) -> Tensor:
    """Build W = U Σ Vᵀ, Σ taken to the shorter side first."""
    if basis.shape[0] < cobasis.shape[1]:
        return (basis @ sigma) @ cobasis
    return basis @ (sigma @ cobasis)


def dense_is_cheaper(num_tokens: int, out_features: int, in_features: int, inner_rank: int) -> bool:
    """Compare the multiplications of a training step: forward, input gradient, Σ gradient."""
    t, m, n, r = num_tokens, out_features, in_features, inner_rank
    factors = t * r * (2 * m + 2 * n + 3 * r)
    dense = 3 * t * m * n + 2 * (m * n * r + min(m, n) * r * r)
    return dense < factors
