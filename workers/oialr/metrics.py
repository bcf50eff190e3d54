"""Stability (Coquelin et al., Eq. (4)), and the trainable and compressed size of their tables."""

from dataclasses import dataclass

from torch import Tensor, nn

from workers.oialr.decomposition import precise_product
from workers.oialr.layers import low_rank_weights

# m x n: a weight's shape, r: inner rank; _i and _j: two instants of one weight


def stability(
    basis_old: Tensor, cobasis_old: Tensor, basis_new: Tensor, cobasis_new: Tensor
) -> float:
    """How alike the orthogonal bases UVᵀ of one weight are at two instants; 1 when equal.

    The paper divides by m, with which a compact SVD never reaches 1: equal bases of inner rank r
    have trace r, at first min(m, n). After a truncation the smaller r divides, so that directions
    kept count as stable and directions dropped do not count.
    """
    left = precise_product(basis_old.mT, basis_new)  # U_iᵀ U_j, r_i x r_j
    right = precise_product(cobasis_old, cobasis_new.mT)  # V_iᵀ V_j, r_i x r_j
    trace = (left * right).sum()  # tr(U_i V_iᵀ (U_j V_jᵀ)ᵀ)
    return trace.item() / min(left.shape)  # Eq. (4)


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """A model's parameters, each low-rank weight's bases among them: r (m + n + r)."""

    total: int
    trainable: int


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count a model's parameters, shared ones once; buffers other than bases do not count."""
    parameters = list(model.parameters())
    bases = sum(w.basis.numel() + w.cobasis.numel() for w in low_rank_weights(model))
    return ParameterCounts(
        total=sum(parameter.numel() for parameter in parameters) + bases,
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
    )


def trainable_percent(now: ParameterCounts, full_rank: ParameterCounts) -> float:
    """Trainable parameters as a percentage of the full-rank model's."""
    return 100 * now.trainable / full_rank.trainable


def compression_percent(now: ParameterCounts, full_rank: ParameterCounts) -> float:
    """All parameters as a percentage of the full-rank model's; it can pass 100 %."""
    return 100 * now.total / full_rank.total
