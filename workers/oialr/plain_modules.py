"""A trained low-rank model as plain PyTorch modules, which need nothing of this package."""

import copy
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from oialr.conversion import replace_modules
from oialr.layers import (
    Convolution,
    LowRankConv,
    LowRankConv1D,
    LowRankLayer,
    LowRankLinear,
    LowRankMultiheadAttention,
    StackedLowRankLinear,
    hand_on,
)

Layer = TypeVar("Layer", bound=nn.Module)
Form = Literal["dense", "smallest"]
CONVOLUTIONS: dict[int, type[Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
LOW_RANK_PARTS = (
    "basis", "sigma", "cobasis", "bias", "blocks", "in_proj", "_built", "dense_type"
)  # fmt: skip


@torch.no_grad()
def export(model: nn.Module, form: Form = "dense") -> nn.Module:
    """Copy a model, torch's own layers in the places of low-rank ones, for inference or to save.

    "dense": one weight W = U Σ Vᵀ a layer; the `state_dict` is that of the model before conversion.
    "smallest": two factors, UΣ and Vᵀ, as an `nn.Sequential` of two layers where r (m + n) < mn,
    and dense otherwise, as are grouped convolutions, the input projections of attention, and the
    layers of `nn.TransformerEncoderLayer`, which reads their weights.
    """
    exported = copy.deepcopy(model)
    replacements: dict[nn.Module, nn.Module] = {}
    for parent in exported.modules():
        reads_weights = isinstance(parent, nn.TransformerEncoderLayer)
        for child in parent.children():
            if isinstance(child, LowRankLayer):
                plain = plain_layer(child, "dense" if reads_weights else form)
                hand_on(child, plain, without=LOW_RANK_PARTS)
                replacements[child] = plain
    replace_modules(exported, replacements)
    return exported


def plain_layer(layer: LowRankLayer, form: Form) -> nn.Module:
    """Make torch's own layer of a low-rank one."""
    two_factors = form == "smallest" and saves_parameters(layer)
    match layer:
        case LowRankMultiheadAttention():
            return attention(layer)
        case LowRankConv() if two_factors:
            return nn.Sequential(
                convolution(layer, layer.cobasis, None),
                pointwise(layer.basis @ layer.sigma, layer.bias, len(layer.kernel_size)),
            )
        case LowRankConv():
            return convolution(layer, layer.dense(), layer.bias)
        case LowRankLinear() if two_factors:
            return nn.Sequential(
                linear(layer.cobasis, None), linear(layer.basis @ layer.sigma, layer.bias)
            )
        case LowRankConv1D() if two_factors:
            return nn.Sequential(
                linear(layer.basis.mT, None), linear((layer.sigma @ layer.cobasis).mT, layer.bias)
            )
        case LowRankConv1D():
            return conv1d(layer)
        case _:
            return linear(layer.weight, layer.bias)


def saves_parameters(layer: LowRankLayer) -> bool:
    """Whether two factors have fewer parameters than the dense weight, and could stand for it."""
    if isinstance(layer, StackedLowRankLinear | LowRankMultiheadAttention):
        return False
    if isinstance(layer, LowRankConv) and layer.groups > 1:
        return False
    m, n, r = layer.basis.shape[0], layer.cobasis.shape[1], layer.inner_rank
    return r * (m + n) < m * n


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An `nn.Linear` of weight: (m, n) and bias: (m,)."""
    num_rows, num_columns = weight.shape
    layer: nn.Linear = blank(
        nn.Linear, num_columns, num_rows, bias=bias is not None, device=weight.device
    )
    return fill(layer, weight, bias)


def convolution(layer: LowRankConv, matrix: Tensor, bias: Tensor | None) -> nn.Module:
    """A convolution that moves as the layer does; matrix: (rows, in·k...), bias: (rows,)."""
    dense: Convolution = blank(
        CONVOLUTIONS[len(layer.kernel_size)],
        layer.in_channels,
        len(matrix),
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=bias is not None,
        padding_mode=layer.padding_mode,
        device=matrix.device,
    )
    return fill(dense, matrix.reshape(dense.weight.shape), bias)


def pointwise(matrix: Tensor, bias: Tensor | None, num_dims: int) -> nn.Module:
    """A convolution of kernel 1: at each position the matrix: (rows, channels); bias: (rows,)."""
    num_rows, num_columns = matrix.shape
    dense: Convolution = blank(
        CONVOLUTIONS[num_dims],
        num_columns,
        num_rows,
        1,
        bias=bias is not None,
        device=matrix.device,
    )
    return fill(dense, matrix.reshape(dense.weight.shape), bias)


def conv1d(layer: LowRankConv1D) -> nn.Module:
    """`transformers.Conv1D` with its weight: (in, out) built."""
    dense = layer.dense_type.__new__(layer.dense_type)
    nn.Module.__init__(dense)
    return fill(dense, layer.weight, layer.bias)


def attention(layer: LowRankMultiheadAttention) -> nn.MultiheadAttention:
    """`nn.MultiheadAttention` with its input projections built."""
    weight = layer.out_proj.weight
    dense: nn.MultiheadAttention = blank(
        nn.MultiheadAttention,
        layer.embed_dim,
        layer.num_heads,
        dropout=layer.dropout,
        bias=layer.in_proj_bias is not None,
        add_bias_kv=layer.bias_k is not None,
        add_zero_attn=layer.add_zero_attn,
        kdim=layer.kdim,
        vdim=layer.vdim,
        batch_first=layer.batch_first,
        device=weight.device,
    )
    dense.out_proj = layer.out_proj
    for name, parameter in dense.named_parameters(recurse=False):
        numbers = getattr(layer, name)
        setattr(dense, name, nn.Parameter(numbers.detach().clone(), parameter.requires_grad))
    return dense


def blank(kind: type[nn.Module], *arguments: Any, **options: Any) -> Any:
    """A layer whose numbers are still to come; no random ones are drawn."""
    return skip_init(kind, *arguments, **options)  # type: ignore[no-untyped-call]


def fill(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    """Give a layer its numbers, in their own precision; weight: as the layer's, bias: (rows,)."""
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
