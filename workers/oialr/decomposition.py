"""W = U Σ Vᵀ (Coquelin et al.): the SVD behind conversion and every basis update."""

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """A weight W (m x n) as U Σ Vᵀ of inner rank r."""

    basis: Tensor  # U, m x r, orthonormal columns
    sigma: Tensor  # Σ, r x r
    cobasis: Tensor  # Vᵀ, r x n, orthonormal rows


def decompose(weight: Tensor) -> Factors:
    """Take the compact SVD of a weight, in the weight's own precision."""
    left, singular_values, right = svd(weight)
    return Factors(
        left.to(weight.dtype).contiguous(),
        singular_values.to(weight.dtype).diag(),
        right.to(weight.dtype).contiguous(),
    )


def blank(weight: Tensor) -> Factors:
    """Make factors of inner rank 0: the structure alone, to be resized and loaded into."""
    num_rows, num_columns = weight.shape
    return Factors(
        weight.new_empty(num_rows, 0), weight.new_empty(0, 0), weight.new_empty(0, num_columns)
    )


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, the singular values in falling order, and Vᵀ, in float32 at least."""
    left, singular_values, right = torch.linalg.svd(
        matrix.to(torch.promote_types(matrix.dtype, torch.float32)), full_matrices=False
    )
    return left, singular_values, right


def precise_product(*matrices: Tensor) -> Tensor:
    """Multiply in float64: neither TF32 nor autocast may wear a basis's orthogonality away."""
    product: Tensor = torch.linalg.multi_dot([matrix.double() for matrix in matrices])
    return product
