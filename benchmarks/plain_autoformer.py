"""Autoformer (Wu et al., NeurIPS 2021) transcribed from the paper as it stands, for comparison.

Each operation is written the way the algorithm is published: correlations of every channel, one
roll of the values for each delay with its weight repeated over time and channels, feed-forward
layers as convolutions of kernel 1. Parameters have the names of
`oialr_training.models.autoformer`, so that the same state loads into both.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oialr_training.sections import AutoformerModel

# B: batch, L: time steps, S: time steps of keys and values, D: d_model, H: heads, E: D / H


class PlainDecomposition(nn.Module):
    """Series decomposition, Eq. (1)."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.average = nn.AvgPool1d(kernel_size=window, stride=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) → seasonal and trend part."""
        margin = (self.window - 1) // 2
        start = x[:, :1].repeat(1, margin, 1)
        end = x[:, -1:].repeat(1, margin, 1)
        padded = torch.cat([start, x, end], dim=1)
        trend = self.average(padded.permute(0, 2, 1)).permute(0, 2, 1)
        return x - trend, trend


class PlainAutoCorrelation(nn.Module):
    """Auto-correlation with time delay aggregation, Eqs. (5) to (8)."""

    def __init__(self, d_model: int, num_heads: int, factor: int) -> None:
        super().__init__()
        self.num_heads, self.factor = num_heads, factor
        self.query_projection = nn.Linear(d_model, d_model)
        self.key_projection = nn.Linear(d_model, d_model)
        self.value_projection = nn.Linear(d_model, d_model)
        self.out_projection = nn.Linear(d_model, d_model)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """(B, L, D) and (B, S, D) → (B, L, D)."""
        num_steps = queries.shape[1]
        q = self._heads(self.query_projection(queries))
        k = _fit(self._heads(self.key_projection(memory)), num_steps)
        v = _fit(self._heads(self.value_projection(memory)), num_steps)
        spectrum = torch.fft.rfft(q, dim=-1) * torch.conj(torch.fft.rfft(k, dim=-1))
        correlation = torch.fft.irfft(spectrum, n=num_steps, dim=-1)
        mean_correlation = correlation.mean(dim=1).mean(dim=1)
        num_delays = int(self.factor * math.log(num_steps))
        if self.training:
            delays = torch.topk(mean_correlation.mean(dim=0), num_delays).indices
            weights = torch.softmax(mean_correlation[:, delays], dim=-1)
            result = torch.zeros_like(v)
            for i in range(num_delays):
                rolled = torch.roll(v, -int(delays[i]), dims=-1)
                repeated = weights[:, i, None, None, None].repeat(1, *v.shape[1:])
                result = result + rolled * repeated
        else:
            top, sample_delays = torch.topk(mean_correlation, num_delays, dim=-1)
            weights = torch.softmax(top, dim=-1)
            twice = v.repeat(1, 1, 1, 2)
            steps = torch.arange(num_steps, device=v.device).repeat(*v.shape[:3], 1)
            result = torch.zeros_like(v)
            for i in range(num_delays):
                index = steps + sample_delays[:, i, None, None, None].repeat(1, *v.shape[1:])
                rolled = torch.gather(twice, dim=-1, index=index)
                result = result + rolled * weights[:, i, None, None, None].repeat(1, *v.shape[1:])
        merged = result.permute(0, 3, 1, 2).reshape(queries.shape)
        return self.out_projection(merged)  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        """(B, S, D) → (B, H, E, S)."""
        return x.view(*x.shape[:2], self.num_heads, -1).permute(0, 2, 3, 1).contiguous()


def _fit(x: Tensor, num_steps: int) -> Tensor:
    """Cut or zero-pad the last dimension."""
    return F.pad(x, (0, num_steps - x.shape[-1]))


class PlainFeedForward(nn.Module):
    """Two convolutions of kernel 1."""

    def __init__(self, config: AutoformerModel) -> None:
        super().__init__()
        self.expand = nn.Conv1d(config.d_model, config.d_ff, kernel_size=1, bias=False)
        self.contract = nn.Conv1d(config.d_ff, config.d_model, kernel_size=1, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        hidden = self.dropout(F.gelu(self.expand(x.transpose(-1, 1))))
        return self.dropout(self.contract(hidden).transpose(-1, 1))  # type: ignore[no-any-return]


class PlainSeasonalNorm(nn.Module):
    """Layer norm without its mean over time."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        normed = self.norm(x)
        return normed - normed.mean(dim=1).unsqueeze(1).repeat(1, x.shape[1], 1)  # type: ignore[no-any-return]


class PlainEmbedding(nn.Module):
    """Values by a circular convolution of kernel 3, plus time features."""

    def __init__(self, config: AutoformerModel, num_series: int, num_time_features: int) -> None:
        super().__init__()
        self.values = nn.Conv1d(
            num_series, config.d_model, 3, padding=1, padding_mode="circular", bias=False
        )
        self.time = nn.Linear(num_time_features, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, values: Tensor, marks: Tensor) -> Tensor:
        """(B, L, series) and (B, L, features) → (B, L, D)."""
        embedded = self.values(values.permute(0, 2, 1)).transpose(1, 2) + self.time(marks)
        return self.dropout(embedded)  # type: ignore[no-any-return]


class PlainEncoderLayer(nn.Module):
    """Eq. (3)."""

    def __init__(self, config: AutoformerModel) -> None:
        super().__init__()
        self.attention = PlainAutoCorrelation(config.d_model, config.num_heads, config.factor)
        self.feed_forward = PlainFeedForward(config)
        self.decomposition = PlainDecomposition(config.moving_average)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        x, _ = self.decomposition(x + self.dropout(self.attention(x, x)))
        x, _ = self.decomposition(x + self.feed_forward(x))
        return x


class PlainDecoderLayer(nn.Module):
    """Eq. (4)."""

    def __init__(self, config: AutoformerModel, num_series: int) -> None:
        super().__init__()
        self.self_attention = PlainAutoCorrelation(config.d_model, config.num_heads, config.factor)
        self.cross_attention = PlainAutoCorrelation(config.d_model, config.num_heads, config.factor)
        self.feed_forward = PlainFeedForward(config)
        self.trend = nn.Conv1d(
            config.d_model, num_series, 3, padding=1, padding_mode="circular", bias=False
        )
        self.decomposition = PlainDecomposition(config.moving_average)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) and (B, S, D) → seasonal part (B, L, D), trend (B, L, series)."""
        x, trend1 = self.decomposition(x + self.dropout(self.self_attention(x, x)))
        x, trend2 = self.decomposition(x + self.dropout(self.cross_attention(x, memory)))
        x, trend3 = self.decomposition(x + self.feed_forward(x))
        trend = trend1 + trend2 + trend3
        return x, self.trend(trend.permute(0, 2, 1)).transpose(1, 2)


class PlainEncoder(nn.Module):
    """Layers, then the seasonal layer norm."""

    def __init__(self, config: AutoformerModel) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PlainEncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = PlainSeasonalNorm(config.d_model)


class PlainDecoder(nn.Module):
    """Layers, the seasonal layer norm, the projection back to the series."""

    def __init__(self, config: AutoformerModel, num_series: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PlainDecoderLayer(config, num_series) for _ in range(config.decoder_layers)
        )
        self.norm = PlainSeasonalNorm(config.d_model)
        self.projection = nn.Linear(config.d_model, num_series)


class PlainAutoformer(nn.Module):
    """The whole network, as `oialr_training.models.autoformer.Autoformer`."""

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
        self.decomposition = PlainDecomposition(config.moving_average)
        self.encoder_embedding = PlainEmbedding(config, num_series, num_time_features)
        self.decoder_embedding = PlainEmbedding(config, num_series, num_time_features)
        self.encoder = PlainEncoder(config)
        self.decoder = PlainDecoder(config, num_series)

    def forward(self, values: Tensor, input_marks: Tensor, output_marks: Tensor) -> Tensor:
        """(B, seq_len, series) and two (B, ..., features) → (B, pred_len, series)."""
        mean = values.mean(dim=1).unsqueeze(1).repeat(1, self.pred_len, 1)
        zeros = torch.zeros_like(mean)
        seasonal, trend = self.decomposition(values)
        trend = torch.cat([trend[:, -self.label_len :], mean], dim=1)
        seasonal = torch.cat([seasonal[:, -self.label_len :], zeros], dim=1)
        memory = self.encoder_embedding(values, input_marks)
        for layer in self.encoder.layers:
            memory = layer(memory)
        memory = self.encoder.norm(memory)
        x = self.decoder_embedding(seasonal, output_marks)
        for layer in self.decoder.layers:
            x, residual_trend = layer(x, memory)
            trend = trend + residual_trend
        output = self.decoder.projection(self.decoder.norm(x)) + trend
        return output[:, -self.pred_len :]  # type: ignore[no-any-return]
