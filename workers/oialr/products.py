"""The low-rank layer's arithmetic: y = x (U Σ Vᵀ)ᵀ + b in the cheapest order of products."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# T: tokens, m x n: the weight's shape (out x in), r: inner rank, q = min(m, n);
# of a convolution T counts the output positions, and n is in·k...
# basis U: (m, r), sigma Σ: (r, r), cobasis Vᵀ: (r, n), bias b: (m,)

ONEDNN_PAYS_FROM = 4_000_000  # multiplications; below it a convolution's overhead weighs more


def low_rank_linear(
    x: Tensor, basis: Tensor, sigma: Tensor, cobasis: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Apply U Σ Vᵀ to x: (..., n); returns (..., m).

    W itself is built only where that costs less.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, basis, sigma, cobasis = (factor.to(dtype) for factor in (x, basis, sigma, cobasis))
        bias = None if bias is None else bias.to(dtype)
    tokens = x.reshape(-1, x.shape[-1])
    if dense_is_cheaper(len(tokens), basis.shape[0], cobasis.shape[1], basis.shape[1]):
        y = linear(tokens, dense_weight(basis, sigma, cobasis), bias)
    else:
        y, _ = LowRankProduct.apply(tokens, basis, sigma, cobasis, bias)
    return y.view(*x.shape[:-1], basis.shape[0])


class LowRankProduct(torch.autograd.Function):
    """y = x (U Σ Vᵀ)ᵀ + b by factors, with gradients for x, Σ and b; and Z = xV.

    Left to autograd, U and Σ would be multiplied apart, and x be kept for the backward pass; here
    it is Z, of which there are r columns only. Z is an output for double backward: so autograd
    knows that the gradient of Σ, which is made of Z, depends on x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, basis: Tensor, sigma: Tensor, cobasis: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x: (T, n); returns y: (T, m) = Z(UΣ)ᵀ + b, or (ZΣᵀ)Uᵀ + b where it costs less, and Z."""
        ctx.set_materialize_grads(False)
        z = linear(x, cobasis)
        ctx.save_for_backward(z, basis, sigma, cobasis)
        if basis.shape[0] < len(x):
            return linear(z, linear(basis, sigma.mT), bias), z
        return linear(linear(z, sigma), basis, bias), z

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_z: Tensor | None
    ) -> tuple[Tensor | None, None, Tensor | None, None, Tensor | None]:
        """G = dY·U; dΣ = GᵀZ; dx = G(ΣVᵀ), or (GΣ)Vᵀ where that costs less.

        grad, dY: (T, m); grad_z, None but in double backward: (T, r); returns those of x: (T, n),
        Σ: (r, r) and b: (m,).
        """
        z, basis, sigma, cobasis = ctx.saved_tensors
        needs_x, _, needs_sigma, _, needs_bias = ctx.needs_input_grad
        grad_x = grad_sigma = grad_bias = None
        if grad is not None:
            g = linear(grad, basis.mT)
            if needs_x and cobasis.shape[1] < len(grad):
                grad_x = linear(g, linear(cobasis.mT, sigma))
            elif needs_x:
                grad_x = linear(linear(g, sigma.mT), cobasis.mT)
            grad_sigma = g.mT @ z if needs_sigma else None
            grad_bias = grad.sum(dim=0) if needs_bias else None
        if grad_z is not None and needs_x:
            through_z = linear(grad_z, cobasis.mT)
            grad_x = through_z if grad_x is None else grad_x + through_z
        return grad_x, None, grad_sigma, None, grad_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b of x: (T, n), weight: (m, n), bias: (m,); returns (T, m).

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
    """Build W = U Σ Vᵀ, Σ taken to the shorter side first; returns (m, n)."""
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
