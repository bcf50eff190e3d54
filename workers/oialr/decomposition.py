"""W = U Σ Vᵀ (Coquelin et al.): the SVD behind conversion and every basis update."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from oialr.errors import NotFiniteError

M = TypeVar("M")


class Factors(NamedTuple):
    """A weight W: (m, n) as U Σ Vᵀ of inner rank r."""

    basis: Tensor  # U: (m, r), orthonormal columns
    sigma: Tensor  # Σ: (r, r)
    cobasis: Tensor  # Vᵀ: (r, n), orthonormal rows


def decompose(weight: Tensor) -> Factors:
    """Take the compact SVD of a weight: (m, n); the factors have its dtype, and r = min(m, n)."""
    left, singular_values, right = svd(weight)
    return Factors(
        left.to(weight.dtype).contiguous(),
        singular_values.to(weight.dtype).diag(),
        right.to(weight.dtype).contiguous(),
    )


def blank(weight: Tensor) -> Factors:
    """Make factors of inner rank 0 for a weight: (m, n), to be resized and loaded into."""
    num_rows, num_columns = weight.shape
    return Factors(
        weight.new_empty(num_rows, 0), weight.new_empty(0, 0), weight.new_empty(0, num_columns)
    )


class SVD(NamedTuple):
    """A compact SVD, q = min(m, n), in float64; with a leading dimension for a batch of them."""

    left: Tensor  # U: (m, q)
    singular_values: Tensor  # (q,), in falling order
    right: Tensor  # Vᵀ: (q, n)


def svd(matrix: Tensor) -> SVD:
    """Decompose a matrix: (..., m, n) in float64.

    In float32 fifty updates wear a basis's orthogonality off by 1e-4.
    """
    return SVD(*torch.linalg.svd(matrix.double(), full_matrices=False))


def svd_alike(matrices: Sequence[Tensor]) -> list[SVD]:
    """Decompose many matrices: (m, n), all of one kind in one call, which is faster on a GPU.

    Of one kind are those of one shape, device and dtype.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for position, matrix in enumerate(matrices):
        alike.setdefault((matrix.shape, matrix.device, matrix.dtype), []).append(position)
    found: dict[int, SVD] = {}
    for positions in alike.values():
        batch = svd(torch.stack([matrices[position] for position in positions]))
        found |= zip(positions, map(SVD._make, zip(*batch, strict=True)), strict=True)
    return [found[position] for position in range(len(matrices))]


def numbered(layer_name: str, matrices: Sequence[M]) -> dict[str, M]:
    """Name a layer's matrices: by the layer's name, and a number where there are several."""
    if len(matrices) == 1:
        return {layer_name: matrices[0]}
    return {f"{layer_name}[{i}]": matrix for i, matrix in enumerate(matrices)}


def refuse_not_finite(matrices: Mapping[str, Tensor], step: int) -> None:
    """Refuse matrices: (m, n) without an SVD, or whose singular values their dtype cannot hold."""
    for name, matrix in matrices.items():
        # a bound on the singular values, and NaN or infinite if an entry is
        norm = torch.linalg.vector_norm(matrix, dtype=torch.float64).to(matrix.dtype).item()
        if not isfinite(norm):
            raise NotFiniteError(
                f"layer {name!r} is not finite at step {step}: the norm of its"
                f" {matrix.shape[0]}x{matrix.shape[1]} matrix is {norm} in {matrix.dtype}"
            )


def precise_product(*matrices: Tensor) -> Tensor:
    """Multiply matrices: (a, b), (b, c), ..., (y, z) in float64; returns (a, z).

    Neither TF32 nor autocast may wear a basis's orthogonality away.
    """
    product: Tensor = torch.linalg.multi_dot([matrix.double() for matrix in matrices])
    return product
