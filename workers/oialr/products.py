"""The low-rank layer's arithmetic: y = x (U Σ Vᵀ)ᵀ + b in the cheapest order of products."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# T: tokens, m x n: the weight's shape (out x in), r: inner rank, q = min(m, n);
# of a convolution T counts the output positions, and n is in·k...

ONEDNN_PAYS_FROM = 4_000_000  # multiplications; below it a convolution's overhead weighs more


def low_rank_linear(
    x: Tensor, basis: Tensor, sigma: Tensor, cobasis: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Apply U Σ Vᵀ to x (..., n); W itself is built only where that costs less."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, basis, sigma, cobasis = (factor.to(dtype) for factor in (x, basis, sigma, cobasis))
        bias = None if bias is None else bias.to(dtype)
    tokens = x.reshape(-1, x.shape[-1])
    if dense_is_cheaper(len(tokens), basis.shape[0], cobasis.shape[1], basis.shape[1]):
        y = linear(tokens, dense_weight(basis, sigma, cobasis), bias)
    else:
        y = LowRankProduct.apply(tokens, basis, sigma, cobasis, bias)
    return y.view(*x.shape[:-1], -1)


class LowRankProduct(torch.autograd.Function):
    """y = x (U Σ Vᵀ)ᵀ + b of x (T, n) by factors, with gradients for x, Σ and b.

    Left to autograd, U and Σ would be multiplied apart, and x be kept for the backward pass; here
    it is Z = xV, of which there are r columns only.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, basis: Tensor, sigma: Tensor, cobasis: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Z = xV; y = Z(UΣ)ᵀ + b, or (ZΣᵀ)Uᵀ + b where that costs less."""
        z = linear(x, cobasis)
        ctx.save_for_backward(z, basis, sigma, cobasis)
        if basis.shape[0] < len(x):
            return linear(z, linear(basis, sigma.mT), bias)
        return linear(linear(z, sigma), basis, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None, None, Tensor | None]:
        """G = dY·U; dΣ = GᵀZ; dx = G(ΣVᵀ), or (GΣ)Vᵀ where that costs less."""
        z, basis, sigma, cobasis = ctx.saved_tensors
        needs_x, _, needs_sigma, _, needs_bias = ctx.needs_input_grad
        g = linear(grad, basis.mT)
        grad_x = None
        if needs_x and cobasis.shape[1] < len(grad):
            grad_x = linear(g, linear(cobasis.mT, sigma))
        elif needs_x:
            grad_x = linear(linear(g, sigma.mT), cobasis.mT)
        grad_sigma = g.mT @ z if needs_sigma else None
        grad_bias = grad.sum(dim=0) if needs_bias else None
        return grad_x, None, grad_sigma, None, grad_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b of x (T, n).

    On a CPU in float32 as a convolution of kernel 1 over channels-last memory: for that PyTorch
    takes oneDNN, which on some CPUs is twice as fast as the BLAS behind `F.linear`. PyTorch spares
    oneDNN the plain kernels of size 1, but not the dilated ones, which are the same.
    """
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    if not on_cpu or x.numel() * weight.shape[0] < ONEDNN_PAYS_FROM:
        return F.linear(x, weight, bias)
    image = x[None, :, None].permute(0, 3, 1, 2)
    y = F.conv2d(image, weight[:, :, None, None], bias, dilation=2)
    return y.permute(0, 2, 3, 1)[0, :, 0]


def dense_weight(basis: Tensor, sigma: Tensor, cobasis: Tensor) -> Tensor:
    """Build W = U Σ Vᵀ, Σ taken to the shorter side first."""
    if basis.shape[0] < cobasis.shape[1]:
        return linear(linear(basis, sigma.mT), cobasis.mT)
    return linear(basis, linear(cobasis.mT, sigma))


def dense_is_cheaper(
    num_tokens: int, out_features: int, in_features: int, inner_rank: int, *, chain: bool = False
) -> bool:
    """Compare the multiplications of a training step: forward, input gradient, Σ gradient.

    Of the factors as in `LowRankProduct`, or as a `chain` of three products left to autograd.
    """
    t, m, n, r = num_tokens, out_features, in_features, inner_rank
    mixing = 2 * t * r * r if chain else r * r * (min(m, t) + min(n, t))
    factors = 2 * t * r * (m + n) + t * r * r + mixing
    dense = 3 * t * m * n + 2 * (m * n * r + min(m, n) * r * r)
    return dense < factors
