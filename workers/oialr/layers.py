"""Layers that hold their weights as U Σ Vᵀ (Coquelin et al.) and train Σ alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workers.oialr.decomposition import Factors
from workers.oialr.products import dense_weight, low_rank_linear


class LowRankWeight(nn.Module):
    """One weight W (m x n, out x in): U and Vᵀ are buffers, Σ the only parameter."""

    basis: Tensor  # U, m x r
    sigma: nn.Parameter  # Σ, r x r
    cobasis: Tensor  # Vᵀ, r x n

    def __init__(self, factors: Factors) -> None:
        """Take the factors over as they are."""
        super().__init__()
        self.register_buffer("basis", factors.basis)
        self.sigma = nn.Parameter(factors.sigma)
        self.register_buffer("cobasis", factors.cobasis)

    @property
    def inner_rank(self) -> int:
        """The r of today."""
        return self.sigma.shape[0]

    @property
    def full_inner_rank(self) -> int:
        """q = min(m, n), the r of conversion."""
        return min(self.basis.shape[0], self.cobasis.shape[1])

    def dense(self) -> Tensor:
        """Build W, differentiably."""
        return dense_weight(self.basis, self.sigma, self.cobasis)

    def set_factors(self, factors: Factors) -> None:
        """Put new factors in the place of the old; Σ becomes a new parameter without gradient.

        A new one, because a graph still alive (somebody's `loss`) ties the old one to its shape.
        """
        self.basis, self.cobasis = factors.basis, factors.cobasis
        self.sigma = nn.Parameter(factors.sigma)

    def extra_repr(self) -> str:
        """Shape and inner rank, for print(model)."""
        num_rows, num_columns = self.basis.shape[0], self.cobasis.shape[1]
        return f"{num_rows}x{num_columns}, inner_rank={self.inner_rank}"


class LowRankLinear(LowRankWeight):
    """`nn.Linear` with its weight as U Σ Vᵀ."""

    bias: nn.Parameter | None

    def __init__(self, factors: Factors, bias: nn.Parameter | None) -> None:
        """Keep the dense layer's own bias parameter."""
        super().__init__(factors)
        self.register_parameter("bias", bias)

    @property
    def weights(self) -> tuple[LowRankWeight, ...]:
        """The low-rank weights: itself."""
        return (self,)

    @property
    def weight(self) -> Tensor:
        """W, built anew at each reading, for code that reads a Linear's weight."""
        return self.dense()

    @property
    def in_features(self) -> int:
        """n."""
        return self.cobasis.shape[1]

    @property
    def out_features(self) -> int:
        """m."""
        return self.basis.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        return low_rank_linear(x, self.basis, self.sigma, self.cobasis, self.bias)


class StackedLowRankLinear(nn.Module):
    """A fused projection taken apart: low-rank weights above one another, one bias for all."""

    bias: nn.Parameter | None

    def __init__(self, factors: Sequence[Factors], bias: nn.Parameter | None) -> None:
        """Stack in the order given; keep the dense layer's own bias parameter."""
        super().__init__()
        self.blocks = nn.ModuleList(map(LowRankWeight, factors))
        self.register_parameter("bias", bias)

    @property
    def weights(self) -> tuple[LowRankWeight, ...]:
        """The low-rank weights, from the top."""
        return low_rank_weights(self.blocks)

    @property
    def weight(self) -> Tensor:
        """W, built anew at each reading, for code that reads a Linear's weight."""
        return torch.cat([weight.dense() for weight in self.weights])

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m), m over all blocks."""
        parts = [low_rank_linear(x, w.basis, w.sigma, w.cobasis) for w in self.weights]
        y = torch.cat(parts, dim=-1)
        return y if self.bias is None else y + self.bias


class LowRankMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with its input projections as U Σ Vᵀ; the attention is inherited.

    The inherited code wants whole weights, so they are built, once in a forward pass.
    """

    def __init__(self, dense: nn.MultiheadAttention, factors: Sequence[Factors]) -> None:
        """Take over all of the dense layer but its input projections' weights."""
        nn.Module.__init__(self)  # nn.MultiheadAttention's own draws random weights
        self.embed_dim, self.kdim, self.vdim = dense.embed_dim, dense.kdim, dense.vdim
        self._qkv_same_embed_dim = dense._qkv_same_embed_dim
        self.num_heads, self.head_dim = dense.num_heads, dense.head_dim
        self.dropout, self.batch_first = dense.dropout, dense.batch_first
        self.add_zero_attn = dense.add_zero_attn
        self.in_proj = nn.ModuleList(map(LowRankWeight, factors))
        self.register_parameter("in_proj_bias", dense.in_proj_bias)
        self.bias_k, self.bias_v = dense.bias_k, dense.bias_v
        self.out_proj = dense.out_proj
        self._built: dict[str, Tensor] = {}

    @property
    def weights(self) -> tuple[LowRankWeight, ...]:
        """The low-rank weights: all fused, or query, key and value."""
        return low_rank_weights(self.in_proj)

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The fused weight, 3E x E; None where the three have different widths."""
        return self._projections().get("in_proj_weight")

    @property
    def q_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The query weight, E x E; None where it is fused."""
        return self._projections().get("q_proj_weight")

    @property
    def k_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The key weight, E x kdim; None where it is fused."""
        return self._projections().get("k_proj_weight")

    @property
    def v_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The value weight, E x vdim; None where it is fused."""
        return self._projections().get("v_proj_weight")

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`."""
        self._built = self._projections()
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._built = {}

    def _projections(self) -> dict[str, Tensor]:
        if self._built:
            return self._built
        dense = [weight.dense() for weight in self.weights]
        if self._qkv_same_embed_dim:
            return {"in_proj_weight": torch.cat(dense)}
        return dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), dense, strict=True))


LowRankLayer = LowRankLinear | StackedLowRankLinear | LowRankMultiheadAttention


def low_rank_weights(modules: nn.Module) -> tuple[LowRankWeight, ...]:
    """All low-rank weights below a module, in registration order."""
    return tuple(module for module in modules.modules() if isinstance(module, LowRankWeight))
