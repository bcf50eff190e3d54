"""Autoformer (Wu et al., "Autoformer: Decomposition Transformers with Auto-Correlation for
Long-Term Series Forecasting", NeurIPS 2021).

The same mathematics as published, arranged for speed: delays are looked up on the device and never
reach the host; correlations are summed over the channels before the inverse Fourier transform; the
values of all delays are gathered, weighted and summed in one pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oialr_training.sections import AutoformerModel

# B: batch, L: time steps of the queries, S: time steps of keys and values, D: d_model,
# k: number of delays chosen


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` of (B, L, n) → (B, L, m); a dense Linear in float32 on a CPU goes through oneDNN.

    As a convolution of kernel 1 over channels-last memory, (B, n, L, 1). oneDNN is twice as fast as
    the BLAS behind `F.linear` on some CPUs, and PyTorch takes it for any batch if the kernel is
    dilated, which changes nothing in one of size 1.
    """
    if type(layer) is not nn.Linear or x.device.type != "cpu" or x.dtype != torch.float32:
        return layer(x)  # type: ignore[no-any-return]
    image = x.unsqueeze(2).permute(0, 3, 1, 2)
    y = F.conv2d(image, layer.weight[:, :, None, None], layer.bias, dilation=2)
    return y.permute(0, 2, 3, 1).squeeze(2)


class Dropout(nn.Dropout):
    """`nn.Dropout`; on a CPU it draws 16 bits an element, not 32, which halves its time.

    Hence p is taken to the nearest multiple of 2⁻¹⁶ below 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        if x.device.type != "cpu" or not self.training or self.p == 0.0:
            return super().forward(x)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        num_dropped = min(round(self.p * 2**16), 2**16 - 1)  # of the 2¹⁶ values of a draw
        dropped = draws.view(torch.int16)[: x.numel()].view(x.shape) < num_dropped - 2**15
        return (x * (2**16 / (2**16 - num_dropped))).masked_fill(dropped, 0.0)


def sum_rows(x: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """y(b, t) = Σ_j weights(b, t, j) · x(b, rows(b, t, j)) of (B, L, D), in one pass over x.

    Rows and weights are (B, L, j), or (1, L, j) for the whole batch. Returns (B, L, D).
    """
    batch, num_steps, width = x.shape
    first_rows = num_steps * torch.arange(batch, device=x.device)[:, None, None]
    summed = F.embedding_bag(
        (first_rows + rows).flatten(0, 1),
        x.reshape(-1, width),
        per_sample_weights=weights.to(x.dtype).expand(batch, num_steps, -1).flatten(0, 1),
        mode="sum",
    )
    return summed.view_as(x)


class MovingAverage(torch.autograd.Function):
    """Mean over a window around each time step, the ends repeated beyond themselves: Eq. (1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: int) -> Tensor:
        """(B, L, C) → (B, L, C)."""
        ctx.window = window
        rows = windows(x, window).clamp(0, x.shape[1] - 1)
        return sum_rows(x, rows, x.new_full((1, *rows.shape[1:]), 1 / window))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """(B, L, C) → (B, L, C).

        Each step counts once in the windows around it, an end also for its repetitions.
        """
        margin, last = ctx.window // 2, grad.shape[1] - 1
        rows = windows(grad, ctx.window)
        steps = torch.arange(last + 1, device=grad.device)[:, None]
        counts = 1 + (steps == 0) * (margin - rows).clamp(min=0)
        counts = counts + (steps == last) * (margin - last + rows).clamp(min=0)
        counts = counts * ((rows >= 0) & (rows <= last))
        return sum_rows(grad, rows.clamp(0, last), counts.to(grad.dtype) / ctx.window), None


def windows(x: Tensor, window: int) -> Tensor:
    """The time steps around each step of (B, L, C): (1, L, window), beyond the ends too."""
    steps = torch.arange(x.shape[1], device=x.device)
    offsets = torch.arange(window, device=x.device) - window // 2
    return (steps[:, None] + offsets)[None]


def decompose(x: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Split (B, L, C) into its seasonal part and its trend, (B, L, C) each: Eq. (1)."""
    trend: Tensor = MovingAverage.apply(x, window)
    return x - trend, trend


def correlations(q: Tensor, k: Tensor) -> Tensor:
    """Mean over the channels of the circular correlations of two (B, L, D), for all delays: (B, L).

    The sum over the channels comes before the inverse transform, which is linear.
    """
    q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
    spectrum = torch.linalg.vecdot(torch.fft.rfft(k, dim=1), torch.fft.rfft(q, dim=1))
    summed: Tensor = torch.fft.irfft(spectrum, n=q.shape[1])  # Eq. (8)
    return summed / q.shape[2]


def strongest_delays(correlation: Tensor, factor: int, *, shared: bool) -> Tensor:
    """The delays (B, k) of the greatest correlations (B, L); `shared`: one choice for the batch."""
    num_delays = int(factor * math.log(correlation.shape[1]))
    if shared:
        return correlation.mean(dim=0).topk(num_delays).indices.expand(len(correlation), -1)
    return correlation.topk(num_delays, dim=1).indices  # Eq. (6), argTopk


def aggregate(x: Tensor, delays: Tensor, weights: Tensor) -> Tensor:
    """Σ_i weights_i · roll(x, -delays_i) of (B, L, D), delays and weights (B, k) → (B, L, D)."""
    num_steps = x.shape[1]
    steps = torch.arange(num_steps, device=x.device)[:, None]
    return sum_rows(x, (steps + delays[:, None]) % num_steps, weights[:, None])


class ChosenCorrelations(torch.autograd.Function):
    """The correlations of the chosen delays.

    Only they carry a gradient, so that the backward pass needs no Fourier transform: with
    R(τ) = Σ_t q(t + τ) k(t), the gradient of q is a sum of rolled k, that of k a sum of rolled q.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, correlation: Tensor, delays: Tensor) -> Tensor:
        """(B, L, D) twice, (B, L), (B, k) → (B, k)."""
        ctx.save_for_backward(q, k, delays)
        return correlation.gather(1, delays)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """(B, k) → the gradients of q and k, (B, L, D) each."""
        q, k, delays = ctx.saved_tensors
        grad = grad / q.shape[2]
        return aggregate(k, -delays, grad), aggregate(q, delays, grad), None, None


def auto_correlation(q: Tensor, k: Tensor, v: Tensor, factor: int, *, training: bool) -> Tensor:
    """Time delay aggregation of v (B, S, D) by the correlation of q (B, L, D) and k (B, S, D).

    Returns (B, L, D).
    In training the delays are those of the batch's mean correlation, else each sample's own.
    """
    k, v = fit_length(k, q.shape[1]), fit_length(v, q.shape[1])
    with torch.no_grad():
        correlation = correlations(q, k)
        delays = strongest_delays(correlation, factor, shared=training)
    weights = ChosenCorrelations.apply(q, k, correlation, delays).softmax(dim=1)
    return aggregate(v, delays, weights)  # Eq. (6)


def fit_length(x: Tensor, num_steps: int) -> Tensor:
    """Cut (B, S, D) to (B, num_steps, D), or pad it with zeros."""
    if x.shape[1] >= num_steps:
        return x[:, :num_steps]
    return F.pad(x, (0, 0, 0, num_steps - x.shape[1]))


class AutoCorrelation(nn.Module):
    """Auto-correlation between linear projections, Eq. (7).

    The delays and weights are the mean of all heads', so that the heads need not be told apart.
    """

    def __init__(self, d_model: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.query_projection = nn.Linear(d_model, d_model)
        self.key_projection = nn.Linear(d_model, d_model)
        self.value_projection = nn.Linear(d_model, d_model)
        self.out_projection = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(B, L, D) and (B, S, D) → (B, L, D)."""
        q = apply_linear(self.query_projection, x)
        k = apply_linear(self.key_projection, memory)
        v = apply_linear(self.value_projection, memory)
        y = auto_correlation(q, k, v, self.factor, training=self.training)
        return apply_linear(self.out_projection, y)


class FeedForward(nn.Module):
    """Two layers without bias; the published convolutions of kernel 1 are matrix products."""

    def __init__(self, config: AutoformerModel) -> None:
        super().__init__()
        self.expand = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.contract = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        hidden = self.dropout(F.gelu(apply_linear(self.expand, x)))
        return self.dropout(apply_linear(self.contract, hidden))  # type: ignore[no-any-return]


class CircularConv(nn.Conv1d):
    """Convolution of kernel 3 over time that takes the series as periodic, without bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            in_channels, out_channels, 3, padding=1, padding_mode="circular", bias=False
        )


def apply_narrowing(conv: nn.Module, x: Tensor) -> Tensor:
    """`conv(x)` of (B, L, n) → (B, L, m) with m < n: a CircularConv shifts its outputs, not x."""
    if type(conv) is not CircularConv:
        return conv(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]
    before, now, after = F.linear(x, conv.weight.permute(2, 0, 1).flatten(0, 1)).chunk(3, dim=2)
    return before.roll(1, dims=1) + now + after.roll(-1, dims=1)


class SeasonalNorm(nn.Module):
    """Layer norm without its mean over time: what is left has no trend."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        normed = self.norm(x)
        return normed - normed.mean(dim=1, keepdim=True)  # type: ignore[no-any-return]


class Embedding(nn.Module):
    """Values and time features to d_model channels; the order of time needs no position."""

    def __init__(self, config: AutoformerModel, num_series: int, num_time_features: int) -> None:
        super().__init__()
        self.values = CircularConv(num_series, config.d_model)
        nn.init.kaiming_normal_(self.values.weight, nonlinearity="leaky_relu")  # their code
        self.time = nn.Linear(num_time_features, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(self, values: Tensor, marks: Tensor) -> Tensor:
        """(B, L, num_series) and (B, L, num_time_features) → (B, L, D)."""
        # The first term lends the sum its memory layout: time before channels.
        embedded = self.time(marks) + self.values(values.transpose(1, 2)).transpose(1, 2)
        return self.dropout(embedded)  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Auto-correlation and feed-forward, of which the seasonal parts go on."""

    def __init__(self, config: AutoformerModel) -> None:
        super().__init__()
        self.attention = AutoCorrelation(config.d_model, config.factor)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)
        self.window = config.moving_average

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        x, _ = decompose(x + self.dropout(self.attention(x, x)), self.window)  # Eq. (3)
        x, _ = decompose(x + self.feed_forward(x), self.window)
        return x


class DecoderLayer(nn.Module):
    """As the encoder's, with the encoder's output as memory; the trends go another way."""

    def __init__(self, config: AutoformerModel, num_series: int) -> None:
        super().__init__()
        self.self_attention = AutoCorrelation(config.d_model, config.factor)
        self.cross_attention = AutoCorrelation(config.d_model, config.factor)
        self.feed_forward = FeedForward(config)
        self.trend = CircularConv(config.d_model, num_series)
        self.dropout = Dropout(config.dropout)
        self.window = config.moving_average

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) and (B, S, D) → seasonal part (B, L, D), trend (B, L, num_series)."""
        x, trend1 = decompose(x + self.dropout(self.self_attention(x, x)), self.window)  # Eq. (4)
        x, trend2 = decompose(x + self.dropout(self.cross_attention(x, memory)), self.window)
        x, trend3 = decompose(x + self.feed_forward(x), self.window)
        return x, apply_narrowing(self.trend, trend1 + trend2 + trend3)


class Encoder(nn.Module):
    """Encoder layers, then the seasonal layer norm."""

    def __init__(self, config: AutoformerModel) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = SeasonalNorm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) → (B, S, D)."""
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Decoder layers, each of which refines the trend, then norm and projection."""

    def __init__(self, config: AutoformerModel, num_series: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(config, num_series) for _ in range(config.decoder_layers)
        )
        self.norm = SeasonalNorm(config.d_model)
        self.projection = nn.Linear(config.d_model, num_series)

    def forward(self, x: Tensor, memory: Tensor, trend: Tensor) -> Tensor:
        """(B, L, D), (B, S, D) and (B, L, num_series) → (B, L, num_series)."""
        for layer in self.layers:
            x, layer_trend = layer(x, memory)
            trend = trend + layer_trend
        return self.projection(self.norm(x)) + trend  # type: ignore[no-any-return]


class Autoformer(nn.Module):
    """Forecasts `pred_len` steps of several series from their past."""

    def __init__(
        self,
        config: AutoformerModel,
        *,
        num_series: int,
        num_time_features: int,
        label_len: int,
        pred_len: int,
    ) -> None:
        super().__init__()
        self.label_len, self.pred_len = label_len, pred_len
        self.window = config.moving_average
        self.encoder_embedding = Embedding(config, num_series, num_time_features)
        self.decoder_embedding = Embedding(config, num_series, num_time_features)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, num_series)

    def forward(self, values: Tensor, input_marks: Tensor, output_marks: Tensor) -> Tensor:
        """Values and time features of the past → the values to come.

        Args:
            values: (B, seq_len, num_series), standardised.
            input_marks: (B, seq_len, num_time_features) of the past steps.
            output_marks: (B, label_len + pred_len, num_time_features) of the last `label_len` past
                steps and the steps to come.

        Returns:
            (B, pred_len, num_series).
        """
        seasonal, trend = self._decoder_start(values)
        memory = self.encoder(self.encoder_embedding(values, input_marks))
        hidden = self.decoder_embedding(seasonal, output_marks)
        output: Tensor = self.decoder(hidden, memory, trend)
        return output[:, -self.pred_len :]

    def _decoder_start(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, seq_len, num_series) → two (B, label_len + pred_len, num_series).

        The last known seasonal part, then zeros; the last known trend, then the mean.
        """
        seasonal, trend = (part[:, -self.label_len :] for part in decompose(values, self.window))
        mean = values.mean(dim=1, keepdim=True).expand(-1, self.pred_len, -1)
        zeros = torch.zeros_like(mean)
        return torch.cat([seasonal, zeros], dim=1), torch.cat([trend, mean], dim=1)  # Eq. (2)


# The authors' names of modules, and ours.
PUBLISHED_NAMES = {
    r"^enc_embedding": "encoder_embedding",
    r"^dec_embedding": "decoder_embedding",
    r"value_embedding\.tokenConv": "values",
    r"temporal_embedding\.embed": "time",
    r"attn_layers": "layers",
    r"conv1": "feed_forward.expand",
    r"conv2": "feed_forward.contract",
    r"(layers\.\d+)\.projection": r"\1.trend",
    r"layernorm": "norm",
}


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' `state_dict` under this network's names; its unused positions are left out.

    Their kernels of size 1, (out, in, 1), become matrices, (out, in).
    """
    renamed = {}
    for name, weight in state.items():
        if "position_embedding" in name:
            continue
        for theirs, ours in PUBLISHED_NAMES.items():
            name = re.sub(theirs, ours, name)
        renamed[name] = weight.squeeze(-1) if "feed_forward" in name else weight
    return renamed
