"""The whole training against the authors' way: each weight built at each forward pass."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oialr import OIALR, LowRankConv, LowRankLinear, OIALRSettings


class BuiltLinear(LowRankLinear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.basis @ self.sigma @ self.cobasis, self.bias)


class BuiltConv(LowRankConv):
    def forward(self, x: Tensor) -> Tensor:
        kernel = (self.basis @ self.sigma @ self.cobasis).view(self.weight.shape)
        return F.conv2d(x, kernel, self.bias, self.stride, self.padding)


BUILT = {LowRankLinear: BuiltLinear, LowRankConv: BuiltConv}


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(12, 16, 3, stride=2, bias=False),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(144, 40),
        nn.GELU(),
        nn.Linear(40, 24),
    ).double()


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_two_hundred_steps_have_the_losses_of_built_weights(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(200, 8, 3, 8, 8, generator=generator, dtype=torch.float64)
    targets = torch.randn(200, 8, 24, generator=generator, dtype=torch.float64)
    settings = OIALRSettings(
        delay_steps=0,
        update_frequency=25,
        cutoff_fraction=0.3,
        layer_fraction=0.5,
        max_cut_fraction=0.3,
    )
    losses: list[list[float]] = []
    inner_ranks: list[list[int]] = []
    for built in (False, True):
        model = copy.deepcopy(network())
        options = {"lr": 1e-2, "momentum": 0.9} if name == "SGD" else {"lr": 1e-3}
        optimizer = getattr(torch.optim, name)(model.parameters(), **options)
        oialr = OIALR(model, optimizer, settings)
        if built:
            for layer in oialr.low_rank_layers.values():
                layer.__class__ = BUILT[type(layer)]
        trace, ranks = [], []
        for x, y in zip(inputs, targets, strict=True):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            trace.append(loss.item())
            ranks += [update.inner_rank for update in oialr.step()]
        losses.append(trace)
        inner_ranks.append(ranks)
    assert inner_ranks[0] == inner_ranks[1]
    assert min(inner_ranks[0]) < 12  # of 12, 16, 40 and 24
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] != losses[0][0]
