"""Basis updates (Coquelin et al., Algorithm 1) and their truncation (Algorithm 2, lines 9, 10)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.optim import Optimizer

from oialr.decomposition import SVD, Factors, precise_product, svd_alike
from oialr.layers import LowRankWeight
from oialr.metrics import stability
from oialr.optimizer_state import replace_parameter
from oialr.settings import OIALRSettings


@dataclass(frozen=True, kw_only=True)
class BasisUpdate:
    """What one basis update did to one weight."""

    step: int
    """Optimiser steps taken before the update."""

    layer: str
    """Dotted name of the layer; `name[i]` for the i-th of a layer's several weights."""

    inner_rank: int
    """r after the truncation."""

    full_inner_rank: int
    """min(m, n)."""

    stability: float
    """Eq. (4) between the bases before and after."""


@torch.no_grad()
def update_bases(
    weights: Sequence[LowRankWeight], optimizer: Optimizer, settings: OIALRSettings
) -> list[float]:
    """Turn the bases so that each Σ is diagonal again, cut its small part, return stabilities.

    All SVDs come before the first change.
    """
    decomposed = svd_alike([weight.sigma for weight in weights])  # Algorithm 1, line 1
    return [
        turn(weight, parts, optimizer, settings)
        for weight, parts in zip(weights, decomposed, strict=True)
    ]


def turn(weight: LowRankWeight, parts: SVD, optimizer: Optimizer, settings: OIALRSettings) -> float:
    """Turn and cut the bases of one weight by the SVD of its Σ: (r, r); return the stability."""
    old_basis, old_sigma, old_cobasis = weight.basis, weight.sigma, weight.cobasis
    kept = kept_inner_rank(parts.singular_values, weight.full_inner_rank, settings)
    # cut before multiplying: the products are then fresh tensors, and the old memory goes free
    left, singular_values, right = (
        parts.left[:, :kept],
        parts.singular_values[:kept],
        parts.right[:kept],
    )
    dtype = old_sigma.dtype
    weight.set_factors(
        Factors(
            precise_product(old_basis, left).to(dtype),  # U ← UU' (Algorithm 1, line 2)
            singular_values.to(dtype).diag(),  # Σ ← Σ'
            precise_product(right, old_cobasis).to(dtype),  # Vᵀ ← V'ᵀVᵀ
        )
    )
    rotations = [(left, right.mT)]
    replace_parameter(optimizer, old_sigma, [weight.sigma], rotations, settings.optimizer_state)
    return stability(old_basis, old_cobasis, weight.basis, weight.cobasis)


def kept_inner_rank(singular_values: Tensor, full_inner_rank: int, settings: OIALRSettings) -> int:
    """How many of the singular values: (r,), given in falling order, survive the truncation."""
    inner_rank = len(singular_values)
    cutoff = settings.cutoff_fraction * singular_values[0]
    kept = int((singular_values >= cutoff).sum())  # Algorithm 2, line 9
    # The paper has neither limit; the authors' code has both, and the paper's figures need them.
    # 1e-9 is for 10 · (1 - 0.7) = 3.0000000000000004, which is no reason to keep 4.
    share = ceil(inner_rank * (1 - settings.max_cut_fraction) - 1e-9)
    floor = ceil(full_inner_rank * settings.min_inner_rank_fraction - 1e-9)
    return min(inner_rank, max(kept, share, floor, 1))
