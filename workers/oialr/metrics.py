"""Stability and mixing (Coquelin et al., Eqs. (4) and (5)), and the sizes of their tables."""

from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oialr.decomposition import precise_product, svd
from oialr.layers import low_rank_weights

# (m, n): a weight's shape, r: inner rank; _i and _j: two instants of one weight


def stability(
    basis_old: Tensor, cobasis_old: Tensor, basis_new: Tensor, cobasis_new: Tensor
) -> float:
    """How alike the orthogonal bases UVᵀ of one weight are at two instants; 1 when equal.

    basis_old: (m, r_i), cobasis_old: (r_i, n), basis_new: (m, r_j), cobasis_new: (r_j, n).

    The paper divides by m, with which a compact SVD of m > n never reaches the 1 that it promises
    for equal bases: those of inner rank r have trace r, at first min(m, n). After a truncation the
    smaller r divides, so that directions kept count as stable and directions dropped do not count.
    """
    left = precise_product(basis_old.mT, basis_new)  # U_iᵀ U_j: (r_i, r_j)
    right = precise_product(cobasis_old, cobasis_new.mT)  # V_iᵀ V_j: (r_i, r_j)
    trace = (left * right).sum()  # tr(U_i V_iᵀ (U_j V_jᵀ)ᵀ)
    return trace.item() / min(left.shape)  # Eq. (4)


def weight_stability(weight_old: Tensor, weight_new: Tensor) -> float:
    """`stability` between two dense weights: (out, ...), by a compact SVD of each.

    A weight of more than two dimensions counts as its matrix, out x rest. Where a weight has no
    full inner rank, the bases of its missing directions are the SVD's choice, and count.
    """
    old, new = svd(weight_old.flatten(1)), svd(weight_new.flatten(1))
    return stability(old.left, old.right, new.left, new.right)


def mixing_similarity(weight_old: Tensor, weight_new: Tensor) -> float:
    """How alike the linear mixings R of one weight: (out, ...) are at two instants, where W = QR.

    R has a diagonal that is nowhere negative. It is 1 when equal, also when Q alone has changed,
    and 1 less the root mean square of R_i - R_j otherwise: in the unit of the weights, so that
    small ones are always alike and large ones can come below 0.

    A weight of more than two dimensions counts as its matrix, out x rest.
    """
    old, new = mixing(weight_old.flatten(1)), mixing(weight_new.flatten(1))
    return euclidean_similarity(old, new, len(weight_new))


def relative_mixing_similarity(weight_old: Tensor, weight_new: Tensor) -> float:
    """`mixing_similarity` without a unit: 1 - ‖R_i - R_j‖ / (‖R_i‖ + ‖R_j‖), in Frobenius norms.

    1 when equal; 0 when one of the two weights: (out, ...) is zero. It is ours, not the paper's.
    """
    return relative_similarity(mixing(weight_old.flatten(1)), mixing(weight_new.flatten(1)))


def mixing(weight: Tensor) -> Tensor:
    """R of W = QR, in float64; weight: (m, n); returns (min(m, n), n), the rest being zeros.

    With a diagonal that is not negative it is the one R there is, if the first columns of W are
    independent. Since Q drops out, ΣVᵀ has the R of W = UΣVᵀ, less rows of zeros.
    """
    upper: Tensor = torch.linalg.qr(weight.double(), mode="r").R
    signs = 1 - 2 * (upper.diagonal() < 0).double()
    return signs[:, None] * upper


def euclidean_similarity(upper_old: Tensor, upper_new: Tensor, num_rows: int) -> float:
    """Eq. (5) for two R: (up to m, n), with num_rows = m; missing rows are zeros."""
    root = sqrt(num_rows * upper_new.shape[1])
    return 1 - distance(upper_old, upper_new) / root  # Eq. (5)


def relative_similarity(upper_old: Tensor, upper_new: Tensor) -> float:
    """The relative form of Eq. (5) for two R: (up to m, n); missing rows are zeros."""
    reach = (upper_old.norm() + upper_new.norm()).item()
    return 1 - min(distance(upper_old, upper_new) / reach, 1) if reach else 1.0


def distance(upper_old: Tensor, upper_new: Tensor) -> float:
    """√Σ(R_i - R_j)², summed over all entries of two R: (up to m, n); missing rows are zeros."""
    num_rows = max(len(upper_old), len(upper_new))
    old, new = (F.pad(upper, (0, 0, 0, num_rows - len(upper))) for upper in (upper_old, upper_new))
    return float(torch.linalg.vector_norm(old - new))


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """A model's parameters, each low-rank weight's bases among them: r (m + n + r)."""

    total: int
    trainable: int


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count a model's parameters, shared ones once; buffers other than bases do not count."""
    parameters = list(model.parameters())
    bases = [basis for w in low_rank_weights(model) for basis in (w.basis, w.cobasis)]
    return ParameterCounts(  # bases are parameters, too, while they are sharded
        total=sum(tensor.numel() for tensor in dict.fromkeys([*parameters, *bases])),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
    )


def trainable_percent(now: ParameterCounts, full_rank: ParameterCounts) -> float:
    """Trainable parameters as a percentage of the full-rank model's."""
    return 100 * now.trainable / full_rank.trainable


def compression_percent(now: ParameterCounts, full_rank: ParameterCounts) -> float:
    """All parameters as a percentage of the full-rank model's; it can pass 100 %."""
    return 100 * now.total / full_rank.total
