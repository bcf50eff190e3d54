"""Algorithm 2 of Coquelin et al. in plain loops, slow: what the package is tested against.

W is built for every product, every update takes an SVD, and AdamW is written out. Where the paper
can be read in two ways it follows the table of readings in workers/oialr/README.md.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf

import torch
from torch import Tensor

from oialr import OIALRSettings

LR, BETAS, EPS, WEIGHT_DECAY = 0.02, (0.9, 0.99), 1e-3, 0.01


@dataclass
class Weight:
    """One weight W = U Σ Vᵀ: (m, n); as long as it is dense, Σ is W, and U and Vᵀ are missing."""

    sigma: Tensor  # Σ: (r, r), or W: (m, n)
    basis: Tensor | None = None  # U: (m, r)
    cobasis: Tensor | None = None  # Vᵀ: (r, n)
    first: Tensor = field(init=False)  # moments, of Σ's shape
    second: Tensor = field(init=False)
    stability: float = 1.0
    """Eq. (4) of the last update."""
    toss_up: float = inf
    """How near a truncation came to keeping one more or one less, relative to the largest σ."""

    def __post_init__(self) -> None:
        self.first, self.second = torch.zeros_like(self.sigma), torch.zeros_like(self.sigma)

    def dense(self) -> Tensor:
        """W: (m, n)."""
        if self.basis is None or self.cobasis is None:
            return self.sigma
        return self.basis @ self.sigma @ self.cobasis

    def train(self, gradient: Tensor, step: int) -> None:
        """A step of AdamW along the gradient: (m, n) of W, which Σ alone takes."""
        if self.basis is not None and self.cobasis is not None:
            gradient = self.basis.mT @ gradient @ self.cobasis.mT  # Eq. (10)
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradient
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * gradient**2
        mean, square = self.first / (1 - BETAS[0] ** step), self.second / (1 - BETAS[1] ** step)
        self.sigma = (1 - LR * WEIGHT_DECAY) * self.sigma - LR * mean / (square.sqrt() + EPS)

    def convert(self) -> None:
        """Line 5."""
        left, singular_values, right = torch.linalg.svd(self.sigma, full_matrices=False)
        self.basis, self.sigma, self.cobasis = left, torch.diag(singular_values), right
        self.turn_moments(left, right)

    def update(self, settings: OIALRSettings) -> None:
        """Lines 8 to 10: Algorithm 1, truncation, and all tensors cut to what is left."""
        assert self.basis is not None
        assert self.cobasis is not None
        old = self.basis, self.cobasis
        left, singular_values, right = torch.linalg.svd(self.sigma)  # Algorithm 1, line 1
        kept = self.kept(singular_values.tolist(), settings)
        self.basis = (old[0] @ left)[:, :kept]  # Algorithm 1, line 2
        self.cobasis = (right @ old[1])[:kept]
        self.sigma = torch.diag(singular_values)[:kept, :kept]
        self.turn_moments(left[:, :kept], right[:kept])
        self.stability = stability(old, (self.basis, self.cobasis))

    def kept(self, singular_values: Sequence[float], settings: OIALRSettings) -> int:
        """The inner rank after line 9, and after the authors' two limits, which the paper lacks."""
        assert self.basis is not None
        assert self.cobasis is not None
        inner_rank, largest = len(singular_values), singular_values[0]
        kept = 0
        for singular_value in singular_values:
            if singular_value >= settings.cutoff_fraction * largest:
                kept += 1
        full_inner_rank = min(len(self.basis), self.cobasis.shape[1])
        share = inner_rank * (1 - exact(settings.max_cut_fraction))
        floor = full_inner_rank * exact(settings.min_inner_rank_fraction)
        while kept < inner_rank and (kept < share or kept < floor):
            kept += 1
        if settings.cutoff_fraction and largest:
            near = [abs(s / largest - settings.cutoff_fraction) for s in singular_values]
            self.toss_up = min(self.toss_up, *near)
        if kept < inner_rank:
            gap = singular_values[kept - 1] - singular_values[kept]
            self.toss_up = min(self.toss_up, gap / largest)
        return kept

    def turn_moments(self, left: Tensor, right: Tensor) -> None:
        """Take both moments into new bases; left: (m, r), right: (r, n)."""
        self.first = left.mT @ self.first @ right.mT
        self.second = (left**2).mT @ self.second @ (right**2).mT


def stability(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> float:
    """Eq. (4) of two U: (m, r) and Vᵀ: (r, n), by the smaller r in the place of m."""
    orthogonal_old, orthogonal_new = old[0] @ old[1], new[0] @ new[1]
    inner_rank = min(len(old[1]), len(new[1]))
    return torch.trace(orthogonal_old @ orthogonal_new.mT).item() / inner_rank


def algorithm_2(
    matrices: Sequence[Tensor],
    loss: Callable[[Sequence[Tensor], int], Tensor],
    settings: OIALRSettings,
    num_steps: int,
) -> Iterator[tuple[list[Weight], list[int]]]:
    """After each step: the weights, and which of them an update has reached.

    matrices: (m, n) each; `loss` is of all of them, dense, at a step.
    """
    weights = [Weight(matrix) for matrix in matrices]
    d, nu, num_updates = settings.delay_steps, settings.update_frequency, 0
    converts_at = d if settings.full_rank_warmup else 0
    if converts_at == 0:
        for weight in weights:
            weight.convert()
    for t in range(1, num_steps + 1):  # line 1
        dense = [weight.dense().requires_grad_() for weight in weights]
        gradients = torch.autograd.grad(loss(dense, t), dense)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.sigma = weight.sigma.detach()
            weight.train(gradient, t)  # lines 3 and 13
        if t == converts_at:  # line 4
            for weight in weights:
                weight.convert()
        reached = []
        if t >= d and (t - d) % nu == 0:  # line 6
            num_updates += 1
            for i in range(
                len(weights) - window(len(weights), settings, num_updates), len(weights)
            ):
                weights[i].update(settings)
                reached.append(i)
        yield weights, reached


def window(num_layers: int, settings: OIALRSettings, update: int) -> int:
    """ℓ of line 7, which line 11 lets grow, whole and between one and all."""
    size = 1
    while size < num_layers * exact(settings.layer_fraction) * update:
        size += 1
    return min(size, num_layers) if settings.growing_window else num_layers


def exact(percentage: float) -> Fraction:
    """What a whole percentage meant before it became a float."""
    return Fraction(round(percentage * 100), 100)
