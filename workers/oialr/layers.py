"""Layers that hold their weights as U Σ Vᵀ (Coquelin et al.) and train Σ alone."""

from collections.abc import Callable, Collection, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oialr.decomposition import Factors
from oialr.products import dense_is_cheaper, dense_weight, low_rank_linear

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

# What a call runs, and the marks that go with it; the same dictionaries, so that the handles the
# user holds still remove his hooks. Hooks on loading and saving see other names now: not kept.
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


def hand_on(old: nn.Module, new: nn.Module, without: Collection[str] = ()) -> None:
    """Give a layer what its predecessor holds and it lacks: attributes, tensors, modules, hooks.

    They stay the same objects; what the new one has in a way of its own, as its weight, it keeps.
    """
    new.train(old.training)
    for kind in ("_parameters", "_buffers", "_modules"):
        for name, value in getattr(old, kind).items():
            if name not in without and not hasattr(type(new), name):
                getattr(new, kind).setdefault(name, value)
    new._non_persistent_buffers_set |= old._non_persistent_buffers_set
    for name, value in vars(old).items():
        if name in HOOKS or not (name in without or name in vars(new) or hasattr(type(new), name)):
            vars(new)[name] = value


class LowRankWeight(nn.Module):
    """One weight W: (m, n), out x in: U and Vᵀ are buffers, Σ the only parameter."""

    basis: Tensor  # U: (m, r)
    sigma: nn.Parameter  # Σ: (r, r)
    cobasis: Tensor  # Vᵀ: (r, n)

    def __init__(self, factors: Factors) -> None:
        """Take the factors over as they are."""
        super().__init__()
        self.register_buffer("basis", factors.basis)
        self.sigma = nn.Parameter(factors.sigma)
        self.register_buffer("cobasis", factors.cobasis)

    @property
    def weights(self) -> tuple["LowRankWeight", ...]:
        """The low-rank weights: itself."""
        return (self,)

    @property
    def inner_rank(self) -> int:
        """The r of today."""
        return self.sigma.shape[0]

    @property
    def full_inner_rank(self) -> int:
        """q = min(m, n), the r of conversion."""
        return min(self.basis.shape[0], self.cobasis.shape[1])

    def dense(self) -> Tensor:
        """Build W, differentiably; returns (m, n)."""
        return dense_weight(self.basis, self.sigma, self.cobasis)

    def set_factors(self, factors: Factors) -> None:
        """Put new factors in the place of the old; Σ becomes a new parameter without gradient.

        A new one, because a graph still alive (somebody's `loss`) ties the old one to its shape.
        It is frozen if the old one is.
        """
        self.basis, self.cobasis = factors.basis, factors.cobasis
        self.sigma = nn.Parameter(factors.sigma, self.sigma.requires_grad)

    def extra_repr(self) -> str:
        """Shape and inner rank, for print(model)."""
        num_rows, num_columns = self.basis.shape[0], self.cobasis.shape[1]
        return f"{num_rows}x{num_columns}, inner_rank={self.inner_rank}"


class LowRankLinear(LowRankWeight):
    """`nn.Linear` with its weight as U Σ Vᵀ."""

    bias: nn.Parameter | None

    def __init__(self, factors: Factors, bias: nn.Parameter | None) -> None:
        """Keep the dense layer's own bias parameter: (m,)."""
        super().__init__(factors)
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """W: (m, n), built anew at each reading, for code that reads a Linear's weight."""
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
        """x: (..., n); returns (..., m)."""
        return low_rank_linear(x, self.basis, self.sigma, self.cobasis, self.bias)


class LowRankConv1D(LowRankWeight):
    """`transformers.Conv1D` (GPT-2's linear layer: weight in x out) with its weight as U Σ Vᵀ.

    Here U: (n, r) and Vᵀ: (r, m), so that W: (n, m) is the weight as it stood there.
    """

    bias: nn.Parameter

    def __init__(self, dense: nn.Module, factors: Factors) -> None:
        """Take over all of the dense layer but its weight."""
        super().__init__(factors)
        self.dense_type = type(dense)
        hand_on(dense, self)

    @property
    def weight(self) -> Tensor:
        """W: (n, m), in x out, built anew at each reading, for code that reads it."""
        return self.dense()

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., n); returns (..., m)."""
        return low_rank_linear(x, self.cobasis.mT, self.sigma.mT, self.basis.mT, self.bias)


class LowRankConv(LowRankWeight):
    """`nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` with its kernel as U Σ Vᵀ.

    W is the kernel (out, in, k...) as a matrix, out x in·k... . Where it costs less than building
    W, a small convolution has Vᵀ for its kernel, and Σ and U mix the r channels it gives.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    padding_mode: str
    dilation: tuple[int, ...]
    groups: int
    bias: Tensor | None
    # the padding in numbers, also where it is "same": before and after, last dimension first
    _reversed_padding_repeated_twice: Sequence[int]

    def __init__(self, dense: Convolution, factors: Factors) -> None:
        """Take over all of the dense layer but its weight."""
        super().__init__(factors)
        hand_on(dense, self)

    @property
    def weight(self) -> Tensor:
        """The kernel: (out, in, k...), built anew at each reading, for code that reads it."""
        return self._kernel(self.dense())

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, in, positions...); returns (batch, out, positions...).

        The batch may be missing.
        """
        # each of several groups would need all r channels of Vᵀ for itself, which seldom pays
        if self.groups > 1 or dense_is_cheaper(
            self._num_tokens(x),
            self.out_channels,
            self.cobasis.shape[1],
            self.inner_rank,
            chain=True,
        ):
            return self._convolve(x, self.weight, self.bias)
        x = self._convolve(x, self._kernel(self.cobasis))
        return self._mix_channels(self._mix_channels(x, self.sigma), self.basis, self.bias)

    def extra_repr(self) -> str:
        """Matrix shape, inner rank and how the kernel moves, for print(model)."""
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        return ", ".join(
            [super().extra_repr(), *(f"{name}={getattr(self, name)}" for name in names)]
        )

    def _kernel(self, matrix: Tensor) -> Tensor:
        """matrix: (rows, in·k...); returns (rows, in, k...), of `in` each group's share."""
        return matrix.reshape(-1, self.in_channels // self.groups, *self.kernel_size)

    def _convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        """Move a kernel over x as the dense layer would.

        x: (batch, in, positions...), kernel: (rows, in, k...); returns (batch, rows, positions...).
        """
        padding = self.padding
        if self.padding_mode != "zeros":
            margins = self._reversed_padding_repeated_twice
            x, padding = F.pad(x, margins, mode=self.padding_mode), "valid"
        convolve = CONVOLVE[len(self.kernel_size)]
        return convolve(x, kernel, bias, self.stride, padding, self.dilation, self.groups)

    def _mix_channels(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiply the channels of x at each position by a matrix: (rows, channels).

        x: (batch, channels, positions...); returns (batch, rows, positions...).
        """
        num_dims = len(self.kernel_size)
        return CONVOLVE[num_dims](x, matrix.reshape(*matrix.shape, *(1,) * num_dims), bias)

    def _num_tokens(self, x: Tensor) -> int:
        """How many positions the output for x: (batch, in, positions...) has, over the batch."""
        num_dims, margins = len(self.kernel_size), self._reversed_padding_repeated_twice
        before, after = margins[-2::-2], margins[::-2]
        padded = map(sum, zip(x.shape[-num_dims:], before, after, strict=True))
        reaches = [
            dilation * (size - 1) + 1
            for size, dilation in zip(self.kernel_size, self.dilation, strict=True)
        ]
        lengths = [
            (length - reach) // stride + 1
            for length, reach, stride in zip(padded, reaches, self.stride, strict=True)
        ]
        return prod(x.shape[: -num_dims - 1]) * prod(lengths)


class StackedLowRankLinear(nn.Module):
    """A fused projection taken apart: low-rank weights above one another, one bias for all."""

    bias: nn.Parameter | None

    def __init__(self, factors: Sequence[Factors], bias: nn.Parameter | None) -> None:
        """Stack in the order given; keep the dense layer's own bias parameter: (m,)."""
        super().__init__()
        self.blocks = nn.ModuleList(map(LowRankWeight, factors))
        self.register_parameter("bias", bias)

    @property
    def weights(self) -> tuple[LowRankWeight, ...]:
        """The low-rank weights, from the top."""
        return low_rank_weights(self.blocks)

    @property
    def weight(self) -> Tensor:
        """W: (m, n), built anew at each reading, for code that reads a Linear's weight."""
        return torch.cat([weight.dense() for weight in self.weights])

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., n); returns (..., m), m over all blocks."""
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
        self.in_proj = nn.ModuleList(map(LowRankWeight, factors))
        self._built: dict[str, Tensor] = {}
        hand_on(dense, self)

    @property
    def weights(self) -> tuple[LowRankWeight, ...]:
        """The low-rank weights: all fused, or query, key and value."""
        return low_rank_weights(self.in_proj)

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The fused weight: (3E, E); None where the three have different widths."""
        return self._projections().get("in_proj_weight")

    @property
    def q_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The query weight: (E, E); None where it is fused."""
        return self._projections().get("q_proj_weight")

    @property
    def k_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The key weight: (E, kdim); None where it is fused."""
        return self._projections().get("k_proj_weight")

    @property
    def v_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The value weight: (E, vdim); None where it is fused."""
        return self._projections().get("v_proj_weight")

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`, which says the shapes."""
        self._built = self._projections()
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._built = {}

    def _projections(self) -> dict[str, Tensor]:
        """The weights of the four properties that are not None, by name."""
        if self._built:
            return self._built
        dense = [weight.dense() for weight in self.weights]
        if self._qkv_same_embed_dim:
            return {"in_proj_weight": torch.cat(dense)}
        return dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), dense, strict=True))


LowRankLayer = (
    LowRankLinear | LowRankConv1D | LowRankConv | StackedLowRankLinear | LowRankMultiheadAttention
)


def low_rank_weights(modules: nn.Module) -> tuple[LowRankWeight, ...]:
    """All low-rank weights below a module, in registration order."""
    return tuple(module for module in modules.modules() if isinstance(module, LowRankWeight))
