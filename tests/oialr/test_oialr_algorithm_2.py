"""The package beside the slow reference of Algorithm 2, step by step, over random networks."""

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oialr import OIALR, OIALRSettings

from .algorithm_2 import BETAS, EPS, LR, WEIGHT_DECAY, algorithm_2

NUM_STEPS = 14

percentages = st.integers(1, 100).map(lambda percent: percent / 100)
readings = st.builds(
    OIALRSettings,
    delay_steps=st.integers(0, 6),
    update_frequency=st.integers(1, 4),
    cutoff_fraction=st.sampled_from([0.0, 0.1, 0.3, 0.6, 0.9]),
    layer_fraction=percentages,
    growing_window=st.booleans(),
    full_rank_warmup=st.booleans(),
    min_dim=st.just(1),
    max_aspect_ratio=st.just(1e6),
    max_cut_fraction=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
    min_inner_rank_fraction=st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.5]),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=7), st.integers(0, 2**32 - 1), readings)
def test_training_is_that_of_the_reference(
    widths: list[int], seed: int, chosen: OIALRSettings
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(n, m, bias=False).double() for n, m in pairwise(widths)]
    for layer in layers:
        nn.init.normal_(layer.weight, generator=generator)
    batches = torch.randn(NUM_STEPS + 1, 5, widths[0], dtype=torch.float64, generator=generator)

    def loss(weights: list[Tensor], step: int) -> Tensor:
        x = batches[step]
        for weight in weights:
            x = (x @ weight.mT).sin()
        return x.square().sum()

    reference = algorithm_2(
        [layer.weight.detach().clone() for layer in layers], loss, chosen, NUM_STEPS
    )
    model = nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY
    )
    oialr = OIALR(model, optimizer, chosen)
    for step, (weights, reached) in enumerate(reference, start=1):
        optimizer.zero_grad()
        x = batches[step]
        for layer in model:
            x = layer(x).sin()
        x.square().sum().backward()
        optimizer.step()
        updates = oialr.step()
        assume(min(weight.toss_up for weight in weights) > 1e-6)
        assert [update.layer for update in updates] == [str(i) for i in reached]
        for update, i in zip(updates, reached, strict=True):
            assert update.inner_rank == len(weights[i].sigma)
            assert update.stability == pytest.approx(weights[i].stability, abs=1e-6)
        assert oialr.converted == (weights[0].basis is not None)
        for layer, weight in zip(model, weights, strict=True):
            torch.testing.assert_close(layer.weight.detach(), weight.dense(), atol=1e-9, rtol=1e-9)
